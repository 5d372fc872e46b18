"""The Explorer: image, circuit, features, ablation and curves of one prediction in one cell."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import traitlets as t
from PIL import Image

from vitlens.errors import ImageError, VitlensError, check_choice
from vitlens.images import ImageLike, open_image
from vitlens.lens import Lens
from vitlens.method.importance import Engine, ErrorGradients, Importances, TargetLike
from vitlens.method.libragrad import Gradient
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import Widget, encode_strip
from vitlens.widgets.browser import BrowserPart
from vitlens.widgets.card import CardPart
from vitlens.widgets.curves import CurvesPart
from vitlens.widgets.diagram import DiagramPart
from vitlens.widgets.heatmap import HeatmapPart, Show
from vitlens.widgets.map import MapPart
from vitlens.widgets.scene import Scene
from vitlens.widgets.tasks import Check, dispatcher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vitlens.circuits.curves import Curves

_CURVES = ("rrm", "node", "random")
#: Shares of features, fewer than in a full measurement, with small circuits among them.
_Q = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
_RUNS = 4  # replaced runs per batch: Cancel waits for one batch
_THUMBNAIL = 96  # pixels, for a screen with two pixels per point


@dataclass(frozen=True)
class _Choice:
    """An image and what is explained of it, with the traits that show this choice."""

    image: ImageLike
    target: TargetLike = None
    image_choice: int | None = None
    target_choice: int | None = None
    name: str = ""


class Explorer(
    HeatmapPart,
    DiagramPart,
    CardPart,
    BrowserPart,
    MapPart,
    CurvesPart,
    Widget,
    bundle="explorer",
):
    """Follow one prediction from the logit down to the patches.

    The image, the prediction and a first heatmap are shown at once, the circuit as soon as it is
    computed; a new request replaces work that still runs. Everything is a trait, to read, set,
    observe and link. An Explorer that is no longer needed keeps its results in memory until
    ``close()``.

    Parameters
    ----------
    lens
        The lens.
    image
        A path, PIL image, array or tensor; by default the lens's first sample image.
    target
        See `Lens.importances`.
    gradient, error_gradients, engine
        See `Lens.importances`.
    at_most
        The largest number of nodes per layer that the diagram can show.
    nodes_per_layer, node_share, edge_share, selected, labels, show, height
        First values of the attributes; labels are not saved.
    author
        Author of the names that are saved; by default the name of the user account.

    Attributes
    ----------
    image_choice
        Index of the sample image that is shown; None for another image. Set it to show another
        sample, or call `load`.
    target_choice
        Index of the class that is explained; None for the predicted class, or a function.
    selected, hovered, pinned, groups, labels, patches
        Nodes and patches selected in the views; see `CircuitDiagram` and `PatchHeatmap`.
    chosen, colour_by, map_layers
        Of the map of all features; see `FeatureMap`.
    nodes_per_layer, node_share, edge_share
        Thresholds of the circuit; see `CircuitDiagram`.
    ablations, outcome
        Nodes that are changed, and the output of the changed model; see `CircuitDiagram`.
    show
        What the heatmap shows of the selected node: "importance" or "activation".
    health
        Measurements of the SAEs, and how importances add up to the target on this image.
    height
        Pixels, where the layout is not stacked.

    Raises
    ------
    ImageError, TargetError
        See `Lens.importances`.
    OptionError
        When an option is not one of its choices.
    """

    samples = t.Tuple().tag(sync=True)
    sample_strip = t.Bytes(b"").tag(sync=True)
    image_choice = t.Int(None, allow_none=True).tag(sync=True)
    image_name = t.Unicode("").tag(sync=True)
    classes = t.Tuple().tag(sync=True)
    probabilities = t.Tuple().tag(sync=True)
    target_choice = t.Int(None, allow_none=True).tag(sync=True)
    explained = t.Dict().tag(sync=True)
    health = t.Dict().tag(sync=True)
    height = t.Int(900, min=400).tag(sync=True)

    _choice: _Choice | None = None
    _shown_choice: _Choice | None = None  # that of the scene
    _applying = False  # whether `image_choice` and `target_choice` only follow `_choice`

    def __init__(
        self,
        lens: Lens,
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
        show: Show = "importance",
        height: int = 900,
        author: str | None = None,
    ):
        check_choice("gradient", gradient, get_args(Gradient))
        check_choice("error_gradients", error_gradients, get_args(ErrorGradients))
        check_choice("engine", engine, get_args(Engine))
        super().__init__(
            {
                "nodes_per_layer": nodes_per_layer,
                "node_share": node_share,
                "edge_share": edge_share,
                "selected": selected,
                "labels": dict(labels or {}),
                "show": show,
                "height": height,
                "author": author,
            }
        )
        self._settings: dict[str, Any] = {
            "gradient": gradient,
            "error_gradients": error_gradients,
            "engine": engine,
        }
        self._at_most = at_most
        self.set_lens(lens)
        self.samples = tuple(
            {"name": sample.path.stem, "label": sample.label} for sample in lens.samples
        )
        self.sample_strip = encode_strip(
            [lens.pixels(sample.path) for sample in lens.samples], side=_THUMBNAIL
        )
        self.classes = lens.logit_names
        self.health = health(lens, None)
        if image is not None:
            self.load(image, target=target)
        elif lens.samples:
            self.load(lens.samples[0].path, target=target)

    def load(self, image: ImageLike, *, target: TargetLike = None) -> None:
        """Show an image.

        Parameters
        ----------
        image
            A path, PIL image, array or tensor.
        target
            See `Lens.importances`.

        Raises
        ------
        ImageError
            When the image cannot be read.
        TargetError
            When there is no such class.
        """
        lens = self._known_lens
        lens.tensor(image)  # raises at once for an image that cannot be read
        target_choice = None
        if target is not None and (isinstance(target, str) or not callable(target)):
            target_choice = lens.class_index(target)
        known = [str(sample.path) for sample in lens.samples]
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
        image_choice = known.index(name) if name in known else None
        self._choose(_Choice(image, target, image_choice, target_choice, Path(name).name))

    async def ready(self) -> Explorer:
        """Wait until all computations are complete: ``await explorer.ready()``."""
        waited = False
        while any(worker.busy for worker in self._background.values()):
            await asyncio.sleep(0.02)
            waited = True
        if waited:
            # nbclient keeps only what a cell sends while it runs; this was sent in between.
            self.send_state()
        return self

    def measure_curves(self, *, methods: Sequence[str] = _CURVES) -> None:
        """Measure insertion and deletion curves on this image, in the background.

        Parameters
        ----------
        methods
            See `Lens.faithfulness`.

        Raises
        ------
        VitlensError
            When there is no image yet.
        """
        choice, lens = self._choice, self._known_lens
        if choice is None:
            raise VitlensError("Choose an image first.")
        dispatch = dispatcher()

        def work(check: Check) -> Curves:
            def report(done: float, what: str) -> None:
                check()
                dispatch(check, lambda: self.show_progress(done, f"curves: {what}"))

            return lens.faithfulness(
                [choice.image],
                methods=methods,
                target=choice.target,
                q=_Q,
                batch_size=_RUNS,
                progress=report,
            )

        def then(curves: Curves) -> None:
            self.show_curves(curves)
            self.end_progress(unless="scene")

        self.show_progress(0.0, "curves")
        self.background("curves").run(work, then)

    def figure(self) -> Figure:
        """Return the current circuit as a matplotlib figure; see `vitlens.plots`."""
        if self._graph is not None:
            return self.diagram_figure()
        from vitlens.plots import text_figure

        return text_figure("The circuit is not computed yet.")

    def show_error(self, error: Exception) -> None:
        """Show an exception to the user; if an image failed, restore the previous choice."""
        super().show_error(error)
        if not self.background("scene").busy:
            self._restore_choice()

    @property
    def _known_lens(self) -> Lens:
        assert self._lens is not None  # set when the Explorer is made
        return self._lens

    def _choose(self, choice: _Choice) -> None:
        self._apply_choice(choice)
        self._compute()

    def _restore_choice(self) -> None:
        """Restore the choice of what is shown, after another choice failed or was cancelled."""
        if self._shown_choice is not None:
            self._apply_choice(self._shown_choice)

    def _apply_choice(self, choice: _Choice) -> None:
        self._choice = choice
        self._applying = True
        try:
            self.image_choice = choice.image_choice
            self.target_choice = choice.target_choice
            self.image_name = choice.name
        finally:
            self._applying = False

    def _compute(self) -> None:
        """Compute the scene of the choice and its circuit, in the background."""
        choice, lens = self._choice, self._known_lens
        settings, at_most = self._settings, self._at_most
        assert choice is not None  # callers make a choice first
        dispatch = dispatcher()

        def work(check: Check) -> Scene:
            scene = Scene.of(lens, choice.image, target=choice.target, **settings)
            dispatch(check, lambda: self._show_prediction(scene))

            def report(done: float, what: str) -> None:
                check()
                dispatch(check, lambda: self.show_progress(0.1 + 0.9 * done, f"circuit: {what}"))

            graph = lens.attribute(
                choice.image, target=choice.target, at_most=at_most, progress=report, **settings
            )
            return replace(scene, graph=graph)

        self.background("curves").cancel()
        self.show_progress(0.0, "reading the image")
        self.background("scene").run(work, self._show_circuit)

    def _show_prediction(self, scene: Scene) -> None:
        """Show what is known before the circuit is computed."""
        self._graph = None
        self._shown_choice = self._choice
        importances, probabilities = scene.importances, scene.trace.logits.softmax(-1)
        best = int(probabilities.argmax())
        with self.hold_sync():
            self.graph_info = {}  # the previous circuit is of another image or target
            self.show_curves(None)
            self.probabilities = tuple(probabilities.tolist())
            self.explained = {
                "name": scene.target,
                "index": scene.target_index,
                "value": scene.target_value,
                "prediction": [scene.class_names[best], float(probabilities[best])],
            }
            self.health = health(scene.lens, importances)
            self.show_scene(scene)
            if self.selected is None:
                self.selected = scene.most_important(scene.layers[-1])

    def _show_circuit(self, scene: Scene) -> None:
        assert scene.graph is not None
        self._scene = scene
        with self.hold_sync():
            self.show_graph(scene.graph)
            self.end_progress(unless="curves")

    @t.validate("image_choice")
    def _sample_exists(self, proposal: Any) -> int | None:
        index: int | None = proposal["value"]
        if index is not None and not 0 <= index < len(self.samples):
            raise t.TraitError(
                f"There is no sample image {index}; this lens has {len(self.samples)}."
            )
        return index

    @t.validate("target_choice")
    def _class_exists(self, proposal: Any) -> int | None:
        index: int | None = proposal["value"]
        if index is not None and not 0 <= index < len(self.classes):
            raise t.TraitError(f"There is no class {index}; this lens has {len(self.classes)}.")
        return index

    @t.observe("image_choice")
    def _sample_chosen(self, change: Any) -> None:
        index = change["new"]
        if self._applying or index is None:
            return
        path = self._known_lens.samples[index].path
        self._choose(_Choice(path, image_choice=index, name=path.name))

    @t.observe("target_choice")
    def _target_chosen(self, change: Any) -> None:
        if self._applying or self._choice is None:
            return
        index = change["new"]
        self._choose(replace(self._choice, target=index, target_choice=index))

    def _answer_upload(self, payload: Any, buffers: Sequence[Any]) -> bool:
        name = str(payload["name"])
        try:
            with Image.open(io.BytesIO(bytes(buffers[0]))) as file:
                image = open_image(file)
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            raise ImageError(f"{name} is damaged, or not an image of a known format.") from error
        self._choose(_Choice(image, name=name))
        return True

    def _answer_open_path(self, payload: Any, buffers: Sequence[Any]) -> bool:
        path = Path(str(payload["path"]).strip()).expanduser()
        self._choose(_Choice(open_image(path), name=path.name))
        return True

    def _answer_compute(self, payload: Any, buffers: Sequence[Any]) -> bool:
        if self._choice is None:
            raise VitlensError("Choose an image first.")
        self._compute()
        return True

    def _answer_compute_curves(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.measure_curves(methods=(*_CURVES, "cla") if payload.get("cla") else _CURVES)
        return True

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        """Stop the work of the progress bar; a card is not requested again, and continues."""
        computing = self.background("scene").busy
        for name in ("scene", "curves"):
            self.background(name).cancel()
        self.progress = {}
        if computing:
            self._restore_choice()
        return True


#: What `Lens.explore` calls.
explore = Explorer


def health(lens: Lens, importances: Importances | None) -> dict[str, Any]:
    """Return the health of every layer, for the browser.

    Parameters
    ----------
    lens
        The lens; its figures are those of its bundle, where they are of these SAEs.
    importances
        Importances of the image that is shown; None while there is none.

    Returns
    -------
    dict
        ``layers``: for each layer its number ``layer``, the SAE's ``kind``,
        ``n_features`` and ``max_active`` (per token),
        ``explained_variance``, ``dead_fraction``, ``accuracy_kept`` (of the model with this SAE
        alone and no error node) and ``residual`` (the target minus the layer's importances, over
        the target's value; None where that is 0).
        ``accuracy`` of the model and ``accuracy_all`` with all SAEs and no error nodes, on
        ``n_images``. None stands for values that were not measured; ``missing`` lists them.
    """
    measured = lens.measured
    by_layer = {figures["layer"]: figures for figures in measured.get("layers", ())}
    residuals = None
    if importances is not None and importances.target_value != 0:
        residuals = (importances.residual / cast(float, importances.target_value)).tolist()
    layers = []
    for position, (layer, sae) in enumerate(zip(lens.layers, lens.saes, strict=True)):
        figures = by_layer.get(layer, {})
        layers.append(
            {
                "layer": layer,
                "n_features": sae.n_features,
                "kind": sae.kind,
                "max_active": sae.max_active,
                "explained_variance": figures.get("explained_variance"),
                "dead_fraction": figures.get("dead_fraction"),
                "accuracy_kept": figures.get("accuracy_kept"),
                "residual": None if residuals is None else residuals[position],
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
