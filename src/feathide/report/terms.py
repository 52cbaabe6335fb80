"""The words of the page that a reader need not know, each explained in a sentence or two: the
table behind tooltips and glossary, from ``terms.yaml``.
"""

from dataclasses import dataclass
from functools import cache

import yaml

from feathide.report.text import asset

__all__ = ["Term", "terms"]

# what a group of the file is, and the page of the documentation on it
GROUPS = {
    "guards": ("A guard.", "science/#detectors"),
    "attacks": ("An attack.", "science/#attacks"),
    "hiding": ("A way to hide from guards.", "science/#other-ways-to-hide"),
    "words": ("", "report/"),
}


@dataclass(frozen=True)
class Term:
    """A word or abbreviation.

    Args:
        name: As the page writes it.
        full: Spelled out; "" where there is nothing to spell out.
        says: What it is, in a sentence or two.
        more: The page of the documentation that says more, and the place on it.
        also: Other ways to write it.
    """

    name: str
    full: str
    says: str
    more: str
    also: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name as part of an address within the page."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower())

    @property
    def short(self) -> bool:
        """Whether it is an abbreviation."""
        return bool(self.full) and self.name != self.name.lower()


@cache
def terms() -> tuple[Term, ...]:
    """Every term that a page may explain."""
    groups = yaml.safe_load(asset("terms.yaml"))
    return tuple(
        Term(
            name=str(entry["name"]),
            full=str(entry.get("full", "")),
            says=f"{what} {entry['says']}".strip(),
            more=str(entry.get("more", page)),
            also=tuple(map(str, entry.get("also", ()))),
        )
        for group, (what, page) in GROUPS.items()
        for entry in groups[group]
    )
