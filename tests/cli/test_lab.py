"""``vitlens lab``: notebooks are copied once, and JupyterLab is started on the first."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitlens.cli import lab, main

FIRST = "01-ten-minutes.ipynb"


class Started:
    """Replaces a process, and records what was started."""

    calls: list[list[str]]
    code = 0

    def __init__(self, command: list[str]) -> None:
        Started.calls.append(command)
        self.interrupts = 1

    def wait(self) -> int:
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        return Started.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> type[Started]:
    Started.calls, Started.code = [], 0
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    return Started


def test_lab_opens_on_a_copy_of_the_notebooks(
    started: type[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my notebooks"
    assert main(["lab", str(folder), "--no-browser"]) == 0
    assert (folder / FIRST).read_bytes() == lab.notebooks()[0].read_bytes()
    ((program, *arguments),) = started.calls
    assert program == sys.executable
    assert arguments[:3] == ["-m", "jupyterlab", str(folder)]
    assert f"--LabApp.default_url=/lab/tree/{FIRST}" in arguments
    assert "--no-browser" in arguments
    assert any("NeverCheckForUpdate" in argument for argument in arguments)
    assert str(folder) in capsys.readouterr().out


def test_existing_notebooks_are_not_changed(started: type[Started], tmp_path: Path) -> None:
    (tmp_path / FIRST).write_text("mine")
    assert main(["lab", str(tmp_path)]) == 0
    assert (tmp_path / FIRST).read_text() == "mine"


def fails(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_without_jupyterlab_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "vitlens[lab]" in fails(["lab", tmp_path / "new"], capsys)
    assert not (tmp_path / "new").exists()


def test_a_file_at_the_folder_is_refused(
    started: type[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes").write_text("x")
    assert "is a file" in fails(["lab", tmp_path / "notes"], capsys)
    assert started.calls == []


def test_a_failing_lab_is_reported(
    started: type[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started.code = 1
    assert "stopped with error code 1" in fails(["lab", tmp_path], capsys)


def test_missing_notebooks_are_reported(
    started: type[Started],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(lab, "__file__", str(tmp_path / "vitlens" / "cli" / "lab.py"))
    assert "Reinstall vitlens" in fails(["lab", tmp_path / "new"], capsys)
