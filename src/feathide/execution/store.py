"""The results store: a folder of files that appear whole or not at all.

Every file carries the SHA-256 of its own content, so a damaged file is noticed and computed anew
instead of being believed."""

import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from feathide.errors import InputError, expected, first_line
from feathide.execution.claims import keep_alive, take_claim
from feathide.execution.digests import FORMAT, dumped
from feathide.execution.remote import home_of, near
from feathide.execution.whole_files import here, place, write_whole
from feathide.formats.safety import load_arrays

__all__ = [
    "Store",
    "check_version",
    "held_plan",
    "open_folder",
    "refresh",
    "write_whole",
]

HEX = 64  # length of a SHA-256 in hexadecimal
PART = re.compile(r"[a-z0-9_+-][a-z0-9._+-]{0,179}")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+/-]{0,179}")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the date of every entry: equal arrays give equal bytes
META = "meta.json"
MARK = ".feathide.json"
VERSION = version("feathide")


@dataclass(frozen=True)
class Store:
    """A folder of results, each under a key such as ``adversarial/pgd-plain-1a2b3c/0003``.

    A key is made of lower-case letters, digits and ``. _ + -``, in parts divided by ``/``; it can
    never lead out of the folder. Arrays lie in ``<key>.npz`` (readable by ``numpy.load``),
    documents in ``<key>.json``."""

    folder: Path

    def path(self, key: str, suffix: str = ".npz") -> Path:
        """The file of a key. Raises ``InputError`` for a key that is not allowed."""
        parts = key.split("/")
        if ".." in key or not all(PART.fullmatch(part) for part in parts):
            raise expected(
                (
                    "a key must be parts of a-z 0-9 . _ + - divided by /, each at most 180 "
                    "long, without '..'"
                ),
                got=repr(key),
                do="rename what it is made from",
            )
        return Path(self.folder, *parts[:-1], parts[-1] + suffix)

    def _own(self, key: str, suffix: str = ".npz") -> Path:
        """The file of a key that is to be written. Raises ``InputError`` where links lead out of
        the folder.
        """
        path = self.path(key, suffix)
        if not path.parent.resolve().is_relative_to(Path(self.folder).resolve()):
            raise expected(
                f"{path} must lie in the output folder",
                got="a link that leads elsewhere",
                do="remove it",
            )
        return path

    def done(self, key: str) -> bool:
        """True if the arrays of ``key`` are there and end as they should (a cheap look; ``sound``
        reads all).
        """
        try:
            with open(here(self.path(key)), "rb") as file:
                file.seek(-HEX - 2, os.SEEK_END)
                tail = file.read()
        except OSError:
            return False
        return (
            tail[:2] == HEX.to_bytes(2, "little")
            and re.fullmatch(rb"[0-9a-f]{64}", tail[2:]) is not None
        )

    def sound(self, key: str) -> bool:
        """True if the arrays of ``key`` are there and match their checksum."""
        try:
            return _intact(here(self.path(key)).read_bytes())
        except FileNotFoundError:
            return False

    def remove(self, key: str) -> None:
        """Forget the arrays of ``key``."""
        path = self.path(key)
        path.unlink(missing_ok=True)
        if home := home_of(path):
            home.remove(path)

    def save(
        self,
        key: str,
        arrays: Mapping[str, np.ndarray],
        *,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes arrays of numbers, bools or strings, and a JSON-like ``meta``: equal content
        gives equal bytes.
        """
        write_whole(self._own(key), _packed(key, arrays, meta))

    def load(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of ``key``. Raises ``InputError`` if the file is missing or does not match
        its checksum.
        """
        raw = io.BytesIO(self._checked(key))
        try:
            return load_arrays(raw)
        except Exception as error:  # a checksum says nothing of who made it
            do = "remove it and run the same command again: it is computed again"
            raise expected(
                f"{self.path(key)} must hold plain arrays", got=first_line(error), do=do
            ) from error

    def meta(self, key: str) -> dict[str, Any]:
        """The ``meta`` that was saved with ``key``, {} if none was."""
        with zipfile.ZipFile(io.BytesIO(self._checked(key))) as archive:
            return (
                dict(json.loads(archive.read(META))) if META in archive.namelist() else {}
            )

    def save_json(self, key: str, value: object) -> None:
        """Writes a document of plain values to ``<key>.json``, with its checksum."""
        seal = hashlib.sha256(dumped(value).encode()).hexdigest()
        text = json.dumps(
            {"sha256": seal, "content": value}, sort_keys=True, indent=1, ensure_ascii=False
        )
        write_whole(self._own(key, ".json"), text.encode() + b"\n")

    def load_json(self, key: str) -> Any:
        """The document of ``key``. Raises ``InputError`` if it is missing or does not match its
        checksum.
        """
        path = self.path(key, ".json")
        raw = _read(path)
        try:
            found = json.loads(raw)
            if (
                hashlib.sha256(dumped(found["content"]).encode()).hexdigest()
                == found["sha256"]
            ):
                return found["content"]
        except (ValueError, KeyError, TypeError):  # not JSON, or not of ours
            pass
        raise _damaged(path)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """``with store.claim(key) as mine``: True for one process at a time, False while another
        one works on ``key``.

        A claim is a file that names host and process and is touched every ten seconds; it is
        taken over when its process is gone or a minute has passed without a sign of life. It only
        saves double work: two processes that save the same key write equal bytes and rename them
        into place, so no result ever rests on a claim."""
        path = self._own(key, ".claim")
        if not take_claim(path):
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=keep_alive, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            path.unlink(missing_ok=True)

    def _checked(self, key: str) -> bytes:
        path = self.path(key)
        raw = _read(path)
        if not _intact(raw):
            raise _damaged(path)
        return raw


def open_folder(out: str | Path, plan_digest: str, *, reuse: bool = False) -> Store:
    """The store in ``out``, a new or empty folder, or URL, or one that was begun with the same
    plan.

    ``reuse`` lets another plan in: work that both share is kept, since keys name their content.
    Raises ``InputError`` for a folder that holds a different plan or files that are not ours;
    nothing is overwritten."""
    folder = near(out)
    refresh(folder)
    if os.path.exists(folder) and not folder.is_dir():
        raise expected(
            f"the output {folder} must be a folder",
            got="a file",
            do="choose another output folder",
        )
    mark = folder / MARK
    if os.path.exists(mark):
        held = held_plan(folder)
        if held != plan_digest and not reuse:
            raise expected(
                f"the output folder {folder} must be new or hold the plan {plan_digest}",
                got=f"one that holds the plan {held}{_other_writer(folder)}",
                do=(
                    "choose another output folder, go back to the plan, and version, that this "
                    "one was begun with, or let audit or study --reuse it (reuse=True), "
                    "which keeps what both share"
                ),
            )
    elif os.path.exists(folder) and (
        foreign := sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    ):
        raise expected(
            f"the output folder {folder} must be new or empty, or hold this plan",
            got=(
                "a folder with other files "
                f"({', '.join(foreign[:3])}{', ...' if len(foreign) > 3 else ''})"
            ),
            do="choose another output folder",
        )
    write_whole(
        mark,
        dumped({"plan": plan_digest, "version": VERSION, "format": FORMAT}).encode()
        + b"\n",
    )
    return Store(folder)


def refresh(folder: Path) -> None:
    """Bring a near copy and its home together: documents beside the stored files are fetched
    anew, what only the near copy of a begun run has is sent home. Does nothing to other folders.
    Raises ``InputError`` if the home is out of reach or holds files that are not ours."""
    home = home_of(folder)
    if home is None:
        return
    names = home.names()
    begun = MARK in names
    if names and not begun:
        what = f"{home.url} must be new or empty, or hold a run"
        raise expected(
            what, got=f"other files ({', '.join(names[:3])})", do="choose another place"
        )
    for path in [
        p
        for p in folder.rglob("*")
        if p.is_file() and (p.name == MARK or not p.name.startswith("."))
    ]:
        if path.suffix == ".claim" or path.relative_to(folder).as_posix() in names:
            continue
        if begun:
            home.put(path, path.read_bytes())
        else:
            path.unlink()  # of a run that was deleted at home
    for name in (n for n in names if "/" not in n):
        place(folder / name, home.get(folder / name) or b"")


def held_plan(folder: Path) -> str:
    """The digest of the plan that a folder was begun with."""
    return str(_mark(folder).get("plan", "(unreadable)"))


def check_version(folder: Path) -> None:
    """Refuse the run of a version whose stored files have another meaning: this one would not
    find them. Those of early versions do not tell.
    """
    if _mark(folder).get("format", FORMAT) != FORMAT:
        do = (
            "look at it with that version, or run its plan again: feathide audit "
            f"{folder / 'plan.yaml'} --out FOLDER"
        )
        raise expected(
            f"{folder} must hold a run of this version of feathide",
            got=f"one{_other_writer(folder).lstrip(',')}",
            do=do,
        )


def _mark(folder: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads((folder / MARK).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _other_writer(folder: Path) -> str:
    """The version that wrote a run, as a part of a sentence; nothing if it is this one."""
    mark = _mark(folder)
    if (mark.get("version"), mark.get("format")) == (VERSION, FORMAT):
        return ""
    wrote = (
        f"feathide {mark['version']} (format {mark.get('format')})"
        if "version" in mark
        else "an early version"
    )
    return (
        f", written by {wrote}, not {VERSION} (format {FORMAT}), which may read the same plan "
        "differently"
    )


def _packed(
    key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None
) -> bytes:
    """An .npz archive whose last 64 bytes (the archive's comment) are the checksum of all
    before.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            if (
                not NAME.fullmatch(name)
                or ".." in name
                or array.dtype.kind not in "biufcUS"
            ):
                raise expected(
                    f"{key} must hold arrays of numbers, bools or strings under plain names",
                    got=f"{name!r} of type {array.dtype}",
                    do="convert it before it is saved",
                )
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(name + ".npy", EPOCH), entry.getbuffer())
        if meta is not None:
            archive.writestr(zipfile.ZipInfo(META, EPOCH), dumped(meta))
        archive.comment = b"0" * HEX
    body = buffer.getvalue()[:-HEX]
    return body + hashlib.sha256(body).hexdigest().encode()


def _intact(raw: bytes) -> bool:
    return hashlib.sha256(memoryview(raw)[:-HEX]).hexdigest().encode() == raw[-HEX:]


def _read(path: Path) -> bytes:
    try:
        return here(path).read_bytes()
    except FileNotFoundError:
        raise expected(
            f"{path} must exist",
            got="no such file",
            do="run the same command again: what is missing is computed",
        ) from None


def _damaged(path: Path) -> InputError:
    return expected(
        f"{path} must match its checksum",
        got="a damaged file",
        do="run the same command again: it is computed again",
    )
