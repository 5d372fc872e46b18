"""The residual replacement model: features plus one error node a layer.

Source: Kim et al., NeurIPS 2025, arXiv 2509.17401. SAE l reads the stream after block l, for
l = 0 ... B-2; T tokens, D channels, F_l features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.errors import FeatureError, ModelError
from vitlens.method.replacement import Baselines, ErrorNodes, Trace
from vitlens.models.vision import VisionModel
from vitlens.saes.topk import TopKSAE


def check_baselines(vision: VisionModel, saes: Sequence[TopKSAE], baselines: Baselines) -> None:
    """Raise `ModelError` unless the baselines have the shapes of the model and its SAEs."""
    n_layers = len(baselines.features)
    if n_layers != len(saes):
        raise ModelError(f"{len(saes)} SAEs need {len(saes)} layers of baselines, not {n_layers}.")
    for layer, (sae, z, e) in enumerate(
        zip(saes, baselines.features, baselines.errors, strict=True)
    ):
        expected = (vision.n_tokens, sae.n_features), (vision.n_tokens, vision.d_model)
        if (z.shape, e.shape) != expected:
            raise ModelError(
                f"Baselines of layer {layer} are {tuple(z.shape)} and {tuple(e.shape)}; model and "
                f"SAE need {expected[0]} and {expected[1]}."
            )


def zero_baselines(vision: VisionModel, saes: Sequence[TopKSAE]) -> Baselines:
    """Baselines that are zero everywhere: a replaced feature is switched off."""
    like = torch.zeros(vision.n_tokens, vision.d_model, dtype=vision.dtype, device=vision.device)
    return Baselines(
        [like.new_zeros(vision.n_tokens, sae.n_features) for sae in saes], [like] * len(saes)
    )


def trace(vision: VisionModel, saes: Sequence[TopKSAE], image: Float[Tensor, "3 H W"]) -> Trace:
    """Run the untouched model on one image and encode its residual stream at every layer.

    Parameters
    ----------
    vit, saes
        The model and its B-1 SAEs.
    image
        The model's input, [3, H, W].
    """
    with torch.no_grad():
        residuals = vision.residuals(image[None])
        coded = [sae(x[0]) for sae, x in zip(saes, residuals[:-1], strict=True)]
        logits = vision.readout(residuals[-1])[0]
    return Trace(
        output=residuals[-1][0],
        layers=tuple(range(len(saes))),
        logits=logits,
        residuals=tuple(x[0] for x in residuals[:-1]),
        features=tuple(out.features for out in coded),
        errors=tuple(out.error for out in coded),
        means=tuple(out.mean for out in coded),
        stds=tuple(out.std for out in coded),
        image=image,
    )


def fit_baselines(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    batches: Iterable[Float[Tensor, "n 3 H W"]],
    *,
    tokens_at_once: int = 16,
    progress: bool = True,
) -> Baselines:
    """Lower median of every feature and error at every position over a sample of images.

    Parameters
    ----------
    vit, saes
        The model and its B-1 SAEs.
    batches
        Batches of the model's input; all of them count (paper: 1,024 images).
    tokens_at_once
        Positions for which the features of all images are held together; the stream itself is
        kept for all: images x T x D numbers a layer.
    progress
        Show a progress bar.

    Raises
    ------
    ModelError
        If there is no image.
    """
    streams: list[list[Tensor]] = [[] for _ in saes]
    for batch in tqdm(batches, desc="images for baselines", disable=not progress):
        for kept, x in zip(streams, vision.residuals(batch)[:-1], strict=True):
            kept.append(x)
    if not streams[0]:
        raise ModelError("Baselines need at least one image.")
    features, errors = [], []
    with torch.no_grad():
        for sae, kept in zip(
            tqdm(saes, desc="medians", disable=not progress), streams, strict=True
        ):
            stream = torch.cat(kept)
            kept.clear()
            medians = [_medians(sae, part) for part in stream.split(tokens_at_once, dim=1)]
            features.append(torch.cat([of_features for of_features, _ in medians]))
            errors.append(torch.cat([of_error for _, of_error in medians]))
    return Baselines(features, errors)


def _medians(
    sae: TopKSAE, stream: Float[Tensor, "n t D"]
) -> tuple[Float[Tensor, "t F"], Float[Tensor, "t D"]]:
    """Lower medians over images; a function of its own, so that the pass is let go of after it."""
    out = sae(stream)
    return out.features.median(0).values, out.error.median(0).values


def run_with(
    vision: VisionModel,
    saes: Sequence[TopKSAE],
    images: Float[Tensor, "n 3 H W"],
    keep: Sequence[Bool[Tensor, "*n F"]],
    baselines: Baselines,
    *,
    errors: ErrorNodes | Sequence[ErrorNodes] = "clean",
    clean_errors: Sequence[Float[Tensor, "*n T D"]] | None = None,
) -> Float[Tensor, "n C"]:
    """Logits of the replacement model with all but the kept features at their baselines.

    The running stream is re-encoded at every layer, so a replaced feature changes what later
    layers see (METHOD "Residual replacement"; RRM paper, section 3).

    Parameters
    ----------
    images
        The model's input; give one image several times to run several circuits at once.
    keep
        For each layer a mask [F_l] or one a row [n, F_l]: True keeps the feature.
    errors
        What error nodes hold, for all layers or for each: "clean", the values in
        `clean_errors`; "free", what the running stream gives; "baseline", the baseline's.
    clean_errors
        Error nodes of the original images, [T, D] or [n, T, D] a layer; needed for "clean".

    Raises
    ------
    FeatureError
        If `errors` is unknown, or what "clean" needs is missing.
    """
    held = error_nodes(errors, len(saes))
    if "clean" in held and clean_errors is None:
        raise FeatureError('errors="clean" needs the error nodes of the original image.')
    with torch.no_grad():
        stem = vision.embed(images)
        stream = stem.tokens
        for layer, (block, sae) in enumerate(zip(stem.blocks[:-1], saes, strict=True)):
            stream = block(stream)
            features, mean, std = sae.encode_with_stats(stream)
            error: Tensor
            if held[layer] == "free":
                error = stream - sae.decode(features, mean, std)
            elif held[layer] == "baseline" or clean_errors is None:
                error = baselines.errors[layer]
            else:
                error = clean_errors[layer]
            mask = keep[layer].unsqueeze(-2)
            features = torch.where(mask, features, baselines.features[layer])
            stream = sae.decode(features, mean, std) + error
        return vision.readout(stem.blocks[-1](stream))


def error_nodes(errors: ErrorNodes | Sequence[ErrorNodes], n_layers: int) -> list[ErrorNodes]:
    """Return what the error node of each layer holds; raises `FeatureError` if it is unknown."""
    held = [errors] * n_layers if isinstance(errors, str) else list(errors)
    if len(held) != n_layers:
        raise FeatureError(f"errors must be given for all {n_layers} layers, not {len(held)}.")
    for choice in held:
        if choice not in get_args(ErrorNodes):
            raise FeatureError(f"errors must be one of {get_args(ErrorNodes)}, not {choice!r}.")
    return held
