"""The inputs of ``run.py``, led by what code they reach: ``make fuzz ENGINE=atheris MINUTES=30``,
or ``python tests/fuzz/guided.py --only plan.yaml``.

libFuzzer keeps an input that reaches new lines of feathide and spoils it further, mostly with
what its kind knows of its structure. Every reader gets a process of its own and an equal share of
the time. Exits with 1 if anything but a sentence came out."""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent))

with atheris.instrument_imports(include=["feathide"]):
    from world import Hang, Target, accepts, targets

fork = get_context("fork")


def lead(target: Target, folder: Path, seconds: int, count: Any) -> None:
    """Fuzzes one reader; libFuzzer ends the process. ``count``: inputs tried, refused, kinds of
    failure.
    """
    known: set[str] = set()
    (folder / "kept").mkdir()
    (folder / "kept" / "seed").write_bytes(target.seed)

    def one(data: bytes) -> None:
        count[0] += 1
        try:
            count[1] += not accepts(target, folder, data)
        except (Exception, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = (
                f"{target.name}: {type(error).__name__} at "
                f"{Path(last.filename).name}:{last.lineno}"
            )
            if where not in known:
                known.add(where)
                count[2] += 1
                kept = Path(tempfile.mkdtemp(prefix="feathide-")) / target.name
                kept.write_bytes(data)
                print(f"{where}, kept as {kept}: {str(error)[:200]}", flush=True)

    def spoil(data: bytes, largest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.3:
            return atheris.Mutate(data, largest)
        try:
            return target.spoil(data, draw)[:largest]
        except Exception:  # spoilt before: its structure is gone
            return atheris.Mutate(data, largest)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    limits = [
        f"-max_total_time={seconds}",
        "-max_len=65536",
        "-timeout=0",
        "-rss_limit_mb=4096",
        "-verbosity=0",
    ]
    atheris.Setup([target.name, *limits, str(folder / "kept")], one, custom_mutator=spoil)
    atheris.Fuzz()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument(
        "--only", nargs="*", default=(), help="names of the inputs, all by default"
    )
    given = arguments.parse_args()
    warnings.simplefilter("ignore")
    tried, failed, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        chosen = [t for t in targets(Path(name)) if t.name in given.only or not given.only]
        os.chdir(name)  # libFuzzer leaves what ended a process in the working folder
        for target in chosen:
            folder, count = Path(name), fork.Array("q", 3)
            child = fork.Process(
                target=lead,
                args=(target, folder, round(60 * given.minutes / len(chosen)), count),
            )
            child.start()
            child.join()
            kept = len(list((folder / "kept").iterdir()))
            for path in (folder / "kept").iterdir():
                path.unlink()
            (folder / "kept").rmdir()
            tried, failed = tried + count[0], failed + count[2] + bool(child.exitcode)
            said = (Path(name) / "said").read_text(errors="replace")[-2000:]
            ended = f", ended with {child.exitcode}: {said}" if child.exitcode else ""
            print(
                (
                    f"{target.name}: {count[0]} tried, {count[1]} refused, {kept} reached new "
                    f"code{ended}"
                ),
                flush=True,
            )
    print(
        f"{tried} inputs in {(time.monotonic() - began) / 60:.1f} minutes, {failed} kinds "
        "of failure"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
