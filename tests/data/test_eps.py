"""Budgets in grey levels, fractions and Hounsfield units."""

import numpy as np
import pytest

from feathide.data import cases_of_arrays, format_eps, parse_eps
from feathide.errors import InputError


def made(dtype: str, unit: str = "", **more: object):
    from dataclasses import replace

    images = (
        np.arange(2 * 4096).reshape(2, 1, 64, 64) % (4096 if dtype == "int16" else 2)
    ).astype(dtype)
    cases = cases_of_arrays(images, np.array([0, 1]), splits=["train", "test"], **more)
    return replace(cases, unit=unit or cases.unit)


@pytest.mark.parametrize(
    ("eps", "value"),
    [
        (0.02, 0.02),
        ("0.02", 0.02),
        ("4/255", 4 / 255),
        ("8 / 255", 8 / 255),
        (" 8 /255", 8 / 255),
        ("1 grey level", 1 / 255),
        ("2 grey levels", 2 / 255),
        ("2 gray levels", 2 / 255),
        ("3levels", 3 / 255),
        ("1e-3", 1e-3),
        ("1 grey level of 12 bit", 1 / 4095),
    ],
)
def test_pictures(eps: float | str, value: float) -> None:
    assert parse_eps(eps, made("uint8")) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("eps", "value"),
    [("2 HU", 2), ("2HU", 2), ("0.5 hu", 0.5), ("3 grey levels", 3), (2, 2)],
)
def test_scans(eps: float | str, value: float) -> None:
    assert parse_eps(eps, made("int16", "HU")) == value


def test_levels_of_so_many_bits_need_images_of_them() -> None:
    assert parse_eps("1 grey level of 12 bits", made("int16")) == 1
    with pytest.raises(
        InputError, match="at most 256 grey levels for '1 grey level of 8 bit', got 4096"
    ):
        parse_eps("1 grey level of 8 bit", made("int16"))


@pytest.mark.parametrize(
    ("eps", "dtype", "unit"),
    [
        ("2 HU", "uint8", ""),
        ("two", "uint8", ""),
        ("1/0", "uint8", ""),
        ("nan", "uint8", ""),
        ("2 mSv", "int16", "HU"),
        ("1 grey level", "float32", ""),
        ("", "uint8", ""),
        ("1 grey level of 12 bit", "float32", ""),
    ],
)
def test_unknown_units_are_one_sentence(eps: str, dtype: str, unit: str) -> None:
    with pytest.raises(InputError, match=r"eps .*must be"):
        parse_eps(eps, made(dtype, unit))


def test_both_units_in_reports() -> None:
    assert format_eps(4 / 255, made("uint8")) == "0.01569 (4 grey levels of 1/255)"
    assert format_eps(1 / 255, made("uint8")) == "0.003922 (1 grey level of 1/255)"
    assert format_eps(2, made("int16", "HU")) == "2 HU (2 grey levels)"
    assert format_eps(0.1, made("float32")) == "0.1"
