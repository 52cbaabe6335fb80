"""Identifiers: what attacks, objectives, knowledge, guards and sanity checks are called in public
catalogues of threats and requirements (MITRE ATLAS, NIST AI 100-2, OWASP, CWE).

All of it stands in ``identifiers.yaml`` beside this file, with source, edition and the day on
which it was checked. Nothing here claims conformity with any text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

__all__ = ["COLUMNS", "Identified", "Identifier", "Text", "identified", "identifiers_of"]


@dataclass(frozen=True)
class Identifier:
    """An identifier of a public text: ``AML.T0015``, its title, and the key of its text."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Text:
    """A public text, as it was read.

    Args:
        key: How ``Identifier.text`` names it.
        title: Its title.
        edition: Which edition was read.
        source: Where it is found.
        checked: The day on which it was read.
        covers: What an audit has to do with it.
        does_not_cover: What of it an audit says nothing about.
        identifiers: The identifiers of it that are used here.
    """

    key: str
    title: str
    edition: str
    source: str
    checked: str
    covers: str
    does_not_cover: tuple[str, ...]
    identifiers: Mapping[str, str]


@dataclass(frozen=True)
class Identified:
    """The data file: texts, and identifiers by name.

    Example:
        >>> [found.id for found in identified().of_attack("square")][-3:]
        ['AML.T0043.001', 'AML.T0040', 'NISTAML.025']
    """

    version: int
    checked: str
    texts: tuple[Text, ...]
    left_out: tuple[str, ...]
    maps: Mapping[str, Any]

    def of_attack(self, name: str) -> tuple[Identifier, ...]:
        """Those of an attack: of other libraries and of the user's own, too; none of a control."""
        if name in self.maps["controls"]:
            return ()
        own = self.maps["attacks"].get(name, self.maps["other_attack"])
        return self.called([*self.maps["every_attack"], *own])

    def of_objective(self, kind: str) -> tuple[Identifier, ...]:
        """Those of an objective, by its kind in the catalogue: the mitigation that it defeats."""
        return self.called(self.maps["objectives"].get(kind, self.maps["other_objective"]))

    def of_knowledge(self, knowledge: str) -> tuple[Identifier, ...]:
        """Those of what the attacker knows. Raises KeyError for a word that is no knowledge."""
        return self.called(self.maps["knowledge"][knowledge])

    def of_detector(self, name: str) -> tuple[Identifier, ...]:
        """Those of a guard."""
        own = self.maps["detectors"].get(name, ())
        return self.called([*self.maps["every_detector"], *own])

    def of_sanity_check(self) -> tuple[Identifier, ...]:
        """Those of every sanity check."""
        return self.called(self.maps["every_sanity_check"])

    def of_subgroups(self) -> tuple[Identifier, ...]:
        """Those of results by subgroup."""
        return self.called(self.maps["subgroups"])

    def called(self, ids: Iterable[str]) -> tuple[Identifier, ...]:
        """The identifiers of these ids, each once. Raises KeyError for one that no text has."""
        known = {
            id: Identifier(id, title, text.key)
            for text in self.texts
            for id, title in text.identifiers.items()
        }
        return tuple(known[id] for id in dict.fromkeys(ids))

    def text(self, key: str) -> Text:
        """The text of a key."""
        return next(text for text in self.texts if text.key == key)


@cache
def identified() -> Identified:
    """The data file, read once."""
    stored = yaml.safe_load(
        (files("feathide.identifiers") / "identifiers.yaml").read_text(encoding="utf-8")
    )
    texts = tuple(_text(key, fields) for key, fields in stored.pop("texts").items())
    return Identified(
        version=stored.pop("version"),
        checked=str(stored.pop("checked")),
        texts=texts,
        left_out=tuple(stored.pop("left_out")),
        maps=stored,
    )


def _text(key: str, fields: Mapping[str, Any]) -> Text:
    ids = {str(id): str(title) for id, title in fields["identifiers"].items()}
    return Text(
        key=key,
        title=fields["title"],
        edition=str(fields["edition"]),
        source=fields["source"],
        checked=str(fields["checked"]),
        covers=fields["covers"],
        does_not_cover=tuple(fields["does_not_cover"]),
        identifiers=ids,
    )


COLUMNS = ("kind", "name", "identifier", "title", "text", "edition")


def identifiers_of(
    attacks: Sequence[str],
    objectives: Sequence[str],
    knowledge: Sequence[str],
    detectors: Sequence[str],
    sanity_checks: Sequence[str],
) -> list[dict[str, str]]:
    """A row for each name of an audit and each of its identifiers.

    Args:
        attacks: Names of attacks.
        objectives: Names of objectives; ``evade:maha`` counts as ``evade``.
        knowledge: What the attackers knew.
        detectors: Names of guards.
        sanity_checks: Names of sanity checks.

    Returns:
        Rows with ``kind``, ``name``, ``identifier``, ``title``, ``text`` and ``edition``. A name
        without identifiers (a control) has one row with empty ones.
    """
    known = identified()
    kinds = (
        ("attack", attacks, known.of_attack),
        ("objective", objectives, lambda name: known.of_objective(name.partition(":")[0])),
        ("knowledge", knowledge, known.of_knowledge),
        ("guard", detectors, known.of_detector),
        ("sanity check", sanity_checks, lambda name: known.of_sanity_check()),
    )
    rows = []
    for kind, names, of in kinds:
        for name in dict.fromkeys(names):
            rows += _rows(known, kind, name, of(name))
    return rows


def _rows(
    known: Identified, kind: str, name: str, found: tuple[Identifier, ...]
) -> list[dict[str, str]]:
    if not found:
        return [dict(zip(COLUMNS, (kind, name, "", "", "", ""), strict=True))]
    return [
        dict(
            zip(
                COLUMNS,
                (kind, name, i.id, i.title, i.text, known.text(i.text).edition),
                strict=True,
            )
        )
        for i in found
    ]
