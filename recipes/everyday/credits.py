"""Whose pictures the bundle shows, and under which licences."""

from recipes.everyday.sources import Cutout

# Photographs of mate-backgrounds, by author.
AUTHORS = {
    "Aqua": "Charles Barbin",
    "Blinds": "Lennart Poettering",
    "Dune": "Marco Cogoni",
    "FreshFlower": "Jens Ansorg",
    "Garden": "Charles Barbin",
    "GreenMeadow": "Timothy Schellhase",
    "LadyBird": "Charles Barbin",
    "RainDrops": "blackcombwhistler07",
    "Storm": "Sergey Nazarov",
    "TwoWings": "Charles Barbin",
    "Wood": "Jean-François Fortin Tam",
    "YellowFlower": "Charles Barbin",
}


def photograph(name: str) -> str:
    """Credit of a photograph of mate-backgrounds."""
    return f"mate-backgrounds: nature/{name}.jpg, copyright {AUTHORS[name]}, GPL-2.0-or-later"


def composite(cutout: Cutout, background: str) -> str:
    """Credit of a stamp of tuxpaint-stamps-default on a photograph of mate-backgrounds."""
    return (
        f"Cut-out: {cutout.source}, copyright 2002-2022 Bill Kendrick and the Tux Paint "
        f"contributors, GPL-2.0. Background: {photograph(background)}. Composite: GPL-2.0."
    )
