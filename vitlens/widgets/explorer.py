"""The Explorer: image, circuit, features, ablation and curves of one prediction in one cell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import traitlets as t

from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.targets import TargetLike
from vitlens.errors import VitlensError
from vitlens.images import ImageLike
from vitlens.lens import Lens
from vitlens.widgets.ablation import AblationPart
from vitlens.widgets.base import Widget
from vitlens.widgets.browser import BrowserPart
from vitlens.widgets.choice import ChoicePart
from vitlens.widgets.curve_plot import CurvesPart
from vitlens.widgets.diagram import DiagramPart
from vitlens.widgets.feature import CardPart
from vitlens.widgets.feature_map import MapPart
from vitlens.widgets.health import health
from vitlens.widgets.heatmap import HeatmapPart
from vitlens.widgets.scene import Scene
from vitlens.widgets.tasks import Check, teller

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = ("rrm", "node", "random")
#: Fewer shares of features than a full measurement takes, small circuits among them.
_Q = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
_RUNS = 4  # replaced runs at once: a batch takes no longer than Cancel may


class Explorer(
    ChoicePart,
    HeatmapPart,
    DiagramPart,
    AblationPart,
    CardPart,
    BrowserPart,
    MapPart,
    CurvesPart,
    Widget,
    bundle="explorer",
):
    """Follow one prediction from the logit down to the patches.

    The picture, the prediction and a first heatmap come at once, the circuit as soon as it is
    computed; another wish takes the place of what still runs. Everything in it is a trait, to
    read, set, observe and link.

    Parameters
    ----------
    lens
        The lens.
    image
        A path, PIL image, array or tensor; by default the lens's first sample image.
    target
        As for `Lens.importances`.
    gradient, errors, engine
        As for `Lens.importances`.
    at_most
        The largest number of nodes a layer that the diagram can show.
    traits
        First values of traits, those of the single widgets among them.

    Attributes
    ----------
    image_choice
        Number of the sample image in sight; None for another image. Set it to see another one,
        or call `load`.
    target_choice
        Index of the class explained; None for the predicted class, or a function.
    selected, hovered, pinned, groups, labels, patches
        Nodes and patches chosen in the views; see `CircuitDiagram` and `PatchHeatmap`.
    chosen, colour_by, map_layers
        Of the map of all features; see `FeatureMap`.
    nodes_per_layer, node_share, edge_share
        How the circuit is pruned; see `CircuitDiagram`.
    ablations, outcome
        Nodes that are changed, and what the model then says; see `CircuitDiagram`.
    show
        What the heatmap shows of the selected node: "importance" or "activation".
    health
        What is known of the SAEs, and of how importances add up on this image.
    height
        Pixels, where the layout is not stacked.

    Raises
    ------
    ImageError, TargetError
        As `Lens.importances` does.
    """

    health = t.Dict().tag(sync=True)
    height = t.Int(900, min=400).tag(sync=True)

    def __init__(
        self,
        lens: Lens,
        image: ImageLike | None = None,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "closed_form",
        at_most: int = 64,
        **traits: Any,
    ):
        super().__init__(**traits)
        self._settings: dict[str, Any] = {
            "gradient": gradient,
            "errors": errors,
            "engine": engine,
        }
        self._at_most = at_most
        self.use_lens(lens)
        self._offer(lens)
        self.health = health(lens, None)
        if image is not None:
            self.load(image, target=target)
        elif lens.samples:
            self.load(lens.samples[0].path, target=target)

    async def ready(self) -> Explorer:
        """Wait until nothing is computed any more: ``await explorer.ready()``."""
        waited = False
        while any(worker.busy for worker in self._background.values()):
            await asyncio.sleep(0.02)
            waited = True
        if waited:
            # nbclient keeps only what a cell sends while it runs itself, and this came from others.
            self.send_state()
        return self

    def measure_curves(self, *, methods: Sequence[str] = _CURVES) -> None:
        """Measure insertion and deletion curves on this image, in the background.

        Parameters
        ----------
        methods
            As for `Lens.faithfulness`.

        Raises
        ------
        VitlensError
            When there is no image yet.
        """
        if self._image is None:
            raise VitlensError("Choose an image first.")
        lens, image, target = self._lens, self._image, self._target
        tell = teller()

        def work(check: Check) -> Any:
            def report(done: float, what: str) -> None:
                check()
                tell(check, lambda: self._show_progress(done, f"curves: {what}"))

            return lens.faithfulness(
                [image], methods=methods, target=target, q=_Q, batch_size=_RUNS, progress=report
            )

        def then(curves: Any) -> None:
            self.show_curves(curves)
            self._rest(but_for="look")

        self._show_progress(0.0, "curves")
        self.background("curves").run(work, then)

    def figure(self) -> Figure:
        """Return the circuit in sight as a matplotlib figure; see `vitlens.plots`."""
        if self._candidates is not None:
            return self.diagram_figure()
        from vitlens.plots import text_figure

        return text_figure("The circuit was not computed yet.")

    def _look(self) -> None:
        lens, image, target = self._lens, self._image, self._target
        settings, at_most = self._settings, self._at_most
        assert image is not None  # a choice was made
        tell = teller()

        def work(check: Check) -> Scene:
            scene = Scene.of(lens, image, target=target, **settings)
            tell(check, lambda: self._show_first(scene))

            def report(done: float, what: str) -> None:
                check()
                tell(check, lambda: self._show_progress(0.1 + 0.9 * done, f"circuit: {what}"))

            candidates = lens.attribute(
                image, target=target, at_most=at_most, progress=report, **settings
            )
            return replace(scene, candidates=candidates)

        self.background("curves").cancel()
        self._show_progress(0.0, "reading the image")
        self.background("look").run(work, self._show_circuit)

    def _show_first(self, scene: Scene) -> None:
        """Show what is known before the circuit is."""
        self._candidates = None
        with self.hold_sync():
            self.graph = {}  # the circuit of another image or target would mislead
            self.show_curves(None)
            self._tell_choice(scene)
            self.health = health(self._lens, scene.importances)
            self.look_at(scene)
            if self.selected is None:
                self.selected = scene.most_important(scene.n_layers - 1)

    def _show_circuit(self, scene: Scene) -> None:
        assert scene.candidates is not None
        self._scene = scene
        with self.hold_sync():
            self.show_candidates(scene.candidates)
            self._rest(but_for="curves")

    def _show_progress(self, done: float, what: str) -> None:
        self.progress = {"done": round(done, 3), "what": what}

    def _rest(self, *, but_for: str) -> None:
        """Show no progress any more, unless the other worker still has some."""
        if not self.background(but_for).busy:
            self.progress = {}

    def tell(self, error: Exception) -> None:
        """Show an exception to the user in words; where a look failed, go back to what is seen."""
        super().tell(error)
        if not self.background("look").busy:
            self._go_back()

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        """Stop what the progress bar stands for: nothing would ask for a card once more."""
        looking = self.background("look").busy
        for name in ("look", "curves"):
            self.background(name).cancel()
        self.progress = {}
        if looking:
            self._go_back()
        return True

    def _answer_compute_curves(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.measure_curves(methods=(*_CURVES, "cla") if payload.get("cla") else _CURVES)
        return True

    def _answer_look(self, payload: Any, buffers: Sequence[Any]) -> bool:
        if self._image is None:
            raise VitlensError("Choose an image first.")
        self._look()
        return True
