"""Plug-ins: a package installed beside ours adds rows to the catalogue by entry points."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feathide.errors import InputError, choose
from feathide.registry.plugins import GROUPS, with_plugins

MODULE = """
from feathide.detectors.density import KernelDensity

def MyDetector():
    return KernelDensity(name="mine", bandwidth=1.0)
"""


def install(folder: Path, package: str, entries: str, module: str = MODULE) -> None:
    """What pip leaves behind: a module, and a dist-info folder with the entry points."""
    name = package.replace("-", "_")
    (folder / f"{name}.py").write_text(module)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
    )
    (about / "entry_points.txt").write_text(entries)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_package", "other", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_plugin_is_listed_without_being_imported_and_loaded_on_use(site: Path) -> None:
    install(site, "my-package", "[feathide.detectors]\nmine = my_package:MyDetector\n")
    table = with_plugins("detectors", {"kd": None})
    assert list(table) == ["kd", "mine"]
    assert "mine" in table
    assert len(table) == 2
    assert "my_package" not in sys.modules
    with pytest.raises(InputError, match="did you mean 'mine'"):
        choose("detector", "mein", table)
    assert "my_package" not in sys.modules
    assert choose("detector", "mine", table)().name == "mine"
    assert "my_package" in sys.modules


def test_each_group_has_its_own_rows(site: Path) -> None:
    entries = "".join(
        f"[feathide.{group}]\nmy-{group} = my_package:MyDetector\n" for group in GROUPS
    )
    install(site, "my-package", entries)
    for group in GROUPS:
        assert list(with_plugins(group, {})) == [f"my-{group}"]
    with pytest.raises(InputError, match="did you mean 'attacks'"):
        with_plugins("attack", {})


def test_a_plugin_does_not_take_the_place_of_another_row(site: Path) -> None:
    install(
        site,
        "my-package",
        "[feathide.detectors]\nkd = my_package:MyDetector\nmine = my_package:MyDetector\n",
    )
    install(site, "other", "[feathide.detectors]\nmine = other:MyDetector\n")
    ours = object()
    table = with_plugins("detectors", {"kd": ours})
    assert table["kd"] is ours
    assert list(table) == ["kd", "my-package.kd", "my-package.mine", "other.mine"]
    assert table["other.mine"]().name == "mine"


def test_a_broken_plugin_harms_nobody_until_it_is_used(site: Path) -> None:
    install(
        site,
        "broken",
        "[feathide.attacks]\nbad = broken:attack\nabsent = broken:no\n",
        "import no_such_module\n",
    )
    table = with_plugins("attacks", {"pgd": 1})
    assert table["pgd"] == 1
    with pytest.raises(InputError, match=r"'bad' .* package 'broken' .* 'no_such_module'"):
        table["bad"]
    assert "absent" in table


def test_networks_and_data_sets_of_a_package_work_by_name(site: Path) -> None:
    module = """
from torch import nn
from feathide.data.phantoms import phantoms
from feathide.models.libraries import Arch

def make(channels, outputs, small):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 256, outputs))

flat = Arch(2, make)

def sparks(size, channels, seed):
    return phantoms(shape=(size or 16,) * 2, channels=channels or 1, seed=seed)
"""
    install(
        site,
        "zoo",
        "[feathide.models]\nflat = zoo:flat\n[feathide.datasets]\nsparks = zoo:sparks\n",
        module,
    )
    code = """
from feathide.data import load_cases
from feathide.models.zoo import MODELS, build
from feathide.plans.plan import load_plan
cases = load_cases("sparks", size=16, limit=20)
net = build("flat", channels=1, outputs=2, size=(16, 16))
assert cases.shape == (16, 16) and len(cases.where("train")) == 20 and "flat" in MODELS
load_plan({"data": "sparks", "network": "flat"})
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, env=environment
    )
