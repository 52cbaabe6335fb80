"""The chapter "For the file": what was tried, by the identifiers of public texts, and what of
each text the audit says nothing about.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from feathide.identifiers import Identifier, Text, identified
from feathide.report.naming import label
from feathide.report.results import Run

__all__ = ["Listed", "for_the_file", "named_by"]

CHECKS = "the sanity checks"


@dataclass(frozen=True)
class Listed:
    """A public text, and which names of the audit each of its identifiers stands for."""

    text: Text
    rows: tuple[tuple[Identifier, str], ...]


def named_by(run: Run) -> Mapping[Identifier, tuple[str, ...]]:
    """Each identifier of the audit, with the names that it stands for."""
    found: dict[Identifier, dict[str, None]] = defaultdict(dict)
    for name, identifiers in _names(run):
        for identifier in identifiers:
            found[identifier][name] = None
    return {identifier: tuple(names) for identifier, names in found.items()}


def _names(run: Run) -> Iterator[tuple[str, tuple[Identifier, ...]]]:
    known = identified()
    rows = run.table[(run.table["attack"] != "") & (run.table["attack"] != "worst")]
    for name in rows["attack"].unique():
        yield label(str(name)), known.of_attack(str(name))
    for name in rows["objective"].unique():
        yield label(str(name)), known.of_objective(str(name).partition(":")[0])
    for name in rows["knowledge"].unique():
        yield f"{name} attackers", known.of_knowledge(str(name))
    for name in run.table.loc[run.table["detector"] != "", "detector"].unique():
        yield label(str(name)), known.of_detector(str(name))
    if run.sanity_checks:
        yield CHECKS, known.of_sanity_check()
    if run.subgroups is not None:
        yield "results by group", known.of_subgroups()


def for_the_file(run: Run) -> list[Listed]:
    """The public texts, each with its identifiers that this audit has something to do with."""
    found = named_by(run)
    return [
        Listed(
            text,
            tuple(
                (i, ", ".join(names)) for i, names in found.items() if i.text == text.key
            ),
        )
        for text in identified().texts
    ]
