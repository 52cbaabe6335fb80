"""DICOM and NIfTI from end to end: files in, an audit, adversarial files out, which outsiders can
read.
"""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from feathide.attacks.grid import Grid
from feathide.attacks.presets import bim
from feathide.attacks.threats import Linf
from feathide.auditing.ci import Condition
from feathide.auditing.export import export_images
from feathide.auditing.run import audit, checked
from feathide.cli import app
from feathide.data import cases_of_arrays, read_back
from feathide.data.region import load_region
from feathide.errors import InputError
from feathide.execution.store import Store
from feathide.formats.archive import Codec
from feathide.losses import HFC
from feathide.mixtures import MixtureBank
from feathide.models.classifier import FeatureClassifier
from feathide.pipeline import survival
from feathide.pipeline.context import Context, context_of
from feathide.pipeline.listing import cells
from feathide.pipeline.stored import found_in
from feathide.plans.plan import load_plan
from feathide.training.trainer import train_classifier
from feathide.types import Goal, Outputs
from worlds.audits import patches
from worlds.clinical import write_dicom

SPLIT = ["train"] * 20 + ["val"] * 4 + ["test"] * 20
FAST = {
    "attacks": ["fgsm", "pgd"],
    "schedule": {"steps": 8},
    "detectors": ["msp", "maha"],
    "split": {"detector_training": 0.4, "calibration": 0.2, "test": 0.4},
    "batch_size": 8,
    "sanity_checks": "off",
}
TRAIN = {"epochs": 12, "batch_size": 5, "lr": 0.005, "patience": 12, "augment": False}


def write_manifest(
    folder: Path, names: list[str], labels: np.ndarray, splits: list[str]
) -> Path:
    table = pd.DataFrame(
        {"path": names, "label": [("left", "right")[k] for k in labels], "split": splits}
    )
    table.to_csv(folder / "cases.csv", index=False)
    return folder / "cases.csv"


def dicom_study(folder: Path) -> Path:
    images, labels = patches(len(SPLIT), seed=0)
    names = [f"{i:03d}.dcm" for i in range(len(SPLIT))]
    for i, (name, image) in enumerate(zip(names, images, strict=True)):
        write_dicom(folder / name, 6 * image.astype(int) - 600, f"P{i // 2:03d}")
    return write_manifest(folder, names, labels[:, 0], SPLIT)


def nifti_study(folder: Path) -> Path:
    """Anisotropic int16 volumes with a slope: a bright half along the last axis."""
    rng = np.random.default_rng(1)
    labels, names = np.arange(len(SPLIT)) % 2, []
    for i, label in enumerate(labels):
        x = rng.normal(200, 30, (12, 14, 16))
        x[..., 8 * label : 8 * label + 8] += 60
        image = nib.Nifti1Image(x.astype(np.int16), np.diag([0.8, 0.8, 3.0, 1.0]))
        image.header.set_slope_inter(0.5, -10)
        names.append(f"v{i:03d}.nii.gz")
        nib.save(image, folder / names[-1])
    return write_manifest(folder, names, labels, SPLIT)


def run(plan: dict, out: Path) -> Context:
    chosen = load_plan(plan)
    audit(chosen, out)
    return context_of(chosen.model_dump_json(), Store(out))


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("dicom")
    mask = np.zeros((32, 32), np.uint8)
    mask[4:28] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    network = {"arch": "tiny", "layers": "conv", "window": (-600, 900), "train": TRAIN}
    return run(
        {
            "data": {"path": str(dicom_study(folder)), "box": (-1024, 3071)},
            "network": network,
            "eps": "120 HU",
            "mask": str(folder / "mask.png"),
            **FAST,
        },
        folder / "run",
    )


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("nifti")
    network = {"arch": "tiny3d", "layers": "conv", "train": TRAIN | {"stem": "small"}}
    return run(
        {"data": str(nifti_study(folder)), "network": network, "eps": 20, **FAST},
        folder / "run",
    )


def test_dicom_is_audited_in_its_own_units(dicom: Context) -> None:
    table = pd.read_csv(dicom.store.folder / "results.csv")
    assert (
        dicom.cases.box == (-1024.0, 3071.0)
        and dicom.cases.unit == "HU"
        and dicom.limits.budgets == (120.0,)
    )
    assert table.value[table.metric == "accuracy"].item() > 0.8
    assert 0 < table.value[table.metric == "linf_max"].max() <= 120
    page = (dicom.store.folder / "report.html").read_text().replace("\xa0", " ")
    assert "120 HU" in page and "nside the mask" in page and "120 grey levels" in page
    # hashed unless the plan keeps them
    assert set(dicom.cases.patients) & {"P000"} == set()


