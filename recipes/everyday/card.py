"""Step 12: sample images, figures, NOTICE and the model card."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recipes.everyday import credits, images, sources
from recipes.everyday.evaluate import write_figures
from recipes.everyday.fetch import STAMPS
from recipes.everyday.sources import CLASSES, Cutout
from recipes.everyday.store import BUNDLE, stored_model
from vitlens.images import Transform, open_image
from vitlens.io import read_json, write_json

SAMPLES = BUNDLE / "samples"
# Unseen cut-outs, each on an unseen photograph, with a seed for position, size and light.
COMPOSED = (
    ("animals/mammals/bears/bear.png", "RainDrops", 1),
    ("animals/birds/rooster.png", "Aqua", 2),
    ("plants/flowers/daffodil.png", "RainDrops", 3),
    ("vehicles/auto/beetle.png", "Aqua", 4),
    ("food/vegetables/tomato.png", "Aqua", 5),
    ("symbols/money/canadian/coins/100loonie.png", "RainDrops", 6),
    ("animals/marsupials/kangaroo.png", "Aqua", 7),
    ("animals/birds/pigeon.png", "RainDrops", 8),
    ("vehicles/masstransit/green_korean_bus.png", "RainDrops", 9),
)
# Photographs that no step has seen: left, top and side relative to the shorter side.
NATURAL = (
    ("YellowFlower", 0.35, 0.0, 1.0),
    ("FreshFlower", 0.2, 0.0, 1.0),
    ("Garden", 0.55, 0.0, 1.0),
)


def write_card() -> None:
    """Write samples, figures, NOTICE and model card."""
    write_figures()
    write_samples()
    (BUNDLE / "NOTICE").write_text(NOTICE, encoding="utf-8")
    figures = read_json(BUNDLE / "figures.json")
    (BUNDLE / "MODEL_CARD.md").write_text(card(figures), encoding="utf-8")


def write_samples() -> None:
    """Write the sample JPEGs, and ``samples.json`` with their credits."""
    shutil.rmtree(SAMPLES, ignore_errors=True)
    SAMPLES.mkdir(parents=True)
    entries = []
    for number, (stamp, background, seed) in enumerate(COMPOSED, start=1):
        cutout = _cutout(STAMPS / stamp)
        rng = np.random.default_rng([seed, 2026])
        made = images.composite(cutout, "test", rng, background=sources.wallpaper(background))
        name = f"{number:02d}-{CLASSES[cutout.label]}.jpg"
        _save(Image.fromarray(made.pixels), name)
        credit = credits.composite(cutout, background)
        entries.append({"file": name, "label": CLASSES[cutout.label], "credit": credit})
    for number, (name, left, top, side) in enumerate(NATURAL, start=len(COMPOSED) + 1):
        with Image.open(sources.wallpaper(name)) as photograph:
            short = min(photograph.size)
            box = [round(v * short) for v in (left, top, left + side, top + side)]
            right = min(box[2], photograph.width)
            crop = photograph.convert("RGB").crop(
                (right - (box[2] - box[0]), box[1], right, box[3])
            )
        file = f"{number:02d}-flower-natural.jpg"
        _save(crop.resize((448, 448), Image.Resampling.LANCZOS), file)
        credit = f"Crop of {credits.photograph(name)}."
        entries.append({"file": file, "label": "flower", "credit": credit})
    write_json(SAMPLES / "samples.json", entries)


def _samples_right() -> int:
    """Number of samples that the model classifies correctly."""
    entries = read_json(SAMPLES / "samples.json")
    transform = Transform.from_dict(read_json(BUNDLE / "bundle.json")["transform"])
    pictures = torch.stack([transform(open_image(SAMPLES / e["file"])) for e in entries])
    with torch.inference_mode():
        answers = stored_model()(pictures).argmax(1).tolist()
    return sum(CLASSES[a] == e["label"] for a, e in zip(answers, entries, strict=True))


def card(figures: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    test, val = figures["accuracy"]["test_photo"], figures["accuracy"]["val_photo"]
    clip = figures["accuracy"]["test_clip_art"]
    saes = figures["saes"]
    stored = figures["quantisation"]
    training, tuning = (figures["sae_training"][name] for name in ("training", "tuning"))
    return CARD.format(
        classes=", ".join(CLASSES),
        test=_share(test["all"]),
        test_cutouts=_range(test["cutout_interval"]),
        n_test_cutouts=test["cutouts"],
        by_class=_by_class(figures["accuracy"]),
        val=_share(val["all"]),
        val_cutouts=_range(val["cutout_interval"]),
        clip=_share(clip["all"]),
        clip_cutouts=_range(clip["cutout_interval"]),
        clip_val=_share(figures["accuracy"]["val_clip_art"]["all"]),
        confusion=_confusion(test["confusion"]),
        cutouts=_cutout_table(figures["cutouts"]),
        onnx=f"{figures['backbone']['tokens_relative_to_onnx_runtime']:.0e}",
        agreement=f"{stored['share']:.1%} of {stored['images']}",
        agreement_test=f"{test['same_top1_as_unquantised']:.1%} of {test['all']['n']}",
        moved=f"{stored['tokens_relative_change']:.1%}",
        saes=_sae_table(saes),
        sae_images=saes["n_images"],
        sae_model=f"{saes['accuracy']:.1%}",
        sae_all=f"{saes['accuracy_all']:.1%}",
        sae_val_images=saes["validation"]["n_images"],
        sae_val_model=f"{saes['validation']['accuracy']:.1%}",
        sae_val_all=f"{saes['validation']['accuracy_all']:.1%}",
        sae_dead_in_atlas=f"{_dead_in_atlas():.1%}",
        sae_tokens=f"{training['n_tokens']:,}",
        tune_images=f"{tuning['n_images']:,}",
        backgrounds=_background_lines(),
        n_albums=len(sources.albums()),
        n_more_albums=len(sources.more_albums()),
        samples_right=_samples_right(),
        left_out=", ".join(sources.NOT_PHOTOS),
    )


def _dead_in_atlas() -> float:
    """Largest share of a layer's features that are active on no image of the atlas."""
    course = read_json(BUNDLE / "atlas" / "evolution.json")["course"]
    return max(
        1 - live / size for live, size in zip(course["n_live"], course["n_features"], strict=True)
    )


