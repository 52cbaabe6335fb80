"""Images on disk or in memory -> Cases: id, image, label, patient, split."""

from feathide.data.arrays import cases_of_arrays
from feathide.data.budgets import format_eps, parse_eps
from feathide.data.cases import Cases, Skipped
from feathide.data.load import load_cases
from feathide.data.phantoms import phantoms
from feathide.data.split import by_hash, check_split, three_way
from feathide.data.write import read_back, write_like

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
