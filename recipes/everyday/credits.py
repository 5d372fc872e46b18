"""Authors and licences of the bundled images."""

from recipes.everyday.sources import Cutout

# Photographs of mate-backgrounds: years and authors, from its copyright file.
AUTHORS = {
    "Aqua": "2008 Charles Barbin",
    "Blinds": "2008 Lennart Poettering and Andrea Cimitan",
    "Dune": "2007 Marco Cogoni, 2008 Hylke Bons",
    "FreshFlower": "2005 Jens Ansorg",
    "Garden": "2008 Charles Barbin",
    "GreenMeadow": "2005 Timothy Schellhase, 2008 Lapo Calamandrei",
    "LadyBird": "2008 Charles Barbin",
    "RainDrops": "2008 blackcombwhistler07",
    "Storm": "2008 Sergey Nazarov",
    "TwoWings": "2008 Charles Barbin and Hylke Bons",
    "Wood": "2008 Jean-François Fortin Tam",
    "YellowFlower": "2008 Charles Barbin",
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
