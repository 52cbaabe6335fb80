"""The whole straight line on small generated images: a plan in, a folder of results out."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from feathide.auditing.preflight import check_plan
from feathide.auditing.report_data import run_of
from feathide.auditing.run import audit
from feathide.catalog import ABILITIES
from feathide.cli import app
from feathide.errors import InputError
from feathide.execution.packing import scored
from feathide.execution.store import Store
from feathide.metrics.intervals import proportion
from feathide.metrics.metric import RATES
from feathide.metrics.rates import threshold
from feathide.metrics.uncertain_threshold import UncertainThreshold
from feathide.models.libraries import Arch
from feathide.pipeline.accuracy import learnt
from feathide.pipeline.attacking import SURE, attack_of, attack_rows
from feathide.pipeline.conditions import noisy_at
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.coverage import coverage_of, left_out, share_constrained
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import found_in, scores_in, thresholds_of
from feathide.pipeline.stored_images import decode
from feathide.pipeline.table import COLUMNS, table_of
from feathide.plans.plan import Cell, Plan, load_plan
from feathide.plans.sections import AttackPlan, ObjectivePlan, SchedulePlan
from feathide.report import verdict
from feathide.sanity.caveats import caveats_of
from feathide.sanity.judge_probes import masked_in
from feathide.sanity.probes import numbered, probe_key, probes_in
from worlds.audits import EPS, PLAN, write_npz


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "patches.npz")


@pytest.fixture(scope="session")
def context(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished audit."""
    out = tmp_path_factory.mktemp("run") / "out"
    plan = load_plan({"data": str(data), **PLAN})
    audit(plan, out)
    return context_of(plan.model_dump_json(), Store(out))


@pytest.fixture(scope="session")
def table(context: Context) -> pd.DataFrame:
    return pd.read_csv(
        context.store.folder / "results.csv",
        keep_default_na=False,
        na_values={"value": [""]},
    )


def test_table_has_its_columns_and_metrics(table: pd.DataFrame, context: Context) -> None:
    assert tuple(table.columns) == COLUMNS
    assert set(table.detector) == {"", *context.plan.detectors}
    at = table[(table.attack == "pgd") & (table.objective == "hfc")]
    per_guard = {
        "auc",
        "tpr_at_fpr10",
        "slips_through_fpr10",
        "slips_through_fpr5",
        "slips_through_fpr1",
    }
    assert per_guard <= set(at.metric[at.detector == "kd"])
    assert {"success", "linf_max", "seconds_per_image", "gradients_per_image"} <= set(
        at.metric[at.detector == ""]
    )
    assert set(at.knowledge) == {"feature-aware"}
    assert pd.read_parquet(context.store.folder / "results.parquet").shape == table.shape


def test_intervals_hold_their_values(table: pd.DataFrame) -> None:
    shares = table[
        table.metric.isin(
            ["accuracy", "success", "auc", "tpr_at_fpr10", "slips_through_fpr10"]
        )
    ]
    low, high = shares.low.astype(float), shares.high.astype(float)
    assert ((low - 1e-9 <= shares.value) & (shares.value <= high + 1e-9)).all()
    assert ((low >= 0) & (high <= 1)).all()


def test_classifier_learns_and_attack_works(table: pd.DataFrame) -> None:
    value = table.set_index(["metric", "attack", "objective", "detector"]).value
    assert value["accuracy", "", "", ""] > 0.9
    assert value["success", "pgd", "plain", ""] > 0.9
    assert value["success", "pgd", "plain", ""] >= value["success", "fgsm", "plain", ""]


def test_stored_images_are_what_was_judged(context: Context) -> None:
    """In the ball, whole grey levels, and the classifier says of the file what the table
    counted.
    """
    for cell in cells(context):
        key = context.steps.attack(cell, "test").keys[0]
        stored = context.store.load(key)
        assert stored["image"].dtype == np.uint8
        clean = np.round(context.cases.images(stored["rows"]) * 255)
        gap = np.abs(stored["image"].astype(int) - clean)
        assert 0 < gap.max() <= round(EPS * 255)
        out = context.networks.classifier.extract(
            decode(stored["image"], context.limits.grid, context.cases.box)
        )
        assert (out.predicted.numpy() == stored["prediction"]).all()
        assert (stored["label"] == context.data.labels[stored["rows"]]).all() and (
            stored["target"] != stored["label"]
        ).all()
        assert list(stored["id"]) == list(context.data.ids(stored["rows"]))


