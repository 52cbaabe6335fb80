"""A hook of mkdocs: each notebook of examples/notebooks becomes a page of the site, with its text,
its code and the output that is stored in it.

The tests run the notebooks and compare the stored output, so that the pages show what a reader
would see. Named under ``hooks`` in mkdocs.yml.
"""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
PLACE = "notebooks"  # the folder of the pages on the site


def page(notebook: Path) -> str:
    """A notebook as a page of Markdown, which ends with where the notebook lies."""
    book = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [_cell(cell) for cell in book["cells"]]
    name = f"examples/notebooks/{notebook.name}"
    return "\n\n".join([*cells, f"*This page is `{name}`, which the tests run.*"]) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each notebook; mkdocs calls this with the files of docs/."""
    from mkdocs.structure.files import File

    for notebook in sorted(FOLDER.glob("*.ipynb")):
        where = f"{PLACE}/{notebook.stem}.md"
        files.append(File.generated(config, where, content=page(notebook)))
    return files


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return source
    shown = [_block("python", source)]
    for output in cell["outputs"]:
        text = "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
        shown.append(_block("text", text.rstrip()))
    return "\n\n".join(shown)


def _block(language: str, text: str) -> str:
    """A fenced block whose fence is longer than any in ``text``."""
    inner = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (inner + 1)
    return f"{fence}{language}\n{text}\n{fence}"