def test_training_sees_the_window(dicom: Context) -> None:
    x = dicom.cases.images(dicom.data.rows("train"))
    seen = (x.clip(-600, 900) + 600) / 1500
    assert dicom.networks.classifier.mean == pytest.approx([seen.mean()], rel=1e-4)
    assert dicom.networks.classifier.std == pytest.approx([seen.std()], rel=1e-4)


def test_the_window_cuts_before_the_measurement(dicom: Context) -> None:
    result = train_classifier(dicom.cases, "tiny", window=(-100, 0), epochs=1, batch_size=5)
    seen = (dicom.cases.images(dicom.data.rows("train")).clip(-100, 0) + 100) / 100
    assert result.mean == pytest.approx((seen.mean(),), rel=1e-4)


def test_exported_dicom_is_what_was_judged(dicom: Context, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app,
        [
            "export",
            str(dicom.store.folder),
            "--out",
            str(tmp_path / "e"),
            "--attack",
            "pgd",
        ],
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "e" / "export.csv", keep_default_na=False)
    assert set(table.objective) == {"plain", "hfc", "hfc-typical"} and len(table) > 0
    assert (table.prediction == table.file_prediction).all() and table.survived.sum() > 0
    for cell in cells(dicom):
        at = table[
            (table.attack == cell.attack.name) & (table.objective == cell.objective.name)
        ]
        kept = f"{cell.name} at eps 120: {len(at)} files; {int(at.survived.sum())} of"
        assert (kept in result.output) == (cell.attack.name == "pgd")
        found = found_in(dicom, cell)
        assert list(at.prediction) == (
            list(found.prediction) if cell.attack.name == "pgd" else []
        )
    for row in table.itertuples():
        source, new = (
            pydicom.dcmread(p)
            for p in (dicom.cases.paths[_row(dicom, row.id)], tmp_path / "e" / row.file)
        )
        gap = np.abs(new.pixel_array.astype(int) - source.pixel_array.astype(int))
        # inside the mask only
        assert 0 < gap.max() <= 120 and gap[:4].max() == 0 and gap[28:].max() == 0
        assert (
            new.BitsStored == 12
            and new.PatientID == source.PatientID
            and new.ImageType[0] == "DERIVED"
        )
        assert new.SOPInstanceUID != source.SOPInstanceUID and new.RescaleIntercept == -1024


def _row(context: Context, case: str) -> int:
    return list(context.cases.ids).index(case)


def test_deidentified_export_names_nobody(dicom: Context, tmp_path: Path) -> None:
    table = export_images(
        dicom.store.folder, tmp_path / "e", attack="fgsm", deidentify=True
    )
    for row in table.itertuples():
        new = pydicom.dcmread(tmp_path / "e" / row.file)
        assert "P0" not in new.PatientID and str(new.PatientName) == "REMOVED"
    known = set(dicom.cases.ids)
    assert not known & set(table.id) and not any(Path(f).name in known for f in table.file)


def test_slipped_only_exports_what_fools_and_is_accepted(
    dicom: Context, tmp_path: Path
) -> None:
    every = export_images(dicom.store.folder, tmp_path / "a", attack="pgd", objective="hfc")
    some = export_images(
        dicom.store.folder, tmp_path / "b", attack="pgd", objective="hfc", slipped_only=True
    )
    want = every[(every.prediction == every.target) & (every.accepted_by != "")]
    assert list(some.id) == list(want.id)
    assert sum(f.suffix == ".dcm" for f in (tmp_path / "b").rglob("*")) == len(want)


REFUSED = {
    "a folder in use": ({}, "new or empty"),
    "an attack that was not made": ({"attack": "cw"}, "known: fgsm, pgd"),
    "jpeg of 12 bits": ({"jpeg": 90}, "8-bit pictures"),
    "quality of nothing": ({"jpeg": 0}, "1 to 100"),
}


@pytest.mark.parametrize("options, hint", REFUSED.values(), ids=REFUSED)
def test_export_refuses(options: dict, hint: str, dicom: Context, tmp_path: Path) -> None:
    out = tmp_path / "e"
    if not options:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=hint):
        export_images(dicom.store.folder, out, **options)
    assert not out.exists() or [f.name for f in out.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="a finished audit"):
        export_images(tmp_path, out)


