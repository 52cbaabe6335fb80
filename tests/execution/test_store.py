"""Files appear whole or not at all (check S1), digests name their content, a damaged file is
noticed.
"""

import dataclasses
import errno
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import BaseModel

from feathide import __version__
from feathide.errors import InputError
from feathide.execution import claims, whole_files
from feathide.execution import store as module
from feathide.execution.digests import FORMAT, digest
from feathide.execution.store import Store, open_folder
from feathide.execution.whole_files import write_whole


@dataclasses.dataclass(frozen=True)
class Recipe:
    name: str
    eps: float
    layers: tuple[str, ...] = ("conv",)


class Settings(BaseModel):
    eps: float = 1.0


RICH = {
    "plan": Recipe("pgd", 4 / 255),
    "model": Settings(eps=2),
    "rows": np.arange(6, dtype=np.int32).reshape(2, 3),
    "names": np.array(["ä", "b"]),
    "weights": {"w": torch.arange(4, dtype=torch.bfloat16), "b": torch.tensor(1.5)},
    "kinds": {"x", "y"},
    "path": Path("a/b"),
    "rest": [None, True, 1, 1.0, b"\x00"],
    3: "key",
}


def test_digest_is_the_same_in_every_process():
    program = "import execution.test_store as t; print(t.digest(t.RICH))"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path}
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == digest(RICH)


def test_digest_sees_every_difference_and_no_other():
    different = [
        *(
            None,
            True,
            1,
            1.0,
            "1",
            "",
            b"1",
            [],
            {},
            set(),
            [1, 2],
            [[1], 2],
            [2, 1],
            {"a": 1},
            {"a": "1"},
            {1: "a"},
            {"1": "a"},
            Path("1"),
        ),
        *(
            Recipe("pgd", 1.0),
            Recipe("pgd", 2.0),
            Recipe("pgd", 1.0, ()),
            Settings(eps=1),
            Settings(eps=2),
        ),
        *(
            np.zeros(2),
            np.zeros(2, "f4"),
            np.zeros((1, 2)),
            np.ones(2),
            np.array(["a"]),
            np.array([b"a"]),
            torch.zeros(2),
            torch.zeros(2).int(),
        ),
        *(float("nan"), float("inf"), -0.0, {"array": 1}),
    ]
    assert len({digest(value) for value in different}) == len(different)
    same = [
        ((1, 2), [1, 2]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.arange(6).reshape(2, 3).T, np.arange(6).reshape(2, 3).T.copy()),
        (np.arange(3, dtype=">i4"), np.arange(3, dtype="<i4")),
        (np.array(["a"], "U9"), np.array(["a"])),
    ]
    assert all(digest(a) == digest(b) for a, b in same)


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, Recipe, np.array([None]), {"a": iter([])}]
)
def test_digest_refuses_what_has_no_content(value):
    with pytest.raises(TypeError, match="made of plain values"):
        digest(value)


DTYPES = st.sampled_from(["?", "u1", "<i8", ">i4", "f2", "<f4", "f8", "c8", "U3", "S2"])


@given(
    st.dictionaries(
        st.sampled_from(["id", "layer1/0.conv", "A_b"]),
        hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0)),
    )
)
def test_arrays_come_back_as_they_were(tmp_path_factory, arrays):
    store = Store(tmp_path_factory.mktemp("store"))
    store.save("a/b", arrays, meta={"seed": 1})
    found = store.load("a/b")
    assert found.keys() == arrays.keys() and store.meta("a/b") == {"seed": 1}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    # an ordinary .npz for everybody else
    with np.load(store.path("a/b"), allow_pickle=False) as plain:
        assert set(arrays) <= set(plain.files)


def test_equal_content_gives_equal_bytes(tmp_path):
    store, arrays = Store(tmp_path), {"x": np.arange(3.0), "id": np.array(["a", "bc"])}
    store.save("first", arrays)
    with zipfile.ZipFile(store.path("first")) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    store.save("second", dict(reversed(arrays.items())))
    assert store.path("first").read_bytes() == store.path("second").read_bytes()
    assert store.meta("first") == {} and sorted(p.name for p in tmp_path.iterdir()) == [
        "first.npz",
        "second.npz",
    ]


