"""Removing a shortcut by hand: tick features, and see what becomes of every group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import traitlets as t

from vitlens.debias.candidates import Candidate
from vitlens.debias.groups import GroupedImages
from vitlens.debias.model import Removal
from vitlens.debias.report import GroupReport, TradeOff
from vitlens.debias.runs import LiveReports
from vitlens.debias.search import Debiasing, default_layers
from vitlens.interventions.kinds import FeatureId, ProjectTo
from vitlens.lens import Lens
from vitlens.widgets import debias_cards as cards
from vitlens.widgets.base import Widget
from vitlens.widgets.debias_choice import ChosenPart
from vitlens.widgets.debias_told import told_curve
from vitlens.widgets.tasks import Check, teller

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


class DebiasPart(ChosenPart):
    """The traits behind a debiasing panel; see `DebiasPanel`."""

    debias = t.Dict().tag(sync=True)
    debias_cards = t.List(t.Dict()).tag(sync=True)
    debias_pictures = t.Bytes(b"").tag(sync=True)
    debias_heats = t.Bytes(b"").tag(sync=True)
    trade_off = t.Dict().tag(sync=True)

    _curve: TradeOff | None = None
    _path: tuple[FeatureId, ...] = ()
    _cards: tuple[cards.Card, ...] = ()
    _picks: tuple[FeatureId, ...] = ()

    def show_groups(
        self,
        lens: Lens,
        live: LiveReports,
        found: Debiasing | Sequence[Candidate] | None,
        *,
        n_cards: int,
        name: str,
    ) -> None:
        """Show groups of images, with the candidates of a search or of these groups."""
        candidates = cards.candidates_of(live, found, n_cards)
        for candidate in candidates:
            live.check(candidate.key)
        made = cards.make_cards(live, candidates, n_prefix=lens.vision.n_prefix)
        self._live, self._curve, self._picks = live, None, ()
        self._path = found.path if isinstance(found, Debiasing) else ()
        before = live.before
        with self.hold_sync():
            self.use_lens(lens)
            self.debias = {
                "name": name,
                "n_images": len(live.groups),
                "group_names": list(before.group_names),
                "layers": list(live.runs.layers),
                "grid": list(lens.vision.grid),
                "to": live.removal.to,
                "project": live.removal.project,
                "examples": list(cards.EXAMPLES),
            }
            self._show_cards(made)
            self._show_report(before, ())
            self.choices, self.choice = [self._entry(())], 0
            if isinstance(found, Debiasing):
                self._take_curve(found)

    def add(self, *features: FeatureId) -> None:
        """Show cards of other features, in the background.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept.
        """
        for feature in features:
            self.live.check(feature)
        self._picks = tuple(dict.fromkeys((*self._picks, *features)))
        self._add_missing()

    def measure_trade_off(
        self, order: Iterable[FeatureId] | None = None, *, at_most: int = 20
    ) -> None:
        """Measure accuracies along a growing set of features, in the background.

        Parameters
        ----------
        order
            Features in the order in which they are taken out; by default those of the search, else
            the cards'.
        at_most
            How many features of the default.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept.
        """
        live = self.live
        default = self._path or tuple(card.candidate.key for card in self._cards)
        path = tuple(default[:at_most] if order is None else order)
        source = "In the order of the search" if self._path else "In the order of the cards"
        if order is not None:
            source = "In the order given"
        for feature in path:
            self.live.check(feature)
        tell = teller()

        def work(check: Check) -> TradeOff:
            reports: list[GroupReport] = []
            for n in range(len(path) + 1):
                what = f"trade-off curve: {n} of {len(path)} features"
                start = n / (len(path) + 1)

                def watch(
                    _: GroupReport, done: float, start: float = start, what: str = what
                ) -> None:
                    check()
                    share = start + done / (len(path) + 1)
                    tell(check, lambda: self._show_progress(share, what))

                check()
                reports.append(live.evaluate(path[:n], watch=watch))
            return TradeOff(tuple(reports))

        def then(curve: TradeOff) -> None:
            self._show_curve(curve, path, source)
            self._rest(but_for="debias")

        self.background("trade-off").run(work, then)

    def debias_figure(self) -> Figure:
        """Return groups and trade-off curve as a matplotlib figure."""
        from vitlens.plots import groups_figure

        live = self.live
        shown = tuple((layer, feature) for layer, feature in self.report["chosen"])
        after = live.known(shown)
        n = len(shown)
        return groups_figure(
            live.before,
            after or live.before,
            curve=self._curve,
            title=f"{n} feature{'' if n == 1 else 's'} {live.removal}",
        )

    @t.observe("chosen")
    def _add_missing(self, _: Any = None) -> None:
        if self._live is None:
            return
        live, shown = self.live, {card.candidate.key for card in self._cards}
        missing = [key for key in (*self._picks, *self.chosen) if key not in shown]
        if not missing:
            return
        n_prefix = live.runs.lens.vision.n_prefix

        def work(check: Check) -> tuple[cards.Card, ...]:
            candidates = cards.picked(live, list(dict.fromkeys(missing)))
            check()
            return cards.make_cards(live, candidates, n_prefix=n_prefix)

        def then(found: tuple[cards.Card, ...]) -> None:
            self._show_cards((*found, *self._cards))

        self.background("cards").run(work, then)

    def _show_cards(self, shown: tuple[cards.Card, ...]) -> None:
        self._cards = shown
        with self.hold_sync():
            self.debias_pictures = cards.pictures(self.live, shown)
            self.debias_heats = cards.heats(shown)
            self.debias_cards = cards.described(shown, self._path)

    def _take_curve(self, found: Debiasing) -> None:
        """Show the search's own curve of these images; one of other images would mislead."""
        for curve in (found.validation, found.test):
            if found.removal == self.live.removal and curve and self.live.learn(found.path, curve):
                self._show_curve(curve, found.path, "In the order of the search")
                return

    def _show_curve(self, curve: TradeOff, path: tuple[FeatureId, ...], source: str) -> None:
        self._curve = curve
        self.trade_off = told_curve(curve, path, source=source)

    def _answer_add(self, payload: Any, buffers: Sequence[Any]) -> bool:
        layer, feature = payload["node"]
        self.add((int(layer), int(feature)))
        return True

    def _answer_measure(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.measure_trade_off()
        return True


class DebiasPanel(DebiasPart, Widget, bundle="debias"):
    """Groups of images with their accuracies, and features to take out, one tick each.

    Choose on validation images: what looks best on the images of a choice flatters it. Report on
    others with ``panel.model()``.

    Parameters
    ----------
    lens
        The classifier; its classes are those of `groups`, in the same order.
    groups
        The images; every group needs some. They are run once, here.
    found
        What `Lens.debias` found, or candidates; by default the features that tell most about the
        attribute and not about the class (`vitlens.debias.find_candidates`).
    layers
        Layers whose features can be chosen, kept in memory as images x T x D numbers each; by
        default the three in the middle, and those of `found` and `chosen`.
    to
        What features are taken to: "baseline" or "zero"; by default as in `found`.
    project
        Take out the stream's whole component along the features' decoder directions, not only
        their activations (`vitlens.Project`); by default as in `found`, else no.
    chosen
        The choice to begin with, ((layer, feature), ...).
    n_cards
        Most candidates to show.
    name
        What the images are, for the view.
    batch_size
        Images that are run together; a new choice waits for those that are running.
    progress
        Show a progress bar while the images are run.
    traits
        First values of other traits.

    Attributes
    ----------
    chosen
        The features that are taken out. Setting it, here or in the browser, runs the model again;
        the last wish wins. What was asked before is answered at once.
    report
        Accuracies ``before`` and after of every group, their average and the worst; see
        `vitlens.widgets.debias_told.told`. It is of ``report["chosen"]``, which lags behind
        `chosen` while the model runs; `interim` then has the figures of the images so far.
    choices, choice
        History of choices with their figures, and the place in it.
    trade_off
        Accuracies over the number of features.
    selected
        One node (layer, feature) or None; link it with a diagram's or a card's.
    labels
        Names people gave to nodes, {(layer, feature): text}.

    Raises
    ------
    GroupError
        If a group is empty, there is one class only, or the attribute is equal to the class.
    FeatureError
        If a layer or feature does not exist.
    ImageError
        If an image cannot be read.

    Examples
    --------
    >>> found = lens.debias(validation, test=test)
    >>> panel = DebiasPanel(lens, validation, found)
    >>> panel.chosen = found.features
    >>> panel.save("choice.json")
    """

    def __init__(
        self,
        lens: Lens,
        groups: GroupedImages,
        found: Debiasing | Sequence[Candidate] | None = None,
        *,
        layers: Sequence[int] | None = None,
        to: ProjectTo | None = None,
        project: bool | None = None,
        chosen: Iterable[FeatureId] = (),
        n_cards: int = 24,
        name: str = "images",
        batch_size: int = 8,
        progress: bool = False,
        **traits: Any,
    ):
        super().__init__(**traits)
        chosen = tuple(chosen)
        if layers is None:
            layers = sorted(
                {*default_layers(lens), *_layers_of(found), *(layer for layer, _ in chosen)}
            )
        usual = found.removal if isinstance(found, Debiasing) else Removal()
        removal = Removal(
            usual.to if to is None else to, usual.project if project is None else project
        )
        live = LiveReports(
            lens, groups, layers, removal=removal, batch_size=batch_size, progress=progress
        )
        self.show_groups(lens, live, found, n_cards=n_cards, name=name)
        if chosen:
            self.chosen = chosen

    def figure(self) -> Figure:
        """Return groups and trade-off curve as a matplotlib figure."""
        return self.debias_figure()

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the panel as it is now to one self-contained page; see `Widget.to_html`."""
        self.update_report()
        super().to_html(path, title=title)


def _layers_of(found: Debiasing | Sequence[Candidate] | None) -> set[int]:
    if isinstance(found, Debiasing):
        return {layer for layer, _ in found.path} | _layers_of(found.candidates)
    return {candidate.layer for candidate in found or ()}
