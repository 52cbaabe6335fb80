"""The report as PDF: through a browser where there is one, and a clear sentence where not."""

import shutil
from pathlib import Path

import pytest

from feathide.errors import InputError
from feathide.report import render
from feathide.report.pdf import BROWSERS, browser, print_pdf
from worlds.runs import make_run

ANY = next((name for name in BROWSERS if shutil.which(name)), None)


@pytest.mark.browser
@pytest.mark.skipif(ANY is None, reason="needs Chromium, Chrome or Edge")
def test_the_page_is_printed(tmp_path: Path) -> None:
    page, out = tmp_path / "report.html", tmp_path / "new" / "report.pdf"
    page.write_text(render(make_run()), encoding="utf-8")
    print_pdf(page, out)
    raw = out.read_bytes()
    assert raw.startswith(b"%PDF") and raw.count(b"/Type /Page\n") >= 2


def test_without_a_browser_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"Chromium.*print it to a PDF"):
        browser()


def test_a_browser_that_prints_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho out of paper >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(InputError, match="out of paper"):
        print_pdf(tmp_path / "report.html", tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
