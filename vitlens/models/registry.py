"""Models by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitlens.errors import ModelError, NetworkError, near_matches


def create(name: str, *, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """Create a timm model in `eval` mode.

    Parameters
    ----------
    name
        A name timm knows ("vit_base_patch16_224") or a hub name ("hf-hub:user/model").
    pretrained
        Load the published weights; they come from the hub, or from its local cache.
    kwargs
        Further arguments of `timm.create_model`.

    Raises
    ------
    ModelError
        If timm knows no such model; near matches are named.
    NetworkError
        If the weights are not cached and the hub cannot be reached.
    """
    import timm

    if not name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(name):
        raise ModelError(f"There is no model {name!r}.{near_matches(name, timm.list_models())}")
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs).eval()
    except (OSError, RuntimeError) as error:
        if not pretrained or isinstance(error, MemoryError):
            raise
        raise NetworkError(
            f"The weights of {name!r} could not be loaded ({type(error).__name__}: {error}). "
            "Without a network, load them yourself and pass the model to `vitlens.Lens`, or use "
            '`vitlens.load("everyday")`, which needs none.'
        ) from error
