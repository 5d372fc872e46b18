"""Going on with a long measurement that was cut off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitlens.circuits.results import METRICS, Curves
from vitlens.errors import CheckpointError
from vitlens.io import fingerprint, read_tensors, write_tensors
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines
from vitlens.saes.topk import TopKSAE

#: What is measured of each image.
PARTS = ("insertion", "deletion", "untouched")

_FORMAT = "vitlens.curves.partial"


@dataclass
class Measured:
    """What has been measured so far.

    Attributes
    ----------
    seen
        How many images are behind, the ones left out included.
    images
        Which of them were measured.
    parts
        By part, a tensor [..., metric] for each measured image.
    """

    seen: int = 0
    images: list[int] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def add(self, image: int, measured: Mapping[str, Float[Tensor, "... metric"]]) -> None:
        """Note the values of one more image."""
        self.images.append(image)
        for part in PARTS:
            self.parts[part].append(measured[part])

    def by_metric(self, part: str) -> dict[str, Tensor]:
        """Return the values of all images by metric: [method, image, q], or [image]."""
        # The image goes before the steps, and after the methods where there are any.
        values = self.parts[part]
        stacked = torch.stack(values, dim=min(1, values[0].ndim - 1))
        return {metric: stacked[..., i].contiguous() for i, metric in enumerate(METRICS)}

    def save(self, out: str | Path, run: str) -> None:
        """Write the partial file that belongs to `out`, atomically."""
        tensors = {part: torch.stack(v) for part, v in self.parts.items() if v}
        metadata = {"format": _FORMAT, "run": run, "seen": self.seen, "images": self.images}
        write_tensors(partial_path(out), tensors, metadata)

    @classmethod
    def load(cls, out: str | Path, run: str) -> Measured:
        """Read the partial file that belongs to `out`; nothing done yet when there is none.

        Raises
        ------
        CheckpointError
            When the file is damaged, or of another run.
        """
        path = partial_path(out)
        if not path.exists():
            return cls()
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != _FORMAT or metadata.get("run") != run:
            raise CheckpointError(
                f"{path} belongs to a run with other images, weights or settings. Remove it to "
                "start anew, or choose another file to write."
            )
        parts = {part: list(tensors.get(part, ())) for part in PARTS}
        return cls(metadata["seen"], metadata["images"], parts)

    def remove(self, out: str | Path) -> None:
        """Remove the partial file that belongs to `out`."""
        partial_path(out).unlink(missing_ok=True)


def partial_path(out: str | Path) -> Path:
    """Return where the unfinished state of `out` is kept."""
    return Path(out).with_name(Path(out).name + ".partial")


def load_finished(out: str | Path, run: str) -> Curves | None:
    """Return the curves in `out` when it exists.

    Raises
    ------
    CheckpointError
        When the file holds something else, or the result of another run.
    """
    if not Path(out).exists():
        return None
    curves = Curves.load(out)
    if curves.settings.get("run") != run:
        raise CheckpointError(
            f"{out} holds curves of other images, weights or settings. Remove it, or choose "
            "another file to write."
        )
    return curves


def run_key(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    baselines: Baselines,
    images: Sequence[Float[Tensor, "3 H W"]],
    explained: Sequence[float],
    settings: Mapping[str, Any],
) -> str:
    """Return a hash of everything the curves depend on; methods of one's own go by name.

    Heads and targets that are functions have no hash: `explained`, what they give for the first
    image, tells them apart, and is empty where there is none.
    """
    tensors = {f"model.{name}": value for name, value in vision.module.state_dict().items()}
    if isinstance(vision.head, nn.Module):
        tensors |= {f"head.{name}": value for name, value in vision.head.state_dict().items()}
    for layer, sae in enumerate(saes):
        tensors |= {f"sae.{layer}.{name}": value for name, value in sae.state_dict().items()}
        tensors[f"baseline.{layer}.features"] = baselines.features[layer]
        tensors[f"baseline.{layer}.errors"] = baselines.errors[layer]
    parts = {
        "settings": dict(settings),
        "explained": [f"{value:.3g}" for value in explained],
        "top_k": [sae.k for sae in saes],
        "weights": fingerprint(tensors),
        "images": [fingerprint({"image": image}) for image in images],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
