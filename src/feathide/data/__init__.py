"""Images on disk or in memory -> Cases: id, image, label, patient, split."""

from .arrays import cases_of_arrays
from .cases import Cases, Skipped
from .eps import format_eps, parse_eps
from .load import load_cases
from .phantoms import phantoms
from .split import by_hash, check_split, three_way
from .write import read_back, write_like

__all__ = [
    "Cases",
    "Skipped",
    "by_hash",
    "cases_of_arrays",
    "check_split",
    "format_eps",
    "load_cases",
    "parse_eps",
    "phantoms",
    "read_back",
    "three_way",
    "write_like",
]
