"""The architecture: imports run down the floors, nothing runs in circles, words are plain.

`FLOORS` is the plan of the package, lowest floor first. A module may import from its own floor and
from those below it. Imports inside functions and imports for types count like any other.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vitlens

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vitlens"

FLOORS = (
    ("errors", "images", "io", "progress", "repr", "tables"),
    ("models",),
    ("saes",),
    ("method",),
    ("circuits", "interventions", "training"),
    ("lens",),
    ("atlas",),
    ("debias",),
    ("bundle", "debias.spurious"),
    ("plots",),
    ("widgets", "cli"),
)
#: These hold a table of names from higher floors, and load each when it is first asked for.
LOADERS = ("vitlens", "vitlens.lens", "vitlens.widgets")

#: Names of version 0.1 that have a better one now.
OLD_NAMES = {
    "Brief",
    "ErrorPaths",
    "Latest",
    "NodeKey",
    "SetTo",
    "Swap",
    "ViT",
    "anew",
    "as_vit",
    "mend",
    "told",
    "undisturbed",
    "vit",
    "wish",
}
#: Words that are not today's English; "beside" is "next to" or "besides".
OLD_WORDS = (
    "anew",
    "beside",
    "go by",
    "goes by",
    "lets go",
    "mend",
    "mended",
    "mends",
    "said to be",
    "told",
    "undisturbed",
    "wish",
    "wished",
    "wishes",
)


# --- The modules and what they import ---------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8"), str(path)) for name, path in MODULES.items()}


def floor_of(module: str) -> int | None:
    """The floor of the longest prefix that the plan names; the root package is the roof."""
    if module == "vitlens":
        return len(FLOORS)
    parts = module.split(".")[1:]
    plan = {part: number for number, floor in enumerate(FLOORS) for part in floor}
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in plan:
            return plan[prefix]
    return None


def imports_of(module: str) -> Iterator[tuple[str, int]]:
    """Modules of the package that one imports anywhere in its text, with the line."""
    is_package = MODULES[module].name == "__init__.py"
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "vitlens":
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                here = here[: len(here) - node.level + is_package]
                base = ".".join([*here, *([base] if base else [])])
            if base.split(".")[0] != "vitlens":
                continue
            for alias in node.names:
                if (base, alias.name) == ("vitlens", "__version__"):
                    continue  # the one fact that the root itself holds
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


def loads_by_name(module: str) -> Iterator[int]:
    """Lines that import a module by a name in a string."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if called in ("import_module", "__import__"):
                yield node.lineno


def graph() -> dict[str, set[str]]:
    return {
        module: {
            found for found, _ in imports_of(module) if found != module and module != "vitlens"
        }
        for module in MODULES
    }


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of two or more that reach each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in order:
            visit(node)
    return found


def report(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


def test_every_module_has_a_floor():
    report([name for name in MODULES if floor_of(name) is None])


def test_every_place_in_the_plan_exists():
    report([part for floor in FLOORS for part in floor if f"vitlens.{part}" not in MODULES])


def test_imports_run_down():
    problems = []
    for module in MODULES:
        mine = floor_of(module)
        if module == "vitlens" or mine is None:
            continue
        for found, line in imports_of(module):
            theirs = floor_of(found)
            if theirs is None or theirs > mine:
                problems.append(f"{module}:{line} imports {found}")
    report(problems)


def test_modules_are_loaded_by_name_in_few_places():
    report(
        [
            f"{module}:{line} loads a module by name"
            for module in MODULES
            if module not in LOADERS
            for line in loads_by_name(module)
        ]
    )


def test_no_imports_run_in_circles():
    report([" <-> ".join(circle) for circle in circles(graph())])


def test_packages_of_one_floor_do_not_import_each_other_both_ways():
    plan = [part for floor in FLOORS for part in floor]

    def part_of(module: str) -> str:
        name = module.removeprefix("vitlens.")
        fits = [part for part in plan if name == part or name.startswith(f"{part}.")]
        return max(fits, key=len, default=name)

    edges: dict[str, set[str]] = {}
    for module, found in graph().items():
        if module != "vitlens":
            edges.setdefault(part_of(module), set()).update(map(part_of, found))
    for part, others in edges.items():
        others.discard(part)
    report([" <-> ".join(circle) for circle in circles(edges)])


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_folders_of_tests_share_builders_and_not_tests():
    problems = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        folder = path.relative_to(ROOT / "tests").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
                other = node.module.split(".")[1:]
                if other[-1].startswith("test_") and other[0] != folder:
                    problems.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.module}")
    report(problems)