def test_a_flipped_byte_anywhere_and_a_cut_are_noticed(tmp_path):
    store = Store(tmp_path)
    store.save("x", {"a": np.arange(5), "id": np.array(["p1", "p2"])}, meta={"n": 1})
    whole = store.path("x").read_bytes()
    assert store.done("x") and store.sound("x")
    for position in range(0, len(whole), 3):
        store.path("x").write_bytes(
            whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
        )
        assert not store.sound("x")
        with pytest.raises(
            InputError,
            match="must match its checksum, got a damaged file; run the same command again",
        ):
            store.load("x")
    for size in (0, 1, 63, 64, 65, len(whole) // 2, len(whole) - 1):
        store.path("x").write_bytes(whole[:size])
        assert not store.done("x") and not store.sound("x")
        # what a lost flush leaves
        store.path("x").write_bytes(whole[:size] + bytes(len(whole) - size))
        assert not store.done("x") and not store.sound("x")
    store.path("x").unlink()
    assert not store.done("x") and not store.sound("x")
    with pytest.raises(InputError, match=r"x\.npz must exist, got no such file"):
        store.load("x")


def test_nothing_is_ever_unpickled(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(InputError, match="'x' of type object"):
        store.save("x", {"x": np.array([{}], dtype=object)})
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.array([{}], dtype=object), allow_pickle=True)
    store.save("x", {"x": np.zeros(1)})
    # a file that somebody made, its checksum right
    with zipfile.ZipFile(store.path("x"), "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
        archive.comment = b"0" * 64
    body = store.path("x").read_bytes()[:-64]
    store.path("x").write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(InputError, match=r"must hold plain arrays, got x\.npy of object"):
        store.load("x")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/../b",
        "a..b",
        ".a",
        "a/.b",
        "A",
        "ä",
        "a b",
        "a\\b",
        "a\n",
        "a\0",
        "c:/x",
        "x" * 181,
    ],
)
def test_a_key_never_leads_out_of_the_folder(tmp_path, key):
    with pytest.raises(InputError, match="a key must be"):
        Store(tmp_path).save(key, {"x": np.zeros(1)})
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=30))
def test_every_key_that_is_taken_lies_in_the_folder(key):
    try:
        path = Store(Path("/out")).path(key)
    except InputError:
        return
    assert Path(os.path.normpath(path)).is_relative_to("/out") and path == Path(
        os.path.normpath(path)
    )


@pytest.mark.parametrize("name", ["../x", "x/../../y", "", "x y", "/x", "a..b"])
def test_array_names_are_plain(tmp_path, name):
    with pytest.raises(InputError, match="under plain names"):
        Store(tmp_path).save("x", {name: np.zeros(1)})


def test_documents_come_back_and_are_checked(tmp_path):
    store = Store(tmp_path)
    value = {"a": [1, 2.5, None, "ä"], "nan": float("inf")}
    store.save_json("doc/x", value)
    assert store.load_json("doc/x") == value
    path = store.path("doc/x", ".json")
    for text in (path.read_text().replace("2.5", "2.6"), path.read_text()[:-5], "[]", ""):
        path.write_text(text)
        with pytest.raises(InputError, match="checksum"):
            store.load_json("doc/x")
    with pytest.raises(InputError, match="must exist"):
        store.load_json("doc/y")


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    "code, words",
    [
        (errno.ENOSPC, "room for .* got a full disk; make room"),
        (errno.EACCES, "must be writable"),
    ],
)
def test_a_failed_write_says_why_and_leaves_what_was_there(
    tmp_path, monkeypatch, step, code, words
):
    store = Store(tmp_path)
    store.save("x", {"a": np.zeros(1)})

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError, match=words):
        store.save("x", {"a": np.ones(1)})
    monkeypatch.undo()
    assert store.load("x")["a"] == 0 and [p.name for p in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_really_full_is_said(tmp_path):
    (tmp_path / "out").mkdir()
    temporary = tmp_path / "out" / f".x.{whole_files.me()}-{threading.get_ident()}.tmp"
    temporary.symlink_to("/dev/full")
    with pytest.raises(InputError, match="a full disk"):
        write_whole(tmp_path / "out" / "x", b"data" * 10000)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "x", b"data")
    assert not list(tmp_path.iterdir())


