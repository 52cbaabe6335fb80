"""The gallery: every notebook runs from top to bottom, and its stored output is what such a run
shows.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SHARES = {
    "own_network": "images are taken for the other class",
    "own_detector": "AUC against an attacker who knows it",
    "own_attack": "hidden fools",
    "volumes": "HFC   fools",
    "dicom": "identical after the round trip: True",
    "in_art": "ART's PGD + 0.3 HFC",
}


def test_the_gallery_is_complete() -> None:
    assert {p.stem for p in FOLDER.glob("*.ipynb")} == set(SHARES)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARES)
def test_a_notebook_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "in_art":
        pytest.importorskip("art", reason="needs adversarial-robustness-toolbox")
    monkeypatch.chdir(tmp_path)
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    space, said = dict[str, Any](), ""
    for cell in (c for c in book["cells"] if c["cell_type"] == "code"):
        exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), space)
        shown = capsys.readouterr().out
        said += shown
        stored = "".join(line for output in cell["outputs"] for line in output["text"])
        assert len(shown.splitlines()) == len(stored.splitlines())
        if cell["outputs"]:
            assert _first_words(shown) == _first_words(stored)
    assert SHARES[name] in said


def _first_words(text: str) -> list[str]:
    """The first word of each line; a number is only known to be one, since training differs from
    processor to processor.
    """
    return [re.sub(r"\d+(\.\d+)?", "0", line.split()[0]) for line in text.splitlines()]
