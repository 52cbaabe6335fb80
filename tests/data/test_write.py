"""Images out in the format of their source, checked with pydicom, nibabel, Pillow and
SimpleITK.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from feathide.data import read_back, write_like
from feathide.data.derive import NEEDED, NOTE
from feathide.data.files import read_image
from feathide.errors import InputError
from feathide.formats.stored import StoredImage

TWINS = {"RG1_J2KI.dcm", "RG3_J2KI.dcm"}  # large, and like RG3_J2KR.dcm
HEADERLESS = {"nib_decimal_rescale.dcm"}  # no SOP UIDs: cannot become a valid object


def refuses(*words: str):
    return pytest.raises(InputError, match=".*".join(re.escape(w) for w in words))


def changed(path: Path, image: StoredImage | None = None) -> np.ndarray:
    """The image of ``path`` with a third of its voxels moved by up to two grey levels."""
    image = read_image(path) if image is None else image
    values, step = image.values, image.step or 0.01
    rng = np.random.default_rng(0)
    moved = np.clip(
        values + step * rng.integers(-2, 3, values.shape), values.min(), values.max()
    )
    return np.where(rng.random(values.shape) < 0.3, moved, values).astype(np.float32)


@dataclass(frozen=True)
class Written:
    source: Path
    before: StoredImage
    image: np.ndarray
    out: Path


@pytest.fixture(scope="module")
def written(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Written]:
    """Every real file that can be read, changed and written."""
    folder, found = tmp_path_factory.mktemp("written"), []
    for path in sorted([*shared.glob("dicom/*.dcm"), *shared.glob("nifti/*.nii*")]):
        try:
            before = read_image(path)
        except InputError:
            continue
        if np.isfinite(before.values).all() and path.name not in HEADERLESS | TWINS:
            image = changed(path, before)
            found.append(
                Written(path, before, image, write_like(path, image, folder / path.name))
            )
    return found


def test_every_real_file_is_written_and_read_back(written: list[Written]) -> None:
    assert len(written) >= 28
    for w in written:
        after = read_image(w.out)
        assert after.stored.dtype == w.before.stored.dtype, w.source.name
        assert (after.slope, after.intercept) == (w.before.slope, w.before.intercept), (
            w.source.name
        )
        same = w.image == w.before.values
        np.testing.assert_array_equal(
            after.stored[same], w.before.stored[same], err_msg=w.source.name
        )
        np.testing.assert_allclose(
            after.values, w.image, atol=1e-3 * (w.before.step or 1), err_msg=w.source.name
        )
        assert (after.stored != w.before.stored).any()


def test_outsiders_agree_on_the_pixels(written: list[Written]) -> None:
    sitk = pytest.importorskip(
        "SimpleITK", reason="needs SimpleITK to read the files back independently"
    )
    for w in written:
        if w.source.name == "parametric_map_float.dcm":
            continue  # ITK has no reader for float DICOM
        got = sitk.GetArrayFromImage(sitk.ReadImage(str(w.out))).astype(np.float64)
        frames = w.image if w.image.ndim == 4 else w.image[:, None]  # (C, D, H, W)
        want = np.moveaxis(frames, 0, -1) if len(frames) == 3 else frames[0]
        want = want if w.source.suffix == ".dcm" else want.transpose()
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-3, err_msg=w.source.name)


def test_a_derived_object_says_what_it_is(shared: Path, tmp_path: Path) -> None:
    source = shared / "dicom" / "CT_small.dcm"
    out = write_like(source, changed(source), tmp_path / "a.dcm")
    old, new = pydicom.dcmread(source), pydicom.dcmread(out)
    assert (
        new.SOPInstanceUID not in ("", old.SOPInstanceUID)
        and new.SeriesInstanceUID != old.SeriesInstanceUID
    )
    assert (
        new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        and new.SOPInstanceUID.is_valid
    )
    assert (
        new.StudyInstanceUID == old.StudyInstanceUID and new.PatientName == old.PatientName
    )
    assert new.ImageType[0] == "DERIVED" and list(new.ImageType[1:]) == list(
        old.ImageType[1:]
    )
    assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert (
        new.private_block(0x71, "FEATHIDE")[0x01].value == new.DerivationDescription == NOTE
    )
    for key in (
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        assert new[key].value == old[key].value
    again = write_like(source, changed(source), tmp_path / "b.dcm")
    assert again.read_bytes() == out.read_bytes()  # the same image gives the same file
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.dcm", "b.dcm"]


def test_compressed_sources_become_uncompressed_and_others_keep_their_syntax(
    shared: Path, tmp_path: Path
) -> None:
    for name, syntax in (
        ("MR_small_RLE", pydicom.uid.ExplicitVRLittleEndian),
        ("examples_ybr_color", pydicom.uid.ExplicitVRLittleEndian),
        ("MR_small_bigendian", pydicom.uid.ExplicitVRBigEndian),
        ("MR_small_implicit", pydicom.uid.ImplicitVRLittleEndian),
        ("image_dfl", pydicom.uid.DeflatedExplicitVRLittleEndian),
    ):
        source = shared / "dicom" / f"{name}.dcm"
        out = pydicom.dcmread(write_like(source, changed(source), tmp_path / "x.dcm"))
        assert out.file_meta.TransferSyntaxUID == syntax
    palette = shared / "dicom" / "OBXXXX1A_rle.dcm"
    out = pydicom.dcmread(write_like(palette, changed(palette), tmp_path / "x.dcm"))
    assert (
        out.PhotometricInterpretation == "RGB"
        and "RedPaletteColorLookupTableData" not in out
    )


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # in the source of rtdose
def test_deidentified_files_hold_no_trace_of_the_patient(
    shared: Path, tmp_path: Path
) -> None:
    for name in (
        "CT_small",
        "MR_small_implicit",
        "eCT_Supplemental",
        "rtdose",
        "examples_overlay",
        "nib_0",
    ):
        source = shared / "dicom" / f"{name}.dcm"
        old = pydicom.dcmread(source)
        new = changed(source)
        out = write_like(source, new, tmp_path / "x.dcm", deidentify=True)
        raw = out.read_bytes()
        # the maker, units, codes stay
        needed = " ".join(str(e.value) for e in old.iterall() if e.keyword in NEEDED)
        for element in old.iterall():
            text = str(element.value).strip()
            personal = (
                element.VR in ("PN", "LO", "SH", "DA", "TM", "LT", "UI")
                and str(element.value) not in needed
            )
            if personal and len(text) > 5 and not text.startswith("1.2.840.10008."):
                assert text.encode() not in raw, (name, element.keyword)
        head = pydicom.dcmread(out)
        assert (
            str(head.PatientName) in ("", "REMOVED")
            and head.PatientIdentityRemoved == "YES"
            and head.ImageType[0] == "DERIVED"
        )
        np.testing.assert_allclose(read_back(out), new, atol=1e-3)
        assert [e.tag.group for e in head if e.tag.is_private] == [0x71, 0x71]


# by dciodvfy of copies: palettes become colour of 16 bits, enhanced MR keeps what only originals
# must have; it cannot inflate
SAID = {
    "image_dfl.dcm": "skipping",
    "OBXXXX1A_rle.dcm": "Bits Allocated|Bits Stored|High Bit",
    "emri_small.dcm": "condition unsatisfied",
    "emri_small_RLE.dcm": "condition unsatisfied",
}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.skipif(
    not shutil.which("dciodvfy") or not shutil.which("dcmftest"),
    reason="needs dcmtk and dicom3tools",
)
def test_validators_find_nothing_that_the_source_had_not(
    written: list[Written], tmp_path: Path
) -> None:
    def errors(path: Path) -> set[str]:
        said = subprocess.run(
            ["dciodvfy", path], capture_output=True, text=True, errors="replace"
        )
        return {
            line
            for line in (said.stderr + said.stdout).splitlines()
            if line.startswith("Error")
        }

    for w in written:
        if w.source.suffix != ".dcm":
            continue
        hidden = write_like(w.source, w.image, tmp_path / w.source.name, deidentify=True)
        for out in (w.out, hidden):
            assert subprocess.run(["dcmftest", out], capture_output=True).returncode == 0, (
                out.name
            )
            new = errors(out) - errors(w.source)
            assert [
                e for e in new if not re.search(SAID.get(w.source.name, "$^"), e)
            ] == [], out.name


def test_a_series_is_written_slice_by_slice(tmp_path: Path, make_series) -> None:
    folder = make_series(tmp_path / "ct")
    image = read_back(folder)
    new = image.copy()
    new[0, 2] += np.where(new[0, 2] < 3000, 2, 0)
    out = write_like(folder, new, tmp_path / "out")
    np.testing.assert_array_equal(read_back(out), new)
    heads = [pydicom.dcmread(p) for p in sorted(out.iterdir())]
    assert (
        len({h.SeriesInstanceUID for h in heads}) == 1
        and len({h.SOPInstanceUID for h in heads}) == 4
    )
    touched = [
        p.name
        for p in out.iterdir()
        if pydicom.dcmread(p).PixelData != pydicom.dcmread(folder / p.name).PixelData
    ]
    assert (
        len(touched) == 1
        and pydicom.dcmread(out / touched[0]).ImagePositionPatient[2] == -45
    )


def test_the_header_of_a_volume_is_untouched(shared: Path, tmp_path: Path) -> None:
    for name in ("someones_epi.nii.gz", "anatomical.nii", "reoriented_anat_moved.nii"):
        source = shared / "nifti" / name
        out = write_like(source, changed(source), tmp_path / name)
        old, new = nib.load(source), nib.load(out)
        assert old.header == new.header and old.get_data_dtype() == new.get_data_dtype()
        np.testing.assert_array_equal(old.affine, new.affine)
        assert (old.dataobj.slope, old.dataobj.inter) == (
            new.dataobj.slope,
            new.dataobj.inter,
        )
    packed = write_like(source, changed(source), tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(read_back(packed), changed(source))


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_unchanged_voxels_finer_than_float32_are_kept(tmp_path: Path, dtype: str) -> None:
    voxels = (np.arange(60).reshape(5, 4, 3) * 1e6 + 2**26 + np.pi).astype(dtype)
    nib.save(nib.Nifti1Image(voxels, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    image = read_back(tmp_path / "a.nii")
    image[0, 0, 0, 0] += 1e6
    got = np.asanyarray(
        nib.load(write_like(tmp_path / "a.nii", image, tmp_path / "b.nii")).dataobj
    )
    assert (
        got.dtype == voxels.dtype
        and (got != voxels).sum() == 1
        and abs(got[0, 0, 0] - voxels[0, 0, 0] - 1e6) < 16
    )


# pictures


@pytest.mark.parametrize(
    ("dtype", "shape"), [("uint8", (8, 6)), ("uint16", (8, 6)), ("uint8", (8, 6, 3))]
)
def test_png_keeps_every_grey_level(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(
        np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    ).save(source)
    new = changed(source)
    np.testing.assert_allclose(
        read_back(write_like(source, new, tmp_path / "b.png")), new, atol=1e-7
    )
    assert np.array(Image.open(tmp_path / "b.png")).dtype == np.dtype(dtype)


def test_pictures_may_be_smaller_and_grey(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    ).save(source)
    image = np.full((1, 4, 3), 7 / 255, dtype=np.float32)
    np.testing.assert_array_equal(
        read_back(write_like(source, image, tmp_path / "b.png")), image
    )


def test_jpeg_at_a_quality(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(np.add.outer(np.arange(64), np.arange(64)).astype(np.uint8)).save(
        source
    )
    image = read_back(source)
    sizes, errors = [], []
    for quality in (30, 95):
        out = write_like(source, image, tmp_path / f"{quality}.jpg", quality=quality)
        sizes.append(out.stat().st_size)
        errors.append(np.abs(read_back(out) - image).max())
    assert sizes[0] < sizes[1] and errors[1] < errors[0] < 0.1


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, make_series) -> None:
    folder = make_series(tmp_path / "ct")
    image = read_back(folder)
    with refuses(
        "must have the shape (1, 4, 6, 5)", "(1, 4, 6, 4)", "without size and channels"
    ):
        write_like(folder, image[..., :4], tmp_path / "out")
    with refuses("can store whole numbers 0..4095", "4096"):
        write_like(folder, np.full_like(image, 4096 - 1024), tmp_path / "out")
    with refuses("must be finite"):
        write_like(folder, image * np.nan, tmp_path / "out")
    with refuses("must be named as DICOM", "a picture"):
        write_like(folder, image, tmp_path / "out.png")
    Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)).save(tmp_path / "a.png")
    with refuses("8 bits to be a JPEG", "uint16"):
        write_like(tmp_path / "a.png", read_back(tmp_path / "a.png"), tmp_path / "a.jpg")
    for path in folder.iterdir():
        head = pydicom.dcmread(path)
        del head.SOPInstanceUID
        head.save_as(path)
    with refuses("a complete DICOM object", "no SOPInstanceUID"):
        write_like(folder, image, tmp_path / "out")
