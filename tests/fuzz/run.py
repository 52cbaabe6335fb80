"""Spoils inputs for some minutes and counts: ``make fuzz``, or ``python tests/fuzz/run.py
--minutes 60``. Exits with 1 if anything but a sentence came out.
"""

import argparse
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from world import Hang, survives, targets


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    tried, refused, found, slowest = Counter(), Counter(), {}, 0.0
    with tempfile.TemporaryDirectory() as name:
        everything = targets(Path(name))
        end, seed = time.monotonic() + 60 * given.minutes, given.seed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while time.monotonic() < end:
            seed += 1
            for target in everything:
                tried[target.name] += 1
                began = time.monotonic()
                try:
                    refused[target.name] += not survives(target, Path(name), seed)
                except (Exception, Hang) as error:
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    where = (
                        f"{target.name}: {type(error).__name__} at "
                        f"{Path(last.filename).name}:{last.lineno}"
                    )
                    if where not in found:
                        found[where] = f"{where}, seed {seed}: {str(error)[:200]}"
                        print(found[where], flush=True)
                slowest = max(slowest, time.monotonic() - began)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name in tried:
        print(f"{name}: {tried[name]} tried, {refused[name]} refused")
    print(
        f"{sum(tried.values())} inputs from seed {given.seed}, {len(found)} kinds of "
        f"failure, slowest {slowest:.1f} s, memory grew by {grown:.0f} MiB"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
