"""Small clinical files."""

from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_dicom(path: Path, hounsfield: np.ndarray, patient: str) -> None:
    """A small CT image of 12 bits in 16: stored = HU + 1024."""
    head = Dataset()
    head.file_meta = FileMetaDataset()
    head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head.SOPClassUID, head.SOPInstanceUID = (
        CTImageStorage,
        generate_uid(entropy_srcs=[path.name]),
    )
    head.StudyInstanceUID, head.SeriesInstanceUID = (
        generate_uid(entropy_srcs=[patient, k]) for k in "ab"
    )
    head.PatientID, head.PatientName, head.Modality = patient, f"Name^{patient}", "CT"
    head.Rows, head.Columns = hounsfield.shape
    head.SamplesPerPixel, head.PhotometricInterpretation, head.PixelRepresentation = (
        1,
        "MONOCHROME2",
        0,
    )
    head.BitsAllocated, head.BitsStored, head.HighBit = 16, 12, 11
    head.RescaleSlope, head.RescaleIntercept, head.RescaleType = 1, -1024, "HU"
    head.PixelData = (hounsfield + 1024).astype("<u2").tobytes()
    head.save_as(path, enforce_file_format=True)
