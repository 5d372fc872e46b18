"""The Lens: a model with its SAEs and baselines, and the verbs a user calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.importances import Importances, edges_on_demand, importances
from vitlens.attribution.logit_lens import logit_lens
from vitlens.attribution.targets import TargetLike, resolve_target
from vitlens.circuits.circuit import Circuit, Explanation
from vitlens.circuits.curves import Curves
from vitlens.circuits.faithfulness import DEFAULT_Q, Method, faithfulness
from vitlens.circuits.graph import AttributionGraph, Scores, attribution_graph, prune_scores
from vitlens.circuits.prune import Rules, check_count
from vitlens.images import ImageLike, as_images
from vitlens.interventions.hooks import isolated
from vitlens.lens_changes import ChangingLens
from vitlens.progress import Progress
from vitlens.replacement import ErrorNodes, Trace

if TYPE_CHECKING:
    from vitlens.debias import Debiasing, GroupedImages
    from vitlens.widgets import Explorer


class Lens(ChangingLens):
    """Look inside one Vision Transformer.

    Parameters
    ----------
    model
        A timm `VisionTransformer` or a model built like one, in `eval` mode; or a `VisionModel`. It is
        never modified.
    saes
        One `TopKSAE` after each block but the last; or a folder or hub name to load them from.
        They are copied if their dtype or device is not the model's.
    baselines
        What replaced features are set to, or a file of `Baselines`; zero if there are none (see
        `fit_baselines`).
    class_names
        A name a class; classes are numbered without.
    transform
        Turns an RGB PIL image into the model's input; by default the one timm's configuration
        of the model describes.
    head
        Optional function of the model's output, [n, C_model] -> [n, C]; see `VisionModel`. Only for a
        model that is no `VisionModel` yet.
    about
        Name, samples and model card, as bundles have them.

    Raises
    ------
    CheckpointError
        If the SAEs do not fit the model, or a file is missing or damaged.
    ModelError
        If the model is of another structure or in training mode, or baselines or class names do
        not fit it.

    Examples
    --------
    >>> lens = vitlens.load("everyday")
    >>> print(lens.circuit(lens.samples[0].path, nodes_per_layer=8))
    """

    @isolated
    def importances(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
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
            "closed_form", "jvp" or "vjp".
        progress
            Show a progress bar over the layers; or a function of the part that is done, 0 to 1,
            and of what is being done, called between layers. What it raises ends the work.

        Raises
        ------
        TargetError
            If there is no such class, several go by the name, or the function gives no scalar, or
            one without a derivative.
        ModelError
            If a setting is unknown, or the engine does not know the model's blocks.
        """
        return self._importances(
            self.trace(image),
            target=target,
            gradient=gradient,
            errors=errors,
            engine=engine,
            progress=progress,
        )

    @isolated
    def logit_lens(
        self, image: ImageLike, layer: int, feature: int, *, gradient: Gradient = "libragrad"
    ) -> list[tuple[str, float]]:
        """Class names and how far a feature by itself moves their logits, upwards first.

        What the feature adds to its layer's stream on this image, as if it went straight to the
        read-out; see `vitlens.attribution.logit_lens`.

        Parameters
        ----------
        layer, feature
            The feature; -1 is the layer's error node.
        gradient
            "libragrad" (the final norm's scale is held fixed) or "plain".

        Raises
        ------
        FeatureError
            If there is no such layer or feature.
        """
        trace = self.trace(image)
        effects = logit_lens(
            self.vision, self.saes, trace, self.baselines, layer, feature, gradient=gradient
        )
        return self._named(effects)

    @isolated
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
                self.vision,
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

    @isolated
    def circuit(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        nodes_per_layer: int | None = None,
        share: float | None = None,
        threshold: float | None = None,
        node_share: float = 0.0,
        edge_share: float = 0.0,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
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
        node_share
            Of the nodes kept so, leave out those with a smaller share of their layer's positive
            importance; one a layer always stays.
        edge_share
            Leave out edges with a smaller share, of either sign.

        Raises
        ------
        FeatureError
            If more than one rule is given, or one is out of range.
        """
        rules = Rules(nodes_per_layer, share, threshold, node_share, edge_share)
        trace = self.trace(image)
        # In reverse mode each target feature costs a pass, and the walk asks for few of them.
        few = engine == "vjp"
        found = self._importances(
            trace,
            target=target,
            gradient=gradient,
            errors=errors,
            engine=engine,
            edges=not few,
            progress=progress,
        )
        known = (self.vision, self.saes, trace, self.baselines, found)
        edges = edges_on_demand(*known, progress=progress) if few else found.edges
        scores = Scores.of_all(found.nodes, found.tokens, edges)
        return prune_scores(self._explanation(image, trace, found), scores, rules)

    @isolated
    def attribute(
        self,
        image: ImageLike,
        *,
        target: TargetLike = None,
        at_most: int | None = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "closed_form",
        progress: Progress = False,
    ) -> AttributionGraph:
        """Nodes and edges, unpruned: `AttributionGraph.prune` gives circuits without the model.

        Parameters
        ----------
        target, gradient, errors, engine, progress
            As for `importances`.
        at_most
            Only what `circuit` can keep for a `nodes_per_layer` up to this one; None for every
            node that is active or differs from its baseline.

        Raises
        ------
        FeatureError
            If `at_most` is below 1.
        """
        if at_most is not None:
            check_count("at_most", at_most)
        trace = self.trace(image)
        found = self._importances(
            trace, target=target, gradient=gradient, errors=errors, engine=engine, progress=progress
        )
        return attribution_graph(
            self._explanation(image, trace, found),
            found.nodes,
            found.tokens,
            found.edges,
            trace,
            self.baselines,
            at_most=at_most,
        )

    @isolated
    def faithfulness(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        methods: str | Sequence[str | Method] = ("rrm", "cla", "random"),
        labels: int | str | Sequence[int | str] | None = None,
        target: TargetLike = None,
        errors: ErrorNodes = "clean",
        engine: Engine = "closed_form",
        q: Sequence[float] = DEFAULT_Q,
        batch_size: int = 16,
        seed: int = 0,
        out: str | Path | None = None,
        progress: Progress = True,
    ) -> Curves:
        """Insertion and deletion curves; see `vitlens.circuits.faithfulness.faithfulness`.

        Parameters
        ----------
        images
            The images, or one.
        methods
            Names or functions, or one name.
        labels
            Class indices or names, or one for one image; images classified otherwise are left out.
        """
        if isinstance(methods, str):
            methods = [methods]
        if isinstance(labels, int | str | np.integer):
            labels = [labels]
        return faithfulness(
            self.vision,
            self.saes,
            self.baselines,
            [self.tensor(image).cpu() for image in as_images(images)],
            methods=methods,
            labels=None if labels is None else [self.class_index(label) for label in labels],
            target=target,
            class_names=self.class_names,
            error_nodes=errors,
            engine=engine,
            q=q,
            batch_size=batch_size,
            seed=seed,
            out=out,
            progress=progress,
        )

    @isolated
    def debias(self, groups: GroupedImages, **options: Any) -> Debiasing:
        """Find the features that carry a shortcut, and take them out; see `vitlens.debias.debias`.

        Parameters
        ----------
        groups
            Images with classes and attribute values: the features are chosen on them.
        options
            ``test=`` for the images to report on, and the other arguments of
            `vitlens.debias.debias`.
        """
        from vitlens.debias import debias

        return debias(self, groups, **options)

    @isolated
    def explore(
        self, image: ImageLike | None = None, *, target: TargetLike = None, **options: Any
    ) -> Explorer:
        """Open the Explorer in a notebook; see `vitlens.widgets.Explorer`.

        Parameters
        ----------
        image
            By default the first sample image.
        options
            Further arguments of the Explorer, such as ``height``.
        """
        from vitlens.widgets import Explorer

        return Explorer(self, image, target=target, **options)

    def _importances(self, trace: Trace, *, target: TargetLike, **settings: Any) -> Importances:
        resolved = resolve_target(target, trace.logits, self.class_names)
        return importances(self.vision, self.saes, trace, self.baselines, resolved, **settings)

    def _explanation(self, image: ImageLike, trace: Trace, found: Importances) -> Explanation:
        """What circuits and graphs say of the image, the target, the model and the settings."""
        return Explanation(
            layers=tuple(range(len(self.saes))),
            grid=self.vision.grid,
            prefix_names=self.vision.prefix_names,
            target=found.target,
            target_index=found.target_index,
            target_value=found.target_value,
            prediction=self._ranking(trace.logits)[0],
            logits=trace.logits,
            image=self.picture(image),
            settings={
                "gradient": found.gradient,
                "errors": found.errors,
                "engine": found.engine,
            },
            model=self.fingerprint,
        )
