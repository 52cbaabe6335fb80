"""Claims: files that say which process works on a key, so that work is not done twice."""

import os
import socket
import threading
import time
from pathlib import Path

from feathide.execution.whole_files import me, unwritten

BEAT = 10.0  # seconds between two signs of life of a claim
STALE = 60.0  # a claim without a sign of life for so long is free to take
# so long may a claim be empty: its process was killed between making and signing it
BIRTH = 2.0


def take_claim(path: Path) -> bool:
    """Creates the claim, at the place of a stale one if need be; False if another process holds
    it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritten(path.parent, 0, error) from error
    for _ in range(2):
        try:
            with open(path, "x") as file:
                file.write(me())
            return True
        except FileExistsError:
            if not _abandoned(path):
                return False
        except OSError as error:
            path.unlink(missing_ok=True)
            raise unwritten(path, 0, error) from error
    return False


def _abandoned(path: Path) -> bool:
    """Removes a claim whose holder is gone, with the temporary files that it left; False if the
    holder may live.
    """
    try:
        holder, age = path.read_text(errors="replace"), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return True
    host, _, pid = holder.rpartition("-")
    gone = host == socket.gethostname() and pid.isdigit() and not _lives(int(pid))
    if not gone and age < (STALE if holder else BIRTH):
        return False
    if holder and "/" not in holder:  # else it would name files in other folders
        for leftover in path.parent.glob(f".{path.stem}.*.{holder}-*.tmp"):
            leftover.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return True


def _lives(pid: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is a real signal; the sign of life decides
        return True
    # no process asks for a key that it holds: the number was given out anew
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def keep_alive(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:  # taken over, or the folder is gone: the work itself will say so
            return
