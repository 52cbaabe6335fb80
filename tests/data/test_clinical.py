"""DICOM and NIfTI in: native units, header patients, and one sentence for everything that is not
an image.
"""

import gzip
import hashlib
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from feathide.data import folder, load_cases
from feathide.data.files import read_image
from feathide.errors import InputError

NOT_IMAGES = {  # file: a part of its one sentence
    "JPEG-LL.dcm": "no installed decoder can read",
    "JPEG-lossy.dcm": "no installed decoder can read",
    "JPGExtended.dcm": "no installed decoder can read",
    "MR_small_jpeg_ls_lossless.dcm": "no installed decoder can read",
    "bad_sequence.dcm": "no installed decoder can read",
    "MR_truncated.dcm": "less than expected (8130 vs 8192 bytes)",
    "badVR.dcm": "'1A'",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "no pixel data",
    "liver_1frame.dcm": "a mask of one bit",
    "meta_missing_tsyntax.dcm": "no (0002,0010) 'Transfer Syntax UID'",
    "mlut_18.dcm": "a modality LUT",
    "nib_csa_slice_norm.dcm": "no pixel data (MR)",
    "no_meta.dcm": "no DICOM header",
    "rtplan.dcm": "no pixel data (RTPLAN)",
    "test-SR.dcm": "no pixel data (SR)",
    "broken_truncated_example4d.nii.gz": "a picture or one volume",
    "example4d.nii.gz": "(128, 96, 24, 2)",
    "example_nifti2.nii.gz": "(32, 20, 12, 2)",
    "functional.nii": "(17, 21, 3, 20)",
    "row_major.dconn.nii": "Cifti2Image",
}


def refuses(*words: str):
    return pytest.raises(InputError, match=".*".join(re.escape(w) for w in words))


def test_every_real_file_reads_or_says_why_not(shared: Path) -> None:
    """Exactly the files of the list above are refused, each with its name; the decoders decide
    about compressed ones.
    """
    files = sorted([*shared.glob("dicom/*.dcm"), *shared.glob("nifti/*.nii*")])
    assert len(files) >= 53 and {*NOT_IMAGES} <= {path.name for path in files}
    for path in files:
        try:
            image = read_image(path)
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error), path.name
            assert NOT_IMAGES[path.name] in str(error)
        else:
            assert path.name not in NOT_IMAGES or "decoder" in NOT_IMAGES[path.name]
            assert image.values.dtype == np.float32 and image.values.ndim in (3, 4)


def test_values_are_those_of_the_header(shared: Path) -> None:
    for name in ("CT_small", "MR2_J2KI", "MR_small_bigendian"):
        head = pydicom.dcmread(shared / "dicom" / f"{name}.dcm")
        slope, intercept = (
            float(head.get("RescaleSlope", 1)),
            float(head.get("RescaleIntercept", 0)),
        )
        image = read_image(shared / "dicom" / f"{name}.dcm")
        np.testing.assert_array_equal(
            image.values[0], (head.pixel_array * slope + intercept).astype(np.float32)
        )
        assert image.step == slope
    assert read_image(shared / "dicom" / "CT_small.dcm").unit == "HU"
    assert read_image(shared / "dicom" / "CT_small.dcm").spacing == (0.661468, 0.661468)
    anatomy = shared / "nifti" / "someones_anatomy.nii.gz"
    np.testing.assert_allclose(
        read_image(anatomy).values[0], nib.load(anatomy).get_fdata(), rtol=1e-6
    )
    assert read_image(anatomy).step == pytest.approx(0.352459, rel=1e-5)


def test_frames_colour_and_inverted_grey(shared: Path) -> None:
    frames = read_image(shared / "dicom" / "examples_ybr_color.dcm").values
    assert frames.shape == (3, 30, 240, 320)
    inverted = shared / "dicom" / "RG3_J2KR.dcm"
    np.testing.assert_array_equal(
        read_image(inverted).values[0], 1023 - pydicom.dcmread(inverted).pixel_array
    )


