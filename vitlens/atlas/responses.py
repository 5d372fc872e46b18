"""How strongly every feature of every layer responds to the synthetic stimuli."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.atlas.stimuli import N_STIMULI, Stimuli, model_input
from vitlens.images import Transform
from vitlens.progress import Progress, steps

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase


def stimuli_of(lens: LensBase) -> Stimuli:
    """The stimuli in the size of a lens's model.

    Raises
    ------
    ImageError
        If the model's patches are smaller than 2 pixels.
    """
    height, width = lens.vision.image_size
    rows, columns = lens.vision.grid
    return Stimuli((height, width), (height // rows, width // columns))


def respond(
    lens: LensBase, *, batch_size: int = 16, progress: Progress = True
) -> tuple[Float[Tensor, "F N"], ...]:
    """Show all stimuli to a model.

    Parameters
    ----------
    lens
        The model with its SAEs.
    batch_size
        Stimuli that go through the model together.
    progress
        Show a progress bar; or a function, see `vitlens.progress`.

    Returns
    -------
    tuple of Tensor
        For each layer [F, N_STIMULI], on the CPU in float32: a feature's largest activation over
        the patch tokens. Stimuli go in as drawn, without the transform's resizing and cropping;
        only a transform that is no `Transform` gets them as pictures.
    """
    stimuli = stimuli_of(lens)
    responses = [torch.zeros(sae.n_features, N_STIMULI) for sae in lens.saes]
    batches = torch.arange(N_STIMULI).split(batch_size)
    for numbers in steps(batches, "stimuli", progress):
        images = torch.stack([_input(lens, stimuli, int(i)) for i in numbers])
        stream = lens.vision.residuals(images)[:-1]
        for layer, (sae, x) in enumerate(zip(lens.saes, stream, strict=True)):
            with torch.no_grad():
                strongest = sae.encode(x[:, lens.vision.n_prefix :]).amax(1)
            responses[layer][:, numbers] = strongest.T.float().cpu()
    return tuple(responses)


def _input(lens: LensBase, stimuli: Stimuli, number: int) -> Float[Tensor, "3 H W"]:
    transform = lens.transform
    if isinstance(transform, Transform):
        ready = model_input(stimuli.picture(number), mean=transform.mean, std=transform.std)
        return lens.tensor(ready)
    return lens.tensor(stimuli.image(number))
