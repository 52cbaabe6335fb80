"""Results whose home is elsewhere (s3://, gs://, memory://, ...): one works in a near copy, a
folder on this machine.

What is written whole there is sent home in one upload under its final name, which object stores
show whole or not at all; what is asked for and not there is fetched. A file that arrived in half
does not match its checksum. There are no locks between machines: two that work on the same task
send the same bytes."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from feathide.errors import expected

__all__ = ["Home", "home_of", "near"]

ADDRESS = ".home.json"


@dataclass(frozen=True)
class Home:
    """A folder on an fsspec file system, ``url``, and its near copy ``folder``. A file has the
    same relative path in both.
    """

    url: str
    folder: Path

    def put(self, path: Path, data: bytes) -> None:
        """Send what the near copy has at ``path`` home, in one upload."""
        with _reached(self.url) as (system, root):
            place = f"{root}/{path.relative_to(self.folder).as_posix()}"
            system.makedirs(place.rpartition("/")[0], exist_ok=True)
            system.pipe_file(place, data)

    def get(self, path: Path) -> bytes | None:
        """What lies at home for ``path``; None if nothing does."""
        with _reached(self.url) as (system, root), suppress(FileNotFoundError):
            return bytes(
                system.cat_file(f"{root}/{path.relative_to(self.folder).as_posix()}")
            )
        return None

    def remove(self, path: Path) -> None:
        with _reached(self.url) as (system, root), suppress(FileNotFoundError):
            system.rm_file(f"{root}/{path.relative_to(self.folder).as_posix()}")

    def names(self) -> list[str]:
        """The relative path of every file at home."""
        with _reached(self.url) as (system, root):
            system.invalidate_cache()
            return sorted(str(place)[len(root) + 1 :] for place in system.find(root))


@contextmanager
def _reached(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path there. Whatever goes wrong on the way is one
    sentence.
    """
    try:
        import fsspec
    except ImportError:
        raise expected(
            f"{url} needs fsspec",
            got="no module 'fsspec'",
            do="pip install 'feathide[remote]'",
        ) from None
    try:
        system, root = fsspec.url_to_fs(url)
        yield system, root.rstrip("/")
    except Exception as error:  # every store has errors of its own
        text = (str(error).splitlines() or [type(error).__name__])[0]
        do = "check the address, the rights and the network, or pip install what it names"
        raise expected(
            f"{url} must be within reach", got=text.rstrip("."), do=do
        ) from error


def near(out: str | Path) -> Path:
    """The folder to work in: ``out`` itself, or the near copy of a URL such as
    ``s3://bucket/run``.

    Near copies lie in ``~/.cache/feathide/runs``, or below ``FEATHIDE_CACHE``. One may be deleted
    at any time when nothing works in it."""
    scheme, mark, rest = str(out).partition("://")
    if not mark or scheme in ("file", "local"):
        return Path(rest if mark else out)
    url = str(out).rstrip("/")
    folder = _cache() / sha256(url.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{ADDRESS}.{os.getpid()}"
    part.write_text(json.dumps({"url": url}))
    os.replace(part, folder / ADDRESS)
    return folder


def home_of(path: Path) -> Home | None:
    """The home of the near copy that ``path`` is in. Only folders that ``near`` made have one: no
    run that one is given names another place.
    """
    cache = _cache()
    if not path.is_relative_to(cache) or path == cache:
        return None
    folder = cache / path.relative_to(cache).parts[0]
    return Home(str(json.loads((folder / ADDRESS).read_text())["url"]), folder)


def _cache() -> Path:
    return Path(
        os.environ.get("FEATHIDE_CACHE") or Path.home() / ".cache" / "feathide", "runs"
    )
