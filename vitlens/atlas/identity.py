"""Is this atlas of this model? Hashes of the network and of every SAE, and what to say if not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitlens.errors import CheckpointError
from vitlens.io import fingerprint

if TYPE_CHECKING:
    from vitlens.atlas.store import Header
    from vitlens.lens_base import LensBase


def network_fingerprint(lens: LensBase) -> str:
    """Hash of the network's weights in float32, so that a lens in float64 is the same."""
    weights = lens.vision.module.state_dict()
    return fingerprint({name: w.float() for name, w in weights.items()})


def sae_fingerprints(lens: LensBase) -> tuple[str, ...]:
    """Hash of each SAE's weights in float32."""
    return tuple(
        fingerprint({name: w.float() for name, w in sae.state_dict().items()}) for sae in lens.saes
    )


def check_lens(header: Header, lens: LensBase, what: str) -> None:
    """Check that an atlas was made with the model and the SAEs of a lens.

    Raises
    ------
    CheckpointError
        If not; it says which part is another.
    """
    if header.model == lens.fingerprint:
        return
    sizes = tuple(sae.n_features for sae in lens.saes)
    if header.sizes != sizes:
        raise CheckpointError(
            f"{what} is of another model: its layers have {_listed(header.sizes)} features, and "
            f"those of this lens {_listed(sizes)}."
        )
    if header.network != network_fingerprint(lens):
        raise CheckpointError(
            f"{what} is of another model: the network's weights are not those of this lens. "
            "Load the model it was built with, or build an atlas of this one."
        )
    pairs = zip(header.saes, sae_fingerprints(lens), strict=True)
    others = [layer for layer, (theirs, ours) in enumerate(pairs) if theirs != ours]
    if others:
        raise CheckpointError(
            f"{what} is of this network with other SAEs: those of layer {_listed(others)} differ. "
            "Load the SAEs it was built with, or build an atlas with these."
        )


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))
