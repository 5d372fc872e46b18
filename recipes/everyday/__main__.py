"""Build the bundle step by step: ``python -m recipes.everyday [--from STEP]``."""

import argparse
from collections.abc import Callable
from pathlib import Path

from recipes.everyday import (
    atlas,
    atlas_pictures,
    backbone,
    card,
    evaluate,
    fetch,
    head,
    saes,
    store,
    untrained,
)

# A step is skipped if its output exists and no earlier step has run.
STEPS: dict[str, tuple[Callable[[], None], Path]] = {
    "fetch": (fetch.fetch, fetch.GCOMPRIS),
    "backbone": (backbone.build_backbone, backbone.BACKBONE),
    "head": (head.train_head, head.CLASSIFIER),
    "store": (store.store, store.AGREEMENT),
    "saes": (saes.train, saes.FOLDER / "manifest.json"),
    "baselines": (saes.baselines, saes.BASELINES["median"]),
    "evaluate-saes": (evaluate.evaluate_saes, evaluate.HEALTH),
    "evaluate-classifier": (evaluate.evaluate_classifier, evaluate.TEST),
    "atlas-pictures": (atlas_pictures.write_pictures, atlas_pictures.FOLDER / "pictures.json"),
    "untrained": (untrained.train, untrained.FOLDER / "saes" / "manifest.json"),
    "atlas": (atlas.build, atlas.FOLDER / "atlas.json"),
    "card": (card.write_card, store.BUNDLE / "MODEL_CARD.md"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="recipes.everyday", description=__doc__)
    parser.add_argument(
        "--from",
        dest="first",
        choices=STEPS,
        help="repeat this step and all later ones instead of resuming the last run",
    )
    first = parser.parse_args().first
    names = list(STEPS)
    stale = False
    for name, (step, output) in STEPS.items():
        stale = stale or not output.exists() or name == first
        if stale and (first is None or names.index(name) >= names.index(first)):
            print(f"== {name}", flush=True)
            step()


if __name__ == "__main__":
    main()