def test_all_ways_of_storing_one_picture_read_alike(shared: Path) -> None:
    names = (
        "MR_small",
        "MR_small_RLE",
        "MR_small_bigendian",
        "MR_small_implicit",
        "MR_small_jp2klossless",
    )
    first, *others = (read_image(shared / "dicom" / f"{name}.dcm").values for name in names)
    for other in others:
        np.testing.assert_array_equal(first, other)


ELSEWHERE = {  # what MONAI's readers make of these files, and why these do not use them
    "OBXXXX1A_rle.dcm": "the indices of a palette",
    "RG1_J2KI.dcm": "MONOCHROME1 as stored, dark for bright",
    "RG3_J2KI.dcm": "MONOCHROME1 as stored, dark for bright",
    "RG3_J2KR.dcm": "MONOCHROME1 as stored, dark for bright",
    "eCT_Supplemental.dcm": "stored numbers: the slope of multi-frame files stands in their functional groups",
}


def test_values_are_those_of_monai(shared: Path) -> None:
    """MONAI's readers agree wherever they read the same thing; they give no stored numbers, which
    writing back needs.
    """
    from monai.data import NibabelReader, PydicomReader

    compared = 0
    for path in sorted([*shared.glob("dicom/*.dcm"), *shared.glob("nifti/*.nii*")]):
        if path.name in NOT_IMAGES or path.name in ELSEWHERE:
            continue
        reader = PydicomReader(swap_ij=False) if path.suffix == ".dcm" else NibabelReader()
        theirs, ours = reader.get_data(reader.read(str(path)))[0], read_image(path).values
        theirs = np.moveaxis(theirs, -1, 0) if len(ours) == 3 else theirs[None]
        np.testing.assert_allclose(
            ours, theirs.astype(np.float64), rtol=1e-6, err_msg=path.name
        )
        compared += 1
    assert compared >= 24


# series


def test_a_series_is_a_volume_in_the_order_of_its_positions(
    tmp_path: Path, make_series
) -> None:
    image = read_image(make_series(tmp_path / "ct"))
    assert (
        image.values.shape == (1, 4, 6, 5)
        and image.unit == "HU"
        and image.spacing == (2.5, 0.7, 0.8)
    )
    np.testing.assert_array_equal(image.values[0, :, 0, 0], [-24, -23, -22, -21])


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            {"RescaleSlope": lambda k: 1 + (k == 2)},
            ("must have the shape and grey scale of",),
        ),
        (
            {"RescaleSlope": None},
            ("one rescale slope and intercept", "slope None, intercept -1024"),
        ),
        ({"RescaleSlope": 0}, ("other than 0",)),
        (
            {"ImagePositionPatient": lambda k: [0, 0, min(k, 2)]},
            ("evenly spaced", "gaps of 0 to 1 mm"),
        ),
        (
            {"ImagePositionPatient": lambda k: [0, 0, k + 3 * (k > 2)]},
            ("evenly spaced", "gaps of 1 to 4 mm"),
        ),
        (
            {"ImageOrientationPatient": None},
            ("an orientation and a position", "ImageOrientationPatient"),
        ),
        (
            {"SeriesInstanceUID": lambda k: f"1.2.{k // 2}"},
            ("must hold one series", "got 2"),
        ),
    ],
)
def test_series_that_are_no_volume_are_one_sentence(
    tmp_path: Path, make_series, header: dict, words: tuple
) -> None:
    folder = make_series(tmp_path / "ct", **header)
    with refuses(*words):
        read_image(folder)


def test_files_named_by_their_uid_are_slices(tmp_path: Path, make_series) -> None:
    folder = make_series(tmp_path / "scan", slices=5)
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"1.3.12.2.1107.5.1.{k}")
    assert read_image(folder).stored.shape == (1, 5, 6, 5)


@pytest.mark.parametrize(
    ("turned", "side"),
    [
        ((1, 0, 0, 0, 1, 0), "SPL"),
        ((-1, 0, 0, 0, -1, 0), "SAR"),
        ((1, 0, 0, 0, 0, -1), "PIL"),
        ((0, 1, 0, 0, 0, -1), "RIP"),
    ],
)
def test_a_series_tells_its_orientation(
    tmp_path: Path, make_series, turned: tuple, side: str
) -> None:
    """Axial supine, axial prone, coronal, sagittal: the volume's axes as the planes lie, in the
    order of their normal.
    """
    normal = np.cross(turned[:3], turned[3:])
    header = {
        "ImageOrientationPatient": list(turned),
        "ImagePositionPatient": lambda k: list(2.5 * k * normal),
    }
    folder = make_series(tmp_path / "scan", **header)
    assert read_image(folder).orientation == side
    assert read_image(next(folder.iterdir())).orientation == side[1:]


