"""Models by name, from timm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vitlens.errors import ModelError, NetworkError, near_matches


def create(
    name: str, *, pretrained: bool = True, timm_options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Create a timm model in `eval` mode.

    Parameters
    ----------
    name
        A name timm knows ("vit_base_patch16_224"), a hub name ("hf-hub:user/model"), or a folder
        of timm's ``config.json`` and weights ("local-dir:path").
    pretrained
        Load the published weights; they come from the hub, or from its local cache.
    timm_options
        Further arguments of `timm.create_model`.

    Raises
    ------
    ModelError
        If timm has no such model (near matches are named), or a folder does not hold one.
    NetworkError
        If the weights are not cached and the hub cannot be reached.
    """
    import timm

    check_name(name)
    try:
        return timm.create_model(name, pretrained=pretrained, **(timm_options or {})).eval()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        if name.startswith("local-dir:"):
            why = str(error).rstrip(".") or type(error).__name__
            raise ModelError(
                f"{name!r} could not be loaded: {why}. The folder must hold the config.json and "
                "weights of a model that timm saved."
            ) from error
        if not isinstance(error, OSError | RuntimeError):
            raise
        if not pretrained or isinstance(error, MemoryError):
            raise
        raise NetworkError(
            f"The weights of {name!r} could not be loaded ({type(error).__name__}: {error}). "
            "Without a network, load them yourself and pass the model to `vitlens.Lens`, or use "
            '`vitlens.load("everyday")`, which needs none.'
        ) from error


def check_name(name: str, *, also: Iterable[str] = ()) -> None:
    """Check that timm knows a model of this name, or could load it.

    Parameters
    ----------
    name
        See `create`.
    also
        Names to suggest besides those of timm.

    Raises
    ------
    ModelError
        If timm has no such model; near matches are named.
    """
    import timm

    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        near = near_matches(name, [*also, *timm.list_models()])
        raise ModelError(f"There is no model {name!r}.{near}")
