"""Binder's files: everything the package needs is pinned, and nothing else decides."""

from __future__ import annotations

import os
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "binder" / "requirements.txt").read_text().splitlines()
PINS = {
    canonicalize_name(pin.name): pin
    for pin in map(Requirement, (line for line in LINES if line and line[0] not in "#-"))
}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [
        Requirement(line)
        for line in [*project["dependencies"], *project["optional-dependencies"]["lab"]]
    ]


@pytest.mark.parametrize("requirement", wanted(), ids=str)
def test_what_the_package_needs_is_there(requirement: Requirement) -> None:
    (pin,) = PINS[canonicalize_name(requirement.name)].specifier
    assert pin.version in requirement.specifier


def test_every_package_has_one_version() -> None:
    for pin in PINS.values():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="


def test_no_package_index_is_named() -> None:
    assert not [line for line in LINES if line.startswith("-") or "://" in line]


def test_cuda_is_left_to_pytorch() -> None:
    """Its own pins say which of these packages it wants, and on which systems."""
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


def test_pins_need_nothing_that_is_not_pinned() -> None:
    """As far as the packages are installed here in just that version."""
    missing = set()
    for name, pin in PINS.items():
        (specifier,) = pin.specifier
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        if here.version != specifier.version:
            continue
        for needed in map(Requirement, here.requires or []):
            theirs = canonicalize_name(needed.name)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            if theirs not in PINS and not theirs.startswith(("nvidia", "cuda", "triton")):
                missing.add(f"{needed.name} for {name}")
    assert not missing


def test_repo2docker_can_run_it() -> None:
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)
    assert (ROOT / "binder" / "runtime.txt").read_text().strip() == "python-3.11"
    for part in ("notebooks/01-ten-minutes.ipynb", "--no-deps ."):
        assert part in (ROOT / "binder" / "postBuild").read_text()
    assert (ROOT / "notebooks" / "01-ten-minutes.ipynb").is_file()
