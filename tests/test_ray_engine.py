"""A cluster computes the same files as one process, also when a node is lost in the middle."""

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from feathide.errors import InputError
from feathide.study.engine import Task, run
from feathide.study.ray_engine import run_on_ray
from feathide.study.store import Store
from test_engine import Said, contents, graph

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray leaves sockets and log files open
MEMORY = 80 * 2**20


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes with one core each, and its second node."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
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
    plain, on_ray, log = Store(tmp_path / "plain"), Store(tmp_path / "ray"), tmp_path / "log"
    run(graph(), plain)
    (raylet,) = (found.process.pid for found in second.all_processes["raylet"])
    killer = threading.Thread(target=kill_at_work, args=(cluster, second, raylet, log))
    killer.start()
    said, tasks = Said(), graph(pause=0.7, log=log)
    assert set(run_on_ray(tasks, on_ray, address=cluster.address, progress=said)) == {task.key for task in tasks}
    killer.join()
    begun = [line.split() for line in log.read_text().splitlines()]
    assert contents(on_ray.folder) == contents(plain.folder)
    assert sum(key == begun[-1][0] for key, _ in begun) == 1 and len(begun) > len(tasks)  # one was lost with its node
    assert said.shown[-1].done == len(tasks) and not ray.is_initialized()
    assert run_on_ray(graph(), on_ray, address=cluster.address) == ()

    for error, kind in ((ZeroDivisionError("no"), RuntimeError), (InputError("eps must be > 0"), InputError)):
        with pytest.raises(kind, match="bad/1"):
            run_on_ray([*graph(), Task("bad/1", (), partial(fail, error))], on_ray, address=cluster.address)
    assert not ray.is_initialized()


def test_no_cluster_and_no_ray_are_said(tmp_path, monkeypatch):
    tasks = [Task("a", (), lambda store: {"x": np.zeros(1)})]
    with pytest.raises(InputError, match="must be a Ray cluster at the address, got auto"):
        run_on_ray(tasks, Store(tmp_path), address="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'feathide\[ray\]'"):
        run_on_ray(tasks, Store(tmp_path))