# --- Signatures -------------------------------------------------------------------------------


def public_functions(
    body: list[ast.stmt], prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_") or node.name in ("__init__", "__call__"):
                yield f"{prefix}.{node.name}", node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}.{node.name}")


def test_public_signatures_spell_their_options_out():
    problems = []
    for module, tree in TREES.items():
        for name, function in public_functions(tree.body, module):
            extra = function.args.kwarg
            if extra is None:
                continue
            kind = "Any" if extra.annotation is None else ast.unparse(extra.annotation)
            if kind in ("Any", "object", "t.Any", "typing.Any"):
                problems.append(f"{name}(**{extra.arg}: {kind})")
    report(problems)


# --- Facts that are written once ---------------------------------------------------------------


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_version_is_written_once():
    assert "version" in project()["dynamic"]
    line = f'__version__ = "{vitlens.__version__}"'
    assert line in (PACKAGE / "__init__.py").read_text("utf-8")
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", vitlens.__version__)


def test_the_licence_expression_covers_all_that_is_shipped():
    licences = set(project()["license"].split(" AND "))
    texts = {path.stem for path in (ROOT / "LICENSES").glob("*.txt")}
    assert licences == texts | {"Apache-2.0"} and (ROOT / "LICENSE").is_file()
    # "GPL-2.0" alone, as credits write it, means this version only.
    named = re.compile(r"\b(L?GPL-\d\.\d(?:-or-later)?|CC-BY(?:-SA)?-\d\.\d|CC0-\d\.\d)")
    found = set()
    for path in (PACKAGE / "bundles").rglob("*.json"):
        found |= set(named.findall(path.read_text("utf-8")))
    assert len(found) >= 5
    spdx = {name if "or-later" in name or "CC" in name else f"{name}-only" for name in found}
    assert spdx <= licences


# --- Words ------------------------------------------------------------------------------------


def texts() -> Iterator[tuple[str, str]]:
    """What people read: code with its comments and messages, pages, notebooks, browser sources."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("binder/*.md")]
    pages += [ROOT / "Makefile", *PACKAGE.rglob("*.md")]
    code = [*PACKAGE.rglob("*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("recipes/**/*.md")]
    sources = PACKAGE / "widgets" / "js"
    browser = [*sources.glob("*.mjs"), *(sources / "src").rglob("*.*")]
    for path in sorted({*pages, *code, *browser}):
        yield str(path.relative_to(ROOT)), path.read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        yield str(path.relative_to(ROOT)), text


def texts_of_tests() -> Iterator[tuple[str, str]]:
    """The tests, except this file, which names what it looks for."""
    here = Path(__file__)
    for pattern in ("**/*.py", "**/*.md", "**/*.mjs"):
        for path in sorted((ROOT / "tests").glob(pattern)):
            if path != here:
                yield str(path.relative_to(ROOT)), path.read_text("utf-8")


def lines_with(pattern: str, flags: int = 0) -> list[str]:
    found = re.compile(pattern, flags)
    return [
        f"{name}:{number} {line.strip()}"
        for name, text in (*texts(), *texts_of_tests())
        for number, line in enumerate(text.splitlines(), 1)
        if found.search(line)
    ]


def test_words_are_those_of_today():
    words = "|".join(OLD_WORDS)
    report(lines_with(rf"(?<![a-z])({words})(?![a-z])", re.IGNORECASE))


def test_names_of_version_01_are_gone():
    problems = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            name = (
                getattr(node, "id", None)
                or getattr(node, "attr", None)
                or getattr(node, "arg", None)
                or (isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name)
            )
            if isinstance(name, str) and name.strip("_") in OLD_NAMES:
                problems.append(f"{module}:{getattr(node, 'lineno', '')} {name}")
    report(sorted(set(problems)))


def test_nothing_cites_what_is_not_in_the_repository():
    report(lines_with(r"METHOD(\.md|\b(?!S))|/work/\w"))


def test_cited_sections_of_the_method_exist():
    method = ROOT / "docs" / "method.md"
    headings = set(re.findall(r"^#+ (?:[\d.]+ )?(.+?)\s*$", method.read_text("utf-8"), re.M))
    cited = r"docs/method\.md[`,:\s#]*\"([^\"]+)\""
    problems = []
    for name, text in texts():
        for section in re.findall(cited, text):
            if re.sub(r"\s+", " ", section) not in headings:
                problems.append(f"{name} cites {section!r}")
    report(problems)
