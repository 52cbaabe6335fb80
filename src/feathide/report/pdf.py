"""The report as PDF, through a browser that is installed: the page's own style for print."""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from feathide.errors import expected, first_line

__all__ = ["BROWSERS", "browser", "print_pdf"]

# engines that print a page without a window, as their programs are called
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
    "microsoft-edge",
)
PATIENCE = 180  # seconds
# of the page's own time: what its figures need to be drawn
DRAWING = 20_000  # milliseconds
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-pdf-header-footer",
    f"--virtual-time-budget={DRAWING}",
)


def browser() -> str:
    """The program of the first installed browser. Raises ``InputError`` where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise expected(
            "a PDF needs Chromium, Chrome or Edge",
            got="none on the path",
            do="install one, or open report.html in any browser and print it to a PDF",
        )
    return found


def print_pdf(page: Path, out: Path) -> None:
    """Print a report to a PDF.

    Args:
        page: The HTML file, which loads nothing.
        out: The PDF file to be written.

    Raises:
        InputError: Where no browser is installed, or the browser writes no PDF.
    """
    program = browser()
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as profile:
        written = Path(profile, "report.pdf")
        command = [program, *_flags(profile), f"--print-to-pdf={written}"]
        said = _run([*command, page.resolve().as_uri()])
        if not written.is_file() or not written.read_bytes().startswith(b"%PDF"):
            raise expected(
                f"{Path(program).name} must print the report",
                got=said or "no PDF",
                do="open report.html in a browser and print it to a PDF",
            )
        shutil.copyfile(written, out)


def _flags(profile: str) -> tuple[str, ...]:
    # the superuser, as in a container, has no sandbox; the page may load and run nothing else
    user = getattr(os, "geteuid", lambda: 1)()
    sandbox = ("--no-sandbox",) if user == 0 else ()
    return (*FLAGS, f"--user-data-dir={profile}/user", *sandbox)


def _run(command: list[str]) -> str:
    """What the browser says, in one line."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return first_line(error)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines and done.returncode else ""
