"""Groups of images: from a manifest, a table beside an npz file, or DICOM headers, and only what
is asked for.
"""

from pathlib import Path

import numpy as np
import pytest

from feathide.data import groups as module
from feathide.data import load_cases
from feathide.data.groups import UNKNOWN, banded, columns_of
from feathide.errors import InputError
from worlds.audits import write_npz
from worlds.clinical import write_dicom


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """CT slices of two makers, with a manifest that knows the sites."""
    from pydicom import dcmread

    rows = ["path,label,patient,split,site"]
    rng = np.random.default_rng(0)
    for i in range(12):
        path, split = tmp_path / f"{i:02d}.dcm", ("train", "val", "test")[i % 3]
        write_dicom(path, rng.integers(-1000, 1000, (8, 8)), f"MRN{i}")
        head = dcmread(path)
        head.Manufacturer, head.PatientAge = ("Siemens", "GE")[i % 2], f"0{20 + 5 * i}Y"
        head.InstitutionName = f"St. Mary {i % 2}"
        head.save_as(path)
        site = "" if i == 0 else "north" if i < 6 else "south"
        rows.append(f"{path.name},{'ab'[i // 3 % 2]},p{i},{split},{site}")
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


def test_a_column_of_the_manifest_and_fields_of_the_headers(manifest: Path) -> None:
    cases = load_cases(manifest)
    found = columns_of(cases, manifest, ["site", "Manufacturer", "label"])
    at = {str(id): i for i, id in enumerate(cases.ids)}
    assert found["site"][at["00.dcm"]] == UNKNOWN
    assert found["site"][at["07.dcm"]] == "south"
    assert found["Manufacturer"][at["03.dcm"]] == "GE"
    assert found["label"][at["03.dcm"]] == "b"


def test_names_of_places_are_hashed_unless_they_shall_be_kept(manifest: Path) -> None:
    cases = load_cases(manifest)
    hashed = columns_of(cases, manifest, ["InstitutionName"])["InstitutionName"]
    assert len(set(hashed)) == 2 and not any("Mary" in name for name in hashed)
    kept = columns_of(cases, manifest, ["InstitutionName"], keep=True)["InstitutionName"]
    assert "St. Mary 1" in kept


def test_no_header_is_read_that_is_not_asked_for(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, asked = load_cases(manifest), []
    monkeypatch.setattr(
        module, "header_field", lambda path, name: asked.append(name) or "x"
    )
    columns_of(cases, manifest, ["site"])
    assert asked == []
    columns_of(cases, manifest, ["Manufacturer"])
    assert set(asked) == {"Manufacturer"}


@pytest.mark.parametrize("name", ["patient", "PatientID", "id", "path", "PatientName"])
def test_what_tells_patients_apart_is_no_group(name: str, manifest: Path) -> None:
    with pytest.raises(InputError, match="many patients"):
        columns_of(load_cases(manifest), manifest, [name])


def test_an_unknown_column_lists_those_that_are_there(manifest: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'site'"):
        columns_of(load_cases(manifest), manifest, ["sites"])


def test_a_table_beside_an_npz_file(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "patches.npz")
    cases = load_cases(path)
    rows = ["split,index,patient,sex"] + [
        f"{s},{i},{p},{'fm'[i % 2]}"
        for s, n in (("train", 120), ("val", 24), ("test", 150))
        for i, p in ((i, f"{s}{i // 2}") for i in range(n))
    ]
    path.with_suffix(".meta.csv").write_text("\n".join(rows) + "\n")
    sex = columns_of(cases, path, ["sex"])["sex"]
    at = {str(id): i for i, id in enumerate(cases.ids)}
    assert [sex[at["test-00000"]], sex[at["test-00001"]]] == ["f", "m"]


def test_bands_of_numbers_and_of_ages() -> None:
    values = np.array(["39.9", "40", "045Y", "059Y", "060Y", "006M", "", "old"])
    assert banded(values, [40, 60]).tolist() == [
        *("below 40", "40 to 60", "40 to 60", "40 to 60", "60 and more", "below 40"),
        *(UNKNOWN, UNKNOWN),
    ]
