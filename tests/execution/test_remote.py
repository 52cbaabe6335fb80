"""A run whose home is elsewhere ends with the bytes of a plain one, whatever machine begins it,
and can be read from there.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from feathide.auditing.compare import compare, render_again
from feathide.auditing.run import audit
from feathide.auditing.verify import verify
from feathide.cli import app
from feathide.errors import InputError
from feathide.execution.engine import run as work_off
from feathide.execution.remote import home_of, near
from feathide.execution.store import Store, open_folder, refresh
from feathide.execution.whole_files import write_whole
from feathide.plans.plan import load_plan
from worlds.endurance import PLAN, contents
from worlds.tasks import Said, graph

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
X = {"x": np.arange(3)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATHIDE_CACHE", str(tmp_path / "machine"))
    return tmp_path / "machine"


@pytest.fixture
def url() -> Iterator[str]:
    yield "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()


def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEATHIDE_CACHE", str(tmp_path / "another"))


def at(url: str) -> dict[str, bytes]:
    system, root = fsspec.url_to_fs(url)
    return {name[len(root) + 1 :]: system.cat_file(name) for name in system.find(root)}


def test_plain_folders_stay_plain(tmp_path: Path, cache: Path) -> None:
    assert near(tmp_path) == tmp_path and near("runs/a") == Path("runs/a")
    assert near(f"file://{tmp_path}/a") == tmp_path / "a"
    assert home_of(tmp_path / "a") is None and not cache.exists()


def test_what_is_saved_here_is_found_there(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(near(url)).save("a/b", X)
    another_machine(monkeypatch, tmp_path)
    store = Store(near(url))
    assert store.done("a/b") and store.sound("a/b") and not store.done("a/c")
    np.testing.assert_array_equal(store.load("a/b")["x"], X["x"])
    store.remove("a/b")
    assert at(url) == {}


def test_a_run_that_names_another_home_is_not_followed(
    url: str, tmp_path: Path, cache: Path
) -> None:
    """The file that names a home counts in near copies only: a run from a stranger sends nothing
    anywhere.
    """
    folder = near(url)
    shutil.copytree(folder, tmp_path / "stranger")
    Store(tmp_path / "stranger").save("a", X)
    Store(folder).save("b", X)
    assert list(at(url)) == ["b.npz"]


def test_a_file_damaged_at_home_is_said_and_replaced(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_off(graph(), Store(near(url)))
    whole = at(url)
    system, root = fsspec.url_to_fs(url)
    name = next(n for n in whole if n.startswith("attack") or "attack" in n)
    system.pipe_file(f"{root}/{name}", whole[name][: len(whole[name]) // 2])
    another_machine(monkeypatch, tmp_path)
    said = Said()
    assert len(work_off(graph(), Store(near(url)), progress=said)) == 1
    assert "is damaged; it is computed again" in said.sentences[0]
    arrays = {n: v for n, v in at(url).items() if n.endswith(".npz")}
    assert arrays == {n: v for n, v in whole.items() if n.endswith(".npz")}


def test_near_copy_and_home_come_together(url: str, tmp_path: Path) -> None:
    store = open_folder(url, "p")
    store.save("a", X)
    write_whole(store.folder / "results.csv", b"old")
    system, root = fsspec.url_to_fs(url)
    system.pipe_file(f"{root}/results.csv", b"of another machine")
    system.rm_file(f"{root}/a.npz")
    refresh(store.folder)
    assert (store.folder / "results.csv").read_bytes() == b"of another machine"
    assert "a.npz" in at(url)
    # the run is deleted: the near copy holds nothing of it back
    system.rm(root, recursive=True)
    open_folder(url, "other")
    assert sorted(at(url)) == [".feathide.json"] and not store.done("a")


def test_places_that_cannot_be_used_are_said(url: str) -> None:
    open_folder(url, "p")
    with pytest.raises(
        InputError,
        match="must be new or hold the plan other, got one that holds the plan p",
    ):
        open_folder(url, "other")
    fsspec.filesystem("memory").pipe_file("/elsewhere/notes.txt", b"x")
    with pytest.raises(
        InputError, match=r"memory://elsewhere must be new or empty.*notes.txt"
    ):
        open_folder("memory://elsewhere", "p")
    with pytest.raises(InputError, match="nonsense://a/b must be within reach"):
        open_folder("nonsense://a/b", "p")


def test_an_audit_elsewhere_is_one_here(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(load_plan(PLAN), tmp_path / "plain")
    found = audit(load_plan(PLAN), url)
    whole = contents(tmp_path / "plain")
    assert contents(found.folder) == whole
    for name, data in at(url).items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(data)
    assert contents(tmp_path / "fetched") == whole
    assert (tmp_path / "fetched" / "report.html").stat().st_size > 10_000
    another_machine(monkeypatch, tmp_path)
    assert verify(url, sample=5).differences == ()
    assert render_again(url).is_file()
    assert compare(url, tmp_path / "plain").fields == {}
    system, root = fsspec.url_to_fs(url)
    system.pipe_file(
        f"{root}/results.csv", at(url)["results.csv"].replace(b"success", b"succeed")
    )
    assert verify(url, sample=0).differences[0].where == "results.csv"


def test_the_command_line_takes_a_url(url: str, tmp_path: Path) -> None:
    audit(load_plan(PLAN), url)
    result = CliRunner().invoke(app, ["verify", url, "--sample", "2"])
    assert result.exit_code == 0 and "2 images" in result.output, result.output
    assert not Path("memory:").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # botocore leaves sockets open
def test_a_real_object_store(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit(load_plan(PLAN), tmp_path / "plain")
    found = audit(load_plan(PLAN), s3)
    assert contents(found.folder) == contents(tmp_path / "plain")
    another_machine(monkeypatch, tmp_path)
    assert verify(s3, sample=5).differences == ()
    with pytest.raises(InputError, match="s3://absent/run must be within reach"):
        audit(load_plan(PLAN), "s3://absent/run")
