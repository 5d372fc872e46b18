"""Binder's files: everything the package needs is pinned, and nothing else decides."""

from __future__ import annotations

import os
import tomllib
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


def test_pytorch_comes_without_cuda() -> None:
    options = [line for line in LINES if line.startswith("-")]
    assert options == ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    assert not [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))]


def test_repo2docker_can_run_it() -> None:
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)
    assert (ROOT / "binder" / "runtime.txt").read_text().strip() == "python-3.11"
    for part in ("notebooks/01-ten-minutes.ipynb", "--no-deps ."):
        assert part in (ROOT / "binder" / "postBuild").read_text()
    assert (ROOT / "notebooks" / "01-ten-minutes.ipynb").is_file()
