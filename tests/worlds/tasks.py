"""Small graphs of tasks, and a display that remembers what it was told."""

import os
import time
from functools import partial

import numpy as np

from feathide.execution.digests import digest
from feathide.execution.graph import Task


def make(store, *, key, needs, seed, pause=0.0, log=None):
    """Random numbers plus all that is needed: a file that any wrong order or half-read need would
    change.
    """
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{key} {os.getppid()}\n")
    time.sleep(pause)
    return {
        "x": sum(
            (store.load(n)["x"] for n in needs), np.random.default_rng(seed).normal(size=50)
        ),
        "key": np.array([key]),
    }


def graph(*, clean=1, attack=2, batches=5, **options):
    """extract -> fit -> attack -> table, as an audit has it; every key holds the digest of what
    decides its content.
    """
    tasks = []

    def add(stage, part, needs, seed):
        key = f"{stage}/{digest([seed, needs])}/{part:04}"
        tasks.append(
            Task(
                key,
                tuple(needs),
                partial(make, key=key, needs=needs, seed=seed, **options),
                stage,
                f"part {part}",
            )
        )
        return key

    extracted = [add("extract", i, [], [clean, i]) for i in range(batches)]
    fitted = add("detector-training", 0, extracted, [clean])
    attacked = [
        add("attack", i, [extracted[i], fitted], [attack, i]) for i in range(batches)
    ]
    add("table", 0, [*extracted, *attacked], [])
    return tasks


class Said:
    def __init__(self):
        self.shown, self.sentences = [], []

    def show(self, status):
        self.shown.append(status)

    def say(self, sentence):
        self.sentences.append(sentence)


def contents(folder):
    """Every file but the seconds that were measured."""
    files = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_relative_to(folder / "seconds")
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}
