"""What a Lens is made of: a model with its SAEs, baselines and names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from vitlens import replacement
from vitlens.about import About, Sample
from vitlens.attribution.targets import find_class
from vitlens.errors import ModelError
from vitlens.images import ImageLike, Transform, as_images, to_tensor
from vitlens.interventions.hooks import isolated
from vitlens.io import fingerprint
from vitlens.models.vision import VisionModel, as_vision_model
from vitlens.replacement import Baselines, Trace
from vitlens.saes.data import batched
from vitlens.saes.io import resolve_saes
from vitlens.saes.topk import TopKSAE

if TYPE_CHECKING:
    from vitlens.atlas.atlas import Atlas


class LensBase:
    """A model with its SAEs, baselines and names, and how images go in; see `Lens`."""

    _hashed: tuple[Any, str] = (None, "")

    def __init__(
        self,
        model: nn.Module | VisionModel,
        saes: Iterable[TopKSAE] | str | Path,
        *,
        baselines: Baselines | str | Path | None = None,
        class_names: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Tensor] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        about: About | None = None,
    ):
        self.vision = as_vision_model(model, head=head)
        _, found = resolve_saes(saes, self.vision)
        self.saes = tuple(_like(sae, self.vision) for sae in found)
        self.class_names = self._checked_names(class_names)
        self.transform = transform or Transform.from_timm(self.vision.module)
        if baselines is None:
            baselines = replacement.zero_baselines(self.vision, self.saes)
        self.baselines = baselines
        self.about = about or About()
        self._atlas: Atlas | Callable[[], Atlas | None] | None = None

    @property
    def baselines(self) -> Baselines:
        """What replaced features and error nodes are set to.

        It may be set to `Baselines`, or to a file of them; those of another model or other SAEs
        are a `ModelError`.
        """
        return self._baselines

    @baselines.setter
    def baselines(self, baselines: Baselines | str | Path) -> None:
        if isinstance(baselines, str | Path):
            baselines = Baselines.load(baselines)
        if not isinstance(baselines, Baselines):
            raise ModelError(
                "Baselines are a `vitlens.Baselines` or the file of one, not "
                f"{type(baselines).__name__}. `lens.fit_baselines(images)` makes some."
            )
        replacement.check_baselines(self.vision, self.saes, baselines)
        self._baselines = baselines.to(dtype=self.vision.dtype, device=self.vision.device)

    @property
    def atlas(self) -> Atlas | None:
        """What every feature stands for, if there is an atlas.

        It may be set to an `Atlas`, to the folder of one, or to None; an atlas of another model
        or other SAEs is a `CheckpointError`.
        """
        if callable(self._atlas):
            self.atlas = self._atlas()
        assert not callable(self._atlas)
        return self._atlas

    @atlas.setter
    def atlas(self, atlas: Atlas | str | Path | None) -> None:
        if isinstance(atlas, str | Path):
            from vitlens.atlas.atlas import Atlas as Opened

            atlas = Opened.load(atlas)
        if atlas is not None:
            atlas.lens = self
        self._atlas = atlas

    def atlas_later(self, opened: Callable[[], Atlas | None]) -> None:
        """Take the atlas that `opened` gives when it is first asked for."""
        self._atlas = opened

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Sample images of the bundle."""
        return self.about.samples

    @property
    def fingerprint(self) -> str:
        """Hash of model, head and SAEs as they are now; circuits carry it.

        A head that is a plain function has no weights and does not count.
        """
        weights = {f"model.{name}": w for name, w in self.vision.module.state_dict().items()}
        for layer, sae in enumerate(self.saes):
            weights |= {f"sae.{layer}.{name}": w for name, w in sae.state_dict().items()}
        if isinstance(self.vision.head, nn.Module):
            weights |= {f"head.{name}": w for name, w in self.vision.head.state_dict().items()}
        # Hashing is slow. What PyTorch counts tells whether weights have changed since the last
        # time, unless they were changed through `.data`.
        state = [(name, w.data_ptr(), _changes(w)) for name, w in weights.items()]
        ks = {f"sae.{layer}.k": sae.k for layer, sae in enumerate(self.saes)}
        if (state, ks) != self._hashed[0]:
            numbers = {name: torch.tensor(k) for name, k in ks.items()}
            self._hashed = (state, ks), fingerprint(weights | numbers)
        return self._hashed[1]

    def tensor(self, image: ImageLike) -> Float[Tensor, "3 H W"]:
        """Any image as the model's input; see `vitlens.images.to_tensor`.

        Raises
        ------
        ImageError
            If the image cannot be read or has no finite pixels.
        """
        tensor = to_tensor(
            image, self.transform, dtype=self.vision.dtype, device=self.vision.device
        )
        # Autograd keeps no tensor that was made in inference mode.
        return tensor.clone() if tensor.is_inference() else tensor

    def picture(self, image: ImageLike) -> UInt8[Tensor, "H W 3"] | None:
        """The image as the model sees it; None for a transform that cannot be undone."""
        if not isinstance(self.transform, Transform):
            return None
        picture = self.transform.picture(self.tensor(image))
        flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return flat.reshape(picture.height, picture.width, 3)

    def predict(self, image: ImageLike) -> list[tuple[str, float]]:
        """Class names and probabilities, best first."""
        return self._ranking(self.vision.logits(self.tensor(image)[None])[0])

    def trace(self, image: ImageLike) -> Trace:
        """Residual streams, features and errors of every layer, and the logits."""
        return replacement.trace(self.vision, self.saes, self.tensor(image))

    @isolated
    def fit_baselines(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> Baselines:
        """Take medians over a sample of images as baselines, use them from now on, return them.

        Parameters
        ----------
        images
            The sample (paper: 1,024 images).

        Raises
        ------
        ImageError
            If an image cannot be read.
        ModelError
            If there is no image.
        """
        tensors = (self.tensor(image) for image in as_images(images))
        self.baselines = replacement.fit_baselines(
            self.vision,
            self.saes,
            batched(tensors, batch_size, self.vision.image_size),
            progress=progress,
        )
        return self.baselines

    @property
    def logit_names(self) -> tuple[str, ...]:
        """A name for each of the C logits: its class's, or "class 0", "class 1" and so on."""
        return self.class_names or tuple(f"class {i}" for i in range(self.vision.n_classes))

    def class_index(self, label: int | str) -> int:
        """Index of a class given by name or index.

        Raises
        ------
        TargetError
            If there is no such class, or several go by the name.
        """
        return find_class(label, self.vision.n_classes, self.class_names)

    def __repr__(self) -> str:
        sizes = ", ".join(str(sae.n_features) for sae in self.saes)
        return (
            f"Lens({self.about.name or type(self.vision.module).__name__}: {self.vision.depth} blocks, "
            f"{self.vision.n_tokens} tokens x {self.vision.d_model}, features {sizes})"
        )

    def _ranking(self, logits: Float[Tensor, " C"]) -> list[tuple[str, float]]:
        return self._named(logits.softmax(-1))

    def _named(self, values: Float[Tensor, " C"]) -> list[tuple[str, float]]:
        """Class names and values, the highest first."""
        names = self.logit_names
        ordered = values.sort(descending=True)
        return [
            (names[i], value)
            for i, value in zip(ordered.indices.tolist(), ordered.values.tolist(), strict=True)
        ]

    def _checked_names(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        if names is None:
            return None
        if isinstance(names, str | Mapping | Set):
            raise ModelError(
                f"Class names are a list in the order of the logits, not {type(names).__name__}."
            )
        if len(names) != self.vision.n_classes:
            raise ModelError(
                f"{len(names)} class names were given for the model's {self.vision.n_classes} classes."
            )
        return tuple(names)


def _like(sae: TopKSAE, vision: VisionModel) -> TopKSAE:
    if (sae.W_enc.dtype, sae.W_enc.device) == (vision.dtype, vision.device):
        return sae
    return copy.deepcopy(sae).to(dtype=vision.dtype, device=vision.device)


def _changes(weight: Tensor) -> object:
    """How often a tensor was changed; where nobody counts, something unlike all else."""
    return object() if weight.is_inference() else weight._version
