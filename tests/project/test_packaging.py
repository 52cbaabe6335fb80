"""What is installed: light to import, typed, with its licence, and whole when built as a
wheel.
"""

import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, feathide; print(*{'torch', 'sklearn', 'pandas', 'monai', 'pydantic', "
        "'art', 'timm'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy
        started = time.perf_counter()
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - started)
        assert shown.stdout.split() == []
    assert min(seconds) < 1


# libraries that take long to load, and that few calls need
SLOW = ("monai", "plotly", "pyarrow", "lightning", "torchvision")


def loaded(code: str) -> list[str]:
    """What a fresh interpreter says after ``code``, word by word."""
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return shown.stdout.split()


def test_the_two_names_of_the_readme_are_quick_to_import() -> None:
    code = f"""
import sys, time
import torch
begun = time.process_time()
from feathide import audit, pgd
print(time.process_time() - begun, *(m for m in {SLOW} if m in sys.modules))
"""
    seconds, *slow = loaded(code)
    assert slow == []
    assert float(seconds) <= 2


def test_an_audit_of_pictures_never_loads_what_volumes_and_training_need() -> None:
    code = f"""
import sys
import feathide.auditing.run
print(*(m for m in {SLOW} if m != "pyarrow" and m in sys.modules))
from feathide.models.zoo import build
build("resnet18", channels=1, outputs=2)
print("then", "torchvision" in sys.modules, "monai" in sys.modules)
build("resnet10_3d", channels=1, outputs=2)
print("monai" in sys.modules)
"""
    assert loaded(code) == ["then", "True", "False", "True"]


def test_dir_lists_the_public_names() -> None:
    import feathide

    assert dir(feathide) == sorted([*feathide.__all__, "__version__"])
    assert all(hasattr(feathide, name) for name in dir(feathide))


def test_the_quick_audit_takes_what_the_whole_one_takes() -> None:
    from inspect import signature

    from feathide import audit
    from feathide.auditing.run import audit as whole

    quick, full = signature(audit).parameters, signature(whole).parameters
    assert [(p.name, p.kind, p.default) for p in quick.values()] == [
        (p.name, p.kind, p.default) for p in full.values()
    ]


def test_the_wheel_is_whole_and_can_be_imported(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("needs hatchling, which is not installed")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("feathide-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    kinds = (".py", ".j2", ".js", ".css", ".yaml", ".typed")
    wanted = {
        str(f.relative_to(source))
        for f in (source / "feathide").rglob("*")
        if f.suffix in kinds or f.name == "py.typed"
    }
    wanted |= {
        f"feathide/{f.relative_to(ROOT)}"
        for f in (ROOT / "studies" / "paper").glob("*.yaml")
    }
    assert wanted <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    installed = tmp_path / "site"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(installed),
            str(wheel),
        ],
        check=True,
    )
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import feathide; "
        "print(feathide.__file__, feathide.__version__)"
    )
    shown = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert shown.stdout.startswith(str(installed))
