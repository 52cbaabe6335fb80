"""Files that appear whole or not at all, here and, of a run elsewhere, at its home."""

import errno
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from feathide.errors import expected
from feathide.execution.remote import home_of

__all__ = [
    "write_whole",
]


def write_whole(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name, flushes it to the disk and renames it: a reader
    sees all or nothing.

    In the near copy of a run elsewhere it is then sent home. Raises ``InputError`` if the disk is
    full or the folder cannot be written to; what was at ``path`` before is then still there."""
    place(path, data)
    if home := home_of(path):
        home.put(path, data)


def here(path: Path) -> Path:
    """The file, fetched from its home if it is not here."""
    home = None if path.exists() else home_of(path)
    if home and (data := home.get(path)) is not None:
        place(path, data)
    return path


def place(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{me()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritten(path, len(data), error) from error
        raise


def unwritten(path: Path, size: int, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return expected(
            f"the disk must have room for {path} ({size / 2**20:.1f} MiB)",
            got="a full disk",
            do="make room and run the same command again: finished work is kept",
        )
    return expected(
        f"{path} must be writable",
        got=error.strerror or str(error),
        do="choose another output folder or change its rights",
    )


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # only there can a folder be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def me() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"
