"""Whatever interrupts or divides the work, the files are the same (conformance checks S2, S3,
S4).
"""

import io
import os
import signal
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
from rich.console import Console

from feathide.errors import InputError
from feathide.execution.engine import Interrupted, run
from feathide.execution.graph import Task, ordered
from feathide.execution.progress import RichProgress, Status, tell
from feathide.execution.store import Store, open_folder
from worlds.tasks import Said, contents, graph

fork = get_context("fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(graph(), Store(folder)) == tuple(task.key for task in ordered(graph()))
    return contents(folder)


def test_done_tasks_are_skipped(tmp_path, whole):
    log = tmp_path / "log"
    run(graph(log=log), Store(tmp_path / "out"))
    assert run(graph(log=log), Store(tmp_path / "out")) == ()
    assert (
        len(log.read_text().splitlines()) == len(graph())
        and contents(tmp_path / "out") == whole
    )


@pytest.mark.parametrize("when", ["before", "after"])
def test_s2_stopped_at_each_task_and_resumed_gives_the_same_bytes(tmp_path, whole, when):
    for stop_at in range(len(graph())):
        store, calls = Store(tmp_path / str(stop_at)), iter(range(1000))

        def work(store, task, calls=calls, stop_at=stop_at):
            arrays = task.work(store) if when == "after" else None
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return arrays or task.work(store)

        with pytest.raises(
            Interrupted,
            match=f"stopped: {stop_at} of {len(graph())} steps are done and kept in",
        ):
            run([replace(task, work=partial(work, task=task)) for task in graph()], store)
        assert len(contents(store.folder)) == stop_at
        assert len(run(graph(), store)) == len(graph()) - stop_at
        assert contents(store.folder) == whole


def test_s2_killed_at_random_moments_and_resumed_gives_the_same_bytes(tmp_path, whole):
    rng, log, kills = np.random.default_rng(0), tmp_path / "log", 0
    while kills < 12:
        child = fork.Process(
            target=run, args=(graph(pause=0.005, log=log), Store(tmp_path / "out"))
        )
        child.start()
        time.sleep(rng.uniform(0.005, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        if child.exitcode == 0:  # it was faster: begin anew
            assert contents(tmp_path / "out") == whole
            for path in (tmp_path / "out").rglob("*.npz"):
                path.unlink()
    run(graph(), Store(tmp_path / "out"))
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_s3_one_shard_is_four_shards(tmp_path, whole, order):
    children = [
        fork.Process(target=run, args=(graph(), Store(tmp_path)), kwargs={"shard": (i, 4)})
        for i in order
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4
    assert contents(tmp_path) == whole


def test_a_shard_begins_with_its_own_part_and_finishes_alone(tmp_path, whole):
    first = [run(graph(), Store(tmp_path / str(i)), shard=(i, 2))[:3] for i in range(2)]
    assert set(first[0]) != set(first[1])
    assert all(contents(tmp_path / str(i)) == whole for i in range(2))
    for shard in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="shard i/n must have 0 <= i < n"):
            run(graph(), Store(tmp_path / "x"), shard=shard)


def test_two_processes_on_one_folder_share_the_work(tmp_path, whole):
    log = tmp_path / "log"
    children = [
        fork.Process(target=run, args=(graph(pause=0.02, log=log), Store(tmp_path / "out")))
        for _ in range(2)
    ]
    start = time.monotonic()
    for child in children:
        child.start()
    for child in children:
        child.join()
    spent = time.monotonic() - start
    assert [child.exitcode for child in children] == [0, 0]
    assert contents(tmp_path / "out") == whole
    assert len(log.read_text().splitlines()) == len(graph()), "some task was done twice"
    assert spent < 30


def test_what_another_process_finished_between_look_and_claim_is_left_alone(tmp_path):
    store = Store(tmp_path)

    class Other(Said):
        def show(self, status):
            run(graph(), store)

    assert run(graph(), store, progress=Other()) == ()


def test_a_process_takes_over_from_one_that_was_killed(tmp_path, whole):
    store = Store(tmp_path)
    child = fork.Process(target=run, args=(graph(pause=30), store))
    child.start()
    while not list(tmp_path.rglob("*.claim")):
        time.sleep(0.01)
    child.kill()
    child.join()
    assert list(tmp_path.rglob("*.claim"))
    run(graph(), store)
    assert contents(tmp_path) == whole


def test_s4_one_changed_field_computes_exactly_its_dependants(tmp_path):
    store = open_folder(tmp_path / "out", "aaaa")
    run(graph(), store)
    before = contents(store.folder)
    assert [key.split("/")[0] for key in run(graph(attack=3), store)] == ["attack"] * 5 + [
        "table"
    ]
    assert before.items() <= contents(store.folder).items()
    assert len(run(graph(clean=7), store)) == len(graph())
    assert run(graph(), store) == run(graph(attack=3), store) == ()


def test_a_damaged_file_is_said_and_computed_anew(tmp_path, whole):
    store, said = Store(tmp_path), Said()
    run(graph(), store)
    keys = [graph()[0].key, graph()[-1].key]
    for key in keys:
        raw = bytearray(store.path(key).read_bytes())
        raw[len(raw) // 2] ^= 1
        store.path(key).write_bytes(raw)
    assert set(run(graph(), store, progress=said)) == set(keys)
    assert sorted(said.sentences) == sorted(
        f"{key} is damaged; it is computed again" for key in keys
    )
    assert contents(tmp_path) == whole


def test_graphs_that_cannot_be_run_are_refused_before_any_work(tmp_path):
    def task(key, *needs):
        return Task(key, needs, lambda store: {"x": np.zeros(1)})

    store = Store(tmp_path / "out")
    with pytest.raises(InputError, match="unknown need of task 'b' 'aa'; did you mean 'a'"):
        run([task("a"), task("b", "aa")], store)
    with pytest.raises(InputError, match="circle, got b, c"):
        run([task("a"), task("b", "a", "c"), task("c", "b")], store)
    with pytest.raises(InputError, match="own key, got 'a' twice"):
        run([task("a"), task("a")], store)
    with pytest.raises(InputError, match="a key must be"):
        run([task("../a")], store)
    assert not (tmp_path / "out").exists() and run([], store) == ()
    assert [t.key for t in ordered([task("c", "a", "b"), task("b", "a"), task("a")])] == [
        "a",
        "b",
        "c",
    ]


def test_a_failing_task_names_its_key_and_leaves_the_rest(tmp_path):
    def fail(error, store):
        raise error

    good = Task("good", (), lambda store: {"x": np.zeros(1)})
    cases = (
        (
            ZeroDivisionError("no"),
            RuntimeError,
            "the step bad/1 failed with ZeroDivisionError: no",
        ),
        (
            InputError("eps must be > 0, got 0; raise it"),
            InputError,
            "^bad/1: eps must be > 0, got 0; raise it$",
        ),
    )
    for error, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            run([good, Task("bad/1", ("good",), partial(fail, error))], Store(tmp_path))
        assert caught.value.__cause__ is error
        assert list(contents(tmp_path)) == ["good.npz"]
    with pytest.raises(InputError, match="must hold arrays of numbers"):
        run([Task("bad/2", (), lambda store: {"x": np.array([None])})], Store(tmp_path))


def test_more_workers_give_the_same_bytes(tmp_path, whole):
    assert run(graph(pause=0.2), Store(tmp_path), workers=2)
    assert contents(tmp_path) == whole


def test_a_failure_in_a_helper_is_met_and_named_here(tmp_path):
    def fail(store):
        raise ZeroDivisionError("no")

    tasks = [*graph(pause=0.3), Task("bad", (), fail)]
    with pytest.raises(RuntimeError, match="the step bad failed"):
        run(tasks, Store(tmp_path), workers=2)


def test_progress_counts_and_foretells(tmp_path):
    said = Said()
    tasks = [
        Task(
            f"a/{i}",
            (),
            lambda store: time.sleep(0.01) or {"x": np.zeros(1)},
            "count",
            f"part {i}",
            weight=i + 1,
        )
        for i in range(4)
    ]
    run(tasks[:1], Store(tmp_path))
    run(tasks, Store(tmp_path), progress=said)
    assert [(s.stage, s.title, s.done, s.total) for s in said.shown] == [
        *(("count", f"part {i}", i, 4) for i in (1, 2, 3)),
        ("count", "part 3", 4, 4),
    ]
    first, second, third, last = said.shown
    assert np.isnan(first.left) and last.left == 0 and last.rate > 0
    assert second.left == pytest.approx(
        7 / 2 / second.rate
    ) and third.left == pytest.approx(4 * 2 / third.rate / 5)


def test_time_left_counts_what_is_foreseen_a_long_task_and_what_comes_after(tmp_path):
    said = Said()

    def work(store: Store) -> dict[str, np.ndarray]:
        tell(1, 4, "epoch 1 of 4")
        return {"x": np.zeros(1)}

    order = [Task("a", (), work, "train", weight=80.0), Task("b", (), work, weight=20.0)]
    run(order, Store(tmp_path), progress=said, finish=5.0)
    begun, inside = said.shown[:2]
    # nothing is measured yet: as foreseen, tables and the page included
    assert begun.left == pytest.approx(105, rel=0.01)
    # a quarter of the first task took no time, against a tenth of all as foreseen
    assert inside.part == (1, 4) and inside.what == "epoch 1 of 4"
    assert inside.left == pytest.approx((100 - 20) * 10 / (20 + 10) + 5, rel=0.05)
    assert said.shown[-1].left == pytest.approx(5, rel=0.01)


def test_a_display_of_lines_tells_each_epoch_once_and_is_quiet_if_told():
    text, still, every = io.StringIO(), io.StringIO(), io.StringIO()
    shown = [
        Status(
            "train", f"epoch {e} of 2, {rate}/s", 0, 3, 1.0, 9.0, (1, 2), f"epoch {e} of 2"
        )
        for e, rate in ((1, 3.0), (1, 4.0), (2, 5.0))
    ]
    for file, how in ((text, {}), (still, {"quiet": True}), (every, {"verbose": True})):
        with RichProgress(Console(file=file, width=20), **how) as progress:
            for status in [*shown, Status("attack", "a", 1, 3, 1.0, 9.0)]:
                progress.show(status)
            progress.show(Status("attack", "b", 2, 3, 1.0, 9.0))
    assert text.getvalue().splitlines() == [
        "train: epoch 1 of 2, 3.0/s (0/3, 0:00:09 left)",
        "train: epoch 2 of 2, 5.0/s (0/3, 0:00:09 left)",
        "attack (1/3, 0:00:09 left)",
    ]
    assert still.getvalue() == ""
    assert every.getvalue().splitlines()[-2:] == [
        "attack: a (1/3, 0:00:09 left)",
        "attack: b (2/3, 0:00:09 left)",
    ]


def test_display_is_one_line_a_stage_without_a_terminal():
    text = io.StringIO()
    with RichProgress(Console(file=text, width=80)) as progress:
        for done, stage in enumerate(["extract", "extract", "attack", "extract"]):
            progress.show(Status(stage, "x", done, 4, 1.0, 3.0))
        progress.say("[a/0] is damaged")
    assert text.getvalue() == (
        "extract (0/4, 0:00:03 left)\nattack (2/4, 0:00:03 left)\n[a/0] is damaged\n"
    )


def test_display_shows_stage_count_rate_and_time_left_on_a_terminal():
    text = io.StringIO()
    with RichProgress(
        Console(file=text, width=120, force_terminal=True, color_system=None)
    ) as progress:
        progress.show(Status("attack", "[pgd] 3", 3, 8, 0.5, float("nan")))
        progress.show(Status("attack", "[pgd] 4", 4, 8, 0.5, 65.4))
    assert "attack [pgd] 4" in text.getvalue() and "4/8" in text.getvalue()
    assert "30.0/min, 0:01:05 left" in text.getvalue()


def test_tasks_of_a_hundred_thousand_are_ordered_in_seconds():
    tasks = [
        Task(f"a/{i}", (f"a/{i - 1}",) if i % 100 else (), lambda store: {})
        for i in range(100_000)
    ]
    start = time.monotonic()
    assert len(ordered(reversed(tasks))) == len(tasks)
    assert time.monotonic() - start < 10


def test_a_long_task_tells_how_far_it_is(tmp_path):
    seen: list[str] = []

    class Titles:
        def show(self, status: Status) -> None:
            seen.append(status.title)

        def say(self, sentence: str) -> None:
            pass

    def work(store: Store) -> dict[str, np.ndarray]:
        tell(1, 2, "epoch")
        return {"a": np.zeros(1)}

    run([Task("a", (), work, title="net")], Store(tmp_path), progress=Titles())
    assert [title.rpartition(", ")[0] or title for title in seen] == [
        "net",
        "epoch, step 1/2",
        "net",
    ]
