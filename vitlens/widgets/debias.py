"""Removing a shortcut by hand in a cell: choose features, and see the accuracy of every group."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import traitlets as t
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.debias.candidates import Candidate, find_candidates
from vitlens.debias.groups import GroupedImages
from vitlens.debias.model import DebiasedModel, Removal
from vitlens.debias.report import GroupReport, TradeOff, wilson
from vitlens.debias.runs import LiveReports
from vitlens.debias.search import Debiasing, default_layers
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import ProjectTo
from vitlens.lens import Lens
from vitlens.saes.base import FeatureId
from vitlens.widgets.base import NodeList, encode_strip, to_bytes
from vitlens.widgets.scene import NamesPart
from vitlens.widgets.tasks import Check, dispatcher

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = ("most active", "median")

_LONGEST = 100  # history
_INTERVAL = 0.25  # seconds between interim figures, and until the first
_SIDE = 112  # pixels of an example: twice its size in the view


class DebiasPanel(NamesPart, bundle="debias"):
    """Groups of images with their accuracies, and features to remove with a tick.

    Choose features on validation images: accuracies on the images of a choice are optimistic.
    Report on other images with ``panel.model()``.

    Parameters
    ----------
    lens
        The classifier; its classes are those of `groups`, in the same order.
    groups
        The images; no group may be empty. The model runs once on them.
    found
        The result of `Lens.debias`, or candidates; by default the features with the most
        information about the attribute and not about the class
        (`vitlens.debias.find_candidates`).
    layers
        Layers whose features can be chosen, each kept in memory as images x T x D numbers; by
        default the three middle ones, and those of `found` and `chosen`.
    to
        Replacement of the features: "baseline" or "zero"; by default as in `found`.
    project
        Remove the stream's whole component along the features' decoder directions, not only
        their activations (`vitlens.Project`); by default as in `found`, else False.
    chosen
        The first choice, ((layer, feature), ...).
    n_cards
        Limit on the number of candidates.
    name
        Name of the images, for the view.
    batch_size
        Images per run; a new choice waits for the current run.
    progress
        Show a progress bar for the first run.
    selected, labels
        First values of the attributes; labels are not saved.
    author
        Author of the names that are saved; by default the name of the user account.

    Attributes
    ----------
    chosen
        The features that are removed. Setting it, in Python or in the browser, runs the model
        again; the latest request wins. Reports of earlier choices are reused.
    report
        Accuracies ``before`` and after of every group, their average and the worst; see
        `vitlens.widgets.debias.report_payload`. It is of ``report["chosen"]``, which differs from
        `chosen` while the model runs; `interim` then has the figures of the images so far.
    choices, choice
        History of choices with their figures, and the index of the current one.
    trade_off
        Accuracies by number of features.
    selected
        One node (layer, feature) or None; link it with that of a diagram or a card.
    labels
        Names that people gave to nodes, {(layer, feature): text}.

    Raises
    ------
    GroupError
        If a group is empty, there is one class only, or the attribute is identical to the class.
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

    chosen = NodeList()
    report = t.Dict().tag(sync=True)
    interim = t.Dict().tag(sync=True)
    choices = t.List(t.Dict()).tag(sync=True)
    choice = t.Int(0, min=0).tag(sync=True)
    debias = t.Dict().tag(sync=True)
    debias_cards = t.List(t.Dict()).tag(sync=True)
    debias_strip = t.Bytes(b"").tag(sync=True)
    debias_heats = t.Bytes(b"").tag(sync=True)
    trade_off = t.Dict().tag(sync=True)

    _live: LiveReports | None = None
    _moving = False  # whether `chosen` changes to an earlier choice
    _curve: TradeOff | None = None
    _path: tuple[FeatureId, ...] = ()
    _cards: tuple[Card, ...] = ()
    _picks: tuple[FeatureId, ...] = ()

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
        selected: FeatureId | None = None,
        labels: Mapping[FeatureId, str] | None = None,
        author: str | None = None,
    ):
        super().__init__(
            {
                "selected": selected,
                "labels": dict(labels or {}),
                "author": author,
            }
        )
        chosen = tuple(chosen)
        if layers is None:
            layers = sorted(
                {*default_layers(lens), *_layers_of(found), *(layer for layer, _ in chosen)}
            )
        default = found.removal if isinstance(found, Debiasing) else Removal()
        removal = Removal(
            default.to if to is None else to, default.project if project is None else project
        )
        live = LiveReports(
            lens, groups, layers, removal=removal, batch_size=batch_size, progress=progress
        )
        self.show_groups(lens, live, found, n_cards=n_cards, name=name)
        if chosen:
            self.chosen = chosen

    @property
    def live(self) -> LiveReports:
        """The images, and the reports that are computed so far.

        Raises
        ------
        FeatureError
            When no groups are shown yet.
        """
        if self._live is None:
            raise FeatureError("There are no groups of images yet.")
        return self._live

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
        candidates = candidates_of(live, found, n_cards)
        for candidate in candidates:
            live.check(candidate.key)
        made = make_cards(live, candidates, n_prefix=lens.vision.n_prefix)
        self._live, self._curve, self._picks = live, None, ()
        self._path = found.path if isinstance(found, Debiasing) else ()
        before = live.before
        with self.hold_sync():
            self.set_lens(lens)
            self.debias = {
                "name": name,
                "n_images": len(live.groups),
                "group_names": list(before.group_names),
                "layers": list(live.runs.layers),
                "grid": list(lens.vision.grid),
                "to": live.removal.to,
                "project": live.removal.project,
                "examples": list(EXAMPLES),
            }
            self._show_cards(made)
            self._show_report(before, ())
            self.choices, self.choice = [self._entry(())], 0
            if isinstance(found, Debiasing):
                self._show_search_curve(found)

    def evaluate(self, chosen: Iterable[FeatureId]) -> GroupReport:
        """Return the report without other features; the panel is not changed.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept in memory.
        """
        return self.live.evaluate(chosen)

    def model(self) -> DebiasedModel:
        """Return the classifier without the chosen features.

        Raises
        ------
        FeatureError
            When no groups are shown yet.
        """
        live = self.live
        removal = live.removal
        return DebiasedModel(live.runs.lens, self.chosen, to=removal.to, project=removal.project)

    def save(self, path: str | Path) -> None:
        """Write the choice as `DebiasedModel.save` does; `DebiasedModel.load` reads it.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        self.model().save(path)

    def add(self, *features: FeatureId) -> None:
        """Show cards of other features, in the background.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept in memory.
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
            Features in the order in which they are removed; by default that of the search, or
            without a search that of the cards.
        at_most
            Limit on the number of features of the default order.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept in memory.
        """
        live = self.live
        default = self._path or tuple(card.candidate.key for card in self._cards)
        path = tuple(default[:at_most] if order is None else order)
        source = "In the order of the search" if self._path else "In the order of the cards"
        if order is not None:
            source = "In the order given"
        for feature in path:
            self.live.check(feature)
        dispatch = dispatcher()

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
                    dispatch(check, lambda: self.show_progress(share, what))

                check()
                reports.append(live.evaluate(path[:n], watch=watch))
            return TradeOff(tuple(reports))

        def then(curve: TradeOff) -> None:
            self._show_curve(curve, path, source)
            self.end_progress(unless="debias")

        self.background("trade-off").run(work, then)

    def update_report(self) -> None:
        """Complete the report now, if it is still computed in the background."""
        worker = self.background("debias")
        if worker.busy:
            worker.cancel()
            self._show_report(self.live.evaluate(self.chosen), self.chosen)
            self.end_progress(unless="trade-off")

    def undo(self) -> None:
        """Return to the previous choice, if there is one."""
        self.go_to(max(self.choice - 1, 0))

    def redo(self) -> None:
        """Reverse `undo`, if it was called."""
        self.go_to(min(self.choice + 1, len(self.choices) - 1))

    def reset(self) -> None:
        """Choose nothing; `undo` restores the choice."""
        self.chosen = ()

    def go_to(self, index: int) -> None:
        """Restore a choice of the history, `choices`.

        Raises
        ------
        FeatureError
            When the history has no such entry.
        """
        if not 0 <= index < len(self.choices):
            raise FeatureError(f"The history has {len(self.choices)} choices; there is no {index}.")
        self._moving = True
        try:
            with self.hold_sync():
                self.choice = index
                self.chosen = self.choices[index]["chosen"]
        finally:
            self._moving = False

    def figure(self) -> Figure:
        """Return groups and trade-off curve as a matplotlib figure."""
        from vitlens.plots import groups_figure

        live = self.live
        reported = tuple((layer, feature) for layer, feature in self.report["chosen"])
        after = live.known(reported)
        n = len(reported)
        return groups_figure(
            live.before,
            after or live.before,
            curve=self._curve,
            title=f"{n} feature{'' if n == 1 else 's'} {live.removal}",
        )

    def to_html(self, path: str | Path, *, title: str = "") -> None:
        """Write the current panel to one self-contained page; see `Widget.to_html`."""
        self.update_report()
        super().to_html(path, title=title)

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the export of the current choice."""
        return {**super().offline_answers(), "export": [({}, self._as_json())]}

    @t.validate("chosen")
    def _chosen_exist(self, proposal: Any) -> Any:
        for feature in proposal.value:
            try:
                self.live.check(feature)
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.chosen: {error}") from error
        return proposal.value

    @t.observe("chosen")
    def _update_choice(self, change: Any) -> None:
        if self._live is None:
            return
        if not self._moving:
            earlier = self.choices[: self.choice + 1]
            self.choices = [*earlier, self._entry(change.new)][-_LONGEST:]
            self.choice = len(self.choices) - 1
        self._request_report(self._live, change.new)

    def _request_report(self, live: LiveReports, chosen: tuple[FeatureId, ...]) -> None:
        worker, known = self.background("debias"), live.known(chosen)
        if known is not None:
            worker.cancel()
            self._show_report(known, chosen)
            self.end_progress(unless="trade-off")
            return
        dispatch, latest = dispatcher(), time.monotonic()

        def work(check: Check) -> GroupReport:
            def watch(so_far: GroupReport, done: float) -> None:
                nonlocal latest
                check()
                if time.monotonic() - latest > _INTERVAL:
                    latest = time.monotonic()
                    dispatch(check, lambda: self._show_interim(so_far, chosen, done))

            check()
            return live.evaluate(chosen, watch=watch)

        def then(report: GroupReport) -> None:
            self._show_report(report, chosen)
            self.end_progress(unless="trade-off")

        worker.run(work, then)

    def _show_interim(
        self, so_far: GroupReport, chosen: tuple[FeatureId, ...], done: float
    ) -> None:
        with self.hold_sync():
            self.interim = report_payload(so_far, self.live.before, chosen)
            self.show_progress(
                done, f"{self.interim['n_images']} of {len(self.live.groups)} images"
            )

    def _show_report(self, report: GroupReport, chosen: tuple[FeatureId, ...]) -> None:
        with self.hold_sync():
            self.interim = {}
            self.report = report_payload(report, self.live.before, chosen)
            self.choices = [self._entry(entry["chosen"]) for entry in self.choices]

    def _entry(self, chosen: Iterable[Any]) -> dict[str, Any]:
        """Return an entry of the history, with its figures once they are computed."""
        keys = tuple((layer, feature) for layer, feature in chosen)
        known = self.live.known(keys)
        figures = {} if known is None else {"average": known.average, "worst": known.worst}
        return {"chosen": [list(key) for key in keys], **figures}

    def _restore_reported(self) -> None:
        """Restore the choice of the report that is shown."""
        reported = self.report.get("chosen", [])
        found = [i for i in range(self.choice + 1) if self.choices[i]["chosen"] == reported]
        if found:
            self.go_to(found[-1])
        else:
            self.chosen = reported

    def _as_json(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "choice.json"
            self.save(path)
            return path.read_text("utf-8")

    @t.observe("chosen")
    def _add_missing(self, _: Any = None) -> None:
        if self._live is None:
            return
        live, known = self.live, {card.candidate.key for card in self._cards}
        missing = [key for key in (*self._picks, *self.chosen) if key not in known]
        if not missing:
            return
        n_prefix = live.runs.lens.vision.n_prefix

        def work(check: Check) -> tuple[Card, ...]:
            candidates = find_candidates(
                live.runs.activations, live.groups, at_most=0, picks=list(dict.fromkeys(missing))
            )
            check()
            return make_cards(live, candidates, n_prefix=n_prefix)

        def then(found: tuple[Card, ...]) -> None:
            self._show_cards((*found, *self._cards))

        self.background("cards").run(work, then)

    def _show_cards(self, cards: tuple[Card, ...]) -> None:
        self._cards = cards
        with self.hold_sync():
            self.debias_strip = _examples(self.live, cards)
            self.debias_heats = _heats(cards)
            self.debias_cards = cards_payload(cards, self._path)

    def _show_search_curve(self, found: Debiasing) -> None:
        """Show the search's own curve, if it is of these images."""
        for curve in (found.validation, found.test):
            if found.removal == self.live.removal and curve and self.live.learn(found.path, curve):
                self._show_curve(curve, found.path, "In the order of the search")
                return

    def _show_curve(self, curve: TradeOff, path: tuple[FeatureId, ...], source: str) -> None:
        self._curve = curve
        self.trade_off = curve_payload(curve, path, source=source)

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        super()._answer_cancel(payload, buffers)
        self.interim = {}
        self._restore_reported()
        return True

    def _answer_go_to(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.go_to(int(payload["index"]))
        return True

    def _answer_undo(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.undo()
        return True

    def _answer_redo(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.redo()
        return True

    def _answer_export(self, payload: Any, buffers: Sequence[Any]) -> str:
        return self._as_json()

    def _answer_add(self, payload: Any, buffers: Sequence[Any]) -> bool:
        layer, feature = payload["node"]
        self.add((int(layer), int(feature)))
        return True

    def _answer_measure(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.measure_trade_off()
        return True


def _layers_of(found: Debiasing | Sequence[Candidate] | None) -> set[int]:
    if isinstance(found, Debiasing):
        return {layer for layer, _ in found.path} | _layers_of(found.candidates)
    return {candidate.layer for candidate in found or ()}


def report_payload(
    report: GroupReport, before: GroupReport, chosen: Sequence[FeatureId]
) -> dict[str, Any]:
    """Return a report, compared with that of the unchanged model.

    Returns
    -------
    dict
        ``chosen``; ``groups`` in order, each with ``name``, ``count``, ``right``, ``accuracy``
        and its 95 % interval ``low`` to ``high`` (None without images), the same of the
        unchanged model under ``before``, and ``change``; ``average``, with the same keys;
        ``worst``, the worst group; ``collateral``, the groups with lower accuracy than before,
        largest loss first, with the change; ``n_images``.
    """
    rows = [
        _row(name, *now, *was)
        for name, now, was in zip(
            report.group_names,
            zip(report.right.tolist(), report.count.tolist(), strict=True),
            zip(before.right.tolist(), before.count.tolist(), strict=True),
            strict=True,
        )
    ]
    average = _row("average", *_sums(report), *_sums(before))
    known = [row for row in rows if row["accuracy"] is not None]
    lost = [row for row in known if row["change"] is not None and row["change"] < 0]
    return {
        "chosen": [list(key) for key in chosen],
        "groups": rows,
        "average": average,
        "worst": min(known, key=lambda row: row["accuracy"]),
        "worst_before": min(
            (row for row in rows if row["before"]["accuracy"] is not None),
            key=lambda row: row["before"]["accuracy"],
        ),
        "collateral": [
            [row["name"], row["change"]] for row in sorted(lost, key=lambda row: row["change"])
        ],
        "n_images": round(float(report.count.sum())),
    }


def curve_payload(curve: TradeOff, order: Sequence[FeatureId], *, source: str) -> dict[str, Any]:
    """Return a trade-off curve along an order of features, and the source of the order."""
    return {
        "order": [list(key) for key in order],
        "n": curve.n_features.tolist(),
        "average": curve.average.tolist(),
        "worst": curve.worst.tolist(),
        "worst_group": [report.worst_group for report in curve.reports],
        "source": source,
    }


def _row(name: str, right: float, count: float, was_right: float, was_count: float) -> Any:
    now, was = _proportion(right, count), _proportion(was_right, was_count)
    known = now["accuracy"] is not None and was["accuracy"] is not None
    change = now["accuracy"] - was["accuracy"] if known else None
    return {"name": name, **now, "before": was, "change": change}


def _proportion(right: float, count: float) -> dict[str, Any]:
    numbers = {"right": round(right), "count": round(count)}
    if not count:
        return {**numbers, "accuracy": None, "low": None, "high": None}
    low, high = wilson(right, count)
    return {**numbers, "accuracy": right / count, "low": low, "high": high}


def _sums(report: GroupReport) -> tuple[float, float]:
    return float(report.right.sum()), float(report.count.sum())


@dataclass(frozen=True)
class Card:
    """A candidate with examples of every group.

    Attributes
    ----------
    candidate
        The candidate with its figures.
    means
        Mean activation over the tokens and images of every group, [G].
    images
        For every group, the image with the highest mean activation and the median image, [G, 2].
    heats
        Its activation per patch on these images, [G, 2, P].
    """

    candidate: Candidate
    means: Float[Tensor, " G"]
    images: Int[Tensor, "G 2"]
    heats: Float[Tensor, "G 2 P"]


def make_cards(
    live: LiveReports, candidates: Sequence[Candidate], *, n_prefix: int
) -> tuple[Card, ...]:
    """Return candidates with their examples.

    Parameters
    ----------
    n_prefix
        Number of prefix tokens.
    """
    return tuple(_card(live, candidate, n_prefix) for candidate in candidates)


def _card(live: LiveReports, candidate: Candidate, n_prefix: int) -> Card:
    runs, groups = live.runs, live.groups.groups
    layer, feature = candidate.key
    activity = runs.activations[layer][:, feature]
    means, images = [], []
    for group in range(len(live.groups.group_names)):
        members = (groups == group).nonzero().squeeze(1)
        order = members[activity[members].argsort(descending=True, stable=True)]
        means.append(activity[members].mean())
        images.append(torch.stack([order[0], order[len(order) // 2]]))
    index = torch.stack(images)
    heats = runs.activations_of(candidate.key, index.flatten().tolist())[:, n_prefix:]
    return Card(candidate, torch.stack(means), index, heats.reshape(*index.shape, -1))


def candidates_of(
    live: LiveReports, found: Debiasing | Sequence[Candidate] | None, n_cards: int
) -> tuple[Candidate, ...]:
    """Return the candidates to show: those that a search chose first, then by score."""
    if found is None:
        return find_candidates(live.runs.activations, live.groups, at_most=n_cards)
    if not isinstance(found, Debiasing):
        return tuple(found)
    by_key = {candidate.key: candidate for candidate in found.candidates}
    first = [by_key[key] for key in found.path if key in by_key]
    rest = [candidate for candidate in found.candidates if candidate not in first]
    return tuple([*first, *rest][:n_cards])


def cards_payload(cards: Sequence[Card], path: Sequence[FeatureId]) -> list[dict[str, Any]]:
    """Return the cards as plain values; `images` are positions in the strip of examples.

    Parameters
    ----------
    path
        Features in the order in which a search chose them.
    """
    position = {image: i for i, image in enumerate(_images(cards))}
    return [
        {
            "node": list(card.candidate.key),
            "sources": list(card.candidate.sources),
            "step": path.index(card.candidate.key) + 1 if card.candidate.key in path else None,
            "attribute": card.candidate.attribute,
            "effect": card.candidate.effect,
            "auc": card.candidate.auc,
            "q": card.candidate.q_value,
            "class_effect": card.candidate.class_effect,
            "share": card.candidate.share,
            "means": card.means.tolist(),
            "limit": float(card.heats.max()),
            "images": [[position[image] for image in row] for row in card.images.tolist()],
        }
        for card in cards
    ]


def _examples(live: LiveReports, cards: Sequence[Card]) -> bytes:
    """Return all examples side by side, without duplicates."""
    lens, images = live.runs.lens, live.groups.images
    return encode_strip([lens.pixels(images[i]) for i in _images(cards)], side=_SIDE)


def _heats(cards: Sequence[Card]) -> bytes:
    """Return the heat of all examples, float16 [cards, G, 2, P]."""
    if not cards:
        return b""
    return to_bytes(torch.stack([card.heats for card in cards]), "float16")


def _images(cards: Sequence[Card]) -> list[int]:
    return sorted({image for card in cards for image in card.images.flatten().tolist()})
