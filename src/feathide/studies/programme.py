"""A programme: questions about attacks and guards, each put to one or several plans, with what is
expected of the answer.

A folder holds ``questions.yaml`` and a file for each scale (``small.yaml``, ``full.yaml``) with
the plans; a plan that is ``like`` one above it takes over the fields that it does not give, and
``only`` names the questions that are asked at that scale, all where it is left out. All questions
share one store, so that what two of them need is computed once and a run that was stopped goes
on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field, ValidationError, field_validator

from feathide.analysis import overview as whole
from feathide.analysis.overview import Work
from feathide.auditing.report_data import run_of
from feathide.auditing.run import checked
from feathide.auditing.tasks import audit_tasks
from feathide.errors import expected, unknown
from feathide.execution.digests import digest
from feathide.execution.store import open_folder
from feathide.execution.whole_files import write_whole
from feathide.pipeline.context import Context
from feathide.pipeline.table import table_of
from feathide.plans.plan import load_plan, merged
from feathide.plans.sections import Part
from feathide.report import render
from feathide.report.chapters import Book, Chapter, Claimed, Layout, book, chapter, markdown
from feathide.report.sheet import Sheet
from feathide.sanity.checks import sanity_checks_of
from feathide.studies.claims import Claim, judge

__all__ = [
    "Asked",
    "Programme",
    "Question",
    "answer",
    "asked",
    "load_programme",
    "programmes",
    "run_programme",
]

GENERATED = ("phantoms", "phantoms3d")  # images that lie in no folder
AGAINST = 6  # rows that are named where they speak against a claim

DONE: Mapping[str, tuple[str, ...]] = {
    "audit": (),
    "direction": (),
    "stress": ("seeds",),
    "outliers": (),
    "transfer": ("networks", "seeds", "halves", "jury"),
    "ood": ("near", "far"),
}
LAYOUTS = {
    "direction": Layout(
        ("cosine_steps", "cosine_images", "cosine_means", "correlation_weights"),
        ("layer",),
        ("attack", "objective"),
    ),
    "stress": Layout(
        ("accuracy", "drift_down", "drift_up", "drift_away", "activation"),
        ("layer",),
        ("dataset", "seed"),
    ),
    "outliers": Layout(
        ("distance", "auc_density", "caught_fpr10", "most_suspicious"),
        ("layer",),
        ("attack", "objective"),
    ),
    "transfer": Layout(("success",), ("attack", "objective", "versus"), ("classifier",)),
    "ood": Layout(("auc", "fpr95"), ("kind", "versus"), ("detector",), guards=True),
}


class Question(Part):
    """One question. ``asks``: in words; ``paper``: what the paper says to it; ``do``: an audit or
    an analysis of ``plans``, each changed by ``change``; ``vary``: label -> further change, one
    run each; ``options``: of the analysis; ``expect``: what is to be seen in the table; ``show``:
    the metric shown.
    """

    asks: str
    paper: str = ""
    do: Literal["audit", "direction", "stress", "outliers", "transfer", "ood"] = "audit"
    plans: tuple[str, ...] = Field(min_length=1)
    change: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, dict[str, Any]] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    expect: tuple[Claim, ...] = ()
    show: str = "auc"

    @field_validator("options")
    @classmethod
    def _known(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        allowed = DONE[info.data.get("do", "audit")]
        for name in options:
            if name not in allowed:
                raise unknown("option", name, allowed)
        return options


class Programme(Part):
    """Questions and the plans that they are put to, at one scale. ``device``: as in a plan."""

    UNDIGESTED: ClassVar[tuple[str, ...]] = ("device",)

    title: str
    says: tuple[str, ...] = ()
    plans: dict[str, dict[str, Any]]
    questions: dict[str, Question]
    device: str = "auto"


@dataclass(frozen=True)
class Asked:
    """One run of a question: the plan's name, the variation's label, and the context (for
    ``stress`` one for each plan and seed).
    """

    plan: str
    variation: str
    contexts: tuple[Context, ...]


def programmes() -> dict[str, Path]:
    """The programmes at hand: folders with ``questions.yaml`` in ``studies`` here or beside the
    package.
    """
    package = Path(__file__).resolve().parents[1]
    roots = (package.parents[1] / "studies", package / "studies", Path("studies"))
    return {
        found.parent.name: found.parent
        for root in roots
        for found in sorted(root.glob("*/questions.yaml"))
    }


def load_programme(source: str | Path, *, scale: str, data: Path) -> Programme:
    """The programme of a folder, or one of ``programmes()`` by name. Paths of images are taken
    from the folder ``data``.

    Raises:
        InputError: no such programme or scale; a field that is unknown or wrong; a question about
            a plan that the scale does not have.
    """
    folder = Path(source)
    if not (folder / "questions.yaml").is_file():
        known = programmes()
        if str(source) not in known:
            raise unknown("programme", str(source), known)
        folder = known[str(source)]
    scales = sorted(f.stem for f in folder.glob("*.yaml") if f.stem != "questions")
    if scale not in scales:
        raise unknown("scale", scale, scales)
    asked, sized = (
        merged(folder / "questions.yaml", {}),
        merged(folder / f"{scale}.yaml", {}),
    )
    plans: dict[str, dict[str, Any]] = {}
    for name, plan in sized.pop("plans", {}).items():
        like = plan.pop("like", None)
        if like is not None and like not in plans:
            raise unknown(f"plan (that {name} is like)", like, plans)
        plans[name] = {**plans[like], **plan} if like else dict(plan)
    plans = {name: _placed(plan, data) for name, plan in plans.items()}
    questions = asked.get("questions", {})
    for name, change in sized.pop("questions", {}).items():
        if name not in questions:
            raise unknown("question", name, questions)
        questions[name] = {**questions[name], **change}
    for name in (only := sized.pop("only", list(questions))):
        if name not in questions:
            raise unknown("question", name, questions)
    questions = asked["questions"] = {name: questions[name] for name in only}
    for question in questions.values():
        options = question.get("options", {})
        options |= {
            kind: [str(data / path) for path in options[kind]]
            for kind in ("near", "far")
            if kind in options
        }
    try:
        found = Programme.model_validate({**asked, **sized, "plans": plans})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise expected(
            f"{folder / scale}: {where}", got=first["msg"], do="correct this field"
        ) from None
    for name, question in found.questions.items():
        for plan in question.plans:
            if plan not in found.plans:
                raise unknown(f"plan of question {name}", plan, found.plans)
    return found


def asked(programme: Programme, name: str, store: Path) -> list[Asked]:
    """The runs of a question, each with its checked labs: whatever cannot be used is refused
    here, before any long work.
    """
    question = programme.questions[name]
    there = {} if programme.device == "auto" else {"device": programme.device}
    found = []
    for variation, change in (question.vary or {"": {}}).items():
        plans = {
            p: merged(merged(programme.plans[p], question.change), change)
            for p in question.plans
        }
        if question.do == "stress":
            seeds = question.options.get("seeds", [0])
            contexts = tuple(
                _lab(plan, store, seed=seed, **there)
                for plan in plans.values()
                for seed in seeds
            )
            found.append(Asked(", ".join(plans), variation, contexts))
        else:
            found += [
                Asked(p, variation, (_lab(plan, store, **there),))
                for p, plan in plans.items()
            ]
    return found


def run_programme(
    programme: Programme,
    out: Path | str,
    work: Work,
    *,
    only: Sequence[str] = (),
    reuse: bool = False,
) -> Path:
    """Put all questions, or ``only`` some, and give the page ``study.html``.

    Beside it: ``study.md``, one ``<question>.csv`` for each question, ``claims.csv``,
    ``sanity_checks.csv``, and the reports of the audits. Finished work in ``out`` is kept: after
    an interruption the same call goes on.

    Raises:
        InputError: before any long work for whatever cannot be used, and for a folder that holds
            another programme (unless ``reuse``).
    """
    out = Path(out)
    for name in only:
        if name not in programme.questions:
            raise unknown("question", name, programme.questions)
    names = [name for name in programme.questions if not only or name in only]
    _check_images(programme, names)
    open_folder(out, digest(programme), reuse=reuse)
    runs = {name: asked(programme, name, out) for name in names}
    chapters, sanity_checks = [], []
    for name in names:
        found, judged = answer(programme.questions[name], name, runs.pop(name), out, work)
        chapters.append(found)
        sanity_checks += judged
        write_whole(out / f"{name}.csv", found.table.to_csv(index=False).encode())
    page = Book(
        programme.title, [*programme.says, *_summary(chapters, sanity_checks)], chapters
    )
    claims = [{"question": c.id, **asdict(claim)} for c in chapters for claim in c.claims]
    write_whole(out / "claims.csv", pd.DataFrame(claims).to_csv(index=False).encode())
    write_whole(
        out / "sanity_checks.csv", pd.DataFrame(sanity_checks).to_csv(index=False).encode()
    )
    write_whole(out / "study.md", markdown(page).encode())
    write_whole(out / "study.html", book(page).encode())
    return out / "study.html"


def _check_images(programme: Programme, names: Sequence[str]) -> None:
    """Refuse questions about images that are not there, and name those that can be asked."""

    def missing(name: str) -> list[str]:
        question = programme.questions[name]
        places = [str(programme.plans[p]["data"]["path"]) for p in question.plans]
        places += [
            path for kind in ("near", "far") for path in question.options.get(kind, ())
        ]
        return [
            place for place in places if place not in GENERATED and not Path(place).exists()
        ]

    lacking = list(dict.fromkeys(place for name in names for place in missing(name)))
    if lacking:
        rest = [name for name in names if not missing(name)]
        do = (
            "docs/datasets.md says what to fetch, and studies/prepare.py makes the files of "
            "the small scale from it; then name their folder by --data"
        )
        do += f", or ask those that have theirs: --only {','.join(rest)}" if rest else ""
        raise expected(
            "the images of the study must be there",
            got=f"no {', no '.join(lacking)}",
            do=do,
        )


def answer(
    question: Question, name: str, runs: Sequence[Asked], out: Path, work: Work
) -> tuple[Chapter, list[dict[str, str]]]:
    """Work off the runs of a question: its chapter, and the sanity checks of its audits. Audits
    that are no variations write their report into ``out``.
    """
    tables, pages, reports, sanity_checks = [], [], [], list[dict[str, str]]()
    for run in runs:
        context = run.contexts[0]
        if question.do == "audit":
            work(context, audit_tasks(context), alone=True)
            table, judged = table_of(context), sanity_checks_of(context)
            sanity_checks += [
                {"question": name, "plan": run.plan, "variation": run.variation, **check}
                for check in judged
            ]
            if not question.vary:
                reports.append(f"{name}-{run.plan}.html")
                write_whole(
                    out / reports[-1],
                    render(run_of(context, table, sanity_checks=judged)).encode(),
                )
        else:
            table, sheet = _analysis(question, run, work)
            pages.append(sheet)
        tables.append(table.assign(variation=run.variation))
    table = pd.concat(tables, ignore_index=True)
    claims = [_claimed(table, claim) for claim in question.expect]
    found = chapter(
        *(name, question.asks, table),
        show=question.show,
        paper=question.paper,
        claims=claims,
        pages=pages,
        reports=reports,
        layout=LAYOUTS.get(question.do),
    )
    return found, sanity_checks


def _claimed(table: pd.DataFrame, claim: Claim) -> Claimed:
    found = judge(table, claim)
    more = (
        f" and {len(found.against) - AGAINST} more" if len(found.against) > AGAINST else ""
    )
    idle = (
        f" ({found.idle} further rows are not tested: no attack succeeded there)"
        if found.n and found.idle
        else ""
    )
    return Claimed(
        found.says + idle,
        found.verdict,
        f"{found.clear} of {found.n}",
        "; ".join(found.against[:AGAINST]) + more,
    )


def _summary(
    chapters: Sequence[Chapter], sanity_checks: Sequence[Mapping[str, str]]
) -> list[str]:
    verdicts = [claim.verdict for c in chapters for claim in c.claims]
    whole, none = verdicts.count("holds"), verdicts.count("does not hold here")
    untold = sum(v.startswith("not tested") for v in verdicts)
    part = len(verdicts) - whole - none - untold
    rest = (
        f"; {untold} could not be tested, having no matching row or no attack that succeeded"
        if untold
        else ""
    )
    says = [
        (
            f"Of {len(verdicts)} claims {whole} hold, {part} hold in part and {none} do not "
            f"hold here{rest}."
        )
    ]
    failed = [
        f"{g['name']} ({g['question']}, {g['plan']})"
        for g in sanity_checks
        if g["status"] == "fail"
    ]
    if sanity_checks:
        says.append(
            f"{len(sanity_checks)} sanity checks ran, {len(failed)} failed"
            + (": " + "; ".join(failed) if failed else "")
            + "."
        )
    return says


def _analysis(question: Question, run: Asked, work: Work) -> tuple[pd.DataFrame, Sheet]:
    context, options = (
        run.contexts[0],
        {
            k: v
            for k, v in question.options.items()
            if k != "seeds" or question.do == "transfer"
        },
    )
    match question.do:
        case "stress":
            return whole.stress(run.contexts, work)
        case "direction":
            return whole.direction(context, work)
        case "outliers":
            return whole.outliers(context, work)
        case "transfer":
            return whole.transfer(context, work, **options)
    return whole.ood(context, work, **options)


def _lab(plan: Mapping[str, Any], store: Path, **changes: Any) -> Context:
    return checked(load_plan(plan, **changes), store)


def _placed(plan: Mapping[str, Any], data: Path) -> dict[str, Any]:
    """A plan whose images lie in the folder ``data``."""
    given = plan.get("data")
    images = dict(given) if isinstance(given, Mapping) else {"path": given}
    path = str(images.get("path"))
    if path not in GENERATED:
        images["path"] = str(data / path)
    return {**plan, "data": images}
