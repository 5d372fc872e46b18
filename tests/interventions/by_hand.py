"""A slow program for interventions: token by token, with plain forward hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

import vitlens
from tests.builders import tiny_image, written_out
from vitlens import Ablate, Clamp, Patch, Project, Scale, Steer
from vitlens.interventions.kinds import Intervention
from vitlens.saes.base import SAE

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


class Coded(NamedTuple):
    """A stream [T, D] as an SAE encodes it: z [T, F], mean, std and error node."""

    z: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    error: torch.Tensor


def code(sae: SAE, stream: torch.Tensor, *, mask: torch.Tensor | None = None) -> Coded:
    """Encode a stream by the slow program, with the features of a mask active if one is given."""
    slow_sae = written_out(sae)
    mean, std, _ = slow_sae.statistics(stream)
    z = slow_sae.encode(stream, mask)
    return Coded(z, mean, std, stream - slow_sae.decode(z, mean, std))


def component(v: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The part of v in the span of some rows, by least squares (rows may be dependent or none)."""
    if not len(rows):
        return torch.zeros_like(v)
    return rows.T @ torch.linalg.lstsq(rows.T, v[:, None], driver="gelsd").solution[:, 0]


@torch.no_grad()
def slow(
    lens: vitlens.Lens,
    x: torch.Tensor,
    changes: Sequence[Intervention],
    error_nodes: str | Sequence[str] = "clean",
) -> torch.Tensor:
    """Logits of one image, token by token and feature by feature, with plain forward hooks."""
    model, layers = lens.vision.module, lens.layers
    held = [error_nodes] * len(layers) if isinstance(error_nodes, str) else error_nodes
    clean = streams_of(model, x)
    columns = lens.vision.grid[1]

    def meant(change: Any, token: int) -> bool:
        if change.patches is None:
            return True
        if token < lens.vision.n_prefix:
            return (-1, token) in change.patches
        return divmod(token - lens.vision.n_prefix, columns) in change.patches

    def other(change: Any, position: int) -> torch.Tensor:
        images = getattr(change, "over", ()) or [getattr(change, "image", x)]
        streams = [streams_of(model, image)[layers[position]] for image in images]
        return sum(code(lens.saes[position], stream).z for stream in streams) / len(streams)

    def hook(position: int) -> Any:
        layer, sae = layers[position], lens.saes[position]
        usual, usual_error = lens.baselines.features[position], lens.baselines.errors[position]
        others = {id(change): other(change, position) for change in changes}

        def changed(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
            running, before = code(sae, out[0]), code(sae, clean[layer])
            errors = {
                "clean": before.error,
                "free": running.error,
                "baseline": usual_error,
                "zero": torch.zeros_like(running.error),
            }[held[position]]
            rows = []
            for token in range(len(out[0])):
                z, error = running.z[token].clone(), errors[token]
                centre = sae.b_dec * running.std[token]
                for change in changes:
                    for at, f in change.features:
                        if at != layer or not meant(change, token):
                            continue
                        if isinstance(change, Scale):
                            z[f] *= change.factor
                        elif isinstance(change, Steer):
                            z[f] += change.strength
                        elif isinstance(change, Clamp):
                            if change.patches is not None or before.z[token, f] > 0:
                                z[f] = change.value
                        elif isinstance(change, Patch) or change.to == "mean":
                            z[f] = others[id(change)][token, f]
                        elif change.to == "zero":
                            z[f] = 0.0
                        else:
                            z[f] = usual[token, f]
                    if isinstance(change, Project) and meant(change, token):
                        named = [f for at, f in change.features if at == layer]
                        goal = torch.zeros_like(out[0, token])
                        if change.to == "baseline":
                            goal = usual[token] @ sae.W_dec * running.std[token]
                            goal = goal + usual_error[token]
                        now = z @ sae.W_dec * running.std[token] + error
                        error = error - component(now - goal, sae.W_dec[named])
                stream = z @ sae.W_dec * running.std[token] + centre + running.mean[token] + error
                rows.append(stream)
            return torch.stack(rows)[None]

        return changed

    hooks = [hook(position) for position in range(len(layers))]
    handles = [
        model.blocks[layer].register_forward_hook(changed)
        for layer, changed in zip(layers, hooks, strict=True)
    ]
    logits = model(x[None])[0]
    for handle in handles:
        handle.remove()
    return logits


def active(lens: vitlens.Lens, layer: int, place: int = 0, seed: int = 7) -> tuple[int, int]:
    """A feature that is active on the test image, the strongest first."""
    position = lens.layers.index(layer)
    sums = lens.trace(tiny_image(seed, DOUBLE)).features[position].sum(0)
    return layer, int(sums.argsort(descending=True)[place])


def kinds(features: Any, *, patches: Any = None) -> dict[str, Any]:
    over = (tiny_image(2, DOUBLE), tiny_image(3, DOUBLE))
    return {
        "baseline": Ablate(features, patches=patches),
        "zero": Ablate(features, "zero", patches=patches),
        "mean": Ablate(features, "mean", over=over, patches=patches),
        "scale": Scale(features, 2.5, patches=patches),
        "clamp": Clamp(features, -1.5, patches=patches),
        "steer": Steer(features, 3.0, patches=patches),
        "patch": Patch(features, tiny_image(4, DOUBLE), patches=patches),
        "project": Project(features, patches=patches),
        "project to zero": Project(features, "zero", patches=patches),
    }


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
