"""The attack variant that docs/extend.md writes out works and obeys the conformance checks."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from feathide.attacks.loop import Attack
from feathide.attacks.presets import pgd
from feathide.attacks.threats import L2, Linf
from feathide.checks.worlds import SHAPES
from feathide.losses import HFC
from worlds.classifiers import run, world

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend.md"


@cache
def lion() -> Callable[..., Attack]:
    section = PAGE.read_text().split("## Add an attack variant")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), space)
    body = code.split("@dataclass")[1].splitlines()
    assert len([line for line in body if line.strip()]) <= 17  # as short as the page says
    return space["lion"]


def test_the_function_of_the_page_hides_what_it_says() -> None:
    section = (
        PAGE.read_text().split("## An objective that is a function")[1].split("\n## ")[0]
    )
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    space: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), space)
    w = world(SHAPES[0])
    hiding = replace(space["attack"], threat=Linf(0.1), steps=8)
    found = [run(attack, w) for attack in (pgd(Linf(0.1), steps=8), hiding)]
    plain, low = (space["activity"](w.classifier.extract(f.adversarial)) for f in found)
    assert float(low.sum()) < float(plain.sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threat", [Linf(0.2), L2(0.5)])
def test_the_example_fools_and_does_not_mix_images(
    shape: tuple[int, ...], threat: Linf | L2
) -> None:
    w = world(shape)
    attack = lion()(threat, hide=0.1 * HFC(w.bank), steps=8)
    found = run(attack, w)
    assert bool((threat.size(found.adversarial - w.x) <= threat.eps + 1e-9).all())
    assert float((found.trace[-1] - found.trace[0]).mean()) < -0.1
    for i in range(4):
        torch.testing.assert_close(
            run(attack, w, slice(i, i + 1)).adversarial[0],
            found.adversarial[i],
            rtol=0,
            atol=1e-9,
        )
