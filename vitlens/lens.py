"""The Lens: a vision model with SAEs and baselines, and the verbs a user calls."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, overload

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from vitlens.circuits.carried import Carried, Specificity, carried, specificity
from vitlens.circuits.circuit import Circuit, Explanation
from vitlens.circuits.curves import Curves
from vitlens.circuits.faithfulness import DEFAULT_Q, Method, faithfulness
from vitlens.circuits.graph import AttributionGraph, Scores, attribution_graph, prune_scores
from vitlens.circuits.prune import DEFAULT_FLOOR, Rules, Select, walk
from vitlens.circuits.selection import select_features
from vitlens.circuits.supernodes import AT_MOST, check_groups, group_features, with_groups
from vitlens.circuits.verify import (
    Link,
    Protocols,
    Verification,
    check_explains,
    verify_circuit,
)
from vitlens.errors import (
    FeatureError,
    ImageError,
    ModelError,
    TargetError,
    check_choice,
    check_count,
)
from vitlens.images import ImageLike, Transform, as_images, to_tensor
from vitlens.interventions.hooks import intervening, isolated, isolated_model, outer_plan
from vitlens.interventions.kinds import InterventionsLike, ProjectTo, interventions
from vitlens.interventions.outcome import BatchOutcome, Outcome
from vitlens.interventions.run import Plan, make_plan
from vitlens.io import fingerprint
from vitlens.method.engines import EdgeColumns
from vitlens.method.importance import (
    Engine,
    ErrorGradients,
    Importances,
    Target,
    TargetLike,
    find_class,
    node_importances,
    resolve_target,
)
from vitlens.method.libragrad import Gradient
from vitlens.method.logit_lens import logit_lens
from vitlens.method.patching import EdgeKind, PatchedEdges
from vitlens.method.path_importance import path_importances
from vitlens.method.replacement import (
    Baselines,
    ErrorNodes,
    KeepFeatures,
    ReplacementModel,
    Trace,
    fit_baselines,
    keep_masks,
    reference_baselines,
)
from vitlens.models.vision import Site, VisionModel, as_vision_model, on_the_cpu
from vitlens.progress import Progress
from vitlens.saes.base import SAE, FeatureId
from vitlens.saes.data import batched
from vitlens.saes.io import resolve_saes

Images: TypeAlias = ImageLike | Iterable[ImageLike]
#: By site, or by layer in a mapping: indices of the features to keep, or a mask.
Keep: TypeAlias = Sequence[Iterable[int] | Tensor] | Mapping[int, Iterable[int] | Tensor]
#: Values of the error nodes: for all sites, or for each.
HeldErrors: TypeAlias = ErrorNodes | Sequence[ErrorNodes]
#: One target for all images, or one per image.
Targets: TypeAlias = TargetLike | Sequence[TargetLike] | Int[Tensor, " n"]

#: Verbs that live on a higher floor, loaded by name so that no import runs up.
_VERBS_ABOVE = {
    "debias": "vitlens.debias",
    "explore": "vitlens.widgets",
}


@dataclass(frozen=True)
class Sample:
    """A sample image of a bundle; it can be given wherever an image is taken.

    Attributes
    ----------
    path
        The image file.
    label
        Its class, "" when it has none.
    credit
        Its source and licence.
    """

    path: Path
    label: str
    credit: str

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class About:
    """Facts about a lens: name, samples, model card and measured figures."""

    name: str = ""
    samples: tuple[Sample, ...] = ()
    card: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


class Lens:
    """Look inside one Vision Transformer.

    Most verbs take one image, or several: a list, a tensor [n, C, H, W], a batch of a DataLoader,
    or a DataLoader. For several images, results have a batch axis (circuits are a list) and equal
    those of one call per image.

    Parameters
    ----------
    model
        A timm `VisionTransformer` or a model built like one, in `eval` mode; or a `VisionModel`.
        It is never modified.
    saes
        A mapping from block numbers to the SAEs after these blocks, with at least one entry; a
        sequence with one SAE after each block but the last; or a folder or hub name to load them
        from. SAEs are copied if their dtype or device differs from the model's.
    baselines
        Values that replace features, or a file of `Baselines`; zero if there are none (see
        `fit_baselines`).
    class_names
        One name per class; without names, classes are numbered.
    transform
        Turns an RGB PIL image into the model's input; by default the one that timm's
        configuration of the model describes.
    head
        Optional function of the model's output, [n, C_model] -> [n, C]; see `VisionModel`. Only
        for a model that is not a `VisionModel` yet.
    about
        Name, samples and model card, as bundles have them.

    Attributes
    ----------
    replacement
        The model with its SAEs and baselines, used for all computations.

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model, or a file is missing or damaged.
    ModelError
        If the model has an unsupported structure or is in training mode, if it computes something
        outside the path that the lens sees (see `check`), or if baselines or class names do not fit
        it.

    Examples
    --------
    >>> lens = vitlens.load("everyday")
    >>> print(lens.circuit(lens.samples[0].path, nodes_per_layer=8))
    """

    @on_the_cpu()
    def __init__(
        self,
        model: nn.Module | VisionModel,
        saes: Mapping[int, SAE] | Iterable[SAE] | str | Path,
        *,
        baselines: Baselines | str | Path | None = None,
        class_names: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Tensor] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        about: About | None = None,
    ):
        vision = as_vision_model(model, head=head)
        layers, found = resolve_saes(saes, vision)
        self.replacement = ReplacementModel(vision, [_like(s, vision) for s in found], layers)
        self.class_names = self._checked_names(class_names)
        self.transform = transform or Transform.from_timm(vision.module)
        self.about = about or About()
        self._atlas: Any = None
        self._hashed: tuple[Any, str] = (None, "")
        self.check()
        if baselines is not None:
            self.baselines = baselines

    # What a lens is made of

    @property
    def vision(self) -> VisionModel:
        """The model."""
        return self.replacement.vision

    @property
    def saes(self) -> tuple[SAE, ...]:
        """The SAEs, by site."""
        return self.replacement.saes

    @property
    def layers(self) -> tuple[int, ...]:
        """Block number of every site."""
        return self.replacement.layers

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the SAEs read and write."""
        return self.replacement.sites

    @property
    def baselines(self) -> Baselines:
        """What replaced features and error nodes are set to; may be set to a file, too."""
        return self.replacement.baselines

    @baselines.setter
    def baselines(self, baselines: Baselines | str | Path) -> None:
        if isinstance(baselines, str | Path):
            baselines = Baselines.load(baselines)
        if not isinstance(baselines, Baselines):
            raise ModelError(
                "Baselines must be a `vitlens.Baselines` or the path of a baseline file, not "
                f"{type(baselines).__name__}. Use `lens.fit_baselines(images)` to compute them."
            )
        self.replacement.baselines = baselines

    @property
    def atlas(self) -> Any:
        """The `vitlens.Atlas` that says what every feature represents, or None.

        Setting it checks that it is an atlas of this model and these SAEs.
        """
        if callable(self._atlas):
            self.atlas = self._atlas()
        return self._atlas

    @atlas.setter
    def atlas(self, atlas: Any) -> None:
        if isinstance(atlas, str | os.PathLike):
            raise ModelError("Open the folder first: `lens.atlas = vitlens.Atlas.load(folder)`.")
        if atlas is not None:
            atlas.lens = self
        self._atlas = atlas

    def set_atlas_opener(self, opener: Callable[[], Any]) -> None:
        """Take the atlas that `opener` returns when `atlas` is first used."""
        self._atlas = opener

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Sample images of the bundle."""
        return self.about.samples

    @property
    def logit_names(self) -> tuple[str, ...]:
        """A name for each of the C logits: its class's, or "class 0", "class 1" and so on."""
        return self.class_names or tuple(f"class {i}" for i in range(self.vision.n_classes))

    @property
    def fingerprint(self) -> str:
        """Hash of model, head and SAEs as they are now; circuits carry it.

        A head that is a plain function has no weights and does not count.
        """
        weights = {f"model.{name}": w for name, w in self.vision.module.state_dict().items()}
        settings = {}
        for layer, sae in zip(self.layers, self.saes, strict=True):
            weights |= {f"sae.{layer}.{name}": w for name, w in sae.state_dict().items()}
            settings[layer] = sae.settings()
        if isinstance(self.vision.head, nn.Module):
            weights |= {f"head.{name}": w for name, w in self.vision.head.state_dict().items()}
        # Hashing is slow. PyTorch's version counters show whether weights have changed since the
        # last time, unless they were changed through `.data`.
        state = [(name, w.data_ptr(), _version(w)) for name, w in weights.items()], settings
        if state != self._hashed[0]:
            self._hashed = state, fingerprint(weights, settings)
        return self._hashed[1]

    @property
    def measured(self) -> Mapping[str, Any]:
        """Measured figures of exactly this model with these SAEs; empty where there are none.

        The figures in `about` count only where the fingerprint stored with them is this lens's. A
        lens of other SAEs, of fewer layers or of another dtype has no measured figures.
        """
        figures = self.about.figures.get("saes") or {}
        if figures.get("fingerprint", "") != self.fingerprint:
            return {}
        return dict(figures)

    def check(self) -> None:
        """Check that what the lens computes is about this model's own output.

        Runs once when a lens is made. On one image of noise, the model's own output is compared
        with that of its tokens, blocks and read-out; tokens are counted; the SAEs must have the
        model's width, dtype and device, and finite weights.

        Raises
        ------
        ModelError
            If a check fails. The message names the computation outside the path that the lens sees,
            or the part that does not fit.
        """
        with isolated_model(self.vision):
            self.vision.check()
        for layer, sae in zip(self.layers, self.saes, strict=True):
            if (sae.W_enc.dtype, sae.W_enc.device) != (self.vision.dtype, self.vision.device):
                raise ModelError(
                    f"The SAE of layer {layer} is {sae.W_enc.dtype} on {sae.W_enc.device}, the "
                    f"model {self.vision.dtype} on {self.vision.device}. Make a new lens of the "
                    "model; to convert a lens, use `lens.to` and not the model's `to`."
                )
            for name, weight in sae.state_dict().items():
                if not torch.isfinite(weight).all():
                    raise ModelError(f"{name} of the SAE of layer {layer} holds NaN or infinity.")

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Lens:
        """Return a lens whose model, SAEs and baselines are on a device and of a dtype.

        Parameters
        ----------
        device, dtype
            Target device and dtype; unchanged if omitted.

        Returns
        -------
        Lens
            A copy, without the atlas; the model of this lens is not modified. Itself if nothing
            changes.
        """
        device = self.vision.device if device is None else torch.device(device)
        dtype = dtype or self.vision.dtype
        like = torch.empty(0, device=device, dtype=dtype)
        if (like.device, dtype) == (self.vision.device, self.vision.dtype):
            return self
        module = copy.deepcopy(self.vision.module).to(device=device, dtype=dtype)
        head: Any = self.vision.head
        if isinstance(head, nn.Module):
            head = copy.deepcopy(head).to(device=device, dtype=dtype)
        return Lens(
            module,
            dict(zip(self.layers, self.saes, strict=True)),
            baselines=self.baselines,
            class_names=self.class_names,
            transform=self.transform,
            head=head,
            about=self.about,
        )

    def __repr__(self) -> str:
        sizes = ", ".join(str(sae.n_features) for sae in self.saes)
        return (
            f"Lens({self.about.name or type(self.vision.module).__name__}: "
            f"{self.vision.depth} blocks, {self.vision.n_tokens} tokens x {self.vision.d_model}, "
            f"SAEs after blocks {', '.join(map(str, self.layers))}, features {sizes})"
        )

    # Images

    @on_the_cpu()
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

    @on_the_cpu()
    def tensors(self, images: Images) -> Float[Tensor, "n 3 H W"]:
        """One image or several as a batch of the model's input.

        Raises
        ------
        ImageError
            If there is no image, or one cannot be read or does not fit the model.
        """
        batch = [self.tensor(image) for image in _listed(images)]
        if not batch:
            raise ImageError("There are no images.")
        (stacked,) = batched(batch, len(batch), self.vision.image_size)
        return stacked

    @on_the_cpu()
    def pixels(self, image: ImageLike) -> UInt8[Tensor, "H W 3"] | None:
        """The image as the model sees it; None for a transform that cannot be undone."""
        if not isinstance(self.transform, Transform):
            return None
        image_seen = self.transform.to_pil(self.tensor(image))
        flat = torch.frombuffer(bytearray(image_seen.tobytes()), dtype=torch.uint8)
        return flat.reshape(image_seen.height, image_seen.width, 3)

    def class_index(self, label: int | str) -> int:
        """Index of a class given by index or name.

        Raises
        ------
        TargetError
            If there is no such class, or several classes have the name.
        """
        return find_class(label, self.vision.n_classes, self.class_names)

    # What the model does

    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], *, batch_size: int = 16
    ) -> list[list[tuple[str, float]]]: ...

    @overload
    def predict(self, images: ImageLike, *, batch_size: int = 16) -> list[tuple[str, float]]: ...

    def predict(
        self, images: Images, *, batch_size: int = 16
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """Class names and probabilities, best first; for several images a list of such lists.

        Parameters
        ----------
        images
            One image or several.
        batch_size
            Number of images per batch.
        """
        parts = batched(map(self.tensor, _listed(images)), batch_size, self.vision.image_size)
        ranked = [self._ranking(row) for part in parts for row in self.vision.logits(part)]
        return ranked[0] if _is_single(images) else ranked

    @on_the_cpu()
    def trace(self, images: Images) -> Trace:
        """Residual streams, features and errors of every site, and the logits.

        Parameters
        ----------
        images
            One image; or several, whose trace has a batch axis.
        """
        traced = self.replacement.trace(self.tensors(images))
        return traced[0] if _is_single(images) else traced

    # Baselines

    @isolated
    def fit_baselines(
        self,
        images: Images,
        *,
        kind: Literal["median", "mean", "zero"] = "median",
        batch_size: int = 16,
        progress: bool = True,
    ) -> Baselines:
        """Fit baselines on a sample of images, use them from now on, and return them.

        Parameters
        ----------
        images
            The sample (paper: 1,024 images).
        kind
            "median" (the paper's), "mean", or "zero", which looks at no image.
        batch_size
            Number of images per batch.
        progress
            Show a progress bar.

        Raises
        ------
        ImageError
            If an image cannot be read.
        ModelError
            If there is no image.
        OptionError
            If the kind is unknown.
        """
        tensors = (self.tensor(image) for image in _each(images))
        self.baselines = fit_baselines(
            self.replacement,
            batched(tensors, batch_size, self.vision.image_size),
            kind=kind,
            progress=progress,
        )
        return self.baselines

    @isolated
    def reference_baselines(self, images: Images) -> Baselines:
        """Use the activations of reference images as baselines from now on, and return them.

        Parameters
        ----------
        images
            One image, whose activations become the baselines; or several: replaced runs are then
            the mean of the runs with each.
        """
        traces = self.replacement.trace(self.tensors(images))
        self.baselines = reference_baselines(traces)
        return self.baselines

    # Attribution

    @isolated
    def importances(
        self,
        images: Images,
        *,
        target: Targets = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> Importances:
        """Importance of every node and edge for the target.

        Parameters
        ----------
        images
            One image; or several, whose importances have a batch axis.
        target
            Class index, class name, or function of the logits [C]; by default the predicted class.
            The target of a class is its logit minus the mean of all logits. A list, or a tensor of
            class indices, gives one target per image.
        gradient
            "libragrad" or "plain".
        error_gradients
            Error nodes as "leaf", or gradients "through" them.
        engine
            "closed_form", "jvp" or "vjp".
        progress
            Show a progress bar over the pairs of sites; or a function that is called with the
            completed share, 0 to 1, and a description of the current step. An exception raised by
            it stops the computation.

        Raises
        ------
        TargetError
            If there is no such class, several classes have the name, or the function gives no
            scalar, or one without a derivative.
        ModelError
            If the engine does not support the model's blocks.
        OptionError
            If a setting is unknown.
        """
        traces = self.replacement.trace(self.tensors(images))
        targets = [
            resolve_target(each, logits, self.class_names)
            for each, logits in zip(_per_image(target, len(traces)), traces.logits, strict=True)
        ]
        nodes = node_importances(
            self.replacement,
            traces,
            targets,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
        )
        found = [
            EdgeColumns(self.replacement, traces[n], nodes[n], progress=progress)
            for n in range(len(traces))
        ]
        edges = [columns.all() for columns in found]
        nodes = replace(
            nodes,
            edges=tuple(torch.stack(pair) for pair in zip(*edges, strict=True)),
            engines=tuple(found[0].engines.values()),
        )
        return nodes[0] if _is_single(images) else nodes

    @isolated
    def node_importances(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
    ) -> tuple[Trace, Importances]:
        """The trace of one image and the importance of its nodes, without any edges.

        Much quicker than `importances`; the engine only matters for edges computed from the result.

        Parameters
        ----------
        image
            One image.
        target, gradient, error_gradients, engine
            See `importances`.

        Raises
        ------
        TargetError, ModelError, OptionError
            As for `importances`.
        """
        trace = self._trace_of_one(image)
        nodes = node_importances(
            self.replacement,
            trace,
            resolve_target(target, trace.logits, self.class_names),
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
        )
        return trace, nodes

    @isolated
    def path_importances(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        steps: int = 8,
        error_nodes: ErrorNodes = "clean",
    ) -> tuple[Float[Tensor, " F"], ...]:
        """Path-integrated importance of every feature: a tensor [F_i] per site.

        It answers for the model on the way from the empty model, with all features at their
        baselines, to the full one; see `vitlens.method.path_importance`.

        Parameters
        ----------
        image
            One image.
        target
            See `importances`.
        steps
            Steps on the path.
        error_nodes
            Values of the error nodes.

        Raises
        ------
        FeatureError
            If `steps` is below 1.
        OptionError
            If `error_nodes` is unknown.
        TargetError
            As for `importances`.
        """
        trace = self._trace_of_one(image)
        wanted = resolve_target(target, trace.logits, self.class_names)
        return path_importances(
            self.replacement, trace, wanted, steps=steps, error_nodes=error_nodes
        )

    @isolated
    def attribute(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        at_most: int | None = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> AttributionGraph:
        """The unpruned graph behind a prediction, to prune again and again without the model.

        Parameters
        ----------
        image
            One image.
        at_most
            Keep only the nodes that a walk of up to this many nodes per layer can reach, and
            compute only their edges; all active nodes if left out.
        target, gradient, error_gradients, engine, progress
            See `importances`.

        Raises
        ------
        FeatureError
            If `at_most` is below 1.
        """
        if at_most is not None:
            check_count("at_most", at_most)
        trace, nodes = self.node_importances(
            image,
            target=target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
        )
        columns = EdgeColumns(self.replacement, trace, nodes, progress=progress)
        graph = attribution_graph(
            self._explanation(image, trace, nodes),
            nodes.nodes,
            nodes.tokens,
            columns,
            trace,
            self.baselines,
            at_most=at_most,
        )
        return replace(graph, settings={**graph.settings, **_engines(columns, engine)})

    @overload
    def circuit(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        target: Targets = None,
        select: Select = "eliminate",
        nodes_per_layer: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        nodes: int | None = None,
        floor: int = DEFAULT_FLOOR,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        error_nodes: ErrorNodes = "clean",
        edges: EdgeKind | None = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> list[Circuit]: ...

    @overload
    def circuit(
        self,
        images: ImageLike,
        *,
        target: Targets = None,
        select: Select = "eliminate",
        nodes_per_layer: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        nodes: int | None = None,
        floor: int = DEFAULT_FLOOR,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        error_nodes: ErrorNodes = "clean",
        edges: EdgeKind | None = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> Circuit: ...

    @isolated
    def circuit(
        self,
        images: Images,
        *,
        target: Targets = None,
        select: Select = "eliminate",
        nodes_per_layer: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        nodes: int | None = None,
        floor: int = DEFAULT_FLOOR,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        error_nodes: ErrorNodes = "clean",
        edges: EdgeKind | None = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> Circuit | list[Circuit]:
        """The circuit behind a prediction; for several images a list of circuits.

        Only the edges that the circuit needs are computed.

        Parameters
        ----------
        images
            One image or several.
        target, gradient, error_gradients, engine, progress
            See `importances`.
        select
            How nodes are selected. "eliminate": repeated elimination of the features with the
            smallest path-integrated importance, for circuits that carry the answer with few nodes;
            some 20 forward and backward passes of the model. "path": path-integrated importance
            once, 8 passes. "walk": the paper's walk back over edges. See
            `vitlens.circuits.selection`.
        nodes_per_layer, share, threshold
            Number of nodes to keep in every layer: a count, a share of the layer's nodes, or, for
            "walk", the smallest set that reaches this part of the positive importance. At most one
            of them; by default 8 nodes per layer. A layer's error node counts.
        nodes, floor
            For "path" and "eliminate": one number of nodes for all layers together, and the least
            number per layer.
        error_nodes
            Values of the error nodes in the runs behind "path" and "eliminate". With "clean" (or
            "free") every layer's error node is a node of the circuit.
        edges
            How the edges between kept nodes are computed. "patched": how far the target falls when
            the edge alone is cut, from few runs for all edges (see `vitlens.method.patching`); the
            error nodes are held for "leaf", and free for "through". "gradient": the importances of
            the paper, with `gradient` and `engine`. By default "gradient" for a walk, else
            "patched". Importances of nodes, and the choice of a walk, do not depend on it.
        node_share
            Leave out kept nodes with a smaller share of their layer's positive importance; one
            per layer always stays.
        edge_share
            Leave out edges with a smaller share, of either sign.

        Raises
        ------
        FeatureError
            If more than one rule is given, one is out of range, or the budget is below the floor.
        OptionError
            If a setting is unknown.
        """
        rules = Rules(
            nodes_per_layer, share, threshold, node_share, edge_share, select, nodes, floor
        )
        check_choice("error_nodes", error_nodes, get_args(ErrorNodes))
        kind = edges or ("gradient" if select == "walk" else "patched")
        check_choice("edges", kind, get_args(EdgeKind))
        given = _listed(images)
        circuits = []
        for image, wanted in zip(given, _per_image(target, len(given)), strict=True):
            trace, nodes_found = self.node_importances(
                image,
                target=wanted,
                gradient=gradient,
                error_gradients=error_gradients,
                engine=engine,
            )
            resolved = resolve_target(wanted, trace.logits, self.class_names)
            selected = None
            if select != "walk":
                selected = select_features(
                    self.replacement,
                    trace,
                    resolved,
                    rules,
                    error_nodes=error_nodes,
                    progress=progress,
                )
            columns = EdgeColumns(self.replacement, trace, nodes_found, progress=progress)
            scores = Scores.of_all(nodes_found.nodes, nodes_found.tokens, columns)
            explanation = self._explanation(image, trace, nodes_found)
            if kind == "patched":
                selected = selected or walk(nodes_found.nodes, columns, **rules.of_walk)
                patched = PatchedEdges(
                    self.replacement,
                    trace,
                    resolved,
                    selected,
                    error_nodes="clean" if error_gradients == "leaf" else "free",
                    progress=progress,
                )
                scores = replace(scores, edges=patched, to_target=patched.to_target())
                settings = {**explanation.settings, "edges": kind}
                explanation = replace(explanation, settings=settings)
            circuit = prune_scores(
                explanation, scores, rules, selected=selected, connected=select != "walk"
            )
            measured = carried(
                self.replacement, trace, resolved, self._masks(circuit), error_nodes=error_nodes
            )
            settings = {**circuit.settings, **_engines(columns, engine)}
            if select != "walk":
                settings["error_nodes"] = error_nodes
            circuits.append(replace(circuit, settings=settings, carried=measured))
        return circuits[0] if _is_single(images) else circuits

    @isolated
    def supernodes(
        self,
        circuit: Circuit,
        image: ImageLike | None = None,
        *,
        at_most: int = AT_MOST,
        names: bool = True,
        groups: Mapping[str, Sequence[FeatureId]] | None = None,
        target: TargetLike = None,
        progress: Progress = False,
    ) -> Circuit:
        """The circuit with its features in groups, a few per layer.

        Features of a layer belong together when they are active in the same places, write the
        same, and lead to the same features (docs/method.md, "Supernodes"): all their edges are
        computed, one forward-mode pass of a layer's blocks per feature. Every kept feature is
        then in exactly one group, possibly alone; error nodes are in none. `Circuit.supernodes`
        gives the sums over each group, `circuit_figure(circuit, supernodes=True)` draws them, and
        `Circuit.rename_groups` gives them other names.

        Parameters
        ----------
        circuit
            A circuit of this lens. Its own groups are replaced.
        image
            The image that the circuit explains; by default the one that the circuit holds.
        at_most
            Largest number of groups per layer.
        names
            Whether to name groups by what their members share: the circuit's labels, and in the
            atlas of this lens their name, class or kind; and by their place on the image.
            Otherwise a group is called after its strongest feature.
        groups
            Groups made by hand, to keep as they are. They count towards `at_most`; ``groups=
            circuit.groups`` keeps those of the circuit.
        target
            Only for a circuit whose target was a function: this function.
        progress
            See `importances`.

        Raises
        ------
        FeatureError
            If the circuit was made for another model or image, or with another kind of baselines,
            `at_most` is below 1, or a group names an error node or a node that is not in the
            circuit.
        ImageError
            If there is no image.
        TargetError
            If the target is missing.
        """
        check_count("at_most", at_most)
        by_hand = check_groups(circuit, groups or {})
        if image is not None:
            trace, resolved = self._explained(circuit, image, target)
        else:
            self._check_made_here(circuit)
            trace = self._trace_of_one(_image_of(circuit, self.transform))
            resolved = self._target_of(circuit, target, trace)
        made = {
            name: circuit.settings[name]
            for name in ("gradient", "error_gradients")
            if name in circuit.settings
        }
        nodes = node_importances(self.replacement, trace, resolved, **made)
        found = group_features(
            circuit,
            self.replacement,
            trace,
            nodes,
            at_most=at_most,
            groups=by_hand,
            progress=progress,
        )
        words = self._words(circuit) if names else None
        return with_groups(circuit, found, by_hand=by_hand, words=words)

    @isolated
    def carried(
        self,
        circuit: Circuit,
        image: ImageLike,
        *,
        target: TargetLike = None,
        error_nodes: ErrorNodes = "clean",
    ) -> Carried:
        """What a circuit's features carry: the answer alone, and without them.

        Parameters
        ----------
        circuit, image
            A circuit, and the image that it explains.
        target
            Only for a circuit whose target was a function: this function.
        error_nodes
            Values of the error nodes in the replaced runs.

        Raises
        ------
        FeatureError
            If the circuit was made for another model, image or kind of baselines.
        OptionError
            If `error_nodes` is unknown.
        TargetError
            If the target is missing.
        """
        check_choice("error_nodes", error_nodes, get_args(ErrorNodes))
        trace, wanted = self._explained(circuit, image, target)
        return carried(
            self.replacement, trace, wanted, self._masks(circuit), error_nodes=error_nodes
        )

    @isolated
    def specificity(
        self,
        circuit: Circuit,
        image: ImageLike,
        others: Images,
        *,
        labels: Sequence[int | str] | None = None,
        target: TargetLike = None,
        n_random: int = 8,
        seed: int = 0,
        error_nodes: ErrorNodes = "clean",
        batch_size: int = 8,
    ) -> Specificity:
        """Whether a circuit gives this answer for this image, or for any image.

        The circuit's features are kept on images of other classes, and random sets of the same
        size on its own image; see `vitlens.circuits.carried`.

        Parameters
        ----------
        circuit, image
            A circuit, and the image that it explains.
        others
            Images; those of the explained class are left out.
        labels
            Their classes, by index or name; by default what the model predicts.
        target
            Only for a circuit whose target was a function: this function. No image is then left
            out.
        n_random
            Number of random sets.
        seed
            Seed of the random sets.
        error_nodes
            Values of the error nodes.
        batch_size
            Runs per batch.

        Raises
        ------
        FeatureError
            If there is no image of another class, or the circuit was made for another model, image
            or kind of baselines.
        ImageError
            If an image cannot be read or has another size.
        OptionError
            If `error_nodes` is unknown.
        TargetError
            If the target is missing, or there is no such class.
        """
        check_choice("error_nodes", error_nodes, get_args(ErrorNodes))
        trace, resolved = self._explained(circuit, image, target)
        given = self.tensors(others)
        classes = None if labels is None else [self.class_index(label) for label in labels]
        if classes is not None and len(classes) != len(given):
            raise FeatureError(f"{len(given)} images need as many labels, not {len(classes)}.")

        def of_other_classes() -> Iterator[tuple[int, Trace]]:
            for n, other in enumerate(given):  # one at a time: traces are large
                if classes is not None and classes[n] == resolved.index:
                    continue
                traced = self.replacement.trace(other[None])[0]
                if classes is not None or int(traced.logits.argmax()) != resolved.index:
                    yield n, traced

        return specificity(
            self.replacement,
            trace,
            resolved,
            self._masks(circuit),
            of_other_classes(),
            n_random=n_random,
            seed=seed,
            error_nodes=error_nodes,
            batch_size=batch_size,
        )

    @isolated
    def logit_lens(
        self, image: ImageLike, layer: int, feature: int, *, gradient: Gradient = "libragrad"
    ) -> list[tuple[str, float]]:
        """Class names and how far a feature by itself moves their logits, largest rise first.

        The feature's contribution to its layer's stream on this image is sent directly to the
        read-out; see `vitlens.method.logit_lens`.

        Parameters
        ----------
        image
            One image.
        layer, feature
            The feature; -1 is the layer's error node.
        gradient
            "libragrad" (the final norm's scale is held fixed) or "plain".

        Raises
        ------
        FeatureError
            If there is no such layer or feature.
        """
        trace = self._trace_of_one(image)
        return self._named(logit_lens(self.replacement, trace, layer, feature, gradient=gradient))

    @isolated
    def conservation(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        error_gradients: ErrorGradients = "leaf",
    ) -> dict[str, Float[Tensor, " L"]]:
        """How far each site's nodes are from adding up to the target, for both gradients.

        Returns
        -------
        dict
            For "libragrad" and "plain" the conservation residual of every site, [L]: the
            target's value minus the sum of the node importances, divided by the target's value.
        """
        relative = {}
        for gradient in get_args(Gradient):
            _, nodes = self.node_importances(
                image, target=target, gradient=gradient, error_gradients=error_gradients
            )
            assert isinstance(nodes.target_value, float)
            relative[gradient] = nodes.residual / nodes.target_value
        return relative

    # Replaced runs

    @overload
    def run_with(
        self,
        images: ImageLike,
        requested: InterventionsLike = (),
        *,
        error_nodes: HeldErrors = "clean",
        batch_size: int = 16,
    ) -> Outcome: ...

    @overload
    def run_with(
        self,
        images: list[Any] | tuple[Any, ...],
        requested: InterventionsLike = (),
        *,
        error_nodes: HeldErrors = "clean",
        batch_size: int = 16,
    ) -> BatchOutcome: ...

    @overload
    def run_with(
        self,
        images: Images,
        *,
        keep: Keep,
        error_nodes: HeldErrors = "clean",
        batch_size: int = 16,
    ) -> Float[Tensor, "*n C"]: ...

    @isolated
    def run_with(
        self,
        images: Images,
        requested: InterventionsLike = (),
        *,
        keep: Keep | None = None,
        error_nodes: HeldErrors = "clean",
        batch_size: int = 16,
    ) -> Outcome | BatchOutcome | Float[Tensor, "*n C"]:
        """Run the model with interventions; or on a circuit, with only some features kept.

        Parameters
        ----------
        images
            One image or several.
        requested
            One of `vitlens.Ablate`, `Project`, `Scale`, `Clamp`, `Steer` and `Patch`, or several:
            ``a + b`` or a list, done in this order. At every layer the running stream is encoded
            again, so that later interventions see what earlier ones did. Without any, the
            model's own output.
        keep
            Instead of interventions, the features to keep: indices or a boolean mask [F_i] for
            each site, or a mapping from layers to them. All others are at their baselines.
        error_nodes
            Values of the error nodes, for all sites or for each site: "clean", their values in the
            untouched model (the paper's default); "free", what the running stream gives, so that
            only the changed features' difference is added to it; "baseline"; "zero". Held error
            nodes do not make up for a feature that drops out of a later layer's top k: small
            changes then have larger and rougher effects than with "free".
        batch_size
            Number of images per batch.

        Returns
        -------
        Outcome, BatchOutcome or Tensor
            Before and after, for one image or for several; with `keep` the logits, [C] or [n, C].

        Raises
        ------
        FeatureError
            If a feature or patch does not exist, layers are missing, or interventions contradict
            each other; the message names both.
        ImageError
            If an image cannot be read.
        """
        tensors = map(self.tensor, _listed(images))
        batches = batched(tensors, batch_size, self.vision.image_size)
        if keep is not None:
            if interventions(requested):
                raise FeatureError("Give interventions or `keep`, not both.")
            change = KeepFeatures(keep_masks(self.replacement, keep))
            rows = [
                self.replacement.run(batch, change, error_nodes=error_nodes) for batch in batches
            ]
            if not rows:
                raise ImageError("There are no images.")
            logits = torch.cat(rows)
            return logits[0] if _is_single(images) else logits
        plan = self.plan(requested, error_nodes=error_nodes)
        runs = [plan.before_and_after(batch) for batch in batches]
        if not runs:
            raise ImageError("There are no images.")
        before, after = (torch.cat(part) for part in zip(*runs, strict=True))
        facts = (self.logit_names, plan.interventions, plan.error_nodes, self.baselines.kind)
        if not _is_single(images):
            return BatchOutcome(before, after, *facts)
        return Outcome(before[0], after[0], *facts)

    @isolated
    def plan(self, requested: InterventionsLike, *, error_nodes: HeldErrors = "clean") -> Plan:
        """Check interventions against this lens, to run them on many batches of tensors.

        `Plan.logits` takes the model's input, [n, 3, H, W]. The parameters, and what is raised,
        are as for `run_with`.
        """
        return make_plan(
            self.replacement,
            requested,
            error_nodes=error_nodes,
            tensor=self.tensor,
        )

    @contextmanager
    def intervene(
        self, requested: InterventionsLike, *, error_nodes: HeldErrors | None = None
    ) -> Iterator[None]:
        """Run the user's own model with interventions, inside a `with` block.

        Every forward pass of the model gives what `run_with` calls "after", for any batch; so
        `predict` and `trace` change, too. All other verbs of the lens, `circuit`, `importances`
        and `run_with` among them, give what they give outside: they see the untouched model.

        Gradients pass through, with the SAEs' std and choice of features as constants. The
        weights are never touched: hooks on the blocks do it, and are removed when the block ends,
        also by an exception; a copy made of the model inside is an untouched model. Blocks nest:
        the inner interventions come after the outer ones. Only passes in the thread that opened
        the block change; with several GPUs or compiled models, none do.

        Parameters
        ----------
        requested
            See `run_with`.
        error_nodes
            See `run_with`; by default "clean", or that of a block around this one. "free" is
            the fastest: the untouched model need not run along.

        Raises
        ------
        FeatureError
            As for `run_with`, or if another lens has a block open on the same model.

        Examples
        --------
        >>> with lens.intervene(vitlens.Ablate((5, 213)), error_nodes="free"):
        ...     logits = model(batch)
        """
        outer = outer_plan(self.vision.module, self.saes)
        around = outer.interventions if outer else ()
        if error_nodes is None:
            error_nodes = outer.error_nodes if outer else "clean"
        with intervening(self.plan(interventions(around, requested), error_nodes=error_nodes)):
            yield

    @isolated
    def verify(
        self,
        circuit: Circuit,
        image: ImageLike,
        *,
        n: int | None = None,
        paths: Sequence[Link] | None = None,
        supernodes: bool = False,
        target: TargetLike = None,
        error_nodes: ErrorNodes | None = None,
        active: Protocols = "both",
        control: bool = True,
        seed: int = 0,
        batch_size: int = 16,
        progress: Progress = False,
    ) -> Verification:
        """Cut a circuit's edges one by one, and compare the effects with their importances.

        Only the one path is cut: the feature at the end of the edge sees the source at its
        baseline, all else is as in the untouched model (path patching; see
        `vitlens.circuits.verify`).

        Parameters
        ----------
        circuit, image
            A circuit, and the image that it explains.
        n
            Number of edges, drawn at random; None for all. Each edge takes a run of the layers
            after it.
        paths
            Paths to check instead of the circuit's edges. Each path has two or more nodes (layer,
            feature) at successive sites. At every site of a path, only the path's feature changes.
            Paths have no control.
        supernodes
            Whether to check the edges between the circuit's groups (`Circuit.supernodes`): all
            edges of their members are cut together, and their sum is the prediction. They have no
            control.
        target
            Only for a circuit whose target was a function: this function.
        error_nodes
            Values of the error nodes at the sites after the edge; by default "clean" for
            importances with error nodes as leaves, "free" for those with gradients through them.
        active
            Which features may be active once an edge is cut: "clean", those that are in the
            untouched model, as importances assume; "running", those of the running stream; "both",
            one after the other: the numbers are those of "clean", and `Verification.running` holds
            the others.
        control
            Also measure as many random edges between active features of the same layers.
        seed
            Seed of the random choices.
        batch_size
            Number of edges per batch.
        progress
            See `importances`.

        Raises
        ------
        FeatureError
            If the circuit was made for another model or image or has no edges, `n` is below 1, or a
            path is not of the circuit's nodes.
        TargetError
            If the target is missing.
        """
        self._check_made_here(circuit)
        trace = self._trace_of_one(image)
        return verify_circuit(
            self.replacement,
            trace,
            self._target_of(circuit, target, trace),
            circuit,
            n=n,
            paths=paths,
            supernodes=supernodes,
            error_nodes=error_nodes,
            active=active,
            control=control,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )

    @isolated
    def faithfulness(
        self,
        images: Images,
        *,
        methods: str | Sequence[str | Method] = ("rrm", "cla", "random"),
        labels: int | str | Sequence[int | str] | None = None,
        target: TargetLike = None,
        error_nodes: ErrorNodes = "clean",
        engine: Engine = "closed_form",
        q: Sequence[float] = DEFAULT_Q,
        batch_size: int = 16,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
        progress: Progress = True,
    ) -> Curves:
        """Insertion and deletion curves; see `vitlens.circuits.faithfulness.faithfulness`.

        Parameters
        ----------
        images
            One image or several.
        methods
            Names or functions, or one name.
        labels
            Class indices or names, or one for one image; images that the model classifies
            otherwise are left out.
        target
            See `importances`; one target for all images.
        error_nodes
            Values of the error nodes: "clean", "free", "baseline" or "zero".
        engine
            How edges are computed.
        q
            Ascending shares, from 0 to 1, of the largest SAE's features.
        batch_size
            Number of replaced runs per batch.
        seed
            Seed of the random order.
        out
            A file to write; an interrupted run continues from it.
        resume
            Whether it does so; otherwise the file is written again.
        progress
            Show a progress bar, or call this function.
        """
        if isinstance(methods, str):
            methods = [methods]
        if isinstance(labels, int | str | np.integer):
            labels = [labels]
        return faithfulness(
            self.replacement,
            [self.tensor(image).cpu() for image in _each(images)],
            methods=methods,
            labels=None if labels is None else [self.class_index(label) for label in labels],
            target=target,
            class_names=self.class_names,
            error_nodes=error_nodes,
            engine=engine,
            q=q,
            batch_size=batch_size,
            seed=seed,
            out=out,
            resume=resume,
            progress=progress,
        )

    # Verbs of higher floors

    @isolated
    def debias(
        self,
        groups: Any,
        *,
        test: Any = None,
        layers: Sequence[int] | None = None,
        picks: Iterable[FeatureId] = (),
        features: Iterable[FeatureId] | None = None,
        circuits: int = 0,
        max_features: int = 20,
        max_drop: float = 0.02,
        alpha: float = 0.01,
        to: ProjectTo = "baseline",
        project: bool = False,
        gradient: Gradient = "plain",
        n_random: int = 5,
        seed: int = 0,
        batch_size: int = 16,
        progress: Progress = True,
    ) -> Any:
        """Find the features that carry a shortcut, and remove them.

        Parameters are those of `vitlens.debias.debias`, which returns a `vitlens.Debiasing`.

        Parameters
        ----------
        groups
            `vitlens.GroupedImages`: the features are chosen on them.
        test
            `vitlens.GroupedImages` to report on.
        layers, picks, features, circuits, max_features, max_drop, alpha
            Which features are candidates, and how many are removed.
        to, project
            What removed features are set to, and whether they are projected out.
        gradient, n_random, seed, batch_size, progress
            How effects are estimated, controls drawn, and images run.
        """
        return _verb("debias")(
            self,
            groups,
            test=test,
            layers=layers,
            picks=picks,
            features=features,
            circuits=circuits,
            max_features=max_features,
            max_drop=max_drop,
            alpha=alpha,
            to=to,
            project=project,
            gradient=gradient,
            n_random=n_random,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )

    @isolated
    def explore(
        self,
        image: ImageLike | None = None,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        error_gradients: ErrorGradients = "leaf",
        engine: Engine = "closed_form",
        at_most: int = 64,
        nodes_per_layer: int = 8,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        selected: FeatureId | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        show: Literal["importance", "activation"] = "importance",
        height: int = 900,
        author: str | None = None,
    ) -> Any:
        """Open the Explorer in a notebook: a `vitlens.widgets.Explorer`.

        Parameters
        ----------
        image
            By default the first sample image.
        target, gradient, error_gradients, engine
            See `importances`.
        at_most, nodes_per_layer, node_share, edge_share
            The largest circuit, and the one to begin with.
        selected, labels, show, height, author
            The initial selection, names of features, what heatmaps show, the height in pixels, and
            the author of names.
        """
        return _verb("explore")(
            self,
            image,
            target=target,
            gradient=gradient,
            error_gradients=error_gradients,
            engine=engine,
            at_most=at_most,
            nodes_per_layer=nodes_per_layer,
            node_share=node_share,
            edge_share=edge_share,
            selected=selected,
            labels=labels,
            show=show,
            height=height,
            author=author,
        )

    # Helpers

    def _trace_of_one(self, image: ImageLike) -> Trace:
        """The trace of an image; `ImageError` for several."""
        return self.replacement.trace(self.tensor(image)[None])[0]

    def _masks(self, circuit: Circuit) -> tuple[Tensor, ...]:
        return keep_masks(
            self.replacement, {layer: circuit.features(layer) for layer in circuit.layers}
        )

    def _explained(
        self, circuit: Circuit, image: ImageLike, target: TargetLike
    ) -> tuple[Trace, Target]:
        """The trace of the image that a circuit explains, and its target, checked."""
        self._check_made_here(circuit)
        trace = self._trace_of_one(image)
        wanted = self._target_of(circuit, target, trace)
        check_explains(circuit, wanted, trace)
        return trace, wanted

    def _target_of(self, circuit: Circuit, target: TargetLike, trace: Trace) -> Target:
        """The target of a circuit: its class, or the function that it was made with."""
        if target is None and circuit.target_index is None:
            raise TargetError(
                f"The circuit's target, {circuit.target!r}, is not a class. Pass the target "
                "function again, as `target`."
            )
        wanted = circuit.target_index if target is None else target
        return resolve_target(wanted, trace.logits, self.class_names)

    def _explanation(self, image: ImageLike, trace: Trace, nodes: Importances) -> Explanation:
        """What circuits and graphs say about the model, the image and the settings."""
        assert isinstance(nodes.target, str) and isinstance(nodes.target_value, float)
        assert not isinstance(nodes.target_index, tuple)
        return Explanation(
            layers=self.layers,
            grid=self.vision.grid,
            prefix_names=self.vision.prefix_names,
            target=nodes.target,
            target_index=nodes.target_index,
            target_value=nodes.target_value,
            prediction=self._ranking(trace.logits)[0],
            logits=trace.logits,
            image=self.pixels(image),
            settings={
                "gradient": nodes.gradient,
                "error_gradients": nodes.error_gradients,
                "engine": nodes.engine,
                "baselines": nodes.baselines,
            },
            model=self.fingerprint,
        )

    def _check_made_here(self, circuit: Circuit) -> None:
        """Raise `FeatureError` for a circuit of another model, SAEs or kind of baselines."""
        if circuit.model and circuit.model != self.fingerprint:
            raise FeatureError(
                "The circuit was made with another model or other SAEs than those of this lens."
            )
        kind = circuit.settings.get("baselines")
        if kind is not None and kind != self.baselines.kind:
            raise FeatureError(
                f"The circuit was made with {kind} baselines, and the lens has "
                f"{self.baselines.kind} baselines. Give the lens those of the circuit: "
                "`lens.baselines = ...`."
            )

    def _words(self, circuit: Circuit) -> dict[FeatureId, tuple[str, ...]]:
        """For each feature of a circuit its label, name, class and kind; "" for none."""
        words: dict[FeatureId, tuple[str, ...]] = {}
        for layer in circuit.layers:
            scores = None if self.atlas is None else self.atlas.scores(layer)
            for feature in circuit.features(layer):
                label = circuit.labels.get((layer, feature), "")
                words[layer, feature] = (label,)
                if scores is None:
                    continue
                proposed = self.atlas.proposals(layer, feature)
                kind = scores.kind(feature).name
                words[layer, feature] += (
                    self.atlas.names.get(layer, feature),
                    proposed[0].text if proposed else "",
                    "" if kind in ("none", "class") else kind,  # a class that has no name
                )
        return words

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
                "Class names must be a list in the order of the logits, not "
                f"{type(names).__name__}."
            )
        if len(names) != self.vision.n_classes:
            raise ModelError(
                f"{len(names)} class names were given for the model's {self.vision.n_classes} "
                "classes."
            )
        return tuple(names)


def _verb(name: str) -> Callable[..., Any]:
    return getattr(import_module(_VERBS_ABOVE[name]), name)


def _engines(columns: EdgeColumns, requested: Engine) -> dict[str, Any]:
    """The engines that computed the pairs of sites, where one is not the requested engine."""
    engines = [columns.engines[position] for position in sorted(columns.engines)]
    return {"engines": engines} if set(engines) - {requested} else {}


def _image_of(circuit: Circuit, transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """The model's input of the image that a circuit holds."""
    if circuit.image is None or not isinstance(transform, Transform):
        raise ImageError("The circuit does not hold its image. Pass it, as `image`.")
    # The stored image has been cropped.
    return replace(transform, crop_pct=1.0)(Image.fromarray(circuit.image.numpy()))


def _is_single(images: Any) -> bool:
    """Whether something is one image, and not several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Image.Image)


def _each(images: Any) -> Iterator[ImageLike]:
    """Images one by one, also those of batches; a DataLoader and what it yields will do."""
    if _is_loaded_batch(images):
        yield from images[0]
        return
    items: Iterable[Any] = as_images(images)
    for item in items:
        if _is_loaded_batch(item):
            yield from item[0]
        elif isinstance(item, np.ndarray | Tensor) and item.ndim == 4:
            yield from item
        else:
            yield item


def _is_loaded_batch(item: Any) -> bool:
    """Whether something is a DataLoader's batch: images, then labels and the like, or nothing."""
    match item:
        case [Tensor(ndim=4) as images, *others]:
            return all(
                isinstance(other, list | tuple | Tensor)
                and len(other) == len(images)
                and getattr(other, "ndim", 1) < 4
                for other in others
            )
    return False


def _per_image(target: Any, n: int) -> list[TargetLike]:
    """One target for each of n images."""
    if not (isinstance(target, list | tuple) or getattr(target, "ndim", 0) == 1):
        return [target] * n
    targets = list(target)
    if len(targets) != n:
        raise TargetError(f"{n} images need as many targets, not {len(targets)}.")
    return targets


def _listed(images: Images) -> list[ImageLike]:
    return list(_each(images))


def _like(sae: SAE, vision: VisionModel) -> SAE:
    if (sae.W_enc.dtype, sae.W_enc.device) == (vision.dtype, vision.device):
        return sae
    return copy.deepcopy(sae).to(dtype=vision.dtype, device=vision.device)


def _version(weight: Tensor) -> object:
    """How often a tensor was changed; where nobody counts, something unlike all else."""
    return object() if weight.is_inference() else weight._version
