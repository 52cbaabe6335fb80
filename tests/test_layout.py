"""The import order of docs/architecture.md holds in the source: a file imports only what stands below it in the list."""

import ast
import re
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
LISTING = re.search(r"## Import order.*?```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
assert LISTING is not None
ORDER = [line.split()[0] for line in LISTING[1].splitlines() if line.strip()]
FILES = {
    ".".join(f.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): f for f in SOURCE.rglob("*.py")
}
OPEN = ("feathide", "feathide.study")  # their __init__ files gather names for the user and stand above everything


def place(module: str) -> int | None:
    """Where ``module``, or the package that it is part of, stands in the list."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((ORDER.index(name) for name in names if name in ORDER), None)


def imports(module: str, path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in FILES else base for a in node.names}
    return {name for name in found if name.split(".")[0] == "feathide"}


@pytest.mark.parametrize("module", sorted(set(FILES) - set(OPEN)))
def test_a_file_imports_only_what_stands_below_it(module: str) -> None:
    own = place(module)
    assert own is not None, f"{module} is missing in the list of docs/architecture.md"
    for other in imports(module, FILES[module]):
        below = place(other)
        assert other not in OPEN, f"{module} imports {other}, which gathers names: import them where they are defined"
        assert below is not None, f"{other}, which {module} imports, is missing in the list of docs/architecture.md"
        assert below >= own, f"{module} imports {other}, which stands above it"


def test_every_name_of_the_list_is_a_file() -> None:
    assert [name for name in ORDER if f"feathide.{name}" not in FILES] == []
