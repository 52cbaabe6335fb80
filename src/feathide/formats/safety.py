"""Between a stranger's file and its parser: limits of size and time, and one sentence for
whatever the parser raises.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import BinaryIO, TypeVar

import numpy as np

from feathide.errors import InputError, expected, first_line

__all__ = [
    "LARGEST",
    "MOST_CLASSES",
    "check_not_one_hot",
    "check_size",
    "guarded",
    "load_arrays",
    "names_up_to",
    "told",
]

LARGEST = 4 * 2**30  # bytes that one image may have once it is unpacked
PATIENCE = 120.0  # seconds that the reading of one file may take
MOST_CLASSES = 10_000

T = TypeVar("T")


def guarded(path: Path, work: Callable[[], T]) -> T:
    """``work()``, which reads ``path``. Raises ``InputError`` with the file's name for whatever
    it raises, and after ``PATIENCE`` seconds without an end: a pipe, or a drive on a network that
    is gone. The thread that waits for it then stays behind until the process ends.
    """
    found: list[T] = []
    failed: list[InputError] = []

    def read() -> None:
        try:
            with told(path):
                if path.is_char_device():
                    raise expected(
                        f"{path} must be a file",
                        got="a device",
                        do="replace it or leave it out",
                    )
                found.append(work())
        except InputError as error:
            failed.append(error)

    thread = Thread(target=read, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if failed:
        raise failed[0]
    if not found:
        do = "check the disk or network, and whether it is a pipe"
        raise expected(
            f"{path} must be read within {PATIENCE:g} seconds", got="no end of it", do=do
        )
    return found[0]


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Whatever a parser happens to raise in a broken file is an ``InputError`` with the file's
    name.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise expected(
            f"{path} must be readable",
            got=first_line(error),
            do="replace it or leave it out",
        ) from error


def check_size(path: Path, shape: Sequence[int], itemsize: float) -> None:
    """Refuse an image whose header claims more than ``LARGEST`` bytes, before any room is made
    for it.
    """
    size = math.prod(map(int, shape)) * itemsize
    if not 0 <= size <= LARGEST or any(n < 0 for n in shape):
        what = f"{path} must hold an image of at most {LARGEST / 2**30:g} GiB"
        raise expected(
            what, got=f"the shape {tuple(map(int, shape))}", do="replace it or leave it out"
        )


def load_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an npz. Nothing is unpickled; the header of an array must claim just the
    bytes that its entry holds, and all of them together must fit into half the memory of this
    machine. Raises whatever the parsers raise, ``ValueError`` for these.
    """
    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".npy")]
        size = sum(entry.file_size for entry in entries)
        if size > _memory() / 2:
            raise ValueError(
                f"{size / 2**30:.1f} GiB of arrays, more than half the memory of this machine"
            )
        return {
            entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in entries
        }


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"version {version} of the npy format")
        shape, _, dtype = readers[version](file)
        if (
            dtype.hasobject
            or file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size
        ):
            raise ValueError(
                f"{entry.filename} of {dtype} and shape {shape} in {entry.file_size} bytes"
            )
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _memory() -> int:
    return (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if os.name == "posix"
        else 2**36
    )


def names_up_to(count: int) -> tuple[str, ...]:
    """The names of classes that have none: 0, 1, ..."""
    if count > MOST_CLASSES:
        raise expected(
            f"there must be at most {MOST_CLASSES} classes",
            got=f"the label {count - 1}",
            do="number them 0, 1, ...",
        )
    return tuple(map(str, range(count)))


def check_not_one_hot(labels: np.ndarray, what: str) -> None:
    """Refuse classes that are written as findings: exactly one 1 in every row. A few rows may be
    so by chance.
    """
    many = labels.ndim == 2 and labels.shape[1] > 1 and len(labels) >= 10
    if many and set(np.unique(labels)) <= {0, 1} and (labels.sum(axis=1) == 1).all():
        do = "pass class numbers: labels.argmax(axis=1), or one column label"
        raise expected(
            f"{what} must be findings, of which an image may have several",
            got="exactly one 1 in every row",
            do=do,
        )
