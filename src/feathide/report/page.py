"""``render``: one self-contained HTML page from the results of a run. It reads the results only, never the network.

The page has no address in it: scripts, styles, data and pictures are inside, and a content-security policy forbids it
to load anything. Scripts are allowed by their hash; text from plans, labels and file names is escaped by the template
or stands as JSON in a block that is not run.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from feathide.report.figures import figures
from feathide.report.pictures import Album, pairs
from feathide.report.results import Case, Run
from feathide.report.tables import attacks, guards, matrices, parts
from feathide.report.verdict import FAILS, HOLDS, LEVELS, STRONG, WORDS, at_budget, label, verdict

__all__ = ["Case", "Run", "render"]

SCRIPTS = ("page.js", "figures.js", "cases.js")


def render(run: Run) -> str:
    """The report of ``run`` as HTML text; write it with ``encoding="utf-8"``.

    Raises InputError if the table has no rows at the audited budget or no detector in it.
    """
    scripts = [_script(get_plotlyjs()), *(_script(_asset(name)) for name in SCRIPTS)]
    album = Album(run.scale)
    drawn = list(figures(run))
    data = {
        "figures": [f.spec() for f in drawn],
        "browser": _browser(run, album),
        "csv": {"results": run.table.to_csv(index=False)},
    }
    amplify = _amplify(run)
    env = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"label": label, "firm": _firm}
    page = env.from_string(_asset("page.html.j2"))
    return page.render(
        run=run,
        eps=float(run.threat["eps"]),
        scale=run.scale,
        verdict=verdict(run),
        matrices=list(matrices(run)),
        attacks=attacks(run),
        guards=guards(run),
        parts=parts(run),
        pairs=list(pairs(run.cases, run.scale, amplify=amplify)),
        amplify=amplify,
        shown=len(album.pictures) - len(album.clean),
        total=sum(map(len, run.cases.values())),
        limits=limits(run),
        figures=drawn,
        plan=yaml.safe_dump(_plain(run.plan), sort_keys=False, allow_unicode=True),
        words=WORDS,
        levels=LEVELS,
        rule={"holds": HOLDS, "fails": FAILS, "strong": STRONG},
        style=Markup(_asset("page.css")),
        browser=Markup(_asset("browser.html")),
        scripts=[script for script, _ in scripts],
        hashes=" ".join(f"'sha256-{digest}'" for _, digest in scripts),
        data=_json(data),
    )


def _firm(text: object) -> Markup:
    """``text`` with intervals and per cent signs that no line break tears apart."""
    safe = str(escape(str(text))).replace(" %", "\u00a0%")
    return Markup(re.sub(r"\([\d.]+–[\d.]+\)", r'<span class="firm">\g<0></span>', safe))


def limits(run: Run) -> list[str]:
    """What the run does not show, one sentence each."""
    rows = at_budget(run)
    out = []
    if run.synthetic:
        out.append("The images are synthetic. The numbers say how the method behaves, nothing about patients.")
    if not (rows["knowledge"] == "detector-aware").any():
        out.append("No attack knew the guards. What they catch here is an upper bound of what they are worth.")
    if not (rows["knowledge"] == "transfer").any():
        out.append("Every attacker had the classifier itself; an attacker with a substitute was not tried.")
    out.append(
        f"{run.budget}: larger, local or physical changes, and attacks on the data before training, were not tried."
    )
    if rows["classifier"].nunique() == 1 and rows["seed"].nunique() == 1:
        out.append("One classifier, trained once: the intervals cover the choice of test images, not of networks.")
    if rows.loc[rows["detector"] != "", "detector"].nunique() > 1:
        out.append("The best guard was picked on the images that measure it; on new images it may look worse.")
    out.append("An attack that gets through is proof; that none got through would not prove that none can.")
    return out


def _browser(run: Run, album: Album) -> dict[str, Any]:
    """What the case browser knows: conditions in turn, fooled cases first, so that these have pictures if not all fit."""
    found = [(not case.fooled, i, name, case) for name, part in run.cases.items() for i, case in enumerate(part)]
    found.sort(key=lambda item: item[:2])
    cases = [{"condition": label(name), **_facts(case), "picture": album.add(case)} for _, _, name, case in found]
    s = run.scale
    return {
        "cases": cases,
        "pictures": album.pictures,
        "classes": list(run.class_names),
        "thresholds": _plain(run.thresholds),
        "names": {d: label(d) for d in run.thresholds},
        "scale": {"levels": s.levels, "bits": album.bits, "low": s.native_low, "high": s.native_high, "unit": s.unit},
        "amplify": _amplify(run),
    }


def _facts(case: Case) -> dict[str, Any]:
    keep = ("id", "label", "target", "predicted", "fooled", "clean_predicted", "scores", "clean_scores", "energies")
    return {name: _plain(getattr(case, name)) for name in keep}


def _amplify(run: Run) -> float:
    """The power of two that makes the largest change of any case nearly saturate."""
    changes = [float(np.abs(c.adversarial - c.clean).max()) for part in run.cases.values() for c in part]
    largest = max([change for change in changes if change > 0], default=float(run.threat["eps"]))
    return 2.0 ** max(0, min(10, math.floor(math.log2((run.scale.high - run.scale.low) / largest))))


def _asset(name: str) -> str:
    return (files("feathide.report") / name).read_text(encoding="utf-8")


def _script(text: str) -> tuple[Markup, str]:
    """A script for the page and the base64 of its SHA-256, by which the policy allows it."""
    if "</script" in text.lower() or "\r" in text:
        raise ValueError(
            "a script of the report must not close itself or hold carriage returns: its hash would not match"
        )
    return Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script block: no <, > or & in it; numbers that are not finite become null."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    """Mappings, sequences, arrays and numbers as what JSON and YAML know."""
    match value:
        case Mapping():
            return {str(k): _plain(v) for k, v in value.items()}
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case bool() | int() | None:
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(v) for v in value]
        case _:
            return str(value)