def test_volumes_are_audited_and_exported_as_nifti(nifti: Context, tmp_path: Path) -> None:
    table = pd.read_csv(nifti.store.folder / "results.csv")
    assert nifti.cases.shape == (12, 14, 16) and nifti.cases.spacing == pytest.approx(
        (0.8, 0.8, 3.0)
    )
    assert table.value[table.metric == "accuracy"].item() > 0.8
    exported = export_images(
        nifti.store.folder, tmp_path / "e", attack="pgd", objective="plain"
    )
    assert (
        exported.prediction == exported.file_prediction
    ).all() and exported.survived.any()
    for row in exported.itertuples():
        source, new = (
            nib.load(p)
            for p in (nifti.cases.paths[_row(nifti, row.id)], tmp_path / "e" / row.file)
        )
        assert (source.affine == new.affine).all() and new.get_data_dtype() == np.int16
        gap = np.abs(new.get_fdata() - source.get_fdata())
        assert 0 < gap.max() <= 20 and row.linf == pytest.approx(gap.max())


def test_one_bad_file_is_refused_by_name_or_counted(tmp_path: Path) -> None:
    study = dicom_study(tmp_path)
    bad = tmp_path / "007.dcm"
    bad.write_bytes(bad.read_bytes()[:900])
    plan = {
        "data": {"path": str(study)},
        "network": {"arch": "tiny", "layers": "conv", "train": TRAIN | {"epochs": 2}},
        "eps": "40 HU",
        **FAST,
        "attacks": ["fgsm"],
        "train_attack": "fgsm",
        "objectives": ["plain"],
        "detectors": ["msp"],
        "even_so": True,
    }
    with pytest.raises(InputError, match=r"007\.dcm"):
        audit(load_plan(plan), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    context = run(plan | {"data": {"path": str(study), "skip_bad": True}}, tmp_path / "run")
    assert len(context.cases) == len(SPLIT) - 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 files could not be used" in page and "007.dcm" in page


def test_a_plain_number_for_hounsfield_units_is_explained(tmp_path: Path) -> None:
    plan = {"data": str(dicom_study(tmp_path)), "network": "tiny", "eps": "4/255"}
    with pytest.raises(InputError, match=r"units of the box .* '4 HU'"):
        audit(load_plan(plan), tmp_path / "run")


def test_mean_and_std_of_other_units_name_the_window(tmp_path: Path) -> None:
    plan = {
        "data": {"path": str(dicom_study(tmp_path)), "box": [-1024, 3071]},
        "eps": "4 HU",
    }
    network = {"arch": "tiny", "mean": [0.48], "std": [0.24]}
    with pytest.raises(InputError, match=r"say window: \[-1024, 3071\]"):
        checked(load_plan({**plan, "network": network}), tmp_path / "run")
    checked(
        load_plan({**plan, "network": {**network, "window": [-1024, 3071]}}),
        tmp_path / "run",
    )


CODE = (
    "import torch\ndef upper(x):\n    m = torch.zeros_like(x[:, :1])\n    m[:, :, :9] = 1\n    "
    "return m\ndef flat(x):\n    return x[0, 0]\n"
)


def test_regions(dicom: Context, tmp_path: Path) -> None:
    (tmp_path / "region.py").write_text(CODE)
    inside = np.zeros((32, 32))
    inside[:9] = 1
    np.savez(tmp_path / "m.npz", mask=inside)
    np.savez(tmp_path / "empty.npz", mask=0 * inside)
    np.savez(tmp_path / "small.npz", mask=inside[:5])
    x = dicom.data.images(dicom.data.rows("test")[:3])
    code = load_region(f"{tmp_path / 'region.py'}:upper", dicom.cases, trust=True)
    file = load_region(str(tmp_path / "m.npz"), dicom.cases, trust=False)
    assert bool((code.of(x) == file.of(x)).all()) and float(file.of(x).sum()) == 9 * 32
    for spec, trust, hint in (
        (f"{tmp_path / 'region.py'}:upper", False, "trust"),
        (str(tmp_path / "empty.npz"), False, "only zeros"),
        (str(tmp_path / "small.npz"), False, "shape"),
        (str(tmp_path / "none.npz"), False, "none.npz"),
    ):
        with pytest.raises(InputError, match=hint):
            load_region(spec, dicom.cases, trust=trust)
    with pytest.raises(InputError, match="must give a tensor"):
        load_region(f"{tmp_path / 'region.py'}:flat", dicom.cases, trust=True).of(x)
    plan = load_plan(dicom.plan.model_dump(), mask=str(tmp_path / "m.npz"))
    assert Context(plan, dicom.store).steps.reading.digest != dicom.steps.reading.digest


def test_npz_pictures_become_png_and_jpeg(tmp_path: Path) -> None:
    images, labels = patches(len(SPLIT), seed=0)
    np.savez(
        tmp_path / "a.npz",
        **{
            f"{s}_{k}": v[np.array(SPLIT) == s]
            for s in ("train", "val", "test")
            for k, v in (("images", images), ("labels", labels))
        },
    )
    network = {"arch": "tiny", "layers": "conv", "train": TRAIN}
    context = run(
        {"data": str(tmp_path / "a.npz"), "network": network, "eps": 20 / 255, **FAST},
        tmp_path / "run",
    )
    png = export_images(
        context.store.folder, tmp_path / "png", attack="pgd", objective="plain"
    )
    assert (png.prediction == png.file_prediction).all()
    first = png.iloc[0]
    stored = context.store.load(context.steps.attack(cells(context)[2], "test").keys[0])
    assert context.data.ids(stored["rows"])[0] == first.id
    pixels = np.asarray(Image.open(tmp_path / "png" / first.file))
    assert pixels.dtype == np.uint8 and read_back(tmp_path / "png" / first.file).shape == (
        1,
        32,
        32,
    )
    jpeg = export_images(
        context.store.folder, tmp_path / "jpg", attack="pgd", objective="plain", jpeg=30
    )
    assert list(jpeg.id) == list(png.id) and all(f.endswith(".jpg") for f in jpeg.file)
    assert jpeg.linf.mean() > png.linf.mean() and jpeg.survived.sum() <= png.survived.sum()


def test_what_rounding_and_archives_leave_is_reported(tmp_path: Path) -> None:
    images, labels = patches(len(SPLIT), seed=0)
    np.savez(
        tmp_path / "a.npz",
        **{
            f"{s}_{k}": v[np.array(SPLIT) == s]
            for s in ("train", "val", "test")
            for k, v in (("images", images), ("labels", labels))
        },
    )
    network = {"arch": "tiny", "layers": "conv", "train": TRAIN}
    plan = {
        "data": str(tmp_path / "a.npz"),
        "network": network,
        "eps": 20 / 255,
        **FAST,
        "archive": ["jpeg 95", "jpeg 5", "jpeg2000 10"],
    }
    context = run(plan, tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "results.csv", keep_default_na=False)
    value = table.set_index(["attack", "objective", "detector", "metric"]).value
    assert value["pgd", "plain", "", "lost_on_disk"] == 0
    assert 0 <= value["pgd", "plain", "", "lost_if_rounded_afterwards"] <= 1
    for name in ("success", "slips_through_fpr10"):
        guard = "" if name == "success" else "maha"
        strong, weak, clean = (
            value["pgd", "plain", guard, f"{name}{end}"]
            for end in ("_jpeg95", "_jpeg5", "")
        )
        assert weak <= strong <= clean + 0.3
    assert value["", "", "", "accuracy_jpeg95"] == pytest.approx(
        value["", "", "", "accuracy"], abs=0.2
    )
    assert ("", "", "maha", "false_alarms_fpr10_jpeg2000x10") in value.index
    assert not Condition.parse("success_jpeg95 > 1").judge(table).holds
    cell = cells(context)[2]
    stored = context.store.load(context.steps.attack(cell, "test").keys[0])
    key = context.steps.extract(f"{context.steps.condition(cell)}-jpeg5", "test").keys[0]
    picture = BytesIO()
    Image.fromarray(stored["image"][0, 0]).save(picture, "JPEG", quality=5)
    again = torch.from_numpy(np.asarray(Image.open(picture), dtype=np.float32) / 255)[
        None, None
    ]
    with torch.no_grad():
        assert np.allclose(
            context.store.load(key)["logits"][0],
            context.networks.classifier(again).logits,
            atol=1e-4,
        )
    assert "Attack success after jpeg5" in (tmp_path / "run" / "report.html").read_text()


def test_rounding_afterwards_is_judged_before_and_after(
    dicom: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier that says 1 to images off the grid of whole HU and 0 to all others, and an
    attack that leaves the grid.
    """
    context = Context(dicom.plan, dicom.store)

    def observe(x: torch.Tensor) -> Outputs:
        off = (x % 1 != 0).flatten(1).any(1).long()
        return Outputs(torch.nn.functional.one_hot(off, 2).float(), {})

    context.networks.__dict__["classifier"] = SimpleNamespace(observe=observe)
    monkeypatch.setattr(
        survival,
        "attack_of",
        lambda *_: lambda c, x, goal, **_: SimpleNamespace(adversarial=x + 0.3),
    )
    got = survival._round(context, cells(context)[1])
    target = context.data.goal(got["rows"]).target.numpy()
    assert set(target) == {0, 1}
    assert (got["before"] == (target == 1)).all() and (got["after"] == (target == 0)).all()


def test_archives_hold_only_what_they_can(dicom: Context, tmp_path: Path) -> None:
    for spec, hint in (
        ("jpeg 90", "8 bits"),
        ("jpeg 200", "jpeg 90"),
        ("webp 3", "jpeg 90"),
    ):
        plan = load_plan(dicom.plan.model_dump() | {"archive": [spec]})
        with pytest.raises(InputError, match=hint):
            audit(plan, tmp_path / "run")
    levels = np.arange(2 * 3 * 16 * 16, dtype=np.uint16).reshape(2, 1, 3, 16, 16)
    back = Codec.parse("jpeg2000 2")(levels)
    assert (
        back.shape == levels.shape
        and back.dtype == levels.dtype
        and 0 < np.abs(back.astype(int) - levels).max() < 50
    )


def thirds(
    n: int, shape: tuple[int, int, int], *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Volumes (n, *shape) of three classes: which third along the last axis is bright."""
    labels, width = np.arange(n) % 3, shape[-1] // 3
    x = np.random.default_rng(seed).normal(100, 20, (n, *shape))
    for volume, label in zip(x, labels, strict=True):
        volume[..., width * label : width * (label + 1)] += 70
    return x.clip(0, 255).astype(np.uint8), labels


@pytest.mark.parametrize(
    "arch", ["resnet10_3d", "resnet18_3d", "resnet50_3d", "densenet121_3d"]
)
def test_networks_of_volumes_are_trained_and_attacked(arch: str) -> None:
    volumes, labels = thirds(6, (16, 16, 18), seed=0)
    cases = cases_of_arrays(volumes[:, None], labels, splits=["train"] * 3 + ["val"] * 3)
    result = train_classifier(
        cases, arch, stem="small", epochs=1, batch_size=3, augment=False
    )
    classifier = FeatureClassifier(result.model, "stages", mean=result.mean, std=result.std)
    x = torch.from_numpy(cases.images([0, 1]))
    out = classifier.extract(torch.from_numpy(cases.images(range(6))))
    assert out.logits.shape == (6, 3) and len(out.features) >= 4
    assert all(f.ndim == 2 and len(f) == 6 and f.std() > 0 for f in out.features.values())
    bank = MixtureBank.fit(out, torch.from_numpy(labels), covariance="diag")
    source = out.predicted[:2]
    goal = Goal(source, (source + 1) % 3)
    attack = bim(Linf(16 / 255), steps=3, step_size=0.3)
    plain = attack(classifier, x, goal, ids=["a", "b"], grid=Grid(1 / 255))
    change = (plain.adversarial - x).flatten(1).abs().amax(1)
    assert ((change > 0.5 / 255) & (change < 16.5 / 255)).all() and (
        plain.trace.amin(0) < plain.trace[0]
    ).all()
    hidden = replace(attack, objective=attack.objective + 0.1 * HFC(bank))
    assert bool(
        hidden(classifier, x, goal, ids=["a", "b"], grid=Grid(1 / 255))
        .hide.isfinite()
        .all()
    )


def test_volumes_of_three_classes_from_end_to_end(tmp_path: Path) -> None:
    parts = {
        s: thirds(n, (9, 10, 12), seed=k)
        for k, (s, n) in enumerate((("train", 24), ("val", 6), ("test", 36)))
    }
    np.savez(
        tmp_path / "a.npz",
        **{
            f"{s}_{k}": v
            for s, part in parts.items()
            for k, v in zip(("images", "labels"), part, strict=True)
        },
    )
    network = {"arch": "tiny3d", "layers": "conv", "train": TRAIN | {"stem": "small"}}
    plan = {
        "data": str(tmp_path / "a.npz"),
        "network": network,
        "eps": 40 / 255,
        **FAST,
        "archive": ["jpeg 90"],
    }
    context = run(plan, tmp_path / "run")
    table = pd.read_csv(tmp_path / "run" / "results.csv", keep_default_na=False)
    assert table.value[table.metric == "accuracy"].item() > 0.8
    found = found_in(context, cells(context)[1])
    assert set(found.label) == set(found.target) == {0, 1, 2} and found.fooled.any()
    exported = export_images(
        context.store.folder, tmp_path / "e", attack="pgd", objective="hfc"
    )
    assert (
        exported.prediction == exported.file_prediction
    ).all() and exported.file.str.endswith(".nii.gz").all()
