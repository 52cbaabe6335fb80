"""The log file of a run: what its display shows, line by line with the time."""

from datetime import datetime
from pathlib import Path

from feathide.execution.progress import Progress, Status, lines_of

__all__ = ["Logged"]


class Logged:
    """A display that also writes a line for every stage, every epoch and every sentence to
    ``path``.
    """

    def __init__(self, progress: Progress, path: Path) -> None:
        self._progress, self._path = progress, path
        self._said: set[str] = set()
        self._write("begun")

    def show(self, status: Status) -> None:
        self._progress.show(status)
        if line := lines_of(status, self._said):
            self._write(line)
        if status.done == status.total:
            self._write("all steps are done")

    def say(self, sentence: str) -> None:
        self._progress.say(sentence)
        self._write(sentence)

    def _write(self, line: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{now} {line}\n")
