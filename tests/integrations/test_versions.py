"""A library that is too old is named, with the version that is needed and how to get it."""

import pytest

from feathide.attacks.threats import Linf
from feathide.errors import InputError
from feathide.integrations import attack_named
from feathide.integrations.versions import check_version


@pytest.mark.parametrize(
    ("found", "old"), [("3.4.9", True), ("3.5.0", False), ("3.10", False)]
)
def test_an_old_torchattacks_is_refused(
    found: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feathide.integrations.versions.version", lambda library: found)
    if not old:
        check_version("torchattacks")
        return
    with pytest.raises(
        InputError, match=r"must be 3\.5 or newer, got 3\.4\.9; pip install --no-deps"
    ):
        check_version("torchattacks")


def test_a_plan_that_names_an_old_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchattacks", reason="needs torchattacks")
    monkeypatch.setattr("feathide.integrations.versions.version", lambda library: "3.2")
    with pytest.raises(InputError, match=r"torchattacks must be 3\.5 or newer"):
        attack_named("torchattacks:PGD")(Linf(0.1))


def test_other_libraries_may_be_of_any_version() -> None:
    check_version("foolbox")
