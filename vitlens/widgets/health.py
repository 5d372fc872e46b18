"""How far a lens can be trusted: what was measured of its SAEs, and what one image shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitlens.attribution.importances import Importances
from vitlens.lens import Lens


def health(lens: Lens, found: Importances | None) -> dict[str, Any]:
    """Return the health of every layer, for the browser.

    Parameters
    ----------
    lens
        The lens; its figures are those of the bundle, where it has any.
    found
        Importances of the image in sight; None while there are none.

    Returns
    -------
    dict
        ``layers``: by layer ``size``, ``k``, ``explained_variance``, ``dead_fraction``,
        ``accuracy_kept`` (of the model with this SAE alone and no error node) and
        ``residual`` (what the layer's importances lack of the target, over the target's value;
        None where that is 0).
        ``accuracy`` of the model and ``accuracy_all`` with all SAEs and no error nodes, on
        ``n_images``. None stands for what was not measured; ``missing`` says so in words.
    """
    measured: Mapping[str, Any] = lens.about.figures.get("saes") or {}
    by_layer = {figures["layer"]: figures for figures in measured.get("layers", ())}
    residuals = None
    if found is not None and found.target_value != 0:
        residuals = (found.residual / found.target_value).tolist()
    layers = []
    for layer, sae in enumerate(lens.saes):
        figures = by_layer.get(layer, {})
        layers.append(
            {
                "layer": layer,
                "size": sae.n_features,
                "k": sae.k,
                "explained_variance": figures.get("explained_variance"),
                "dead_fraction": figures.get("dead_fraction"),
                "accuracy_kept": figures.get("accuracy_kept"),
                "residual": None if residuals is None else residuals[layer],
            }
        )
    return {
        "layers": layers,
        "accuracy": measured.get("accuracy"),
        "accuracy_all": measured.get("accuracy_all"),
        "n_images": measured.get("n_images"),
        "labelled": measured.get("labelled", True),
        "missing": _missing(layers, measured),
    }


def _missing(layers: list[dict[str, Any]], measured: Mapping[str, Any]) -> list[str]:
    wanted = {
        "explained variance": any(layer["explained_variance"] is None for layer in layers),
        "accuracy kept by each SAE": any(layer["accuracy_kept"] is None for layer in layers),
        "accuracy with all SAEs": measured.get("accuracy_all") is None,
    }
    return [what for what, is_missing in wanted.items() if is_missing]
