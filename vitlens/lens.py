"""The Lens: a model with its SAEs and baselines, and the verbs a user calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from vitlens import replacement
from vitlens.about import About, Sample
from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.importances import Importances, importances
from vitlens.attribution.targets import TargetLike, resolve_target
from vitlens.circuits.build import build_circuit
from vitlens.circuits.circuit import Circuit
from vitlens.circuits.curves import DEFAULT_Q, faithfulness
from vitlens.circuits.methods import Method
from vitlens.circuits.prune import walk
from vitlens.circuits.results import Curves
from vitlens.errors import ModelError
from vitlens.files import fingerprint
from vitlens.images import ImageLike, Transform, to_tensor
from vitlens.models.adapter import ViT
from vitlens.replacement import Baselines, ErrorNodes, Trace
from vitlens.saes.files import load_saes
from vitlens.saes.stream import batched
from vitlens.saes.topk import TopKSAE, check_saes


class Lens:
    """Look inside one Vision Transformer.

    Parameters
    ----------
    model
        A timm `VisionTransformer` or a model built like one, in `eval` mode; or a `ViT`. It is
        never modified.
    saes
        One `TopKSAE` after each block but the last; or a folder or hub name to load them from.
        They are copied if their dtype or device is not the model's.
    baselines
        What replaced features are set to; zero if there are none (see `fit_baselines`).
    class_names
        A name a class; classes are numbered without.
    transform
        Turns an RGB PIL image into the model's input; by default the one timm's configuration
        of the model describes.
    head
        Optional function of the model's output, [n, C_model] -> [n, C]; see `ViT`.
    about
        Name, samples and model card, as bundles have them.

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model.
    ModelError
        If baselines or class names do not fit the model.

    Examples
    --------
    >>> lens = vitlens.load("everyday")
    >>> print(lens.circuit(lens.samples[0].path, nodes_per_layer=8))
    """

    def __init__(
        self,
        model: nn.Module | ViT,
        saes: Sequence[TopKSAE] | str | Path,
        *,
        baselines: Baselines | None = None,
        class_names: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Tensor] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        about: About | None = None,
    ):
        self.vit = model if isinstance(model, ViT) else ViT(model, head=head)
        if isinstance(saes, str | Path):
            saes = load_saes(saes)
        check_saes(saes, depth=self.vit.depth, width=self.vit.width)
        self.saes = tuple(_like(sae, self.vit) for sae in saes)
        self.class_names = self._checked_names(class_names)
        self.transform = transform or Transform.from_timm(self.vit.model)
        self.baselines = baselines or replacement.zero_baselines(self.vit, self.saes)
        self.about = about or About()

    @property
    def baselines(self) -> Baselines:
        """What replaced features and error nodes are set to."""
        return self._baselines

    @baselines.setter
    def baselines(self, baselines: Baselines) -> None:
        replacement.check_baselines(self.vit, self.saes, baselines)
        self._baselines = baselines.to(dtype=self.vit.dtype, device=self.vit.device)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Sample images of the bundle."""
        return self.about.samples

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the model's and the SAEs' weights; circuits carry it."""
        weights = {f"model.{name}": w for name, w in self.vit.model.state_dict().items()}
        for layer, sae in enumerate(self.saes):
            weights |= {f"sae.{layer}.{name}": w for name, w in sae.state_dict().items()}
        return fingerprint(weights)

    def tensor(self, image: ImageLike) -> Float[Tensor, "3 H W"]:
        """Any image as the model's input; see `vitlens.images.to_tensor`.

        Raises
        ------
        ImageError
            If the image cannot be read or has no finite pixels.
        """
        return to_tensor(image, self.transform, dtype=self.vit.dtype, device=self.vit.device)

    def picture(self, image: ImageLike) -> UInt8[Tensor, "H W 3"] | None:
        """The image as the model sees it; None for a transform that cannot be undone."""
        if not isinstance(self.transform, Transform):
            return None
        picture = self.transform.picture(self.tensor(image))
        flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return flat.reshape(picture.height, picture.width, 3)

    def predict(self, image: ImageLike) -> list[tuple[str, float]]:
        """Class names and probabilities, best first."""
        return self._ranking(self.vit.logits(self.tensor(image)[None])[0])

    def trace(self, image: ImageLike) -> Trace:
        """Residual streams, features and errors of every layer, and the logits."""
        return replacement.trace(self.vit, self.saes, self.tensor(image))

    def importances(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "exact",
        progress: bool = False,
    ) -> Importances:
        """Importance of every node and edge for the target.

        Parameters
        ----------
        target
            Class index, class name or function of the logits [C]; by default the predicted
            class. A class stands for its logit minus the mean of all logits.
        gradient
            "libragrad" or "plain".
        errors
            Error nodes as "leaf", or gradients "through" them.
        engine
            "exact", "jvp" or "vjp".
        progress
            Show a progress bar over the layers.

        Raises
        ------
        TargetError
            If there is no such class, or the function gives no scalar.
        ModelError
            If a setting is unknown, or the engine does not know the model's blocks.
        """
        trace = self.trace(image)
        return importances(
            self.vit,
            self.saes,
            trace,
            self.baselines,
            resolve_target(target, trace.logits, self.class_names),
            gradient=gradient,
            errors=errors,
            engine=engine,
            progress=progress,
        )

    def conservation(
        self, image: ImageLike, *, target: TargetLike = None, errors: ErrorPaths = "leaf"
    ) -> dict[str, Float[Tensor, " L"]]:
        """How far each layer's nodes are from adding up to the target, for both gradients.

        Returns
        -------
        dict
            For "libragrad" and "plain" the conservation residual of every layer, [B-1]: the
            target's value minus the sum of the node importances, divided by the target's value.
        """
        trace = self.trace(image)
        resolved = resolve_target(target, trace.logits, self.class_names)
        relative = {}
        for gradient in get_args(Gradient):
            found = importances(
                self.vit,
                self.saes,
                trace,
                self.baselines,
                resolved,
                gradient=gradient,
                errors=errors,
                edges=False,
            )
            relative[gradient] = found.residual / found.target_value
        return relative

    def run_with(
        self,
        image: ImageLike,
        keep: Sequence[Iterable[int] | Tensor],
        *,
        errors: ErrorNodes = "clean",
    ) -> Float[Tensor, " C"]:
        """Logits of the model run on a circuit: all but the kept features at their baselines.

        Parameters
        ----------
        keep
            Indices of the features to keep, or a boolean mask [F_l], for each layer.
        errors
            What error nodes hold: "clean", "free" or "baseline".

        Raises
        ------
        FeatureError
            If a feature does not exist, or layers are missing.
        """
        masks = replacement.keep_masks(self.saes, keep, self.vit.device)
        trace = self.trace(image)
        return replacement.run_with(
            self.vit,
            self.saes,
            trace.image[None],
            masks,
            self.baselines,
            errors=errors,
            clean_errors=trace.errors,
        )[0]

    def circuit(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        nodes_per_layer: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "exact",
        progress: bool = False,
    ) -> Circuit:
        """The pruned circuit behind a prediction.

        Parameters
        ----------
        target, gradient, errors, engine, progress
            As for `importances`.
        nodes_per_layer, share, threshold
            How many nodes to keep in every layer: a count, a share of the layer's nodes, or the
            smallest set that reaches this part of the positive importance. At most one of them;
            by default 8 nodes a layer.

        Raises
        ------
        FeatureError
            If more than one rule is given, or it is out of range.
        """
        if nodes_per_layer is None and share is None and threshold is None:
            nodes_per_layer = 8
        found = self.importances(
            image, target=target, gradient=gradient, errors=errors, engine=engine, progress=progress
        )
        kept = walk(
            found.nodes, found.edges, count=nodes_per_layer, share=share, threshold=threshold
        )
        logits = self.vit.logits(self.tensor(image)[None])[0]
        rule = {"nodes_per_layer": nodes_per_layer, "share": share, "threshold": threshold}
        return build_circuit(
            found,
            kept,
            found.edges,
            grid=self.vit.grid,
            n_prefix=self.vit.n_prefix,
            prefix_names=self.vit.prefix_names,
            prediction=self._ranking(logits)[0],
            logits=logits,
            picture=self.picture(image),
            settings={
                "gradient": gradient,
                "errors": errors,
                "engine": engine,
                **{name: value for name, value in rule.items() if value is not None},
            },
            model=self.fingerprint,
        )

    def faithfulness(
        self,
        images: Iterable[ImageLike],
        *,
        methods: Sequence[str | Method] = ("rrm", "cla", "random"),
        labels: Sequence[int | str] | None = None,
        target: TargetLike = None,
        errors: ErrorNodes = "clean",
        engine: Engine = "exact",
        q: Sequence[float] = DEFAULT_Q,
        batch_size: int = 16,
        seed: int = 0,
        out: str | Path | None = None,
        progress: bool = True,
    ) -> Curves:
        """Insertion and deletion curves; see `vitlens.circuits.curves.faithfulness`.

        Parameters
        ----------
        labels
            Class indices or names; images classified otherwise are left out.
        """
        return faithfulness(
            self.vit,
            self.saes,
            self.baselines,
            [self.tensor(image) for image in images],
            methods=methods,
            labels=None if labels is None else [self.class_index(label) for label in labels],
            target=target,
            class_names=self.class_names,
            errors=errors,
            engine=engine,
            q=q,
            batch_size=batch_size,
            seed=seed,
            out=out,
            progress=progress,
        )

    def fit_baselines(
        self, images: Iterable[ImageLike], *, batch_size: int = 16, progress: bool = True
    ) -> Baselines:
        """Take medians over a sample of images as baselines, use them from now on, return them.

        Parameters
        ----------
        images
            The sample (paper: 1,024 images).
        """
        tensors = (self.tensor(image) for image in images)
        self.baselines = replacement.fit_baselines(
            self.vit,
            self.saes,
            batched(tensors, batch_size, self.vit.image_size),
            progress=progress,
        )
        return self.baselines

    def class_index(self, label: int | str) -> int:
        """Index of a class given by name or index; raises `TargetError` for an unknown one."""
        n_classes = len(self.class_names) if self.class_names else self.vit.n_classes
        index = resolve_target(label, torch.zeros(n_classes), self.class_names).index
        assert index is not None  # a label is no function
        return index

    def __repr__(self) -> str:
        sizes = ", ".join(str(sae.size) for sae in self.saes)
        return (
            f"Lens({self.about.name or type(self.vit.model).__name__}: {self.vit.depth} blocks, "
            f"{self.vit.n_tokens} tokens x {self.vit.width}, features {sizes})"
        )

    def _ranking(self, logits: Float[Tensor, " C"]) -> list[tuple[str, float]]:
        order = logits.argsort(descending=True).tolist()
        names = self.class_names or [f"class {i}" for i in range(len(logits))]
        probabilities = logits.softmax(-1).tolist()
        return [(names[i], probabilities[i]) for i in order]

    def _checked_names(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        if names is not None and len(names) != self.vit.n_classes:
            raise ModelError(
                f"{len(names)} class names were given for the model's {self.vit.n_classes} classes."
            )
        return None if names is None else tuple(names)


def _like(sae: TopKSAE, vit: ViT) -> TopKSAE:
    if (sae.W_enc.dtype, sae.W_enc.device) == (vit.dtype, vit.device):
        return sae
    return copy.deepcopy(sae).to(dtype=vit.dtype, device=vit.device)
