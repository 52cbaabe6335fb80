"""Write what an audit found as a page: ``python benchmarks/record.py runs/cxr128 benchmarks/cxr128.md --command "..."``."""

import argparse
import subprocess
from pathlib import Path

import pandas as pd
import yaml


def share(row: pd.Series) -> str:
    return f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"


def matrix(table: pd.DataFrame, metric: str, eps: float) -> list[str]:
    """One metric at one budget, detectors by attacks, with intervals, in Markdown."""
    rows = table[(table.metric == metric) & (table.eps == eps) & (table.detector != "")]
    rows = rows.assign(
        attacked=rows.attack + "+" + rows.objective, text=rows.apply(share, axis=1)
    )
    wide = rows.pivot_table(
        index="detector", columns="attacked", values="text", aggfunc="first", sort=False
    )
    head = [
        "| guard | " + " | ".join(wide.columns) + " |",
        "|---" * (len(wide.columns) + 1) + "|",
    ]
    return head + [
        f"| {name} | " + " | ".join(map(str, row)) + " |"
        for name, row in zip(wide.index, wide.values, strict=True)
    ]


def commit() -> str:
    """The commit of the code that makes the page, marked if the tree has changes of its own."""
    found = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude", "*"]
    return subprocess.run(found, capture_output=True, text=True, check=True).stdout.strip()


def page(run: Path, command: str) -> str:
    table = pd.read_csv(
        run / "results.csv",
        keep_default_na=False,
        na_values={c: [""] for c in ("eps", "value", "low", "high")},
    )
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    record = plan.pop("record")
    accuracy = table[table.metric == "accuracy"].iloc[0]
    lines = [
        f"# {accuracy.classifier} on {accuracy.dataset}",
        "",
        f"Recorded at commit `{commit()}`.",
        "",
        f"    {command}",
        "",
        f"Test accuracy {share(accuracy)} (n = {accuracy.n}); seed {accuracy.seed}; "
        + ", ".join(f"{k} {v}" for k, v in record["versions"].items())
        + ". In square brackets: 95 % intervals, by patient where known.",
        "",
    ]
    for eps in sorted(set(table.eps[table.metric == "success"])):
        lines += [
            f"## eps {eps:.5f}",
            "",
            "| attack | knowledge | success | largest change | gradients an image | seconds an image |",
            "|---|---|---|---|---|---|",
        ]
        for (attack, objective), rows in table[table.eps == eps].groupby(
            ["attack", "objective"], sort=False
        ):
            at = rows[rows.detector == ""].set_index("metric")
            if "success" not in at.index or "linf_max" not in at.index:
                continue
            numbers = f"{at.value['linf_max']:.5f} | {at.value['gradients_per_image']:.0f} | {at.value['seconds_per_image']:.2f}"
            lines.append(
                f"| {attack}+{objective} | {at.knowledge['success']} | {share(at.loc['success'])} (n = {at.n['success']}) | {numbers} |"
            )
        lines.append("")
        for metric, title in (
            ("auc", "AUC"),
            ("slips_through_fpr10", "Slips through at 10 % false alarms"),
            ("tpr_at_fpr10", "Caught at 10 % false alarms"),
        ):
            lines += [f"### {title}", "", *matrix(table, metric, eps), ""]
    return "\n".join(
        [
            *lines,
            "## Plan as run",
            "",
            "```yaml",
            yaml.safe_dump(plan, sort_keys=False).strip(),
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--command", required=True)
    given = parser.parse_args()
    given.out.write_text(page(given.run, given.command))
