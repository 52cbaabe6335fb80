"""The packages of docs/architecture.md hold in the source: each imports only what stands below
it.
"""

import ast
import re
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "feathide"
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LISTING = re.search(r"## Packages.*?```\n(.*?)```", PAGE, re.DOTALL)
assert LISTING is not None
ORDER = [line.split()[0] for line in LISTING[1].splitlines() if line.strip()]
# they gather names for the user, and stand above everything
OPEN = ("__init__", "__main__")
MOST_LINES = 4200
MOST_AT_THE_TOP = 6
MOST_FILES_FOR_A_NUMBER = 15


def imported(path: Path) -> set[str]:
    """The packages of feathide that a file imports from, also inside functions."""
    module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    package = module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            found |= {
                f"{base}.{alias.name}" if base == "feathide" else base
                for alias in node.names
            }
    return {name.split(".")[1] for name in found if name.startswith("feathide.")}


def files_of(package: str) -> list[Path]:
    folder = SOURCE / package
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [SOURCE / f"{package}.py"]


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    below = ORDER[ORDER.index(package) :]
    wrong = {
        str(path.relative_to(SOURCE)): imported(path) - set(below)
        for path in files_of(package)
    }
    assert {name: above for name, above in wrong.items() if above} == {}


def test_the_list_is_the_tree() -> None:
    there = {
        p.stem if p.is_file() else p.name
        for p in SOURCE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert there == {*ORDER, *OPEN}
    assert len(ORDER) == len(set(ORDER))


def test_the_house_stays_small() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= MOST_AT_THE_TOP
    lines = {
        name: sum(len(p.read_text(encoding="utf-8").splitlines()) for p in files_of(name))
        for name in ORDER
    }
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_a_number_can_be_followed() -> None:
    steps = re.search(r"## One number, followed\n(.*?)\n## ", PAGE, re.DOTALL)
    assert steps is not None and len(PAGE.splitlines()) <= 150
    named = re.findall(r"`([a-z_]+/[a-z_]+\.py)`", steps[1])
    assert 10 <= len(named) <= MOST_FILES_FOR_A_NUMBER + 1  # the plan has two
    assert [name for name in named if not (SOURCE / name).is_file()] == []


def test_no_test_imports_another() -> None:
    wrong = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in TESTS.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) (\w+\.)*(test_\w+|conftest)\b", line)
    ]
    assert wrong == []
