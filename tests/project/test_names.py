"""Packages gather the names that a user needs; each is there, and importing none of them is slow."""

import importlib
import subprocess
import sys

import pytest

GATHERING = ("models", "attacks", "metrics", "training", "plans")


@pytest.mark.parametrize("package", GATHERING)
def test_every_gathered_name_is_there(package: str) -> None:
    module = importlib.import_module(f"feathide.{package}")
    names = dir(module)
    assert names and all(getattr(module, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_importing_the_packages_loads_no_heavy_library() -> None:
    code = "; ".join(f"import feathide.{package}" for package in GATHERING)
    code += "; import sys; print([m for m in ('torch', 'monai', 'lightning') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
