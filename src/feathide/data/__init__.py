"""Images on disk or in memory -> Cases: id, image, label, patient, split."""

from .arrays import cases_of_arrays
from .cases import Cases, Skipped
from .load import load_cases
from .phantoms import phantoms
from .split import by_hash, check_split, three_way

__all__ = ["Cases", "Skipped", "by_hash", "cases_of_arrays", "check_split", "load_cases", "phantoms", "three_way"]
