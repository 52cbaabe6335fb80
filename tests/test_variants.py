"""Further seeds of the classifier, and guards that learnt from each attack in turn."""

import re
from pathlib import Path

import pandas as pd
import pytest

from feathide.errors import InputError
from feathide.study.lab import Lab
from feathide.study.order import audit_tasks
from feathide.study.plan import load_plan
from feathide.study.run import audit
from feathide.study.store import Store
from feathide.study.table import table_of
from feathide.study.variants import held_out_of
from test_audit import PLAN, write_npz

CHANGES = {
    "detectors": ["kd", "dnn"],
    "objectives": ["plain", "evade"],
    "walk": {"steps": 4},
    "split": {"most": 12},
    "gates": "off",
    "held_out": True,
}
SAME = ["attack", "objective", "eps", "detector", "metric"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A finished audit of two seeds."""
    folder = tmp_path_factory.mktemp("variants")
    network = {"arch": "tiny", "layers": "conv", "train": {"epochs": 2, "augment": False}, "seeds": [0, 5]}
    plan = load_plan(
        {"data": str(write_npz(folder / "patches.npz")), **PLAN, **CHANGES, "network": network, "even_so": True}
    )
    audit(plan, folder / "out")
    return Lab(plan, Store(folder / "out"))


def read(lab: Lab, name: str) -> pd.DataFrame:
    return pd.read_csv(lab.store.folder / name, keep_default_na=False, na_values={c: [""] for c in ("value", "eps")})


def test_seeds_give_the_mean_and_range_of_each_number(lab: Lab) -> None:
    network = lab.plan.network.model_copy(update={"seed": 5, "seeds": ()})
    other = table_of(Lab(lab.plan.model_copy(update={"network": network, "held_out": False}), lab.store))
    seeds, own = read(lab, "seeds.csv").set_index(SAME), read(lab, "results.csv").set_index(SAME)
    assert set(lab.store.folder.glob("classifier/*.npz")) and len(list(lab.store.folder.glob("classifier/*.npz"))) == 2
    key = ("pgd", "plain", lab.budgets[0], "kd", "auc")
    pair = own.loc[key, "value"], other.set_index(SAME).loc[key, "value"]
    assert pair[0] != pair[1]
    found = seeds.loc[key]
    assert (found["least"], found["greatest"], found["seeds"]) == (min(pair), max(pair), 2)
    assert found["mean"] == pytest.approx(sum(pair) / 2)


def test_each_guard_learns_from_each_attack_and_meets_the_others(lab: Lab) -> None:
    held = read(lab, "held_out.csv")
    assert set(zip(held.learnt_from, held.attack, strict=True)) == {
        (a, b) for a in ("fgsm", "pgd") for b in ("fgsm", "pgd")
    }
    assert set(held.objective) == {"plain"}  # who knows the guard depends on what it learnt
    own, value = read(lab, "results.csv").set_index(SAME).value, held.set_index(["learnt_from", *SAME]).value
    key = ("fgsm", "plain", lab.budgets[0], "dnn", "auc")
    assert value["pgd", *key] == own[key]  # what the audit says
    assert value["fgsm", *key] != own[key]
    one_class = ("pgd", "plain", lab.budgets[0], "kd", "slips_through_fpr10")
    assert value["pgd", *one_class] == value["fgsm", *one_class]  # never sees an attack
    pd.testing.assert_frame_equal(held_out_of(lab).reset_index(drop=True)[["value"]], held[["value"]])


def test_the_report_shows_both_tables(lab: Lab) -> None:
    text = (lab.store.folder / "report.html").read_text()
    tables = re.findall(r"<caption>Slips through at 10 %, (.*?)<span>.*?<tbody>(.*?)</tbody>", text, re.DOTALL)
    lines = {title: re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL) for title, body in tables}
    seeds, held = lines["over the classifier&#39;s seeds"], lines["by what the guards learnt from"]
    assert [name for name, _ in seeds] == ["KD", "DNN"]
    assert [name for name, _ in held] == [f"{d}, learnt from {a}" for d in ("KD", "DNN") for a in ("PGD", "FGSM")]
    key = ("fgsm", "plain", lab.budgets[0], "dnn", "slips_through_fpr10")
    found = read(lab, "seeds.csv").set_index(SAME).loc[key]
    assert f"{found['mean']:.3f} <small>{found['least']:.2f}–{found['greatest']:.2f}</small>" in seeds[1][1]
    other = read(lab, "held_out.csv").set_index(["learnt_from", *SAME]).value["fgsm", *key]
    assert f"{other:.3f} <small>" in held[3][1]
    assert "One classifier, trained once" not in text


def test_variants_share_all_work_that_is_the_same(lab: Lab) -> None:
    keys = [task.key for task in audit_tasks(lab)]
    assert len(keys) == len(set(keys)) and all(lab.store.done(key) for key in keys)
    images = {key for key in keys if key.startswith("adversarial/pgd-plain")}
    assert {key.split("/")[1] for key in images} == {lab.condition(c) for c in _plain(lab)} | {
        Lab(_second(lab), lab.store).condition(c) for c in _plain(lab)
    }


def _plain(lab: Lab) -> list:  # type: ignore[type-arg]
    from feathide.study.stages import cells

    return [c for c in cells(lab) if c.name == "pgd+plain"]


def _second(lab: Lab):  # type: ignore[no-untyped-def]
    return lab.plan.model_copy(update={"network": lab.plan.network.model_copy(update={"seed": 5, "seeds": ()})})


def test_seeds_of_a_network_that_is_not_trained_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seeds are those of a network that is trained here"):
        load_plan({"data": "phantoms", "network": {"arch": "tiny", "weights": "w.safetensors", "seeds": [1]}})
