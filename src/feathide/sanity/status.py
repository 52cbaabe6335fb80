"""What a check of the evaluation came to: pass, warn or fail, and what was found."""

from typing import Literal

Status = Literal["pass", "warn", "fail"]


Judged = tuple[Status, str]
