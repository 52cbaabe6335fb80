"""A cluster computes the same files as one process, also when a node is lost in the middle."""

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from feathide.auditing.run import audit
from feathide.errors import InputError
from feathide.execution.engine import run
from feathide.execution.graph import Task
from feathide.execution.ray import run_on_ray
from feathide.execution.store import Store
from feathide.plans.plan import load_plan
from worlds.endurance import PLAN
from worlds.endurance import contents as audit_contents
from worlds.tasks import Said, contents, graph

ray = pytest.importorskip("ray", reason="Ray is not installed")
# Ray leaves sockets and log files open
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MEMORY = 80 * 2**20


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """A cluster of two nodes with one core each, and its second node."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    )
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("FEATHIDE_CACHE", str(tmp_path / "cache"))
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def kill_at_work(cluster, node, raylet, log):
    """Kills the node while one of its workers is in the middle of a task."""
    while not log.exists() or str(raylet) not in log.read_text().split():
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)


def fail(error, store):
    raise error


def test_two_nodes_of_which_one_is_killed_give_the_same_bytes(tmp_path, nodes):
    cluster, second = nodes
    plain, on_ray, log = (
        Store(tmp_path / "plain"),
        Store(tmp_path / "ray"),
        tmp_path / "log",
    )
    run(graph(), plain)
    (raylet,) = (found.process.pid for found in second.all_processes["raylet"])
    killer = threading.Thread(target=kill_at_work, args=(cluster, second, raylet, log))
    killer.start()
    said, tasks = Said(), graph(pause=0.7, log=log)
    assert set(run_on_ray(tasks, on_ray, address=cluster.address, progress=said)) == {
        task.key for task in tasks
    }
    killer.join()
    begun = [line.split() for line in log.read_text().splitlines()]
    assert contents(on_ray.folder) == contents(plain.folder)
    # one was lost with its node
    assert sum(key == begun[-1][0] for key, _ in begun) == 1 and len(begun) > len(tasks)
    assert said.shown[-1].done == len(tasks) and not ray.is_initialized()
    assert run_on_ray(graph(), on_ray, address=cluster.address) == ()

    for error, kind in (
        (ZeroDivisionError("no"), RuntimeError),
        (InputError("eps must be > 0"), InputError),
    ):
        with pytest.raises(kind, match="bad/1"):
            run_on_ray(
                [*graph(), Task("bad/1", (), partial(fail, error))],
                on_ray,
                address=cluster.address,
            )
    assert not ray.is_initialized()


def seen(store):
    return {"gpu": np.array(os.environ.get("CUDA_VISIBLE_DEVICES", ""))}


def test_an_audit_on_two_nodes_with_its_home_in_an_object_store_is_a_plain_one(
    tmp_path, s3, nodes
):
    """The same plan, so the same bytes; the driver tells of every task. A task that asks for a
    part of a GPU gets one.
    """
    cluster, _ = nodes
    audit(load_plan(PLAN), tmp_path / "plain")
    said = Said()
    found = audit(load_plan(PLAN), s3, engine="ray", address=cluster.address, progress=said)
    assert audit_contents(found.folder) == audit_contents(tmp_path / "plain")
    counts = [shown.done for shown in said.shown]
    assert (
        counts == sorted(counts)
        and counts[-1] == said.shown[-1].total
        and len(set(counts)) > 5
    )

    def task(name):
        return [Task(name, (), seen)]

    with pytest.raises(
        InputError,
        match=r"the Ray cluster must have the 0.5 GPUs of a task, got 0; start nodes",
    ):
        run_on_ray(task("a"), Store(tmp_path / "gpu"), address=cluster.address, gpus=0.5)
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    store = Store(tmp_path / "gpu")
    run_on_ray(task("a"), store, address=cluster.address, gpus=0.5)
    assert store.load("a")["gpu"] == "0"


def test_no_cluster_and_no_ray_are_said(tmp_path, monkeypatch):
    tasks = [Task("a", (), lambda store: {"x": np.zeros(1)})]
    with pytest.raises(InputError, match="must be a Ray cluster at the address, got auto"):
        run_on_ray(tasks, Store(tmp_path), address="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'feathide\[ray\]'"):
        run_on_ray(tasks, Store(tmp_path))
