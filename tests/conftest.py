"""Shared fixtures: one thread, and the real images where they are present."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the real images in ../shared/data, which are not here")
    return SHARED