def test_the_classifier_sees_what_it_was_trained_on(context: Context) -> None:
    train = context.data.images(context.data.rows("train")).double()
    axes = tuple(i for i in range(train.ndim) if i != 1)
    assert context.networks.classifier.mean == pytest.approx(
        train.mean(axes).tolist(), rel=1e-4
    )
    assert context.networks.classifier.std == pytest.approx(
        train.std(axes, correction=0).tolist(), rel=1e-2
    )
    # and nobody trains it further
    assert not any(p.requires_grad for p in context.networks.classifier.model.parameters())


def test_only_correct_images_are_attacked(context: Context) -> None:
    out, rows = context.outputs.of("clean", "test")
    right = set(rows[out.predicted.numpy() == context.data.labels[rows]]) & set(
        context.data.attacked("test")
    )
    assert all(set(found_in(context, c).rows) == right for c in cells(context))


def test_a_guard_that_memorised_held_out_images_does_not_hold(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows the clean and the noisy images of both parts, and calls everything else
    suspicious: nothing slips past it, nor any shifted image.
    """
    known = {"clean", *map(noisy_at, context.limits.budgets)}

    def memorised(
        context: Context,
        detector: str,
        eps: float,
        condition: str,
        part: str,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        score = scores_in(context, detector, eps, condition, part, rows)
        return (
            score
            if detector != "kd"
            else np.full(len(score), float(condition not in known))
        )

    for module in ("stored", "views"):
        monkeypatch.setattr(f"feathide.pipeline.{module}.scores_in", memorised)
    (few,) = (
        f
        for f in verdict(run_of(context, table_of(context))).findings
        if f.detector == "kd"
    )
    # another threshold might accept them
    assert few.word == "undecided" and "are too few for a threshold" in few.why

    def sure(scores: np.ndarray, rate: float, **_: Any) -> UncertainThreshold:
        limit = threshold(scores, rate)
        return UncertainThreshold(limit, np.array([limit]))

    # as with many calibration images
    monkeypatch.setattr("feathide.pipeline.stored.uncertain_threshold", sure)
    table = table_of(context)
    slips = table.metric.str.startswith("slips_through") & (table.detector == "kd")
    assert table[slips].value.max() == 0
    table.loc[slips, "high"] = 0.02  # as with many images
    run = run_of(context, table)
    run = replace(
        run,
        counts={
            **run.counts,
            "calibration": {"images": 1000, "patients": 1000, "correct": 1000},
        },
    )
    found = {f.detector: f for f in verdict(run).findings}
    assert found["kd"].word == "undecided"
    assert found["kd"].why.startswith("it also rejects harmlessly changed images: 100.0 %")


def test_a_guard_whose_gradient_is_hidden_is_named_in_the_run(
    context: Context, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_of(context, table).masked == {}
    probes = dict(probes_in(context.store.load(probe_key(context))))
    names = [k.removeprefix("lower/") for k in probes if k.startswith("lower/")]
    assert sorted(names) == sorted(context.plan.detectors)
    fall = probes["lower/kd"]
    probes["lower/kd"] = np.stack([np.full(fall.shape[1], np.nan), *fall[1:]])
    monkeypatch.setattr(Store, "load", lambda self, key: numbered(probes))
    assert set(masked_in(context)) == {"kd"}
    searched = replace(
        context,
        plan=context.plan.model_copy(
            update={
                "attacks": load_plan({"data": "phantoms", "attacks": ["square"]}).attacks
            }
        ),
    )
    assert set(masked_in(searched)) == {"kd"}  # it promised a gradient
    probes["undifferentiable/kd"] = np.asarray(True)
    assert masked_in(searched) == {} and set(masked_in(context)) == {"kd"}


def test_split_most_limits_what_is_attacked_and_nothing_else(
    context: Context, table: pd.DataFrame
) -> None:
    held = context.cases.where("test")
    sizes = {
        part: len(context.data.rows(part))
        for part in ("detector-training", "calibration", "test")
    }
    assert (
        sum(sizes.values()) == len(held) == 150
        and min(sizes["detector-training"], sizes["test"]) > 50
    )
    assert {
        part: len(context.data.attacked(part)) for part in ("detector-training", "test")
    } == {"detector-training": 24, "test": 24}
    n = table.groupby("metric", sort=False).n.agg(["min", "max"])
    clean = [m for m in n.index if m.startswith(("false_alarms", "accuracy_shifted"))]
    for metric in ("accuracy", "calibration_error", "brier_score", *clean):
        assert tuple(n.loc[metric]) == (sizes["test"],) * 2, metric
    for metric in ("success", "slips_through_fpr10", "slips_through_fpr10_all"):
        assert n.loc[metric, "max"] <= 24, metric
    out, rows = context.outputs.of("clean", "test")
    assert table[table.metric == "accuracy"].value.iloc[0] == pytest.approx(
        (out.predicted.numpy() == context.data.labels[rows]).mean()
    )


def test_numbers_at_a_threshold_carry_the_doubt_of_the_threshold(context: Context) -> None:
    """The interval of false alarms is wider than that of a share, and the verdict says how many
    images a threshold needs.
    """
    n, table = (
        len(context.data.rows("calibration")),
        pd.read_parquet(context.store.folder / "results.parquet"),
    )
    score, groups = (
        scores_in(context, "kd", EPS, "clean", "test"),
        context.cases.patients[context.data.rows("test")],
    )
    row = table[(table.metric == "false_alarms_fpr10") & (table.detector == "kd")].iloc[0]
    hits = score > thresholds_of(context, "kd", EPS)["fpr10"]
    plain = proportion(hits, groups=groups)
    assert float(row.value) == pytest.approx(hits.mean()) and row.n == len(hits)
    assert float(row.high) - float(row.low) > plain.high - plain.low
    rows = context.data.rows("calibration")
    patients = len(set(context.cases.patients[rows]))
    assert patients < n  # the patients have two images and more
    said, told = (
        check_plan(context.plan, context.store.folder).says,
        f"{n} calibration images of {patients} patients",
    )
    needs = "false alarms need 100 for 10 %, 200 for 5 %, 1000 for 1 %"
    assert any(
        s.startswith(f"thresholds: {told}; {needs}; {patients} are too few") for s in said
    )
    assert all(f.word != "holds" for f in verdict(run_of(context, table)).findings)
    few = f"{told} are few: a threshold needs 100 at 10 %, 200 at 5 %, 1000 at 1 % false alarms"
    assert any(few in c for c in caveats_of(context, table))


def test_results_of_a_limit_are_not_taken_for_those_of_another(context: Context) -> None:
    plan = context.plan.model_copy(
        update={"split": context.plan.split.model_copy(update={"most": 20})}
    )
    other, cell = Context(plan, context.store), cells(context)[0]
    keys = [
        (
            x.steps.extract("clean", "test").keys[0],
            x.steps.condition(cell),
            x.steps.score("kd", EPS, "clean", "test").key,
        )
        for x in (context, other)
    ]
    assert all(a != b for a, b in zip(*keys, strict=True))
    whole = context.plan.model_copy(
        update={"split": context.plan.split.model_copy(update={"most": None})}
    )
    assert list(Context(whole, context.store).data.rows("test")) == sorted(
        context.data.rows("test")
    )


def test_all_attacks_that_hide_are_content_with_the_same_lead(context: Context) -> None:
    """That of a clean image at the lower quartile of the detector-training split, in units of the
    typical lead; a plan may say otherwise.
    """
    out, rows = context.outputs.of("clean", "detector-training")
    label = torch.from_numpy(context.data.labels[rows])
    lead = (out.logits[:, 0] - out.logits[:, 1]) * (1 - 2 * label)
    assert context.outputs.enough() * context.outputs.typical_lead() == pytest.approx(
        float(lead[lead > 0].double().quantile(0.25))
    )
    said = Context(
        context.plan.model_copy(update={"schedule": SchedulePlan(lead=0.4)}), context.store
    )
    for which, share in ((context, context.outputs.enough()), (said, 0.4)):
        for name in (n for n, a in ABILITIES.items() if a.hides and not a.several):
            attack = attack_of(
                which, Cell(AttackPlan(name=name), ObjectivePlan(name="hfc"), EPS), 0.3
            )
            assert attack.objective.parts[0].kappa == pytest.approx(share * SURE)
            assert attack.unit == pytest.approx(context.outputs.typical_lead() / SURE)
    plain = attack_of(
        context, Cell(AttackPlan(name="cw"), ObjectivePlan(name="plain"), EPS), None
    )
    assert plain.objective.kappa == np.inf and plain.unit == 1
    assert context.steps.condition(cells(context)[0]) != said.steps.condition(
        cells(context)[0]
    )


def test_layers_that_hfc_does_not_constrain_are_said(
    context: Context, table: pd.DataFrame
) -> None:
    read, last = (
        list(context.outputs.train()[0].features),
        ObjectivePlan(name="hfc", options={"layers": ["last"]}),
    )
    rows = table[table.metric == "layers_constrained"]
    assert set(zip(rows.objective, rows.value, rows.n, strict=True)) == {
        ("hfc", 1.0, len(read)),
        ("hfc-typical", 1.0, len(read)),
    }
    assert coverage_of(context) == []  # every conv unit, all of them constrained
    some = Context(context.plan.model_copy(update={"objectives": (last,)}), context.store)
    assert left_out(some, last) == tuple(read[:-1])
    assert share_constrained(some, last) == (pytest.approx(1 / len(read)), len(read))
    (said,) = coverage_of(some)
    assert (
        f"hfc constrains 1 of the {len(read)} layers that the guards read, not {read[0]}"
        in said
    )

    def narrow(plan: Plan) -> Context:
        """The audit of a network of which only the last layer is watched."""
        out, labels = context.outputs.train()
        seen = replace(out, features={read[-1]: out.features[read[-1]]}), labels
        classifier = replace(context.networks.classifier, layers="last")
        watched = Context(plan, context.store)
        watched.__dict__["networks"] = SimpleNamespace(classifier=classifier)
        watched.__dict__["outputs"] = SimpleNamespace(train=lambda: seen)
        return watched

    (said,) = coverage_of(narrow(some.plan))
    assert (
        f"HFC and guards look at 1 layers; {len(read) - 1} of the network's {len(read)} "
        "convolution units"
    ) in said
    plain = {"objectives": (ObjectivePlan(name="plain"),)}
    assert coverage_of(narrow(context.plan.model_copy(update=plain))) == []


def test_cw_hides_about_as_well_as_pgd(context: Context) -> None:
    """Where it asked for more than PGD, the typical lead, its images kept a lead and features
    that PGD's had not.
    """
    rows, seen = context.outputs.right("detector-training"), {}
    for name in ("pgd", "cw"):
        cell = Cell(AttackPlan(name=name, steps=40), ObjectivePlan(name="hfc"), EPS)
        found = attack_rows(context, cell, rows)
        out = context.networks.classifier.observe(
            decode(found["image"], context.limits.grid, context.cases.box)
        )
        target = torch.from_numpy(found["target"])
        lead = (out.logits[:, 1] - out.logits[:, 0]) * (2 * target - 1)
        assert float((lead > 0).float().mean()) > 0.9
        energy = context.fitted.bank().energy(out, target).sum(1)
        limits = {
            d: thresholds_of(context, d, EPS)["fpr10"] for d in ("svm", "maha", "dnn")
        }
        passes = {
            d: float((scored(context.fitted.detector(d, EPS), out) <= limit).mean())
            for d, limit in limits.items()
        }
        seen[name] = {
            "lead": float(lead.median()),
            "energy": float(energy.median()),
            **passes,
        }
    pgd, cw = seen["pgd"], seen["cw"]
    assert cw["lead"] < 1.5 * pgd["lead"] and cw["energy"] < 1.1 * pgd["energy"], seen
    assert all(cw[d] >= pgd[d] - 0.1 for d in limits), seen


def test_parts_share_no_patient(context: Context) -> None:
    seen = [
        set(context.cases.patients[context.data.rows(p)])
        for p in ("train", "detector-training", "calibration", "test")
    ]
    assert all(not a & b for i, a in enumerate(seen) for b in seen[:i])


def test_nothing_is_learnt_or_set_on_test_cases(context: Context, tmp_path: Path) -> None:
    """With the test split's outputs gone, detectors and thresholds come out the same."""
    fresh = Context(context.plan, Store(tmp_path))
    for file in context.store.folder.rglob("*.npz"):
        if "/test-" not in file.as_posix():
            copy = tmp_path / file.relative_to(context.store.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for name in context.plan.detectors:
        fit = fresh.fitted.detector(name, EPS)
        out, _ = context.outputs.of("clean", "test")
        want = scores_in(context, name, EPS, "clean", "test")
        assert np.allclose(scored(fit, out), want, rtol=1e-9)
        assert thresholds_of(fresh, name, EPS) == thresholds_of(context, name, EPS)


def test_thresholds_let_the_planned_share_pass(context: Context) -> None:
    for name in context.plan.detectors:
        scores = context.fitted.calibration(name, EPS)
        for rate, t in thresholds_of(context, name, EPS).items():
            assert (scores > t).mean() <= RATES[rate]


def test_noise_is_noise(context: Context) -> None:
    clean, rows = context.outputs.of("clean", "test")
    noisy = context.outputs.at(f"noisy-{EPS:.6g}", "test", rows)
    assert (clean.last - noisy.last).abs().amax(1).min() > 0


def test_an_attack_goes_on_in_halves_where_memory_does_not_suffice(
    context: Context,
) -> None:
    tight, rows, cell = (
        Context(context.plan, context.store),
        context.data.rows("test")[:6],
        cells(context)[-1],
    )

    def allocate(_model: object, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > 2:
            raise MemoryError

    tight.networks.classifier.model.register_forward_pre_hook(allocate)
    with pytest.warns(RuntimeWarning, match="memory does not suffice"):
        halves = attack_rows(tight, cell, rows, weight=1.0)
    whole = attack_rows(context, cell, rows, weight=1.0)
    assert halves.keys() == whole.keys()
    for name, value in whole.items():
        assert halves[name].shape == value.shape
        assert np.array_equal(halves[name], value) or name in ("image", "trace", "linf")
    np.testing.assert_allclose(halves["trace"], whole["trace"], rtol=1e-3, atol=1e-4)


def test_the_same_command_continues(context: Context) -> None:
    """A lost file is made again, byte for byte, and the rest stays."""
    folder = context.store.folder
    before = (folder / "results.csv").read_bytes()
    victims = [
        f
        for f in sorted(folder.rglob("*.npz"))
        if "pgd-hfc" in f.as_posix() or f.as_posix().endswith("fit-0000.npz")
    ]
    contents = {f: f.read_bytes() for f in victims}
    for file in victims:
        file.unlink()
    times = {f: f.stat().st_mtime_ns for f in folder.rglob("*.npz")}
    audit(context.plan, folder)
    assert contents == {f: f.read_bytes() for f in victims}
    assert times == {f: f.stat().st_mtime_ns for f in times}
    timing = b"seconds_per_image"
    assert [r for r in before.splitlines() if timing not in r] == [
        r for r in (folder / "results.csv").read_bytes().splitlines() if timing not in r
    ]


def test_plan_as_run_can_be_run_again(context: Context) -> None:
    path = context.store.folder / "plan.yaml"
    record = yaml.safe_load(path.read_text())["record"]
    assert record["data"]["digest"] == context.cases.digest and record["versions"]["torch"]
    assert load_plan(path) == context.plan


@pytest.mark.parametrize(
    "change",
    [{"tokens": "both"}, {"layout": "channels-last"}, {"layout": {"blocks.*": "tokens"}}],
)
def test_how_layers_are_read_is_a_part_of_what_features_depend_on(
    context: Context, change: dict[str, object]
) -> None:
    plan = context.plan.model_dump()
    other = Context(
        load_plan({**plan, "network": {**plan["network"], **change}}), context.store
    )
    # the network is not trained again
    assert (
        other.steps.reading.digest != context.steps.reading.digest
        and other.steps.train.key == context.steps.train.key
    )
    assert (other.networks.classifier.layout, other.networks.classifier.tokens) == (
        other.plan.network.layout,
        other.plan.network.tokens,
    )


def test_changing_the_budget_recomputes_only_what_depends_on_it(context: Context) -> None:
    other = Context(load_plan(context.plan.model_dump(), eps=8 / 255), context.store)
    assert (
        other.steps.reading.digest == context.steps.reading.digest
        and other.steps.mixtures.key == context.steps.mixtures.key
    )
    assert (
        other.steps.extract("clean", "test").keys[0]
        == context.steps.extract("clean", "test").keys[0]
    )
    assert not {other.steps.condition(c) for c in cells(other)} & {
        context.steps.condition(c) for c in cells(context)
    }


BAD = {
    "no such data": ({"data": "nowhere.npz"}, "nowhere.npz"),
    "unknown layer": ({"network": {"arch": "tiny", "layers": "features.99"}}, "known:"),
    "unknown detector": ({"detectors": ["mahal"]}, "did you mean 'maha'"),
    "unknown attack": ({"attacks": ["pdg"]}, "did you mean 'pgd'"),
    "unknown field": ({"atacks": ["pgd"]}, "did you mean 'attacks'"),
    "unknown network": ({"network": "resnet19"}, "did you mean 'resnet18'"),
    "eps of other units": ({"eps": "8"}, "did you mean 8/255"),
    "eps of nothing": ({"eps": 0}, "eps must be positive"),
    "eps below a grey level": ({"eps": "1/510"}, "grey level"),
    "eps in foreign units": ({"eps": "2 HU"}, "grey level"),
    "shares beyond one": (
        {"split": {"detector_training": 0.9, "calibration": 0.2, "test": 0.4}},
        "must be 1",
    ),
    "sigmoid of many": ({"network": {"arch": "tiny", "head": "sigmiod"}}, "head must be"),
    "own code without trust": ({"network": "my.module:net"}, "trust"),
}


OWN = """
import torch
from torch import nn

def net(outputs=2, nan=False, axes=2, training=False):
    conv = nn.Conv2d if axes == 2 else nn.Conv3d
    model = nn.Sequential(conv(1, 6, 3, stride=2), nn.ReLU(), conv(6, 8, 3, stride=2), nn.ReLU(), nn.Flatten(1), nn.LazyLinear(outputs))
    model(torch.zeros(1, 1, *[32] * axes))
    with torch.no_grad():
        model[0].weight.normal_(generator=torch.Generator().manual_seed(0), std=0.3)
        if nan:
            model[0].weight.fill_(float("nan"))
    return model.train() if training else model.eval()
"""

BAD_NETWORKS = {
    "outputs unlike the classes": ({"outputs": 3}, "class"),
    "one output without sigmoid": ({"outputs": 1}, "sigmoid"),
    "weights that are NaN": ({"nan": True}, "NaN"),
    "a 3D network for 2D images": ({"axes": 3}, "3D"),
    "arguments it does not take": ({"depth": 3}, "depth"),
}


def own(tmp_path: Path, **arguments: object) -> dict:
    code = tmp_path / "net.py"
    code.write_text(OWN)
    return {"arch": f"{code}:net", "arguments": arguments, "trust": True, "layers": "conv"}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("arguments, hint", BAD_NETWORKS.values(), ids=BAD_NETWORKS)
def test_a_network_that_cannot_be_audited_is_refused(
    arguments: dict, hint: str, data: Path, tmp_path: Path
) -> None:
    refused(
        {"data": str(data), **PLAN, "network": own(tmp_path, **arguments)}, hint, tmp_path
    )


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_one_sigmoid_output_is_two_classes(data: Path, tmp_path: Path) -> None:
    """A network with one output goes through the whole audit; its images are judged by the sign
    of that output.
    """
    network = own(tmp_path, outputs=1) | {"head": "sigmoid"}
    plan = load_plan(
        {
            "data": str(data),
            **PLAN,
            "network": network,
            "detectors": ["msp", "kd"],
            "schedule": {"steps": 3},
            "even_so": True,
        }
    )
    audit(plan, tmp_path / "out")
    context = context_of(plan.model_dump_json(), Store(tmp_path / "out"))
    for cell in cells(context):
        found = found_in(context, cell)
        assert (
            set(found.target) <= {0, 1}
            and (found.fooled == (found.prediction != found.label)).all()
        )


def overlapping(path: Path) -> Path:
    arrays = dict(np.load(write_npz(path)))
    arrays["test_patient"][0] = arrays["train_patient"][0]
    np.savez(path, **arrays)
    return path


def single(path: Path) -> Path:
    arrays = dict(np.load(write_npz(path)))
    np.savez(path, **{k: v * 0 if "labels" in k else v for k, v in arrays.items()})
    return path


def broken(path: Path) -> Path:
    path.write_bytes(write_npz(path).read_bytes()[:5000])
    return path


def copied(path: Path) -> Path:
    arrays = dict(np.load(write_npz(path)))
    arrays["test_images"][3] = arrays["train_images"][5]
    np.savez(path, **arrays)
    return path


BAD_DATA = {
    "a patient in two splits": (overlapping, "in two splits"),
    "one class": (single, "class"),
    "a torn file": (broken, "bad.npz"),
    "a copy in two splits": (copied, "split"),
}


@pytest.mark.parametrize("make, hint", BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_cannot_be_used_is_refused(make, hint: str, tmp_path: Path) -> None:
    refused({"data": str(make(tmp_path / "bad.npz")), **PLAN}, hint, tmp_path)


def refused(plan: dict, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    result = CliRunner().invoke(app, ["audit", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert hint in result.output and len(result.output.strip().splitlines()) == 1, (
        result.output
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, hint", BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(
    change: dict, hint: str, data: Path, tmp_path: Path
) -> None:
    refused({"data": str(data), **PLAN, **change}, hint, tmp_path)


def test_a_folder_with_another_plan_is_left_alone(
    context: Context, data: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"data": str(data), **PLAN, "eps": 8 / 255}))
    before = {f: f.stat().st_mtime_ns for f in context.store.folder.rglob("*")}
    result = CliRunner().invoke(
        app, ["audit", str(plan), "--out", str(context.store.folder)]
    )
    assert result.exit_code == 2 and "another output folder" in result.output.replace(
        "\n", " "
    )
    assert before == {f: f.stat().st_mtime_ns for f in context.store.folder.rglob("*")}


def test_report_is_written_and_escapes(context: Context) -> None:
    page = (context.store.folder / "report.html").read_text()
    assert "<html" in page and "http-equiv" in page


def test_reuse_keeps_what_two_plans_share(context: Context, tmp_path: Path) -> None:
    """Fewer detectors: no image is attacked again, and the table holds what the new plan asks
    for.
    """
    folder = tmp_path / "out"
    shutil.copytree(context.store.folder, folder)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.npz")}
    found = audit(
        load_plan(context.plan.model_dump(), detectors=["kd"]), folder, reuse=True
    )
    assert before == {f: f.stat().st_mtime_ns for f in before}
    assert not [f for f in (folder / "adversarial").rglob("*.npz") if f not in before]
    assert set(found.table.detector) == {"", "kd"}


# --- networks of one's own: what check says -----------------------------------------------------

ENDS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, end="", outputs=2):
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(1, 8, 3, 2), nn.Linear(8, outputs), end
        self.norm = nn.BatchNorm2d(8, track_running_stats=end == "")

    def forward(self, x):
        h = torch.relu(self.conv(x if self.end != "round" else (255 * x).round() / 255))
        z = self.head((self.norm(h) if self.end == "norm" else h).mean((2, 3)))
        match self.end:
            case "softmax":
                return z.softmax(1)
            case "sigmoid":
                return z.sigmoid()
            case "random":
                return z + torch.rand_like(z)
            case "squeeze":
                return z.squeeze()
        return z
"""


def ending(tmp_path: Path, data: Path, end: str, **fields: object) -> dict[str, object]:
    (tmp_path / "net.py").write_text(ENDS)
    network = {
        "arch": f"{tmp_path / 'net.py'}:Net",
        "trust": True,
        "layers": "conv",
        "arguments": {"end": end},
    }
    network["arguments"] |= {"outputs": 1} if fields.get("head") == "sigmoid" else {}  # type: ignore[operator]
    return {
        "data": str(data),
        **PLAN,
        "detectors": ["msp"],
        "network": {**network, **fields},
    }


@pytest.mark.parametrize(
    ("end", "head", "words"),
    [
        ("softmax", "softmax", "network.output: probabilities"),
        ("sigmoid", "softmax", "network.output: probabilities"),
        ("sigmoid", "sigmoid", "network.output: probabilities"),
        ("random", "softmax", "same outputs for the same images"),
        ("norm", "softmax", "must not depend on the other images of its batch"),
        ("squeeze", "softmax", "rows are lost with one image"),
        (
            "round",
            "softmax",
            "without gradients can be attacked by square and noise only, got fgsm, pgd",
        ),
    ],
)
def test_check_refuses_what_makes_an_audit_unsound(
    end: str, head: str, words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        check_plan(load_plan(ending(tmp_path, data, end, head=head)), tmp_path / "out")
    with pytest.raises(InputError, match=words):
        audit(load_plan(ending(tmp_path, data, end, head=head)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_says_that_a_network_gives_probabilities(data: Path, tmp_path: Path) -> None:
    from feathide.pipeline.context import context_of
    from feathide.pipeline.network_checks import check_classifier

    plan = load_plan(ending(tmp_path, data, "softmax", output="probabilities"))
    plain = load_plan(ending(tmp_path, data, "none"))
    contexts = [
        context_of(
            p.model_copy(update={"batch_size": 8}).model_dump_json(),
            Store(tmp_path / "out"),
        )
        for p in (plan, plain)
    ]
    x = contexts[0].data.images(contexts[0].data.rows("train")[:4])
    ended, open_ = (
        context.networks.classifier(x).logits.log_softmax(1) for context in contexts
    )
    torch.testing.assert_close(ended, open_)
    assert check_classifier(contexts[0]) == []
    assert contexts[0].steps.reading.digest != contexts[1].steps.reading.digest
    with pytest.raises(InputError, match=r"must lie in \[0, 1\].*these are logits"):
        check_plan(
            load_plan(ending(tmp_path, data, "none", output="probabilities")),
            tmp_path / "out",
        )
    with pytest.raises(InputError, match="trained here gives logits"):
        load_plan(
            {"data": str(data), "network": {"arch": "tiny", "output": "probabilities"}}
        )


def test_check_prints_every_caveat(data: Path, tmp_path: Path) -> None:
    plan = ending(tmp_path, data, "round") | {
        "attacks": {"name": "square", "steps": 3},
        "train_attack": "square",
    }
    says = check_plan(
        load_plan({**plan, "sanity_checks": "off", "objectives": "plain", "even_so": True}),
        tmp_path / "out",
    ).says
    assert any(s.startswith("caveat: no gradient reaches the image") for s in says)
    assert any(s.startswith("caveat: ") and "1000 at 1 % false alarms" in s for s in says)


# --- a classifier that has learnt nothing -------------------------------------------------------


def test_a_classifier_near_chance_stops_the_audit(data: Path, tmp_path: Path) -> None:
    words = r"right on \d+ of 80 labelled images .*looks untrained, or normalised differently: check class_names, mean, std, window, weights"
    plan = ending(tmp_path, data, "none") | {
        "schedule": {"steps": 2},
        "attacks": "pgd",
        "objectives": "plain",
    }
    for verb in (
        lambda p: check_plan(p, tmp_path / "out"),
        lambda p: audit(p, tmp_path / "out"),
    ):
        with pytest.raises(InputError, match=f"{words}; --even-so goes on"):
            verb(load_plan(plan))
    assert not (tmp_path / "out").exists()
    (said,) = (
        s
        for s in check_plan(load_plan(plan, even_so=True), tmp_path / "out").says
        if "labelled images" in s
    )
    assert "accuracy 0." in said and "AUC" in said and "majority share" in said
    for sanity_checks in ("quick", "off"):
        found = audit(
            load_plan(plan, even_so=True, sanity_checks=sanity_checks),
            tmp_path / sanity_checks,
        )
        assert "classifier has learnt" in found.failed
        assert found.verdict.word == "invalid" and not found.verdict.evidence
        assert (
            "classifier has learnt"
            in (tmp_path / sanity_checks / "report.html").read_text()
        )


def test_one_that_is_trained_here_stops_right_after_its_training(
    data: Path, tmp_path: Path
) -> None:
    network = {**PLAN["network"], "train": {"epochs": 1, "lr": 1e-9, "augment": False}}  # type: ignore[dict-item]
    plan = {
        "data": str(data),
        **PLAN,
        "network": network,
        "detectors": ["msp"],
        "objectives": "plain",
        "sanity_checks": "off",
    }
    with pytest.raises(InputError, match="looks untrained"):
        audit(load_plan(plan), tmp_path)
    assert list(tmp_path.glob("classifier/*.npz")) and not list(
        tmp_path.glob("outputs/**/*.npz")
    )
    found = audit(load_plan(plan, even_so=True), tmp_path)  # goes on in the same folder
    assert found.verdict.word == "invalid"


@pytest.mark.parametrize(
    ("rate", "n", "enough"),
    [
        (0.5, 100, False),
        (0.55, 256, False),
        (0.7, 100, True),
        (0.9, 20, True),
        (0.7, 10, False),
        (0.0, 100, False),
    ],
)
def test_what_is_near_chance(rate: float, n: int, enough: bool) -> None:
    labels = np.arange(n) % 2
    right = np.argsort(np.argsort(np.arange(n) * 0.618 % 1)) < rate * n
    predicted = np.where(right, labels, 1 - labels)
    assert learnt(3 * np.eye(2)[predicted], labels).enough == enough


def test_the_commonest_class_alone_is_not_learnt() -> None:
    labels = np.arange(100) < 90
    found = learnt(np.tile([0.0, 1.0], (100, 1)), labels.astype(int))
    assert (found.right, found.majority, found.balanced, found.auc) == (90, 0.9, 0.5, 0.5)
    assert not found.enough
    rare = np.where(
        np.arange(100) % 10 == 0, 1 - labels, labels
    )  # 90 % right: no more than the commonest class, but of both
    assert learnt(np.eye(2)[rare.astype(int)], labels.astype(int)).enough


@pytest.mark.parametrize("training", [False, True])
def test_a_zoo_network_that_gives_two_tensors_like_logits_is_refused(
    training: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> object:
            z = super().forward(x.flatten(1))
            return (z, z) if self.training >= training else z

    plan = load_plan(
        {
            "data": str(data),
            **PLAN,
            "detectors": ["msp"],
            "network": {"arch": "tiny", "layers": []},
        }
    )
    monkeypatch.setattr(
        "feathide.models.zoo.MODELS",
        {"tiny": Arch(2, lambda channels, outputs, small: Two(1024, outputs))},
    )
    with pytest.raises(
        InputError,
        match=r"must return logits \(N, K\).*alone or by the name logits, got tuple",
    ):
        check_plan(plan, tmp_path / "out")
