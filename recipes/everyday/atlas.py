"""Step 11: the atlas of the bundled model, with the untrained model's as its control."""

from dataclasses import replace

import vitlens
from recipes.everyday import untrained
from recipes.everyday.atlas_pictures import FOLDER as PICTURES
from recipes.everyday.store import BUNDLE
from vitlens.atlas.atlas import Atlas
from vitlens.atlas.build import build_state
from vitlens.io import read_json
from vitlens.lens import Lens

FOLDER = BUNDLE / "atlas"


def build() -> None:
    """Build the atlas and store it in the bundle."""
    atlas = atlas_of(vitlens.load("everyday"))
    atlas.add_control("untrained", atlas_of(untrained.untrained_lens()))
    atlas.save(FOLDER, mergeable=False, originals=False)
    print(atlas.evolution())


def atlas_of(lens: Lens) -> Atlas:
    """Build an atlas over the bundled images.

    The images are stored as they are. Activations can then be computed when they are needed, and
    take no space in the bundle.
    """
    rows = {row["file"]: row for row in read_json(PICTURES / "pictures.json")}
    state = build_state(
        lens,
        PICTURES,
        labels={file: row["label"] for file, row in rows.items()},
        groups={file: row["group"] for file, row in rows.items()},
        credits={file: row["credit"] for file, row in rows.items()},
        n_top=8,
        n_sampled=5,
        thumbnails=lens.vision.image_size[0],
        heatmaps=False,
    )
    for image, record in state.images.items():
        state.images[image] = replace(record, thumbnail=(PICTURES / record.key).read_bytes())
    return Atlas.from_state(state, lens)
