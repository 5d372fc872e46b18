"""Step 5: the stored model with 8-bit weights, from which all later steps and figures start."""

from functools import cache
from pathlib import Path

import torch

from recipes.everyday import images
from recipes.everyday.backbone import ARCHITECTURE
from recipes.everyday.fetch import WORK
from recipes.everyday.head import CLASSIFIER, predict
from recipes.everyday.sources import CLASSES
from vitlens.io import fingerprint, read_tensors, write_json, write_tensors
from vitlens.models.heads import ClsMeanViT
from vitlens.models.quantize import dequantize, quantize

BUNDLE = Path(__file__).resolve().parents[2] / "vitlens" / "bundles" / "everyday"
MODEL = BUNDLE / "model.safetensors"
AGREEMENT = WORK / "agreement.json"
# Small and read by every token: 16 bits cost 1 % of the file.
KEPT_IN_HALF = ("patch_embed.proj.weight", "head.weight")


def store() -> None:
    """Write model and description into the bundle, and how often it agrees with the original."""
    weights, _ = read_tensors(CLASSIFIER)
    stored = quantize(weights, keep=KEPT_IN_HALF)
    write_tensors(MODEL, stored, {})
    model = stored_model()
    description = {
        "name": "everyday",
        "architecture": "vit_small_patch14_dinov2",
        "readout": "cls_mean",
        "kwargs": {**ARCHITECTURE, "num_classes": len(CLASSES)},
        "class_names": CLASSES,
        "transform": {
            "size": [images.SIZE, images.SIZE],
            "mean": images.MEAN,
            "std": images.STD,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
        },
        "fingerprint": fingerprint(model.state_dict()),
    }
    write_json(BUNDLE / "bundle.json", description)
    write_json(AGREEMENT, _agreement(model, weights))


@cache
def stored_model() -> ClsMeanViT:
    """The bundled model, float32, in evaluation mode."""
    model = ClsMeanViT(**ARCHITECTURE, num_classes=len(CLASSES)).eval()
    model.load_state_dict(dequantize(read_tensors(MODEL)[0]))
    return model.requires_grad_(False)


def _agreement(model: ClsMeanViT, weights: dict[str, torch.Tensor]) -> dict[str, float | int]:
    """Share of equal top-1 predictions with the unquantised model, and change of the tokens.

    Uses validation and training composites: the test split is used once, for the card.
    """
    original = ClsMeanViT(**ARCHITECTURE, num_classes=len(CLASSES)).eval()
    original.load_state_dict(weights)
    same = total = 0
    for split, n, kinds in (
        ("val", 300, ("photo",)),
        ("val", 120, ("clip art",)),
        ("train", 180, ("photo", "clip art")),
    ):
        pictures = images.composites(split, n, seed=5, kinds=kinds)
        answers = [predict(m, pictures).argmax(1) for m in (model, original)]
        same += int((answers[0] == answers[1]).sum())
        total += n
    with torch.inference_mode():
        x = next(iter(images.composites("val", 24, seed=6).batches()))
        before, after = original.forward_features(x), model.forward_features(x)
    return {
        "images": total,
        "same_top1": same,
        "share": same / total,
        "tokens_relative_change": float((after - before).norm() / before.norm()),
    }
