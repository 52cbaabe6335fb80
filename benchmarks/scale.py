"""What the engine itself costs, and what that means for 1,000 GPUs and 10 million images.

    python benchmarks/scale.py [--ray]
    python benchmarks/scale.py --workers     # whole audits: seconds and memory against images, and the speed-up of two processes

Measures tasks that do nothing (in one process and on Ray), the look at finished files, the speed-up of two processes and the growth of
memory; then runs the real scheduler (``Frontier``) on the graph of an audit of 10 million images in simulated time on 1,000 workers,
handed out by one driver (Ray) or taken by the workers themselves (shards: 0 ms).
"""

import argparse
import heapq
import os
import resource
import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from feathide.execution.engine import run
from feathide.execution.graph import Frontier, Task, ordered
from feathide.execution.ray import run_on_ray
from feathide.execution.store import Store

ON_RAY = "empty task, Ray with two workers"
IMAGES, BATCH, CELLS, DETECTORS, GPUS = 10_000_000, 256, 4, 7, 1000


def nothing(store, *, size=1):
    return {"x": np.zeros(size, np.uint8)}


def waiting(store):
    time.sleep(0.25)
    return nothing(store)


def flat(count, task, needs=()):
    return [Task(f"a/{i:06}", needs, task) for i in range(count)]


def timed(call, count):
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) / count, (time.process_time() - cpu) / count


def per_task(folder, use_ray):
    """(what, seconds by the clock, seconds of CPU time of this process), each a task."""
    one = Store(folder / "one")
    yield ("empty task", *timed(lambda: run(flat(1000, nothing), one), 1000))
    yield (
        "finished task, looked at again",
        *timed(lambda: run(flat(1000, nothing), one), 1000),
    )
    for mib in (1, 16):
        store, count = Store(folder / f"b{mib}"), 64 // mib
        tasks = flat(count, partial(nothing, size=mib * 2**20))
        yield (
            f"task that stores {mib} MiB",
            *timed(lambda store=store, tasks=tasks: run(tasks, store), count),
        )
        yield (
            "the same, looked at again",
            *timed(lambda store=store, tasks=tasks: run(tasks, store), count),
        )
    if use_ray:
        import ray

        memory = 100 * 2**20
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=memory,
            log_to_driver=False,
        )
        run_on_ray(flat(50, nothing), Store(folder / "warm"))
        yield (
            ON_RAY,
            *timed(lambda: run_on_ray(flat(1000, nothing), Store(folder / "ray")), 1000),
        )
        ray.shutdown()


def speed_up(folder):
    """Tasks that wait for 0.25 s on one and on two processes, so that other load counts little; starting up is counted."""
    for workers in (1, 2):
        store = Store(folder / f"workers{workers}")
        yield timed(
            lambda store=store, workers=workers: run(
                flat(160, waiting), store, workers=workers
            ),
            1,
        )[0]


def growth(folder):
    """MiB by which the peak memory grows from 8 to 64 tasks of 16 MiB."""
    peaks = []
    for count in (8, 64):
        run(flat(count, partial(nothing, size=2**24)), Store(folder / f"memory{count}"))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return peaks[1] - peaks[0]


def audit_plan(limit, steps):
    """A whole audit of phantoms whose work is the attack on ``limit`` held-out images, in batches of 8."""
    return {
        "data": {"path": "phantoms", "limit": limit},
        "network": {
            "arch": "resnet18",
            "layers": "stages",
            "train": {"epochs": 1, "augment": False},
        },
        "attacks": ["pgd"],
        "objectives": ["plain"],
        "schedule": {"steps": steps},
        "detectors": ["msp", "maha"],
        "eps": "4/255",
        "batch_size": 8,
        "sanity_checks": "off",
    }


