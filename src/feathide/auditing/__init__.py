"""An audit: preflight, run, report, verification, export."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from feathide.auditing.run import Audit
    from feathide.execution.engine import Progress
    from feathide.plans.plan import Plan

__all__ = ["audit"]


def audit(
    plan: "Plan",
    out: Path | str,
    *,
    progress: "Progress | None" = None,
    workers: int = 1,
    shard: tuple[int, int] | None = None,
    engine: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus: float = 0.0,
    reuse: bool = False,
    fail_if: Sequence[str] = (),
) -> "Audit":
    """Run the audit of a plan: ``feathide.auditing.run.audit``, which is imported when it is
    called, as it brings pandas, scikit-learn and all that a report needs.
    """
    from feathide.auditing import run

    return run.audit(
        plan,
        out,
        progress=progress,
        workers=workers,
        shard=shard,
        engine=engine,
        address=address,
        gpus=gpus,
        reuse=reuse,
        fail_if=fail_if,
    )