def test_one_claims_and_the_other_waits(tmp_path):
    program = (
        "import sys; from feathide.execution.store import Store\n"
        "for _ in sys.stdin:\n"
        "    with Store(sys.argv[1]).claim('a/b') as mine: print(mine, flush=True)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as other:

        def elsewhere():
            other.stdin.write("\n")
            return other.stdout.readline()

        with Store(tmp_path).claim("a/b") as mine:
            assert mine and elsewhere() == "False\n"
        assert elsewhere() == "True\n"
        with pytest.raises(RuntimeError), Store(tmp_path).claim("a/b"):
            raise RuntimeError
        assert elsewhere() == "True\n"
        other.stdin.close()
        other.wait()
    assert not list((tmp_path / "a").iterdir())


def held(path, holder, age):
    path.write_text(holder)
    os.utime(path, (time.time() - age,) * 2)


def test_a_claim_without_life_is_taken_over(tmp_path):
    store, path = Store(tmp_path), tmp_path / "x.claim"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = f"{socket.gethostname()}-{dead.pid}"
    leftover = tmp_path / f".x.npz.{here}-7.tmp"
    for holder, age, free in (
        ("elsewhere-1", 30, False),
        ("elsewhere-1", 90, True),
        (here, 0, True),
        ("", 1, False),
        ("", 5, True),
    ):
        held(path, holder, age)
        leftover.write_bytes(b"half")
        with store.claim("x") as mine:
            assert mine is free, (holder, age)
        assert leftover.exists() is (holder != here)
    path.unlink(missing_ok=True)


def test_a_claim_names_no_files_elsewhere(tmp_path):
    """The text of a claim is a stranger's: it leads to no file of another folder."""
    (tmp_path / "run" / ".x.a").mkdir(parents=True)
    other = tmp_path / "h-1-other.tmp"
    other.write_text("mine")
    held(tmp_path / "run" / "x.claim", "/../../h-1", 999)
    with Store(tmp_path / "run").claim("x") as mine:
        assert mine and other.exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "a").write_text("a file where a folder is wanted")
    with (
        pytest.raises(InputError, match="a must be writable"),
        Store(tmp_path).claim("a/b"),
    ):
        pass
    with pytest.raises(InputError, match=r"a/b\.npz must be writable"):
        Store(tmp_path).save("a/b", {"x": np.zeros(1)})


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    """The folder of a run is a stranger's: a link in it is no way out."""
    (tmp_path / "elsewhere").mkdir()
    store = open_folder(tmp_path / "run", "aaaa")
    (tmp_path / "run" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "results.csv").symlink_to(tmp_path / "elsewhere" / "results.csv")
    for write in (
        lambda: store.save("a/b", {"x": np.zeros(1)}),
        lambda: store.save_json("a/b", 1),
        lambda: store.claim("a/b").__enter__(),
    ):
        with pytest.raises(
            InputError,
            match="must lie in the output folder, got a link that leads elsewhere",
        ):
            write()
    write_whole(tmp_path / "run" / "results.csv", b"x")  # takes the place of the link
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_held_claim_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Store(tmp_path).claim("x"):
        held(tmp_path / "x.claim", whole_files.me(), 50)
        time.sleep(0.2)
        assert time.time() - (tmp_path / "x.claim").stat().st_mtime < 10


def test_a_folder_of_another_plan_is_refused_and_untouched(tmp_path):
    out = tmp_path / "deep" / "out"
    store = open_folder(out, "aaaa")
    store.save("x", {"a": np.zeros(1)})
    assert open_folder(out, "aaaa") == store
    before = {p: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(
        InputError,
        match=(
            "must be new or hold the plan bbbb, got one that holds the plan aaaa; choose "
            "another"
        ),
    ):
        open_folder(out, "bbbb")
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    assert open_folder(out, "bbbb", reuse=True).done("x")
    with pytest.raises(InputError, match="plan bbbb"):
        open_folder(out, "aaaa")


def test_a_run_of_another_version_says_so(tmp_path, monkeypatch):
    open_folder(tmp_path, "aaaa")
    with pytest.raises(InputError) as same:
        open_folder(tmp_path, "bbbb")
    assert "written by" not in str(same.value)
    module.check_version(tmp_path)
    monkeypatch.setattr(module, "FORMAT", FORMAT + 1)
    wrote = rf"written by feathide {__version__} \(format {FORMAT}\), not {__version__} \(format {FORMAT + 1}\)"
    with pytest.raises(
        InputError,
        match=f"holds the plan aaaa, {wrote}, which may read the same plan differently; choose",
    ):
        open_folder(tmp_path, "bbbb")
    with pytest.raises(
        InputError,
        match=rf"a run of this version of feathide, got one {wrote}.*plan.yaml --out FOLDER",
    ):
        module.check_version(tmp_path)
    (tmp_path / module.MARK).write_text('{"plan": "aaaa"}')
    with pytest.raises(InputError, match="written by an early version, not"):
        open_folder(tmp_path, "bbbb")
    module.check_version(tmp_path)  # it does not tell


def test_foreign_folders_are_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"other files \(thesis\.txt\); choose another"):
        open_folder(tmp_path, "aaaa")
    with pytest.raises(InputError, match="must be a folder, got a file"):
        open_folder(tmp_path / "thesis.txt", "aaaa")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / module.MARK).write_text("{")
    with pytest.raises(InputError, match="unreadable"):
        open_folder(tmp_path, "aaaa")
