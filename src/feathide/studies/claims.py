"""Claims about a table: which of its numbers they speak of, and how many of them are as claimed.

A claim holds where all of its rows are as claimed, holds in part where some are, and does not
hold where none is. Rows that are as claimed because no attack succeeded there are not tested. A
row is *clear* if the whole 95 % interval says the same (for two rows: if the intervals do not
meet, which is stricter than a test of the difference)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from feathide.errors import expected, unknown

__all__ = ["Claim", "Judged", "judge"]

NUMBERS = ("value", "low", "high", "n")
SIGNS = {">=": ge, "<=": le, ">": gt, "<": lt}
Wanted = str | int | float | tuple[str | int | float, ...]


class Claim(BaseModel):
    """``says``: in words. ``where``: column -> value, pattern ("layer4*"), "!value" or a list of
    them: the rows it speaks of. Then one of

    ``is``: ``">= 0.9"``, for the value of each row; ``above`` or ``below``: column -> value: each
    row against the row that differs from it in these columns alone (and in what the attacker
    knows)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    says: str
    where: dict[str, Wanted]
    is_: str | None = Field(None, alias="is")
    above: dict[str, str] | None = None
    below: dict[str, str] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Claim":
        given = [
            n
            for n, v in (("is", self.is_), ("above", self.above), ("below", self.below))
            if v is not None
        ]
        if len(given) != 1:
            raise expected(
                "a claim has one of is, above, below",
                got=", ".join(given) or "none",
                do=self.says,
            )
        if self.is_ is not None:
            _sign(self.is_)
        return self


@dataclass(frozen=True)
class Judged:
    """What became of a claim: of ``n`` rows ``held`` are as claimed, ``clear`` of these beyond
    their intervals; ``against`` names some that are not; ``idle`` further rows are not tested, as
    no attack succeeded there.
    """

    says: str
    n: int
    held: int
    clear: int
    against: tuple[str, ...]
    idle: int = 0

    @property
    def verdict(self) -> str:
        if not self.n:
            return "not tested: no attack succeeded" if self.idle else "not tested"
        if self.held == self.n:
            return "holds"
        return (
            f"holds in part ({self.held} of {self.n})"
            if self.held
            else "does not hold here"
        )


def judge(table: pd.DataFrame, claim: Claim) -> Judged:
    """The claim before the table. Raises ``InputError`` for a column that the table does not
    have.
    """
    rows = _where(table, claim.where)
    if claim.is_ is not None:
        sign, number = _sign(claim.is_)
        held = SIGNS[sign](rows.value, number)
        clear = held & SIGNS[sign](rows.low if sign[0] == ">" else rows.high, number)
        named = [_named(r, rows, f"{r.value:.2f}") for _, r in rows[~held].iterrows()]
    else:
        other = claim.above if claim.above is not None else claim.below
        assert other is not None
        rows = _beside(table, rows, other)
        up = claim.above is not None
        held = rows.value > rows.value_other if up else rows.value < rows.value_other
        clear = held & (rows.low > rows.high_other if up else rows.high < rows.low_other)
        named = [
            _named(r, rows, f"{r.value:.2f} against {r.value_other:.2f}")
            for _, r in rows[~held].iterrows()
        ]
    idle = held & _idle(table, rows)
    n, clear = int((~idle).sum()), clear & ~idle
    return Judged(
        claim.says,
        n,
        int((held & ~idle).sum()),
        int(clear.sum()),
        tuple(named),
        int(idle.sum()),
    )


def _sign(text: str) -> tuple[str, float]:
    found = re.fullmatch(r"\s*([<>]=?)\s*(-?[\d.]+(?:e-?\d+)?)\s*", text)
    if found is None:
        raise expected("a condition such as '>= 0.9'", got=text, do="correct it")
    return found[1], float(found[2])


def _where(table: pd.DataFrame, where: Mapping[str, Any]) -> pd.DataFrame:
    keep = table.value.notna()
    for column, wanted in where.items():
        if column not in table.columns:
            raise unknown("column", column, table.columns)
        options = wanted if isinstance(wanted, tuple) else (wanted,)
        keep &= (
            table[column]
            .map(lambda v, options=options: any(_fits(v, o) for o in options))
            .astype(bool)
        )
    return table[keep]


def _fits(value: object, wanted: object) -> bool:
    if isinstance(wanted, str):
        inverse = wanted.startswith("!")
        return fnmatchcase(str(value), wanted.removeprefix("!")) != inverse
    number = float(str(wanted))
    return abs(float(str(value)) - number) <= 1e-3 * abs(number)


def _beside(
    table: pd.DataFrame, rows: pd.DataFrame, other: Mapping[str, str]
) -> pd.DataFrame:
    """Each row with the numbers of the row that differs in the columns of ``other`` alone."""
    keys = [c for c in table.columns if c not in (*NUMBERS, *other, "knowledge")]
    text = dict.fromkeys(keys, str)
    against = _where(table, other)[[*keys, *NUMBERS]].astype(text)
    return rows.astype(text).merge(against, on=keys, suffixes=("", "_other"))


def _idle(table: pd.DataFrame, rows: pd.DataFrame) -> pd.Series:
    """Which of the ``rows`` speak of an attack that succeeded on no image, by the row of its
    success.
    """
    keys = [
        c for c in table.columns if c not in (*NUMBERS, "metric", "detector", "knowledge")
    ]
    failed = table[(table.metric == "success") & (table.value == 0)]
    cells = set(failed[keys].astype(str).itertuples(index=False, name=None))
    those = rows[keys].astype(str).itertuples(index=False, name=None)
    return pd.Series([cell in cells for cell in those], rows.index, dtype=bool) & (
        rows.metric != "success"
    )


def _named(row: pd.Series, rows: pd.DataFrame, numbers: str) -> str:
    """A row by what tells it from the others, without what follows from that."""
    several: list[str] = []
    # a variation's name says more than what is varied
    for column in sorted(rows.columns, key=lambda name: name != "variation"):
        if (
            column.startswith(NUMBERS)
            or column == "knowledge"
            or rows[column].nunique() < 2
        ):
            continue
        if not several or rows.groupby(several)[column].nunique().max() > 1:
            several.append(column)
    names = (
        f"{c} {row[c]}" if c in ("seed", "layer", "eps") else str(row[c])
        for c in several
        if str(row[c])
    )
    return " ".join(names) + f": {numbers}"
