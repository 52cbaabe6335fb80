"""The public sets of the literature, read from the folder that their own page gives: each is a
table or a layout turned into entries.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np

from feathide.data.cases import Cases
from feathide.data.columns import Reading, patient_in, read_table
from feathide.data.files import Entry, cases_of_files, is_image
from feathide.data.npz import read_npz
from feathide.data.split import by_hash, thin
from feathide.errors import choose, expected, few

__all__ = ["MEDMNIST", "ORIGINALS", "fetch_medmnist"]

APTOS = "the data of the Kaggle competition aptos2019-blindness-detection"
KERMANY = (
    "the chest X-rays of Kermany et al. 2018 (Mendeley Data, doi 10.17632/rscbjbr9sj, or "
    "Kaggle chest-xray-pneumonia)"
)
RSNA = "the data of the Kaggle competition rsna-intracranial-hemorrhage-detection"
CT_ICH = (
    "ct-ich from PhysioNet (doi 10.13026/4nae-zg36; its data use agreement must be signed)"
)
MEDMNIST_PAGE = "MedMNIST v2 at Zenodo (doi 10.5281/zenodo.10519652)"

GRADES = ("no retinopathy", "mild", "moderate", "severe", "proliferative")
BLEEDINGS = (
    "any",
    "epidural",
    "intraparenchymal",
    "intraventricular",
    "subarachnoid",
    "subdural",
)
HAEMORRHAGE = ("no haemorrhage", "haemorrhage")
KERMANY_PATIENT = r"person\d+|(?:NORMAL\d*-)?IM-\d+|(?:BACTERIA|NORMAL|VIRUS)-\d+"
BIT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}

ORGANS_2D = (
    "bladder",
    "left femur",
    "right femur",
    "heart",
    "left kidney",
    "right kidney",
    "liver",
    "left lung",
    "right lung",
    "pancreas",
    "spleen",
)
ORGANS_3D = (
    "liver",
    "right kidney",
    "left kidney",
    "right femur",
    "left femur",
    "bladder",
    "heart",
    "right lung",
    "left lung",
    "spleen",
    "pancreas",
)
MEDMNIST: Mapping[str, tuple[str, ...]] = {  # the classes, in the order of the labels
    "pathmnist": (
        "adipose",
        "background",
        "debris",
        "lymphocytes",
        "mucus",
        "smooth muscle",
        "normal mucosa",
        "cancer-associated stroma",
        "adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis",
        "cardiomegaly",
        "effusion",
        "infiltration",
        "mass",
        "nodule",
        "pneumonia",
        "pneumothorax",
        "consolidation",
        "edema",
        "emphysema",
        "fibrosis",
        "pleural",
        "hernia",
    ),
    "dermamnist": (
        "actinic keratosis",
        "basal cell carcinoma",
        "benign keratosis",
        "dermatofibroma",
        "melanoma",
        "melanocytic nevus",
        "vascular lesion",
    ),
    "octmnist": (
        "choroidal neovascularization",
        "diabetic macular edema",
        "drusen",
        "normal",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": GRADES,
    "breastmnist": ("malignant", "normal or benign"),
    "bloodmnist": (
        "basophil",
        "eosinophil",
        "erythroblast",
        "immature granulocyte",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "collecting duct",
        "distal tubule",
        "glomerular endothelium",
        "interstitial endothelium",
        "leukocyte",
        "podocyte",
        "proximal tubule",
        "thick ascending limb",
    ),
    "organamnist": ORGANS_2D,
    "organcmnist": ORGANS_2D,
    "organsmnist": ORGANS_2D,
    "organmnist3d": ORGANS_3D,
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle", "nondisplaced", "displaced"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory", "excitatory"),
}


def read_aptos(root: Path, name: str, how: Reading, *, binary: bool = False) -> Cases:
    """APTOS 2019, fundus photographs: ``train.csv`` (id_code, diagnosis 0 to 4) and
    ``train_images/ID.png``.

    ``binary``: no retinopathy against any. Patients are unknown; the labels of the competition's
    test images are not public."""
    table, images = _parts(root, ("train.csv", "train_images"), APTOS)
    grades = {
        str(grade): min(grade, 1) if binary else grade for grade in range(len(GRADES))
    }
    entries = [
        Entry(
            images / f"{row['id_code']}.png",
            row["id_code"],
            choose("diagnosis", row["diagnosis"], grades),
            "",
            "",
        )
        for row in read_table(table, needs=("id_code", "diagnosis"))
    ]
    names = (GRADES[0], "retinopathy") if binary else GRADES
    return cases_of_files(entries, name=name, class_names=how.class_names or names, how=how)


def read_kermany(root: Path, name: str, how: Reading, *, resplit: bool = False) -> Cases:
    """Kermany et al. 2018, children's chest X-rays:
    ``[chest_xray/]{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``, made grey.

    The official test images stay test; the rest (val has 16 images, if any) is hashed by patient
    into train and val in the proportion of ``how.fractions``. ``resplit``: all images are hashed,
    which removes the shift between the official parts. Patients are the person numbers in the
    names; they start again in test, so one of train and one of test are told apart."""
    root = root / "chest_xray" if (root / "chest_xray").is_dir() else root
    _parts(
        root,
        [
            f"{split}/{label}"
            for split in ("train", "test")
            for label in ("NORMAL", "PNEUMONIA")
        ],
        KERMANY,
    )
    entries = []
    for path in sorted(
        path
        for path in root.glob("*/*/*")
        if is_image(path) and not path.name.startswith(".")
    ):
        split, label, _ = path.relative_to(root).parts
        number = patient_in(path.name, how.patient_pattern or KERMANY_PATIENT)
        patient = f"{'test' if split == 'test' else 'train'}:{number}"
        known = choose("folder of X-rays", label, {"NORMAL": 0, "PNEUMONIA": 1})
        entries.append(
            Entry(
                path,
                path.relative_to(root).as_posix(),
                known,
                patient,
                "test" if split == "test" else "",
            )
        )
    if resplit:
        entries = [replace(e, split="") for e in entries]
    else:
        train, val = (f / sum(how.fractions[:2]) for f in how.fractions[:2])
        parts = by_hash(
            [e.patient for e in entries], {"train": train, "val": val}, seed=how.seed
        )
        entries = [
            replace(e, split=e.split or str(part))
            for e, part in zip(entries, parts, strict=True)
        ]
    names = how.class_names or ("normal", "pneumonia")
    return cases_of_files(
        entries, name=name, class_names=names, how=replace(how, channels=how.channels or 1)
    )


def read_rsna(root: Path, name: str, how: Reading, *, findings: bool = False) -> Cases:
    """RSNA 2019, slices of brain CT: ``stage_2_train.csv`` (ID_x_subtype, Label) and
    ``stage_2_train/ID_x.dcm``.

    Any haemorrhage against none, or with ``findings`` the six labels. Patients stand in the DICOM
    headers. With ``how.limit`` only so many headers are read as that limit needs, drawn in the
    proportions of the classes."""
    table, images = _parts(root, ("stage_2_train.csv", "stage_2_train"), RSNA)
    marks: dict[str, dict[str, int]] = defaultdict(dict)
    for row in read_table(table, needs=("ID", "Label")):
        image, _, finding = row["ID"].rpartition("_")
        marks[image][choose("finding", finding, dict.fromkeys(BLEEDINGS, finding))] = (
            choose("label", row["Label"], BIT)
        )
    short = [image for image, found in marks.items() if len(found) < len(BLEEDINGS)]
    if short:
        raise expected(
            f"{table} must have {len(BLEEDINGS)} rows for every image",
            got=f"fewer for {few(short)}",
            do="fetch it again",
        )
    ids, bleeds = list(marks), np.array([found["any"] for found in marks.values()])
    most = None if how.limit is None else math.ceil(how.limit / min(how.fractions))
    entries = []
    for row in thin(bleeds, np.full(len(ids), "train"), limit=most, seed=how.seed):
        found = marks[ids[row]]
        label = tuple(found[b] for b in BLEEDINGS) if findings else found["any"]
        entries.append(Entry(images / f"{ids[row]}.dcm", ids[row], label, "", ""))
    names = how.class_names or (BLEEDINGS if findings else HAEMORRHAGE)
    return cases_of_files(entries, name=name, class_names=names, how=how)


def read_ct_ich(root: Path, name: str, how: Reading) -> Cases:
    """CT-ICH, volumes of brain CT: ``hemorrhage_diagnosis_raw_ct.csv`` (PatientNumber,
    SliceNumber, ..., No_Hemorrhage) and ``ct_scans/049.nii``.

    A volume is labelled haemorrhage if any of its slices is; each volume is a patient.
    """
    table, scans = _parts(root, ("hemorrhage_diagnosis_raw_ct.csv", "ct_scans"), CT_ICH)
    bleeds: dict[str, int] = {}
    for row in read_table(table, needs=("PatientNumber", "No_Hemorrhage")):
        patient = row["PatientNumber"].partition(".")[0].zfill(3)
        if row["PatientNumber"]:  # the file ends in empty rows
            bleeds[patient] = max(
                bleeds.get(patient, 0),
                1 - choose("No_Hemorrhage", row["No_Hemorrhage"], BIT),
            )
    files = sorted(path for path in scans.glob("[0-9]*.nii*"))
    numbers = [path.name.partition(".")[0] for path in files]
    entries = [
        Entry(path, number, choose("patient", number, bleeds), number, "")
        for path, number in zip(files, numbers, strict=True)
    ]
    if not entries:
        raise expected(
            f"{scans} must hold volumes such as 049.nii", got="none", do=f"fetch {CT_ICH}"
        )
    return cases_of_files(
        entries, name=name, class_names=how.class_names or HAEMORRHAGE, how=how
    )


def read_medmnist(path: Path, name: str, how: Reading) -> Cases:
    """A file of MedMNIST v2 by its own name, of any size, pictures or volumes:
    ``pneumoniamnist_64.npz``, ``organmnist3d.npz``; with class names.
    """
    names = choose("MedMNIST set", path.stem.partition("_")[0], MEDMNIST)
    if not path.is_file():
        raise expected(
            f"{path} must be a file of MedMNIST",
            got="no such file",
            do=f"fetch {path.name} from {MEDMNIST_PAGE}",
        )
    return read_npz(path, name, replace(how, class_names=how.class_names or names))


def fetch_medmnist(name: str, size: int, out: Path) -> Path:
    """Download a set of MedMNIST v2 by its own package (extra ``medmnist``) into ``out``, checked
    by its MD5, and give the file.

    Raises ``InputError``: an unknown set, a size that it does not have, the package or the
    connection is missing."""
    choose("MedMNIST set", name, MEDMNIST)
    path = out / f"{name}{'' if size == 28 else f'_{size}'}.npz"
    try:
        package = import_module("medmnist")
        offered = getattr(package, package.INFO[name]["python_class"])
    except ImportError:
        do = (
            f"pip install 'feathide[medmnist]', or download {path.name} from {MEDMNIST_PAGE} "
            f"into {out}"
        )
        raise expected(
            "fetching needs the package medmnist", got="no such package", do=do
        ) from None
    if size not in offered.available_sizes:
        raise expected(
            f"size of {name} must be one of {few(offered.available_sizes)}",
            got=size,
            do="choose one",
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        offered(split="train", download=True, size=size, root=str(out))
    except (OSError, RuntimeError) as error:
        do = f"download it from {MEDMNIST_PAGE} into {out}"
        raise expected(
            f"{path.name} must be there to download",
            got=str(error).strip().partition("\n")[0],
            do=do,
        ) from error
    return path


ORIGINALS: Mapping[str, Callable[[Path, str, Reading], Cases]] = {
    "aptos2019": read_aptos,
    "aptos2019-binary": partial(read_aptos, binary=True),
    "kermany": read_kermany,
    "kermany-resplit": partial(read_kermany, resplit=True),
    "medmnist": read_medmnist,
    "rsna-haemorrhage": read_rsna,
    "rsna-haemorrhage-findings": partial(read_rsna, findings=True),
    "ct-ich": read_ct_ich,
}


def _parts(root: Path, needs: Sequence[str], source: str) -> list[Path]:
    """The files and folders that a set must have, or the error that says what to fetch."""
    if not all((root / part).exists() for part in needs):
        here = (
            sorted(path.name for path in root.iterdir())
            if root.is_dir()
            else ["no such folder"]
        )
        raise expected(
            f"{root} must hold {', '.join(needs)}",
            got=few(here) or "nothing",
            do=f"fetch {source}",
        )
    return [root / part for part in needs]
