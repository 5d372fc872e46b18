"""docs/method.md keeps its promises: numbered equations, each with a function that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "method.md").read_text("utf-8")
TABLE = [line for line in PAGE.split("## Where each equation lives")[1].splitlines() if "|" in line]


def names_in(path: Path) -> set[str]:
    """Names a module defines, methods of its classes as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
    return names


def test_equations_are_numbered_in_order() -> None:
    blocks = "".join(re.findall(r"```math\n(.*?)```", PAGE, re.S))
    numbers = [int(n) for n in re.findall(r"\((\d+)\)(?= *(?:\\\\|\n|$))", blocks)]
    assert numbers == list(range(1, numbers[-1] + 1))


def test_the_table_names_every_equation_but_intermediate_steps() -> None:
    named = set()
    for line in TABLE:
        cell = line.split("|")[1]
        numbers = [int(n) for n in re.findall(r"\((\d+)\)", cell)]
        named |= set(range(numbers[0], numbers[1] + 1)) if "–" in cell and numbers else set(numbers)
    assert named == set(range(1, max(named) + 1))


def test_functions_of_the_table_exist() -> None:
    missing = []
    for line in TABLE[2:]:
        for part in line.split("|")[-2].split(";"):
            path, *names = re.findall(r"`([^`]+)`", part)
            file = ROOT / path if path.startswith("tests/") else ROOT / "vitlens" / path
            if not file.exists():
                missing.append(path)
                continue
            missing += [f"{path}: {name}" for name in names if name not in names_in(file)]
    assert not missing