def measured(limit, steps, workers, pipe, folder):
    """Send (images attacked, seconds, peak MiB) of one whole audit; its classifier is trained before the clock starts."""
    from feathide.execution.digests import digest
    from feathide.pipeline.context import context_of
    from feathide.plans.plan import load_plan
    from feathide.auditing.run import audit
    from feathide.pipeline.listing import tasks
    from feathide.execution.store import open_folder

    torch.set_num_threads(1)
    plan = load_plan(audit_plan(limit, steps))
    context = context_of(plan.model_dump_json(), Store(folder))
    open_folder(folder, digest([context.plan, context.cases.digest]))
    run([t for t in tasks(context) if t.key == context.steps.train.key], context.store)
    began = time.perf_counter()
    audit(plan, folder, workers=workers, reuse=True)
    seconds = time.perf_counter() - began
    images = len(context.data.attacked("detector-training")) + len(context.data.attacked("test"))
    pipe.send((images, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def whole_audits(folder):
    """Rows of a table: a process of its own for each audit, so that peaks of memory are its own."""
    for limit, steps, workers in (
        (60, 20, 1),
        (120, 20, 1),
        (240, 20, 1),
        (240, 80, 1),
        (240, 80, 2),
        (240, 200, 1),
        (240, 200, 2),
    ):
        ours, theirs = get_context("spawn").Pipe()
        child = get_context("spawn").Process(
            target=measured,
            args=(limit, steps, workers, theirs, folder / f"{limit}-{steps}-{workers}"),
        )
        child.start()
        theirs.close()  # so that a child that fails ends the wait
        yield workers, steps, *ours.recv()
        child.join()


def audit_graph(images):
    """The graph of an audit: extract clean and noisy batches, fit, attack each batch in each cell, extract, score."""
    batches, tasks = -(-images // BATCH), []
    clean = [f"clean/{i:06}" for i in range(batches)]
    tasks += [Task(key, (), nothing, "extract") for key in clean]
    tasks += [Task("fit/0", tuple(clean[: batches // 10]), nothing, "detector-training")]
    for cell in range(CELLS):
        attacked = [f"attack{cell}/{i:06}" for i in range(batches)]
        tasks += [
            Task(key, ("fit/0", clean[i]), nothing, "attack")
            for i, key in enumerate(attacked)
        ]
        tasks += [
            Task(f"outputs{cell}/{i:06}", (key,), nothing, "extract")
            for i, key in enumerate(attacked)
        ]
        needs = tuple(f"outputs{cell}/{i:06}" for i in range(batches))
        tasks += [
            Task(f"score{cell}/{d}", needs, nothing, "score") for d in range(DETECTORS)
        ]
    return tasks


def simulate(order, seconds, dispatch, overhead):
    """Hours on GPUS workers, and the share of them that works: one driver hands out tasks, ``dispatch`` seconds each."""
    frontier = Frontier(order, {task.key for task in order})
    running, now, free, busy = [], 0.0, GPUS, 0.0
    while frontier.ready or running:
        while frontier.ready and free:
            task = frontier.ready.popleft()
            now += dispatch
            cost = seconds[task.stage] + overhead
            heapq.heappush(running, (now + cost, id(task), task))
            free, busy = free - 1, busy + seconds[task.stage]
            while running and running[0][0] <= now:
                frontier.finish(heapq.heappop(running)[2])
                free += 1
        if running:
            end, _, task = heapq.heappop(running)
            now, free = max(now, end), free + 1
            frontier.finish(task)
    return now / 3600, busy / (now * GPUS)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--ray", action="store_true", help="measure Ray too")
    arguments.add_argument(
        "--workers",
        action="store_true",
        help="measure whole audits on one and two processes instead",
    )
    given = arguments.parse_args()
    use_ray = given.ray
    torch.set_num_threads(1)
    if given.workers:
        print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        print(
            "| processes | steps | images attacked | s | ms an image | peak MiB |\n|---|---|---|---|---|---|"
        )
        with tempfile.TemporaryDirectory() as name:
            for workers, steps, images, seconds, peak in whole_audits(Path(name)):
                print(
                    f"| {workers} | {steps} | {images} | {seconds:.1f} | {1000 * seconds / images:.0f} | {peak:.0f} |",
                    flush=True,
                )
        return
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| what, a task | ms | ms of CPU time |\n|---|---|---|")
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        for what, wall, cpu in per_task(Path(name), use_ray):
            costs[what] = wall, cpu
            print(f"| {what} | {1000 * wall:.2f} | {1000 * cpu:.2f} |", flush=True)
        one, two = speed_up(Path(name))
        print(
            f"\n160 waiting tasks of 0.25 s: one process {one:.1f} s, two {two:.1f} s, {one / two:.2f}x"
        )
        print(
            f"peak memory grows by {growth(Path(name)):.0f} MiB from 8 to 64 tasks of 16 MiB"
        )
    start = time.process_time()
    order = ordered(audit_graph(IMAGES))
    print(
        f"\ngraph of {IMAGES:,} images: {len(order):,} tasks, made and ordered in {time.process_time() - start:.1f} s CPU, ",
        end="",
    )
    print(
        f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    driver = costs.get(ON_RAY, costs["empty task"])[1]
    print(
        f"\n| attack, s a batch of {BATCH} | driver, ms a task | hours on {GPUS} GPUs | GPUs at work |\n|---|---|---|---|"
    )
    for attack in (1, 10, 60):
        for hand_out in (0.0, driver):
            seconds = {"extract": 0.5, "attack": attack, "fit": 600, "score": 60}
            hours, share = simulate(order, seconds, hand_out, costs["empty task"][0])
            print(
                f"| {attack} | {1000 * hand_out:.2f} | {hours:.2f} | {share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
