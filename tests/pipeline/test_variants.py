"""Further seeds of the classifier, and guards that learnt from each attack in turn."""

import re
from pathlib import Path

import pandas as pd
import pytest

from feathide.auditing.run import audit
from feathide.auditing.tasks import audit_tasks
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.pipeline.table import table_of
from feathide.pipeline.variants import held_out_of
from feathide.plans.plan import load_plan
from worlds.audits import PLAN, write_npz

CHANGES = {
    "detectors": ["kd", "dnn"],
    "objectives": ["plain", "evade"],
    "schedule": {"steps": 4},
    "split": {"most": 12},
    "sanity_checks": "off",
    "held_out": True,
}
SAME = ["attack", "objective", "eps", "detector", "metric"]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A finished audit of two seeds."""
    folder = tmp_path_factory.mktemp("variants")
    network = {
        "arch": "tiny",
        "layers": "conv",
        "train": {"epochs": 2, "augment": False},
        "seeds": [0, 5],
    }
    plan = load_plan(
        {
            "data": str(write_npz(folder / "patches.npz")),
            **PLAN,
            **CHANGES,
            "network": network,
            "even_so": True,
        }
    )
    audit(plan, folder / "out")
    return Context(plan, Store(folder / "out"))


def read(context: Context, name: str) -> pd.DataFrame:
    return pd.read_csv(
        context.store.folder / name,
        keep_default_na=False,
        na_values={c: [""] for c in ("value", "eps")},
    )


def test_seeds_give_the_mean_and_range_of_each_number(context: Context) -> None:
    network = context.plan.network.model_copy(update={"seed": 5, "seeds": ()})
    other = table_of(
        Context(
            context.plan.model_copy(update={"network": network, "held_out": False}),
            context.store,
        )
    )
    seeds, own = (
        read(context, "seeds.csv").set_index(SAME),
        read(context, "results.csv").set_index(SAME),
    )
    assert (
        set(context.store.folder.glob("classifier/*.npz"))
        and len(list(context.store.folder.glob("classifier/*.npz"))) == 2
    )
    key = ("pgd", "plain", context.limits.budgets[0], "kd", "auc")
    pair = own.loc[key, "value"], other.set_index(SAME).loc[key, "value"]
    assert pair[0] != pair[1]
    found = seeds.loc[key]
    assert (found["least"], found["greatest"], found["seeds"]) == (min(pair), max(pair), 2)
    assert found["mean"] == pytest.approx(sum(pair) / 2)


def test_each_guard_learns_from_each_attack_and_meets_the_others(context: Context) -> None:
    held = read(context, "held_out.csv")
    assert set(zip(held.learnt_from, held.attack, strict=True)) == {
        (a, b) for a in ("fgsm", "pgd") for b in ("fgsm", "pgd")
    }
    assert set(held.objective) == {"plain"}  # who knows the guard depends on what it learnt
    own, value = (
        read(context, "results.csv").set_index(SAME).value,
        held.set_index(["learnt_from", *SAME]).value,
    )
    key = ("fgsm", "plain", context.limits.budgets[0], "dnn", "auc")
    assert value["pgd", *key] == own[key]  # what the audit says
    assert value["fgsm", *key] != own[key]
    one_class = ("pgd", "plain", context.limits.budgets[0], "kd", "slips_through_fpr10")
    assert value["pgd", *one_class] == value["fgsm", *one_class]  # never sees an attack
    pd.testing.assert_frame_equal(
        held_out_of(context).reset_index(drop=True)[["value"]], held[["value"]]
    )


def test_the_report_shows_both_tables(context: Context) -> None:
    text = (context.store.folder / "report.html").read_text().replace("\xa0", " ")
    spelled = re.sub(r'<a class="term"[^>]*>|</a>', "", text)
    tables = re.findall(
        r"<caption>Slips through at 10 % false alarms, (.*?)<span>.*?<tbody>(.*?)</tbody>",
        spelled,
        re.DOTALL,
    )
    lines = {
        title: re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', body, re.DOTALL)
        for title, body in tables
    }
    seeds, held = (
        lines["over the classifier&#39;s seeds"],
        lines["by what the guards learnt from"],
    )
    assert [name for name, _ in seeds] == ["KD", "DNN"]
    assert [name for name, _ in held] == [
        f"{d}, learnt from {a}" for d in ("KD", "DNN") for a in ("PGD", "FGSM")
    ]
    key = ("fgsm", "plain", context.limits.budgets[0], "dnn", "slips_through_fpr10")
    found = read(context, "seeds.csv").set_index(SAME).loc[key]
    spread = f"({100 * found['least']:.1f}–{100 * found['greatest']:.1f})"
    assert f"{100 * found['mean']:.1f} % <small>{spread}</small>" in seeds[1][1]
    other = (
        read(context, "held_out.csv").set_index(["learnt_from", *SAME]).value["fgsm", *key]
    )
    assert f"{100 * other:.1f} % <small>" in held[3][1]
    assert "One classifier, trained once" not in text


def test_variants_share_all_work_that_is_the_same(context: Context) -> None:
    keys = [task.key for task in audit_tasks(context)]
    assert len(keys) == len(set(keys)) and all(context.store.done(key) for key in keys)
    images = {key for key in keys if key.startswith("adversarial/pgd-plain")}
    assert {key.split("/")[1] for key in images} == {
        context.steps.condition(c) for c in _plain(context)
    } | {
        Context(_second(context), context.store).steps.condition(c) for c in _plain(context)
    }


def _plain(context: Context) -> list:  # type: ignore[type-arg]
    from feathide.pipeline.listing import cells

    return [c for c in cells(context) if c.name == "pgd+plain"]


def _second(context: Context):  # type: ignore[no-untyped-def]
    return context.plan.model_copy(
        update={"network": context.plan.network.model_copy(update={"seed": 5, "seeds": ()})}
    )


def test_seeds_of_a_network_that_is_not_trained_here_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="seeds are those of a network that is trained here"
    ):
        load_plan(
            {
                "data": "phantoms",
                "network": {"arch": "tiny", "weights": "w.safetensors", "seeds": [1]},
            }
        )
