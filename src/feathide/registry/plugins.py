"""Plug-ins: rows of the catalogue that other installed packages add by entry points.

A package adds a detector by a line of its ``pyproject.toml``::

    [project.entry-points."feathide.detectors"]
    my-detector = "my_package:MyDetector"

Importing this package reads the names only; the object is imported when its row is used.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from feathide.errors import choose, expected

__all__ = ["GROUPS", "Table", "with_plugins"]

GROUPS = ("attacks", "objectives", "detectors", "models", "datasets")
T = TypeVar("T")


class Table(Mapping[str, T]):
    """The rows of one table of the catalogue: our own, which are at hand, and the plug-ins, which
    are imported on use.

    ``group``: one of ``GROUPS``. A plug-in cannot take the place of a row of ours, nor of another
    package's: where two have the same name, the plug-in is listed as ``<package>.<name>``.
    ``named``: what makes a row of a name with a colon, ``library:Name`` or
    ``package.module:name``, which are not listed."""

    def __init__(
        self,
        group: str,
        own: Mapping[str, T],
        plugins: Mapping[str, EntryPoint],
        named: Callable[[str], T] | None = None,
    ) -> None:
        self.group, self.own, self.plugins, self.named = group, own, plugins, named

    def __getitem__(self, name: str) -> T:
        if name in self.own:
            return self.own[name]
        if name not in self.plugins and self.named is not None and ":" in name:
            return self.named(name)
        return _load(self.group, self.plugins[name])

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self.plugins

    def __len__(self) -> int:
        return len(self.own) + len(self.plugins)

    def __contains__(self, name: object) -> bool:  # without importing the plug-in
        known = name in self.own or name in self.plugins
        return known or (self.named is not None and isinstance(name, str) and ":" in name)


def with_plugins(
    group: str, own: Mapping[str, T], named: Callable[[str], T] | None = None
) -> Table[T]:
    """``own`` and the rows that installed packages add to it by the entry-point group
    ``feathide.<group>``; ``named`` as in ``Table``.

    Raises ``InputError`` when a plug-in that cannot be imported is used; a broken package does no
    harm to anything else."""
    choose("entry-point group", group, dict.fromkeys(GROUPS))
    found = sorted(
        entry_points(group=f"feathide.{group}"), key=lambda e: (e.name, _package(e))
    )
    names = [e.name for e in found]
    taken = {name for name in names if names.count(name) > 1} | set(own)
    return Table(
        group,
        own,
        {f"{_package(e)}.{e.name}" if e.name in taken else e.name: e for e in found},
        named,
    )


def _load(group: str, plugin: EntryPoint) -> T:  # type: ignore[type-var]
    try:
        return plugin.load()
    except Exception as reason:
        raise expected(
            (
                f"the entry point {plugin.name!r} (feathide.{group}) of package "
                f"{_package(plugin)!r} must name something that can be imported"
            ),
            got=f"{type(reason).__name__}: {reason}",
            do="reinstall that package, or remove it",
        ) from reason


def _package(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.value.partition(":")[0]
