"""Names of a package that are loaded when they are first used, so that importing it is quick."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["gathered"]


def gathered(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that gathers names of its modules.

    Args:
        package: The package's name.
        homes: The names that each module gives, by the module's name.

    Returns:
        The two functions; put them in the package's ``__init__``.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return get, lambda: sorted(home)
