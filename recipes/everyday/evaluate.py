"""Step 8: every published figure, in float32, from the files of the bundle."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recipes.everyday import images
from recipes.everyday.backbone import ARCHITECTURE
from recipes.everyday.backbone import FIGURES as BACKBONE_FIGURES
from recipes.everyday.fetch import WORK
from recipes.everyday.head import CLASSIFIER, LOG, predict
from recipes.everyday.images import Composites
from recipes.everyday.saes import BASELINES, stored_saes
from recipes.everyday.sources import CLASSES, SPLITS, cutouts
from recipes.everyday.store import AGREEMENT, BUNDLE, stored_model
from vitlens.io import read_json, read_tensors, write_json
from vitlens.lens import Lens
from vitlens.method.replacement import Baselines
from vitlens.models.heads import ClsMeanViT
from vitlens.models.vision import VisionModel
from vitlens.training import HealthReport, measure

TEST = WORK / "test.json"
HEALTH = WORK / "health.json"


def evaluate_classifier() -> None:
    """Evaluate on the test split: accuracy on photographs and on clip art, and on validation."""
    model = stored_model()
    original = ClsMeanViT(**ARCHITECTURE, num_classes=len(CLASSES)).eval()
    original.load_state_dict(read_tensors(CLASSIFIER)[0])
    figures: dict[str, Any] = {}
    for split, scale in (("val", 0.5), ("test", 1)):
        for kind, most in (("photo", 600), ("clip art", 240)):
            n = round(scale * most)
            pictures = images.composites(split, n, seed=0, kinds=(kind,))
            logits = predict(model, pictures)
            name = f"{split}_{kind.replace(' ', '_')}"
            figures[name] = accuracy(logits.argmax(1), pictures)
            if split == "test":
                same = logits.argmax(1) == predict(original, pictures).argmax(1)
                figures[name]["same_top1_as_unquantised"] = float(same.float().mean())
            print(name, figures[name]["all"], flush=True)
    write_json(TEST, figures)


def evaluate_saes() -> None:
    """Health of the stored SAEs on unseen composites, and on those they were chosen on."""
    report = _health(images.test_composites(240, seed=1)).to_dict()
    chosen_on = _health(images.composites("val", 240, seed=77)).to_dict()
    names = ("n_images", "accuracy", "accuracy_all", "carried")
    report["validation"] = {name: chosen_on[name] for name in names}
    report["fingerprint"] = Lens(stored_model(), stored_saes()).fingerprint
    write_json(HEALTH, report)


def _health(pictures: Composites) -> HealthReport:
    batches = zip(pictures.batches(24), pictures.labels.split(24), strict=True)
    vision, means = VisionModel(stored_model()), Baselines.load(BASELINES["mean"])
    report = measure(vision, stored_saes(), list(batches), baselines=means)
    print(report)
    return report


def write_figures() -> None:
    """Write the figures of all steps to ``figures.json``."""
    counts = {
        name: {
            kind: {
                split: sum((c.label, c.kind, c.split) == (label, kind, split) for c in cutouts())
                for split in SPLITS
            }
            for kind in ("photo", "clip art")
        }
        for label, name in enumerate(CLASSES)
    }
    figures = {
        "backbone": read_json(BACKBONE_FIGURES),
        "cutouts": counts,
        "training": read_json(LOG),
        "quantisation": read_json(AGREEMENT),
        "accuracy": read_json(TEST),
        "saes": read_json(HEALTH),
        "sae_training": read_json(BUNDLE / "saes" / "manifest.json")["metadata"],
    }
    write_json(BUNDLE / "figures.json", figures)


def accuracy(answers: Tensor, pictures: Composites) -> dict[str, Any]:
    """Accuracy overall, by class and by cut-out, with 95 % intervals.

    Composites of one cut-out are not independent. So besides Wilson's interval over composites
    there is one that resamples cut-outs (bootstrap within classes, 2,000 draws).
    """
    right = answers == pictures.labels
    by_class = {
        name: _with_interval(right[pictures.labels == label])
        for label, name in enumerate(CLASSES)
        if (pictures.labels == label).any()
    }
    confusion = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.long)
    confusion.index_put_((pictures.labels, answers), torch.tensor(1), accumulate=True)
    return {
        "all": _with_interval(right),
        "cutout_interval": _cutout_interval(right, pictures),
        "cutouts": len(pictures.cutout.unique()),
        "by_class": by_class,
        "confusion": confusion.tolist(),
    }


def _with_interval(right: Tensor) -> dict[str, Any]:
    k, n = int(right.sum()), len(right)
    return {"right": k, "n": n, "accuracy": k / n, "wilson": wilson(k, n)}


def wilson(k: int, n: int, z: float = 1.959964) -> Sequence[float]:
    """Wilson's 95 % interval of a proportion (Wilson 1927)."""
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [centre - half, centre + half]


def _cutout_interval(right: Tensor, pictures: Composites) -> Sequence[float]:
    """Bootstrap interval of the mean over classes of the mean over cut-outs."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.zeros(2000)
    labels = pictures.labels.unique()
    for label in labels:
        of_class = pictures.labels == label
        ids = pictures.cutout[of_class].unique()
        means = torch.stack([right[pictures.cutout == i].float().mean() for i in ids])
        sample = torch.randint(len(ids), (2000, len(ids)), generator=generator)
        draws += means[sample].mean(1) / len(labels)
    return draws.quantile(torch.tensor([0.025, 0.975])).tolist()
