"""The device that computes: a GPU where there is one, or the one that was named."""

import re

import torch

from feathide.errors import expected

__all__ = ["device_of"]


def device_of(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "cuda:1". Raises ``InputError`` for one that is
    not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if found is None:
        raise expected(
            "device must be auto, cpu, cuda or cuda:1",
            got=repr(name),
            do="name one of these",
        )
    if name == "cpu":
        return torch.device("cpu")
    if int(found[1] or 0) >= there:
        gpus = f"{there} GPU{'s' * (there != 1)}" if there else "none"
        raise expected(
            f"device {name} must be a GPU that torch can use",
            got=gpus,
            do="say cpu, or install a driver and a build of torch for CUDA",
        )
    return torch.device(name)
