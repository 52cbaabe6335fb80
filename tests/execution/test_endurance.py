"""A real audit that is killed, that meets a full disk, a damaged file or a second process, or
that is divided, ends with the same files.

``make survive`` kills it 20 times instead of 4.
"""

import errno
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feathide.auditing.export import finished
from feathide.auditing.run import audit
from feathide.errors import InputError
from feathide.execution import whole_files
from feathide.execution.packing import unpacked
from feathide.pipeline.context import Context
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import found_in, slips_in
from feathide.plans.plan import load_plan
from worlds.endurance import PLAN, contents
from worlds.tasks import Said

fork = get_context("fork")
KILLS = int(os.environ.get("FEATHIDE_KILLS", "4"))


def start(out: Path, **how: Any) -> Any:
    child = fork.Process(target=audit, args=(load_plan(PLAN), out), kwargs=how)
    child.start()
    return child


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run, in a process of its own like the others."""
    out = tmp_path_factory.mktemp("whole") / "out"
    child = start(out)
    child.join()
    assert child.exitcode == 0
    return out


def test_killed_at_random_moments(tmp_path: Path, whole: Path) -> None:
    out, rng, kills, seconds = tmp_path / "0", np.random.default_rng(), 0, 1.0
    while kills < KILLS:
        began, child = time.monotonic(), start(out)
        child.join(rng.uniform(0, seconds))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
        else:  # it was faster: what it has is as it should be; begin anew
            assert child.exitcode == 0 and contents(out) == contents(whole)
            out, seconds = tmp_path / str(kills), min(seconds, time.monotonic() - began)
    child = start(out)
    child.join()
    assert child.exitcode == 0
    assert contents(out) == contents(whole)
    left = [p.name for p in out.rglob("*") if p.suffix in (".claim", ".tmp")]
    assert [name for name in left if name.endswith(".claim")] == []


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, room = os.fsync, [0]

    def full(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(whole_files.os, "fsync", full)
    for room[0] in (0, 3, 20, 41):
        with pytest.raises(
            InputError, match="got a full disk; make room and run the same command again"
        ):
            audit(load_plan(PLAN), tmp_path)
    monkeypatch.undo()
    audit(load_plan(PLAN), tmp_path)
    assert contents(tmp_path) == contents(whole)


def test_two_processes_on_one_folder_of_which_one_is_killed(
    tmp_path: Path, whole: Path
) -> None:
    one, two = start(tmp_path, shard=(0, 2)), start(tmp_path, shard=(1, 2))
    third = start(tmp_path)
    time.sleep(0.5)
    os.kill(third.pid, signal.SIGKILL)
    for child in (one, two, third):
        child.join()
    assert (one.exitcode, two.exitcode) == (0, 0)
    assert contents(tmp_path) == contents(whole)


def test_damaged_files_are_said_and_computed_anew(tmp_path: Path, whole: Path) -> None:
    audit(load_plan(PLAN), tmp_path)
    kinds = ("classifier", "outputs", "mixtures", "adversarial", "scores")
    files = [sorted((tmp_path / kind).rglob("*.npz"))[0] for kind in kinds]
    for path in files:
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 3] ^= 4
        path.write_bytes(raw)
    said = Said()
    audit(load_plan(PLAN), tmp_path, progress=said)
    keys = {p.relative_to(tmp_path).with_suffix("").as_posix() for p in files}
    assert {
        s.split(" ")[0] for s in said.sentences if "is damaged; it is computed again" in s
    } == keys
    assert contents(tmp_path) == contents(whole)


def decisions(
    context: Context,
) -> dict[tuple[str, str], tuple[int, bool, tuple[bool, ...]]]:
    """Of every attacked image: the class it gets, whether it fools, which guards accept it."""
    found = {}
    for cell in cells(context):
        f = found_in(context, cell)
        slips = np.stack([slips_in(context, d, f) for d in context.plan.detectors], 1)
        found |= {
            (cell.name, str(i)): (int(f.prediction[j]), bool(f.fooled[j]), tuple(slips[j]))
            for j, i in enumerate(f.id)
        }
    return found


@pytest.mark.parametrize("size", [3, 32])
def test_another_batch_size_gives_the_same_decisions(
    size: int, tmp_path: Path, whole: Path
) -> None:
    plan = load_plan(PLAN, batch_size=size)
    audit(plan, tmp_path)
    other, context = finished(tmp_path), finished(whole)
    assert decisions(other) == decisions(context)
    assert len(decisions(context)) > 20
    for cell in cells(context):
        a, b = (by_id(x, cell) for x in (context, other))
        assert a.keys() == b.keys() and all(np.allclose(a[k], b[k], atol=1e-4) for k in a)


def by_id(context: Context, cell: Any) -> dict[str, np.ndarray]:
    """The logits of a cell's images."""
    found = {}
    for i in range(context.data.batches("test", attacked=True)):
        arrays = context.store.load(
            context.steps.extract(context.steps.condition(cell), "test").keys[i]
        )
        found |= {
            str(context.cases.ids[r]): z.numpy()
            for r, z in zip(arrays["rows"], unpacked(arrays).logits, strict=True)
        }
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_shards_give_the_same_bytes(shards: int, tmp_path: Path, whole: Path) -> None:
    children = [start(tmp_path, shard=(i, shards)) for i in range(shards)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * shards
    assert contents(tmp_path) == contents(whole)