def _cutout(path: Path) -> Cutout:
    return next(c for c in sources.of("test", ("photo",)) if c.path == path)


def _save(picture: Image.Image, name: str) -> None:
    picture.save(SAMPLES / name, quality=92)


def _share(figure: dict[str, Any]) -> str:
    return f"{figure['accuracy']:.3f} ({_range(figure['wilson'])}; {figure['n']} composites)"


def _range(interval: list[float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _by_class(accuracies: dict[str, Any]) -> str:
    rows = ["| class | photographs | clip art |", "|---|---|---|"]
    for name in CLASSES:
        cells = [
            _share(accuracies[kind]["by_class"][name])
            if name in accuracies[kind]["by_class"]
            else "none"
            for kind in ("test_photo", "test_clip_art")
        ]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _confusion(counts: list[list[int]]) -> str:
    rows = ["| shown | " + " | ".join(CLASSES) + " |", "|---" * (len(CLASSES) + 1) + "|"]
    for name, row in zip(CLASSES, counts, strict=True):
        rows.append(f"| {name} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(rows)


def _cutout_table(counts: dict[str, Any]) -> str:
    rows = ["| class | photographs | clip art |", "|---|---|---|"]
    for name, kinds in counts.items():
        cells = [" / ".join(str(n) for n in kinds[k].values()) for k in ("photo", "clip art")]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def _sae_table(report: dict[str, Any]) -> str:
    rows = [
        "| layer | features | K | explained variance | of normalised tokens | dead "
        "| accuracy with this SAE |",
        "|---" * 7 + "|",
    ]
    for layer in report["layers"]:
        rows.append(
            f"| {layer['layer']} | {layer['n_features']} | {layer['max_active']} "
            f"| {layer['explained_variance']:.3f} "
            f"| {layer['explained_variance_normalized']:.3f} "
            f"| {layer['dead_fraction']:.1%} | {layer['accuracy_kept']:.1%} |"
        )
    return "\n".join(rows)


def _background_lines() -> str:
    return "\n".join(
        f"- {split}: " + ", ".join(sorted(sources.wallpaper_name(p) for p in paths))
        for split, paths in sources.backgrounds().items()
    )


TEMPLATES = Path(__file__).parent
CARD = (TEMPLATES / "card.md").read_text(encoding="utf-8")
NOTICE = (TEMPLATES / "NOTICE").read_text(encoding="utf-8")
