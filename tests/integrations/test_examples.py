"""The examples of the integrations run as they are, and show what they promise."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art"])
def test_hfc_lowers_the_energy_inside_another_library(
    library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library, reason=f"needs {library}")
    runpy.run_path(str(EXAMPLES / f"hfc_in_{library}.py"))
    shown = re.findall(
        r"^(.*?) +taken for the target +(\d+)%, energy ([\d.]+)$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    energy = {name: float(value) for name, _, value in shown}
    success = {name: int(share) for name, share, _ in shown}
    clean, plain, hiding = list(energy)[:3]
    assert energy[hiding] < energy[clean] < energy[plain]
    assert success[clean] < 40 < 90 < min(success[plain], success[hiding])


@pytest.mark.slow
def test_detectors_cross_the_border(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "sklearn_outlier.py"))
    shown = capsys.readouterr().out
    clean, attacked = (int(share) for share in re.findall(r"(\d+)% of", shown))
    assert attacked > clean + 30
    assert [
        float(auc) > 0.85 for auc in re.findall(r"clean ([\d.]+)$", shown, re.MULTILINE)
    ] == [True, True]


@pytest.mark.slow
def test_a_plan_names_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("torchattacks", "foolbox", "art", "pytorch_ood"):
        pytest.importorskip(library, reason=f"needs {library}")
    monkeypatch.setattr("sys.argv", ["example", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "plan_with_other_libraries.py"), run_name="__main__")
    shown = capsys.readouterr().out
    for name in (
        "torchattacks:PGD(steps=10)",
        "hfc",
        "foolbox:LinfPGD",
        "art:Basic",
        "sign_step",
        "sklearn:",
        "pytorch_ood:",
    ):
        assert name in shown


@pytest.mark.slow
def test_networks_come_from_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("timm", "onnx2torch"):
        pytest.importorskip(library, reason=f"needs {library}")
    runpy.run_path(str(EXAMPLES / "networks_from_elsewhere.py"))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6
    assert [
        float(line.split("differs by ")[1].split(",")[0]) < 1e-4 for line in shown[3:]
    ] == [True] * 3
    assert shown[-1].endswith("layers: none")
