"""A slow program for interventions: token by token, with plain forward hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import vitlens
from tests.tiny import tiny_image
from vitlens import Ablate, Clamp, Patch, Project, Scale, Steer

DOUBLE = torch.float64


def streams_of(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What the blocks of the untouched model give for one image, [T, D] each."""
    seen: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(out[0].detach().clone()))
        for block in model.blocks
    ]
    model(x[None])
    for handle in handles:
        handle.remove()
    return seen


def code(
    sae: vitlens.TopKSAE, x: torch.Tensor, *, k: int | None = None
) -> tuple[list[float], float, float, torch.Tensor]:
    """Activations, mean, deviation and error of one token, by docs/method.md, "SAE"."""
    mean, std = x.mean(), x.std()
    raw = (((x - mean) / (std + 1e-5)) - sae.b_dec) @ sae.W_enc
    z = [0.0] * sae.n_features
    for feature in raw.argsort(descending=True)[: k or sae.k].tolist():
        z[feature] = max(float(raw[feature]), 0.0)
    return z, float(mean), float(std), x - build(sae, z, float(mean), float(std))


def component(v: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The part of v in the span of some rows, by least squares (rows may be dependent or none)."""
    if not len(rows):
        return torch.zeros_like(v)
    return rows.T @ torch.linalg.lstsq(rows.T, v[:, None], driver="gelsd").solution[:, 0]


def build(sae: vitlens.TopKSAE, z: Sequence[float], mean: float, std: float) -> torch.Tensor:
    return (torch.tensor(z, dtype=DOUBLE) @ sae.W_dec + sae.b_dec) * std + mean


@torch.no_grad()
def slow(
    lens: vitlens.Lens,
    x: torch.Tensor,
    changes: Sequence[vitlens.interventions.kinds.Intervention],
    errors: str | Sequence[str] = "clean",
) -> torch.Tensor:
    """Logits of one image, token by token and feature by feature."""
    model = lens.vision.module
    held = [errors] * len(lens.saes) if isinstance(errors, str) else errors
    clean = streams_of(model, x)
    columns = lens.vision.grid[1]

    def meant(change: Any, token: int) -> bool:
        if change.patches is None:
            return True
        if token < lens.vision.n_prefix:
            return (-1, token) in change.patches
        return divmod(token - lens.vision.n_prefix, columns) in change.patches

    others = {
        id(change): [streams_of(model, picture) for picture in pictures]
        for change in changes
        for pictures in [getattr(change, "over", ()) or [getattr(change, "image", x)]]
    }

    def other(change: Any, layer: int, token: int, feature: int) -> float:
        streams = others[id(change)]
        return sum(code(lens.saes[layer], s[layer][token])[0][feature] for s in streams) / len(
            streams
        )

    def hook(layer: int) -> Any:
        sae = lens.saes[layer]

        def changed(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
            rows = []
            for token, running in enumerate(out[0]):
                z, mean, std, error = code(sae, running)
                z0, _, _, clean_error = code(sae, clean[layer][token])
                if held[layer] == "clean":
                    error = clean_error
                elif held[layer] == "baseline":
                    error = lens.baselines.errors[layer][token]
                for change in changes:
                    for at, f in change.features:
                        if at != layer or not meant(change, token):
                            continue
                        if isinstance(change, Scale):
                            z[f] *= change.factor
                        elif isinstance(change, Steer):
                            z[f] += change.strength
                        elif isinstance(change, Clamp):
                            if change.patches is not None or z0[f] > 0:
                                z[f] = change.value
                        elif isinstance(change, Patch) or change.to == "mean":
                            z[f] = other(change, layer, token, f)
                        elif change.to == "zero":
                            z[f] = 0.0
                        else:
                            z[f] = float(lens.baselines.features[layer][token, f])
                    if isinstance(change, Project) and meant(change, token):
                        named = [f for at, f in change.features if at == layer]
                        goal = torch.zeros_like(running)
                        if change.to == "baseline":
                            usual = lens.baselines.features[layer][token].tolist()
                            goal = build(sae, usual, mean, std) - build(
                                sae, [0.0] * sae.n_features, mean, std
                            )
                            goal += lens.baselines.errors[layer][token]
                        now = build(sae, z, mean, std) + error - mean - std * sae.b_dec
                        error = error - component(now - goal, sae.W_dec[named])
                rows.append(build(sae, z, mean, std) + error)
            return torch.stack(rows)[None]

        return changed

    handles = [model.blocks[i].register_forward_hook(hook(i)) for i in range(len(lens.saes))]
    logits = model(x[None])[0]
    for handle in handles:
        handle.remove()
    return logits


def active(lens: vitlens.Lens, layer: int, place: int = 0, seed: int = 7) -> tuple[int, int]:
    """A feature that is active on the test image, the strongest first."""
    sums = lens.trace(tiny_image(seed, DOUBLE)).features[layer].sum(0)
    return layer, int(sums.argsort(descending=True)[place])


def kinds(features: Any, *, patches: Any = None) -> dict[str, Any]:
    over = (tiny_image(2, DOUBLE), tiny_image(3, DOUBLE))
    return {
        "baseline": Ablate(features, patches=patches),
        "zero": Ablate(features, "zero", patches=patches),
        "mean": Ablate(features, "mean", over=over, patches=patches),
        "scale": Scale(features, 2.5, patches=patches),
        "set": Clamp(features, -1.5, patches=patches),
        "steer": Steer(features, 3.0, patches=patches),
        "swap": Patch(features, tiny_image(4, DOUBLE), patches=patches),
        "project": Project(features, patches=patches),
        "project to zero": Project(features, "zero", patches=patches),
    }


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
