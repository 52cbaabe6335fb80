"""A small CT series, written with pydicom alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

MakeSeries = Callable[..., Path]


@pytest.fixture
def make_series() -> MakeSeries:
    """``make_series(folder, patient=..., slices=..., **header)``: an axial CT of 12-bit pixels,
    file names in random order.
    """

    def make(
        folder: Path,
        *,
        patient: str = "Doe^Jane",
        slices: int = 4,
        seed: int = 0,
        **header: object,
    ) -> Path:
        folder.mkdir(parents=True)
        rng, series = np.random.default_rng(seed), generate_uid()
        for k, name in enumerate(rng.permutation(slices)):
            meta = FileMetaDataset()
            meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = (
                ExplicitVRLittleEndian,
                CTImageStorage,
            )
            meta.MediaStorageSOPInstanceUID = generate_uid()
            head = FileDataset(None, Dataset(), file_meta=meta, preamble=bytes(128))
            head.SOPClassUID, head.SOPInstanceUID, head.SeriesInstanceUID = (
                CTImageStorage,
                meta[0x20003].value,
                series,
            )
            head.Modality, head.PatientID, head.PatientName, head.PatientBirthDate = (
                "CT",
                patient,
                patient,
                "19700101",
            )
            head.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            head.ImageOrientationPatient, head.ImagePositionPatient = (
                [1, 0, 0, 0, 1, 0],
                [0, 0, -50 + 2.5 * k],
            )
            head.PixelSpacing, head.RescaleSlope, head.RescaleIntercept = (
                [0.7, 0.8],
                1,
                -1024,
            )
            (
                head.Rows,
                head.Columns,
                head.SamplesPerPixel,
                head.PhotometricInterpretation,
            ) = 6, 5, 1, "MONOCHROME2"
            head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = (
                16,
                12,
                11,
                0,
            )
            pixels = rng.integers(0, 4096, (6, 5), dtype=np.uint16)
            pixels[0, 0] = 1000 + k  # tells the slices apart
            head.PixelData = pixels.tobytes()
            for key, value in header.items():
                if value is None:
                    delattr(head, key)
                else:
                    setattr(head, key, value(k) if callable(value) else value)
            head.save_as(folder / f"{name}.dcm", enforce_file_format=True)
        return folder

    return make
