"""Fail unless a wheel holds the whole package with its licences, and is small enough."""

import re
import sys
import zipfile
from pathlib import Path

LIMIT_MB = 45
SOURCES = "vitlens/widgets/js/"  # what the widgets' built code is made of; needs Node.js


def main() -> None:
    wheel = Path(sys.argv[1])
    package = Path(__file__).parent.parent / "vitlens"
    expected = {
        path.relative_to(package.parent).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = {name for name in expected if not name.startswith(SOURCES)}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.endswith("/")}
    built = {name for name in found if name.startswith("vitlens/widgets/static/")}
    foreign = {name for name in found if not name.startswith(("vitlens/", "vitlens-"))}
    size = wheel.stat().st_size / 1e6

    problems = []
    if expected - found:
        problems.append(f"missing from the wheel: {sorted(expected - found)}")
    if foreign:
        problems.append(f"foreign files in the wheel: {sorted(foreign)}")
    if sources := [name for name in found if name.startswith(SOURCES)]:
        problems.append(f"sources of the widgets' built code: {sorted(sources)}")
    if not {"vitlens/widgets/static/heatmap.js", "vitlens/widgets/static/page.js"} <= built:
        problems.append("the widgets' built code is missing")
    for suffix in (".safetensors", ".json", ".md"):
        if not any(n.startswith("vitlens/bundles/everyday/") and n.endswith(suffix) for n in found):
            problems.append(f"the bundled model has no {suffix} file")
    version = re.search(r'^__version__ = "(.+)"$', (package / "__init__.py").read_text(), re.M)[1]
    if not wheel.name.startswith(f"vitlens-{version}-"):
        problems.append(f"the version of the package is {version}")
    licences = [package.parent / "LICENSE", *(package.parent / "LICENSES").iterdir()]
    for path in licences:
        name = path.relative_to(package.parent).as_posix()
        if f"vitlens-{version}.dist-info/licenses/{name}" not in found:
            problems.append(f"{name} is missing")
    if size >= LIMIT_MB:
        problems.append(f"{size:.1f} MB, {LIMIT_MB} allowed")
    if problems:
        sys.exit(f"{wheel.name}: " + "; ".join(problems))
    print(f"{wheel.name}: {len(found)} files, {size:.1f} MB")


if __name__ == "__main__":
    main()
