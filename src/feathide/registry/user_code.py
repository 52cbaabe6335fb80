"""A user's own code, named ``package.module:name`` or ``path/to/file.py:name``: what it holds,
and a digest of what it says.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from feathide.errors import InputError, expected, first_line, unknown

__all__ = [
    "called",
    "check_arguments",
    "foreign",
    "importable",
    "load_callable",
    "load_object",
    "source_digest",
]

T = TypeVar("T")


def load_object(spec: str, *, trust: bool) -> Any:
    """What ``package.module:name`` or ``path/to/file.py:name`` names. Importing it runs the
    user's code, so nothing happens without ``trust``. Raises ``InputError`` if the code does not
    import or lacks the name.
    """
    if not trust:
        raise expected(
            f"{spec} must be trusted to run its Python code",
            got="trust=False",
            do="say --trust, or trust=True in Python, if you know this code",
        )
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise expected(
            "code is named package.module:callable or file.py:callable",
            got=repr(spec),
            do="correct it",
        )
    with importable(spec):
        module = _import(source)
    try:
        return getattr(module, name)
    except AttributeError:
        raise unknown(
            f"name in {source}", name, [n for n in vars(module) if n[0] != "_"]
        ) from None


def load_callable(spec: str, *, trust: bool) -> Callable[..., Any]:
    """``load_object`` for something that can be called."""
    entry = load_object(spec, trust=trust)
    if not callable(entry):
        raise expected(
            f"{spec} must be callable",
            got=type(entry).__name__,
            do="name a function or a class",
        )
    return entry


def called(
    entry: Callable[..., Any], spec: str, kwargs: Mapping[str, Any], *args: Any
) -> Any:
    """``entry(*args, **kwargs)``; arguments that it does not take are an ``InputError`` that
    lists those it takes.
    """
    check_arguments(entry, spec, kwargs, *args)
    return entry(*args, **kwargs)


def foreign(what: str, work: Callable[[], T]) -> T:
    """``work()``, code that is not ours: whatever it raises is an ``InputError`` that says so."""
    try:
        return work()
    except InputError:
        raise
    except ImportError as error:
        named = re.findall(r"No module named '([\w.]+)'", str(error))
        name = (error.name or next(iter(named), "")).partition(".")[0]
        missing = (
            f"{name} must be installed to build {what}"
            if name
            else f"{what} must find what it imports"
        )
        raise expected(
            missing,
            got=first_line(error),
            do=f"pip install {name}" if name else "install it",
        ) from error
    except Exception as error:
        got = f"{type(error).__name__}: {first_line(error)}"
        raise expected(
            f"{what} must be built",
            got=got,
            do="correct its arguments, or choose another one",
        ) from error


def check_arguments(
    entry: Callable[..., Any], spec: str, kwargs: Mapping[str, Any], *args: Any
) -> None:
    """Raise ``InputError`` if ``entry`` does not take these arguments."""
    taken = inspect.signature(entry)
    try:
        taken.bind(*args, **kwargs)
    except TypeError as error:
        raise expected(
            f"{spec} must accept the arguments {dict(kwargs)}",
            got=str(error),
            do=f"it takes {', '.join(taken.parameters)}",
        ) from error


@lru_cache
def source_digest(spec: str) -> str:
    """SHA-256 over ``spec`` and the file that it names; over the name alone where there is no
    such file.
    """
    source = spec.rpartition(":")[0]
    with importable(spec):
        try:
            found = None if source.endswith(".py") else importlib.util.find_spec(source)
        except (ImportError, ValueError):
            found = None
    path = Path(source if source.endswith(".py") else (found and found.origin) or "")
    return sha256(
        spec.encode() + (path.read_bytes() if path.is_file() else b"")
    ).hexdigest()


@contextmanager
def importable(spec: str) -> Iterator[None]:
    """The folder of the code is searched first while the block runs, so that a file can import
    its neighbours.
    """
    source = spec.rpartition(":")[0]
    folder = Path(source).parent if source.endswith(".py") else Path.cwd()
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _import(source: str) -> ModuleType:
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source)
        if not os.path.isfile(path):
            raise expected("the code must be a file", got=path, do="correct the path")
        found = importlib.util.spec_from_file_location(f"feathide_user_{path.stem}", path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses and pickles in the module look it up
        found.loader.exec_module(module)
        return module
    except InputError:
        raise
    except Exception as error:
        raise expected(
            f"{source} must import",
            got=f"{type(error).__name__}: {error}",
            do="install what it needs, or correct the name",
        ) from error