def test_series_of_two_orientations_make_no_study(tmp_path: Path, make_series) -> None:
    prone = {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}
    for i in range(12):
        folder = tmp_path / "scans" / "ab"[i % 2] / f"c{i:02d}"
        make_series(folder, patient=f"p{i}", seed=i, **(prone if i == 5 else {}))
    with refuses("must have the orientation of c00 (SPL)", "got SAR"):
        load_cases(tmp_path / "scans")


def test_a_localizer_is_no_volume(tmp_path: Path, make_series) -> None:
    folder = make_series(
        tmp_path / "scan",
        ImageOrientationPatient=lambda k: [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, -1],
    )
    with refuses("the slices in", "must be parallel", "localizer"):
        read_image(folder)


def test_what_lies_beside_slices_does_not_make_them_pictures(
    tmp_path: Path, make_series
) -> None:
    for i in range(12):
        folder = make_series(
            tmp_path / "scans" / "ab"[i % 2] / f"c{i:02d}", patient=f"p{i}", seed=i
        )
        (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert len(load_cases(tmp_path / "scans").shape) == 3
    saved = make_series(
        tmp_path / "saved",
        slices=1,
        patient="p0",
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
    )
    (saved / "0.dcm").rename(tmp_path / "scans" / "a" / "c00" / "zz.dcm")
    with refuses("must hold one series", "2; not of the largest: zz.dcm"):
        load_cases(tmp_path / "scans")


def test_a_folder_without_dicom_is_one_sentence(tmp_path: Path) -> None:
    with refuses("must hold DICOM files", "none"):
        read_image(tmp_path)


def test_a_study_of_series_in_native_units(tmp_path: Path, make_series) -> None:
    for i in range(6):
        make_series(
            tmp_path / "set" / ("ill", "well")[i % 2] / f"scan{i}",
            patient=f"Doe^{i // 2}",
            seed=i,
        )
    cases = load_cases(tmp_path / "set", fractions=(0.4, 0.2, 0.4))
    assert cases.shape == (4, 6, 5) and (cases.unit, cases.step) == ("HU", 1.0)
    assert cases.spacing == pytest.approx((2.5, 0.7, 0.8))
    assert cases.ids.tolist() == [
        "ill/scan0",
        "ill/scan2",
        "ill/scan4",
        "well/scan1",
        "well/scan3",
        "well/scan5",
    ]
    values = cases.images(range(6))
    assert cases.box == (values.min(), values.max()) and cases.box[0] < -900
    assert (
        cases.patients[0] == hashlib.sha256(b"Doe^0").hexdigest()[:12] == cases.patients[3]
    )
    assert "Doe" not in repr(cases)
    assert (
        load_cases(
            tmp_path / "set", keep_patient_ids=True, fractions=(0.4, 0.2, 0.4)
        ).patients[0]
        == "Doe^0"
    )
    wide = load_cases(tmp_path / "set", box=(-1024, 3071), fractions=(0.4, 0.2, 0.4))
    assert wide.box == (-1024, 3071)
    with refuses(
        "must have grey levels at -1024.5 + k * 1", "start the box on a grey level"
    ):
        load_cases(tmp_path / "set", box=(-1024.5, 3071))


def test_single_dicom_files_are_single_cases_and_bad_ones_are_listed(
    tmp_path: Path, make_series
) -> None:
    for c in ("ill", "well"):
        folder = make_series(
            tmp_path / "set" / "test" / c, patient=c, seed=len(c), ImagePositionPatient=None
        )
        for path in folder.iterdir():
            path.rename(path.with_suffix(""))  # scanners often leave the ending out
    cases = load_cases(tmp_path / "set")
    assert len(cases) == 8 and cases.shape == (6, 5) and len(set(cases.patients)) == 2
    bad = tmp_path / "set" / "test" / "ill" / "2"
    bad.write_bytes(bad.read_bytes()[:-20])
    with refuses("ill/2 must hold pixels that can be decoded", "less than expected"):
        load_cases(tmp_path / "set")
    assert [s.path for s in load_cases(tmp_path / "set", skip_bad=True).skipped] == [
        str(bad)
    ]


@pytest.fixture
def scans(tmp_path: Path, make_series) -> Path:
    for i in range(4):
        make_series(
            tmp_path / "set" / "test" / ("ill", "well")[i % 2] / f"scan{i}",
            slices=9,
            seed=i,
            patient=f"P{i}",
        )
    return tmp_path / "set"


def test_a_broken_slice_costs_its_own_volume_only(scans: Path) -> None:
    bad = scans / "test" / "ill" / "scan0" / "0.dcm"
    bad.write_bytes(b"broken")
    with refuses("ill/scan0/0.dcm must be"):
        load_cases(scans)
    left = load_cases(scans, skip_bad=True)
    assert left.shape == (9, 6, 5) and left.ids.tolist() == [
        "test/ill/scan2",
        "test/well/scan1",
        "test/well/scan3",
    ]
    assert [s.path for s in left.skipped] == [str(bad.parent)] and "0.dcm" in left.skipped[
        0
    ].reason


def test_slices_of_two_series_are_no_pictures(scans: Path) -> None:
    mixed = scans / "test" / "ill" / "scan0"
    for path in (scans / "test" / "ill" / "scan2").iterdir():
        shutil.copy(path, mixed / f"x{path.name}")
    with refuses("scan0 must hold one series", "got 2"):
        load_cases(scans)
    assert [s.path for s in load_cases(scans, skip_bad=True).skipped] == [str(mixed)]


def test_the_first_error_of_a_huge_folder_comes_before_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(folder, "is_image", lambda path: not seen.append(path))
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"broken")
    with refuses("1.png must be a readable picture"):
        load_cases(tmp_path)
    assert len(seen) == 1


