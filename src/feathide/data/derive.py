"""The DICOM header of a test image: derived from its source, marked as what it is, on request
without the patient.

Reference: DICOM PS3.3 C.7.6.1.1.2 (image type), C.12.4 (derivation); PS3.15 annex E
(de-identification)."""

import hashlib
from collections.abc import Iterable

import numpy as np
from pydicom import DataElement, Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

__all__ = ["NOTE", "deidentified", "derived"]

NOTE = "TEST IMAGE - adversarially changed copy - not for diagnosis"
PRIVATE_GROUP = 0x0071
STALE = (  # what no longer holds for other pixels
    "DigitalSignaturesSequence",
    "IconImageSequence",
    "LargestImagePixelValue",
    "MACParametersSequence",
    "SmallestImagePixelValue",
)
PALETTE = tuple(
    f"{c}PaletteColorLookupTable{part}"
    for c in ("Red", "Green", "Blue")
    for part in ("Data", "Descriptor")
)
# may tell who the patient is
REMOVED: dict[str, str | bytes] = dict.fromkeys(
    ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), "REMOVED"
)
REMOVED |= {
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UN": b"",
}
NEEDED = (  # texts that say how to read the pixels or what was scanned
    "CodeMeaning",
    "CodeValue",
    "CodingSchemeDesignator",
    "ConvolutionKernel",
    "Manufacturer",
    "ManufacturerModelName",
    "RescaleType",
)


def derived(head: Dataset, stored: np.ndarray) -> Dataset:
    """``head`` with the pixels ``stored`` (C, H, W) or (C, D, H, W) as a derived object; changes
    ``head``.

    The UIDs follow from the source's and the pixels, so the same image gives the same file.
    """
    before, series = str(head.SOPInstanceUID), str(head.get("SeriesInstanceUID", ""))
    for key in STALE:
        if key in head:
            del head[key]
    _put_pixels(head, stored)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
        head.SOPClassUID,
        before,
    )
    head.SourceImageSequence = Sequence([reference])
    head.SOPInstanceUID = generate_uid(
        entropy_srcs=[before, hashlib.sha256(stored.tobytes()).hexdigest()]
    )
    head.SeriesInstanceUID = generate_uid(entropy_srcs=[series, NOTE])
    head.preamble = bytes(128)
    head.ImageType = _derived_type(head.get("ImageType"))
    for element in head.iterall():
        if element.keyword == "FrameType":
            element.value = _derived_type(element.value)
    head.SeriesDescription = head.DerivationDescription = NOTE
    head.private_block(PRIVATE_GROUP, "FEATHIDE", create=True).add_new(0x01, "LO", NOTE)
    return head


def _derived_type(old: str | Iterable[str] | None) -> list[str]:
    """An image type whose first value says that the pixels are not those of the machine."""
    values = [old] if isinstance(old, str) else list(old or ())
    return ["DERIVED", *(values[1:] or ["SECONDARY"])]


def _put_pixels(head: Dataset, stored: np.ndarray) -> None:
    """Store the numbers uncompressed; an uncompressed source keeps its transfer syntax and byte
    order.
    """
    if head.file_meta.TransferSyntaxUID.is_encapsulated:
        head.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if len(stored) == 3:
        for key in PALETTE:
            if key in head:
                del head[key]
        head.SamplesPerPixel, head.PhotometricInterpretation, head.PlanarConfiguration = (
            3,
            "RGB",
            0,
        )
        bits = 8 * stored.dtype.itemsize
        head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = (
            bits,
            bits,
            bits - 1,
            0,
        )
    pixels = np.moveaxis(stored, 0, -1) if len(stored) == 3 else stored[0]
    little = head.file_meta.TransferSyntaxUID.is_little_endian
    data = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    tag, vr = {
        "f4": ("FloatPixelData", "OF"),
        "f8": ("DoubleFloatPixelData", "OD"),
    }.get(stored.dtype.str[1:], ("PixelData", "OB" if stored.dtype.itemsize == 1 else "OW"))
    if tag in head:
        del head[tag]
    setattr(head, tag, data + bytes(len(data) % 2))
    head[tag].VR = vr


def deidentified(head: Dataset) -> Dataset:
    """``head`` without names, dates, free text, private elements, overlays and curves, and with
    hashed UIDs and patient id.

    What stood in them becomes a word or date that says nothing, since many elements must not be
    empty. A text stays only if it is needed to read the pixels. Text burnt into the pixels stays:
    nothing here looks at them. Changes ``head``; this is careful, but no certified profile of
    PS3.15."""
    patient = str(head.get("PatientID", "") or "")
    head.remove_private_tags()
    # curves and overlays
    for tag in [element.tag for element in head if element.tag.group >> 8 in (0x50, 0x60)]:
        del head[tag]
    head.walk(_anonymise)
    head.PatientID = hashlib.sha256(patient.encode()).hexdigest()[:12] if patient else ""
    head.PatientIdentityRemoved = "YES"
    head.DeidentificationMethod = (
        "texts, dates, private data removed; UIDs and patient id hashed"
    )
    for key in (
        "SourceApplicationEntityTitle",
        "SendingApplicationEntityTitle",
        "PrivateInformation",
    ):
        if key in head.file_meta:
            del head.file_meta[key]
    return head


def _anonymise(_: Dataset, element: DataElement) -> None:
    if element.VR in REMOVED and element.keyword not in NEEDED:
        element.value = REMOVED[element.VR] if element.value else element.value
    elif element.VR == "UI" and element.value:
        given = [element.value] if isinstance(element.value, str) else list(element.value)
        new = [
            u if u.startswith("1.2.840.10008.") else generate_uid(entropy_srcs=[str(u)])
            for u in given
        ]
        element.value = new[0] if len(new) == 1 else new
