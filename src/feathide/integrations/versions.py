"""Which versions of other libraries our parts of them need."""

import re
from importlib.metadata import PackageNotFoundError, version

from feathide.errors import expected

__all__ = ["check_version"]

# the oldest version, and how to get it
LEAST = {
    "torchattacks": (
        "3.5",
        "pip install --no-deps 'torchattacks>=3.5' (pip alone takes an older one, as newer "
        "ones ask for an old requests that they do not need)",
    )
}


def check_version(library: str) -> None:
    """Refuse a library that is older than what is written for it here."""
    if library not in LEAST:
        return
    least, install = LEAST[library]
    try:
        found = version(library)
    except PackageNotFoundError:  # a copy that was not installed: it may be any
        return
    if _numbers(found) < _numbers(least):
        raise expected(f"{library} must be {least} or newer", got=found, do=install)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:2]]
