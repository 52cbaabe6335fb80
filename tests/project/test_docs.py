"""What the README and the pages under docs/ show: Python runs, plans load, commands parse, links
lead somewhere.
"""

import ast
import dataclasses
import doctest
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from torch import nn

import feathide
from feathide.catalog import OUR_ATTACKS, OUR_DETECTORS, OUR_OBJECTIVES
from feathide.cli import app
from feathide.data.noise import Noise
from feathide.models.zoo import OUR_MODELS
from feathide.plans.plan import load_plan

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
PAGES = {p.name: p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
RUNNABLE = ("README.md", "integrations.md", "own-model.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> Iterator[str]:
    return (
        m[2]
        for m in BLOCK.finditer(PAGES[page].read_text(encoding="utf-8"))
        if m[1] in languages
    )


def world() -> dict[str, Any]:
    """What the pages' reader has: a network and images, here tiny random ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential()
        network.blocks = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        network.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1])
    return {
        "network": network.eval(),
        "any_network": network,
        "images": torch.randint(256, (4, 1, 8, 8), generator=draw) / 255,
        "labels": labels,
        "targets": 1 - labels,
        "ids": ["a", "b", "c", "d"],
        "train_images": torch.rand((24, 1, 8, 8), generator=draw),
        "train_labels": torch.arange(24) % 2,
        "nn": nn,
        "Linf": feathide.Linf,
        "Grid": feathide.Grid,
    }


@pytest.mark.parametrize("page", RUNNABLE)
def test_python_runs(page: str) -> None:
    names = world()
    if page == "integrations.md":
        if find_spec("torchattacks") is None:
            pytest.skip("needs torchattacks, which is not installed")
        names["torchattacks"] = pytest.importorskip("torchattacks")
    code = list(blocks(page, "python"))
    assert code
    for block in code:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page: str) -> None:
    group = typer.main.get_command(app)
    for block in blocks(page, "bash", ""):
        for line in (line for line in block.splitlines() if line.startswith("feathide ")):
            command, words = group, shlex.split(line, comments=True)[1:]
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert command is not group, line
            command.make_context(line, words)


@pytest.mark.parametrize("page", PAGES)
def test_plans_load(page: str) -> None:
    for block in blocks(page, "yaml"):
        plan = yaml.safe_load(block)
        if isinstance(plan, dict) and "data" in plan:
            load_plan(plan)


def test_the_page_of_the_plan_shows_every_field_with_its_default_and_every_name() -> None:
    shown = yaml.safe_load(next(blocks("plan.md", "yaml")))
    plan = load_plan({"data": "chest.npz"}).model_dump(mode="json")
    short = {
        **plan,
        **{part: [row["name"] for row in plan[part]] for part in ("attacks", "objectives")},
    }
    assert shown == {**short, "sanity_checks": "quick"}
    for table in (OUR_ATTACKS, OUR_OBJECTIVES, OUR_DETECTORS, OUR_MODELS):
        assert set(table) <= set(
            re.findall(r"[\w+-]+", PAGES["plan.md"].read_text(encoding="utf-8"))
        )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = BLOCK.sub("", PAGES[page].read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            assert (PAGES[page].parent / target).exists(), target


def messages() -> Iterator[str]:
    """Every text of the source, with dots where it is filled in."""
    for path in (ROOT / "src" / "feathide").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "..."
                    for part in node.values
                )


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    text = PAGES["troubleshooting.md"].read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    known = list(messages())
    assert len(quoted) >= 15
    for message in quoted:
        parts = [part for part in message.split("...") if part.strip(" :;[]")]
        assert any(all(part in text for part in parts) for text in known), message


def test_the_reference_has_every_public_name() -> None:
    named = re.findall(r"^::: [\w.]+\.(\w+)$", PAGES["api.md"].read_text(), re.MULTILINE)
    assert sorted(named) == sorted(feathide.__all__)


REFERENCE = re.findall(
    r"^::: ([\w.]+)$",
    "".join(PAGES[page].read_text(encoding="utf-8") for page in ("api.md", "api-parts.md")),
    re.MULTILINE,
)
NEEDS = {"torchattacks": "torchattacks", "art": "art"}


def documented(path: str) -> Any:
    """What the reference shows under ``path``."""
    module, name = path.rsplit(".", 1)
    library = NEEDS.get(module.rsplit(".", 1)[1])
    if module.startswith("feathide.integrations.") and library:
        pytest.importorskip(library)
    return getattr(importlib.import_module(module), name)


def parameters(thing: Any) -> list[str]:
    """The names that a caller gives, private ones left out."""
    if dataclasses.is_dataclass(thing):
        return [f.name for f in dataclasses.fields(thing) if f.init and f.name[0] != "_"]
    if inspect.isclass(thing) and thing.__init__ in (object.__init__, ValueError.__init__):
        return []
    if thing is feathide.Plan:
        return list(feathide.Plan.model_fields)
    # a recipe names the fields of Attack, too
    written = getattr(thing, "__wrapped__", thing)
    return [p for p in inspect.signature(written).parameters if p != "self"]


@pytest.mark.parametrize("path", [p for p in REFERENCE if not p.endswith(".DETECTORS")])
def test_the_reference_names_every_parameter(path: str) -> None:
    thing = documented(path)
    text = inspect.getdoc(thing) or ""
    section = re.search(
        r"^(?:Args|Attributes):\n((?:(?: .*)?(?:\n|$))+)", text, re.MULTILINE
    )
    named = re.findall(r"^ {4}\*{0,2}(\w+):", section[1], re.MULTILINE) if section else []
    if inspect.isclass(thing) and inspect.isabstract(thing):
        return
    assert named == parameters(thing)
    assert "\n" not in text.split("\n\n")[0], "the first line says what it is"


@pytest.mark.parametrize("path", [p for p in REFERENCE if not p.endswith(".DETECTORS")])
def test_the_examples_of_the_reference_run(path: str) -> None:
    thing = documented(path)
    places = [thing, *(vars(thing).values() if inspect.isclass(thing) else ())]
    for place in places:
        text = inspect.getdoc(place) if callable(place) or place is thing else None
        if not text or ">>>" not in text:
            continue
        module = vars(sys.modules[thing.__module__])
        names = {n: getattr(feathide, n) for n in feathide.__all__}
        names |= {"Noise": Noise, "torch": torch, **module, **world()}
        test = doctest.DocTestParser().get_doctest(text, names, path, None, None)
        said: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            test, out=said.append
        )
        assert not said, "".join(said)


def script_of(name: str) -> Any:
    """A file of scripts/ as a module."""
    path = ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    page = script_of("cli_page").page()
    assert PAGES["cli.md"].read_text(encoding="utf-8") == page, (
        "run python scripts/cli_page.py"
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_a_page_with_its_code_and_its_output(notebook: Path) -> None:
    text = script_of("notebook_pages").page(notebook)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    shown = [(m[1], m[2].strip()) for m in BLOCK.finditer(text)]
    code = ["".join(c["source"]).strip() for c in cells if c["cell_type"] == "code"]
    said = ["".join(o["text"]).strip() for c in cells for o in c.get("outputs", [])]
    assert [block for language, block in shown if language == "python"] == code
    assert [block for language, block in shown if language == "text"] == said and said
    assert text.startswith("# ")


def test_the_site_has_every_page_in_one_of_its_parts() -> None:
    nav = yaml.safe_load(
        re.sub(
            r"^.*?^nav:", "nav:", (ROOT / "mkdocs.yml").read_text(), flags=re.DOTALL | re.M
        )
    )["nav"]
    parts = {part: pages for entry in nav for part, pages in entry.items()}
    assert list(parts) == ["Start", "How-to", "Notebooks", "Reference", "Explanation"]
    listed = [file for pages in parts.values() for page in pages for file in page.values()]
    notebooks = {f"notebooks/{n.stem}.md" for n in NOTEBOOKS}
    assert sorted(listed) == sorted({*PAGES, *notebooks} - {"README.md"})


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("mkdocs") and find_spec("material") and find_spec("mkdocstrings")),
    reason="needs feathide[docs]",
)
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "slips through"
        in (tmp_path / "site" / "report" / "index.html").read_text(encoding="utf-8").lower()
    )
    for notebook in NOTEBOOKS:
        assert (tmp_path / "site" / "notebooks" / notebook.stem / "index.html").is_file()
