"""``Glossary``: spells out every abbreviation where it first stands on a page, links each term to
its explanation, and remembers which terms the page needs.
"""

import re
from collections.abc import Callable
from functools import cache

from markupsafe import Markup

from feathide.report.terms import Term, terms
from feathide.report.text import firm

__all__ = ["Glossary"]

LINK = Markup('<a class="term" href="#term-{0}" aria-describedby="says-{0}">{1}</a>')


class Glossary:
    """The terms of one page, in the order in which it meets them.

    Args:
        docs: The address where the documentation is served; "" if nobody said.

    Example:
        >>> glossary = Glossary()
        >>> "(projected gradient descent)" in glossary.tell("PGD and PGD")
        True
        >>> [term.name for term in glossary.terms]
        ['PGD']
    """

    def __init__(self, docs: str = "") -> None:
        self.docs = docs.rstrip("/")
        self.met: dict[str, Term] = {}

    @property
    def terms(self) -> list[Term]:
        """The terms that the page has met, in alphabetical order."""
        return sorted(self.met.values(), key=lambda term: term.name.lower())

    def tell(self, text: object) -> Markup:
        """``text`` with its terms linked: an abbreviation once, another term where the page meets
        it for the first time. There an abbreviation is spelled out, too.
        """
        return self._written(text, lambda term, name: LINK.format(term.id, name))

    def spell(self, text: object) -> Markup:
        """The same without links: for headings, and for what stands in a control."""
        return self._written(text, lambda term, name: firm(name))

    def describe(self, text: object) -> str:
        """The ids of the explanations of the terms in ``text``, for ``aria-describedby``."""
        found = [_names()[name] for name in _pattern().findall(str(text))]
        self.met |= {term.id: term for term in found}
        return " ".join(dict.fromkeys(f"says-{term.id}" for term in found))

    def address(self, term: Term) -> str:
        """Where the documentation says more; "" if it is not served anywhere."""
        return f"{self.docs}/{term.more}" if self.docs else ""

    def _written(self, text: object, write: Callable[[Term, str], Markup]) -> Markup:
        parts, here = list[Markup](), set[str]()
        for i, part in enumerate(_pattern().split(str(text))):
            if i % 2 == 0:  # what stands between two terms
                parts.append(firm(part))
                continue
            term = _names()[part]
            new = term.id not in self.met
            told = term.id not in here and (new or term.short)
            parts.append(write(term, part) if told else firm(part))
            if new and term.full:
                parts.append(Markup(' <span class="full">({})</span>').format(term.full))
            here.add(term.id)
            self.met[term.id] = term
        return Markup("").join(parts)


@cache
def _names() -> dict[str, Term]:
    """Every way to write a term."""
    return {name: term for term in terms() for name in (term.name, *term.also)}


@cache
def _pattern() -> re.Pattern[str]:
    """Terms as whole words, the longest first: "BU of the logit" is not BU."""
    names = sorted(_names(), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, names))})(?![\w-])")
