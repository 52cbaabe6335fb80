"""The sanity checks judge every detector of the catalogue, whatever it reads."""

from pathlib import Path

import pytest

from feathide import audit, load_plan
from feathide.detectors import DETECTORS
from feathide.execution.store import Store
from feathide.pipeline.context import Context
from feathide.sanity.probes import probe_key, probes_in
from worlds.audits import PLAN, write_npz


@pytest.mark.slow
def test_the_gradient_of_every_detector_is_tried(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "data.npz")
    plan = {"data": str(data), **PLAN, "attacks": ["pgd"], "objectives": ["plain"]}
    plan |= {"detectors": list(DETECTORS), "train_attack": "pgd", "even_so": True}
    found = audit(load_plan(plan), tmp_path / "out")
    context = Context(load_plan(found.folder / "plan.yaml"), Store(found.folder))
    probes = probes_in(context.store.load(probe_key(context)))
    tried = {name.removeprefix("lower/") for name in probes if name.startswith("lower/")}
    assert tried == set(DETECTORS)