# NIfTI


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    root, rng = tmp_path / "set", np.random.default_rng(0)
    for i in range(4):
        folder = root / "test" / ("a", "b")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        voxels = rng.integers(-1000, 3000, (5, 4, 3), dtype=np.int16)
        nib.save(
            nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), folder / f"{i}.nii.gz"
        )
    return root


def test_a_study_of_volumes(volumes: Path) -> None:
    cases = load_cases(volumes)
    assert (cases.shape, cases.step, cases.spacing) == ((5, 4, 3), 1.0, (1.0, 2.0, 3.0))
    np.testing.assert_array_equal(
        cases.images([1])[0, 0], nib.load(cases.paths[1]).get_fdata()
    )
    smaller = load_cases(volumes, size=(5, 2, 3))
    assert smaller.shape == (5, 2, 3) and smaller.spacing == (1.0, 4.0, 3.0)


def test_the_real_volumes_make_a_study(shared: Path, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    names = [f"hippocampus_{n}.nii.gz" for n in ("003", "004", "007", "011")]
    table.write_text(
        "path,label,split\n"
        + "".join(f"{shared / 'nifti' / n},{i % 2},test\n" for i, n in enumerate(names))
    )
    with refuses(
        "must have the shape of hippocampus_003.nii.gz ((34, 52, 35))",
        "(36, 52, 38)",
        "size=",
    ):
        load_cases(table)
    cases = load_cases(table, size=(32, 48, 32))
    assert (
        cases.shape == (32, 48, 32)
        and cases.step == 0.0
        and cases.images([0, 3]).shape == (2, 1, 32, 48, 32)
    )


def test_bad_volumes_are_one_sentence(volumes: Path) -> None:
    path = volumes / "test" / "a" / "0.nii.gz"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with refuses("0.nii.gz must"):
        load_cases(volumes)
    raw = gzip.decompress(good)
    path.write_bytes(gzip.compress(raw[:-20]))
    with refuses("0.nii.gz must hold all its voxels"):
        load_cases(volumes)
    voxels = np.zeros((5, 4, 3), dtype=np.float32)
    voxels[1, 1, 1] = np.nan
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    with refuses("0.nii.gz must be finite", "1 voxels of NaN"):
        load_cases(volumes)
    nib.save(
        nib.Nifti1Image(np.ones((5, 4, 3), dtype=np.int16), np.diag([-1.0, 2.0, 3.0, 1.0])),
        path,
    )
    with refuses("must have the orientation of", "(LAS)", "RAS"):
        load_cases(volumes)
    left = load_cases(volumes, skip_bad=True)
    assert len(left) == 3 and "orientation" in left.skipped[0].reason
    # packed, but not named so
    shutil.copy(volumes / "test" / "b" / "1.nii.gz", path.with_name("00.nii"))
    with refuses("00.nii must be a readable NIfTI file"):
        load_cases(volumes)


def test_dicom_bits_outside_the_stored_ones_are_cleared_or_refused(
    shared: Path, tmp_path: Path
) -> None:
    head = pydicom.dcmread(shared / "dicom" / "MR_small.dcm")
    numbers = (np.arange(head.Rows * head.Columns) % 4096).astype("<u2")
    head.BitsStored, head.HighBit, head.PixelRepresentation = 12, 11, 0
    head.PixelData = numbers.tobytes()
    head.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").stored.ravel(), numbers)
    head.PixelData = (numbers | 1 << 12).astype("<u2").tobytes()  # an overlay
    head.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "a.dcm").stored.ravel(), numbers)
    head.HighBit, head.PixelData = 15, (numbers << 4).astype("<u2").tobytes()
    head.save_as(tmp_path / "a.dcm")
    with refuses("a.dcm must have the high bit 11", "15"):
        read_image(tmp_path / "a.dcm")


