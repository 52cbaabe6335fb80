"""Results by group of patients: a table for each column, and what the first page says of the
group that differs most to its disadvantage.
"""

from collections.abc import Iterator

import pandas as pd

from feathide.metrics.multiplicity import DIFFERS
from feathide.metrics.numbers import percent
from feathide.metrics.registry import metric_of, title_of
from feathide.report.naming import label
from feathide.report.results import Run
from feathide.report.tables import Cell, Matrix, cell

__all__ = ["group_line", "group_tables"]

TOO_FEW = Cell("too few")


def _at_budget(run: Run) -> pd.DataFrame:
    """The rows that are compared: accuracy, and at the audited budget alarms and the worst
    attack.
    """
    if run.subgroups is None:
        return pd.DataFrame()
    rows = run.subgroups
    here = rows["eps"].isna() | ((rows["eps"] - float(run.threat["eps"])).abs() < 1e-9)
    return rows[here & rows["objective"].isin(["", "any"])]


def group_tables(run: Run) -> Iterator[Matrix]:
    """One table for each column of the plan: a line for each group."""
    rows = _at_budget(run)
    for column in rows["column"].unique() if len(rows) else ():
        part = rows[rows["column"] == column]
        heads = [_head(row) for _, row in part.iterrows()]
        found = {
            (str(row["group"]), head): _cell(row)
            for head, (_, row) in zip(heads, part.iterrows(), strict=True)
        }
        names = tuple(dict.fromkeys(heads))
        patients = part.groupby("group", sort=False)["patients"].max()
        lines = tuple(
            (
                f"{group} ({patients[group]} patients)",
                tuple(found.get((str(group), name), Cell("–")) for name in names),
            )
            for group in part["group"].unique()
        )
        says = (
            "a star marks a group that differs from the rest: permutation test by patient, "
            "corrected for all tests by Holm's method, at 5 %"
        )
        yield Matrix(f"groups-{column}", f"Results by {column}", says, names, lines)


def _head(row: pd.Series) -> str:
    title = title_of(str(row["metric"]))
    return f"{title}, {label(str(row['detector']))}" if row["detector"] else title


def _cell(row: pd.Series) -> Cell:
    if pd.isna(row["value"]):
        return TOO_FEW
    found = cell(row, metric_of(str(row["metric"])))
    star = "*" if row["p_holm"] <= DIFFERS else ""
    return Cell(found.text + star, found.interval, found.key, found.bad)


def group_line(run: Run) -> str:
    """What the first page says of groups; "" where the plan names no column."""
    rows = _at_budget(run)
    if not len(rows):
        return ""
    columns = ", ".join(map(str, rows["column"].unique()))
    worse = (rows["value"] < rows["rest"]) == (rows["metric"] == "accuracy")
    found = rows[(rows["p_holm"] <= DIFFERS) & worse]
    if not len(found):
        return f"No group by {columns} does worse than the rest beyond chance."
    far = (found["value"] - found["rest"]).abs().to_numpy().argmax()
    row = found.iloc[int(far)]
    return (
        f"One group does worse: {row['column']} {row['group']}, {_head(row)}: "
        f"{percent(float(row['value']))} % there, {percent(float(row['rest']))} % elsewhere "
        f"(corrected p = {float(row['p_holm']):.2g})."
    )
