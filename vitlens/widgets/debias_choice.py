"""Which features are taken out: a choice with its report, its history, and its file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import traitlets as t

from vitlens.debias.model import DebiasedModel
from vitlens.debias.report import GroupReport
from vitlens.debias.runs import LiveReports
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import FeatureId
from vitlens.widgets.debias_told import told
from vitlens.widgets.naming import NamesPart
from vitlens.widgets.tasks import Check, teller
from vitlens.widgets.traits import NodeList

_LONGEST = 100  # history
_PATIENCE = 0.25  # seconds between figures of the images so far, and until the first


class ChosenPart(NamesPart):
    """The traits behind a choice of features; see `DebiasPanel`."""

    chosen = NodeList()
    report = t.Dict().tag(sync=True)
    interim = t.Dict().tag(sync=True)
    choices = t.List(t.Dict()).tag(sync=True)
    choice = t.Int(0, min=0).tag(sync=True)

    _live: LiveReports | None = None
    _moving = False  # whether `chosen` changes to an earlier choice

    @property
    def live(self) -> LiveReports:
        """The images and what is known of them.

        Raises
        ------
        FeatureError
            When no groups are shown yet.
        """
        if self._live is None:
            raise FeatureError("There are no groups of images to look at yet.")
        return self._live

    def evaluate(self, chosen: Iterable[FeatureId]) -> GroupReport:
        """Report on the groups without other features; the panel stays as it is.

        Raises
        ------
        FeatureError
            If a feature does not exist, or is of a layer that is not kept.
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
        how = live.removal
        return DebiasedModel(live.runs.lens, self.chosen, to=how.to, project=how.project)

    def save(self, path: str | Path) -> None:
        """Write the choice as `DebiasedModel.save` does; `DebiasedModel.load` reads it.

        Raises
        ------
        VitlensError
            When the file cannot be written.
        """
        self.model().save(path)

    def undo(self) -> None:
        """Go back to the choice before, if there is one."""
        self.go_to(max(self.choice - 1, 0))

    def redo(self) -> None:
        """Take back `undo`, if there is anything to take back."""
        self.go_to(min(self.choice + 1, len(self.choices) - 1))

    def reset(self) -> None:
        """Choose nothing; `undo` brings the choice back."""
        self.chosen = ()

    def go_to(self, place: int) -> None:
        """Choose what was chosen at a place of the history, `choices`.

        Raises
        ------
        FeatureError
            When the history has no such place.
        """
        if not 0 <= place < len(self.choices):
            raise FeatureError(f"The history has {len(self.choices)} choices, and no {place}.")
        self._moving = True
        try:
            with self.hold_sync():
                self.choice = place
                self.chosen = self.choices[place]["chosen"]
        finally:
            self._moving = False

    def update_report(self) -> None:
        """Finish the report now, if it is still being made in the background."""
        worker = self.background("debias")
        if worker.busy:
            worker.cancel()
            self._show_report(self.live.evaluate(self.chosen), self.chosen)
            self._rest(but_for="trade-off")

    @t.validate("chosen")
    def _chosen_exist(self, proposal: Any) -> Any:
        for feature in proposal.value:
            try:
                self.live.check(feature)
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.chosen: {error}") from error
        return proposal.value

    @t.observe("chosen")
    def _chosen_changed(self, change: Any) -> None:
        if self._live is None:
            return
        if not self._moving:
            earlier = self.choices[: self.choice + 1]
            self.choices = [*earlier, self._entry(change.new)][-_LONGEST:]
            self.choice = len(self.choices) - 1
        self._report_on(self._live, change.new)

    def _report_on(self, live: LiveReports, chosen: tuple[FeatureId, ...]) -> None:
        worker, known = self.background("debias"), live.known(chosen)
        if known is not None:
            worker.cancel()
            self._show_report(known, chosen)
            self._rest(but_for="trade-off")
            return
        tell, latest = teller(), time.monotonic()

        def work(check: Check) -> GroupReport:
            def watch(so_far: GroupReport, done: float) -> None:
                nonlocal latest
                check()
                if time.monotonic() - latest > _PATIENCE:
                    latest = time.monotonic()
                    tell(check, lambda: self._show_interim(so_far, chosen, done))

            check()
            return live.evaluate(chosen, watch=watch)

        def then(report: GroupReport) -> None:
            self._show_report(report, chosen)
            self._rest(but_for="trade-off")

        worker.run(work, then)

    def _show_interim(
        self, so_far: GroupReport, chosen: tuple[FeatureId, ...], done: float
    ) -> None:
        with self.hold_sync():
            self.interim = told(so_far, self.live.before, chosen)
            self._show_progress(
                done, f"{self.interim['n_images']} of {len(self.live.groups)} images"
            )

    def _show_report(self, report: GroupReport, chosen: tuple[FeatureId, ...]) -> None:
        with self.hold_sync():
            self.interim = {}
            self.report = told(report, self.live.before, chosen)
            self.choices = [self._entry(entry["chosen"]) for entry in self.choices]

    def _entry(self, chosen: Iterable[Any]) -> dict[str, Any]:
        """One choice of the history, with its figures once they are known."""
        keys = tuple((layer, feature) for layer, feature in chosen)
        known = self.live.known(keys)
        figures = {} if known is None else {"average": known.average, "worst": known.worst}
        return {"chosen": [list(key) for key in keys], **figures}

    def _show_progress(self, done: float, what: str) -> None:
        self.progress = {"done": round(done, 3), "what": what}

    def _rest(self, *, but_for: str) -> None:
        """Show no progress any more, unless the other worker still has some."""
        if not self.background(but_for).busy:
            self.progress = {}

    def _answer_cancel(self, payload: Any, buffers: Sequence[Any]) -> bool:
        super()._answer_cancel(payload, buffers)
        self.interim = {}
        self._go_back_to_report()
        return True

    def _go_back_to_report(self) -> None:
        """Choose what the figures in sight are of."""
        shown = self.report.get("chosen", [])
        places = [i for i in range(self.choice + 1) if self.choices[i]["chosen"] == shown]
        if places:
            self.go_to(places[-1])
        else:
            self.chosen = shown

    def _answer_go_to(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.go_to(int(payload["place"]))
        return True

    def _answer_undo(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.undo()
        return True

    def _answer_redo(self, payload: Any, buffers: Sequence[Any]) -> bool:
        self.redo()
        return True

    def _answer_export(self, payload: Any, buffers: Sequence[Any]) -> str:
        return self._as_json()

    def _as_json(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "choice.json"
            self.save(path)
            return path.read_text("utf-8")

    def offline_answers(self) -> dict[str, list[tuple[Any, Any]]]:
        """Return the export of the choice as it is now."""
        return {**super().offline_answers(), "export": [({}, self._as_json())]}