def enhanced(
    path: Path, heights: list[float], turned: list[list[float]] | None = None
) -> Path:
    """An enhanced multi-frame object: one orientation shared, or one per frame; the frames at
    ``heights`` along z.
    """
    rng = np.random.default_rng(0)
    head = pydicom.Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    head.file_meta.MediaStorageSOPClassUID = head.SOPClassUID = (
        pydicom.uid.EnhancedMRImageStorage
    )
    head.file_meta.MediaStorageSOPInstanceUID = head.SOPInstanceUID = (
        pydicom.uid.generate_uid()
    )
    head.Modality, head.PatientID, head.SeriesInstanceUID = (
        "MR",
        path.stem,
        pydicom.uid.generate_uid(),
    )
    head.Rows, head.Columns, head.SamplesPerPixel, head.PhotometricInterpretation = (
        6,
        5,
        1,
        "MONOCHROME2",
    )
    head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = (
        16,
        16,
        15,
        0,
    )
    head.NumberOfFrames = len(heights)
    head.PixelData = rng.integers(0, 4096, (len(heights), 6, 5), dtype=np.uint16).tobytes()

    def group(**values: object) -> pydicom.Dataset:
        item = pydicom.Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        return item

    def plane(iop: list[float]) -> pydicom.Sequence:
        return pydicom.Sequence([group(ImageOrientationPatient=iop)])

    frames = [
        group(
            PlanePositionSequence=pydicom.Sequence([group(ImagePositionPatient=[0, 0, z])])
        )
        for z in heights
    ]
    shared = group()
    if turned is None or len(turned) == 1:
        shared.PlaneOrientationSequence = plane((turned or [[1, 0, 0, 0, 1, 0]])[0])
    else:
        for frame, iop in zip(frames, turned, strict=True):
            frame.PlaneOrientationSequence = plane(iop)
    head.SharedFunctionalGroupsSequence = pydicom.Sequence([shared])
    head.PerFrameFunctionalGroupsSequence = pydicom.Sequence(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    head.save_as(path, enforce_file_format=True)
    return path


AXIAL, PRONE, CORONAL = [1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, -1, 0], [1, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(
    ("heights", "turned", "side"),
    [
        ([0, 2, 4], None, "SPL"),
        ([4, 2, 0], None, "IPL"),
        ([0, 2, 4], [PRONE] * 3, "SAR"),
        ([3, 3, 3], None, "?PL"),
        ([0, 2, 4], [[0.9998, 0.02, 0, -0.02, 0.9998, 0]], "SPL"),
    ],
)
def test_frames_tell_their_orientation(
    tmp_path: Path, heights: list, turned: list | None, side: str
) -> None:
    """Shared and per frame, upwards and downwards, prone, a loop in time, a slightly oblique
    one.
    """
    assert read_image(enhanced(tmp_path / "a.dcm", heights, turned)).orientation == side


@pytest.mark.parametrize(
    ("heights", "turned", "words"),
    [
        (
            [0, 4, 2, 6],
            None,
            ("the frames of", "a.dcm must be evenly spaced", "gaps of -2 to 4 mm"),
        ),
        ([0, 2, 0, 2], None, ("must be evenly spaced",)),
        ([0, 2, 4, 10], None, ("must be evenly spaced", "gaps of 2 to 6 mm")),
        ([0, 2, 4], [AXIAL, AXIAL, CORONAL], ("the frames of", "must be parallel")),
        (
            [0, 2, 4],
            [AXIAL[:3]],
            ("a.dcm must have an orientation of six numbers", "[1.0, 0.0, 0.0]"),
        ),
    ],
)
def test_frames_that_are_no_volume_are_one_sentence(
    tmp_path: Path, heights: list, turned: list, words: tuple
) -> None:
    with refuses(*words):
        read_image(enhanced(tmp_path / "a.dcm", heights, turned))


def test_frames_of_two_directions_make_no_study(tmp_path: Path) -> None:
    for i in range(12):
        enhanced(
            tmp_path / "scans" / "ab"[i % 2] / f"c{i:02d}.dcm",
            [4, 2, 0] if i == 5 else [0, 2, 4],
        )
    with refuses("must have the orientation of c00.dcm (SPL)", "got IPL"):
        load_cases(tmp_path / "scans")


def test_the_middle_slice_keeps_its_own_sides(tmp_path: Path, make_series) -> None:
    for i in range(6):
        make_series(tmp_path / "set" / "ab"[i % 2] / f"c{i}", patient=f"p{i}", seed=i)
    whole, cut = (
        load_cases(tmp_path / "set", fractions=(0.4, 0.2, 0.4), slice=axis)
        for axis in (None, 1)
    )
    assert (whole.orientation, cut.orientation) == ("SPL", "SL")


@pytest.mark.parametrize("name", ["a preview.png", "mask.nii.gz", "a.npy"])
def test_an_image_beside_slices_is_named(tmp_path: Path, make_series, name: str) -> None:
    for i in range(12):
        folder = make_series(
            tmp_path / "set" / "ab"[i % 2] / f"c{i:02d}", patient=f"p{i}", seed=i
        )
    (folder / name).write_bytes(b"no slice")
    with refuses(name):
        load_cases(tmp_path / "set")
    cases = load_cases(tmp_path / "set", skip_bad=True)
    assert cases.shape == (4, 6, 5) and len(cases.skipped) >= 1
    assert any(name in s.path + s.reason for s in cases.skipped)


def test_a_series_without_all_its_files_is_refused_in_a_manifest(
    tmp_path: Path, make_series
) -> None:
    folder = make_series(tmp_path / "scan", slices=5)
    (folder / "9.raw").write_bytes(b"a slice without the mark")
    (folder / "notes.txt").write_text("no slice")
    with refuses("scan must hold DICOM files only", "9.raw"):
        read_image(folder)


def test_slices_of_any_ending_are_recognised_by_their_mark(
    tmp_path: Path, make_series
) -> None:
    folder = make_series(tmp_path / "scan", slices=5)
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / ("1.2.840.MR", "IM.img", "c.dcm", "d.0e1", "5")[k])
    assert read_image(folder).stored.shape == (1, 5, 6, 5)


def test_a_save_in_the_series_itself_is_named(tmp_path: Path, make_series) -> None:
    folder = make_series(
        tmp_path / "scan", ImagePositionPatient=lambda k: [0, 0, k] if k else None
    )
    with refuses(
        "every slice in",
        "an orientation and a position",
        "no ImagePositionPatient in",
        ".dcm",
    ):
        read_image(folder)
