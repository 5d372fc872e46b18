"""Switching nodes off, or setting them to a value, and seeing what becomes of the output."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
import traitlets as t
from jaxtyping import Float
from torch import Tensor

from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.errors import FeatureError
from vitlens.interventions.kinds import Ablate, Clamp, Interventions, interventions
from vitlens.replacement import ErrorNodes
from vitlens.widgets.part import ScenePart
from vitlens.widgets.scene import Scene
from vitlens.widgets.tasks import Check

#: (layer, feature, value), the value None for a node that is at its baseline.
Ablation: TypeAlias = tuple[int, int, float | None]

_FEW = 20  # classes: with no more, all are told
_TOP = 8
_LONGEST = 50  # history


class AblationPart(ScenePart):
    """The traits behind live ablations.

    Attributes
    ----------
    ablations
        ((layer, feature, value), ...): None switches a feature, or the error node -1, off: it is
        at its baseline; a number is set at every token where the feature is active. Setting the
        trait, here or in the browser, runs the model again; the last wish wins.
    outcome
        What became of the output: ``ablations``; ``classes`` with their ``indices``; ``before``
        and ``after``, each with ``logits`` and ``probabilities`` of these classes. Empty
        without ablations.
    history
        What was tried, oldest first: ``ablations``, ``top`` (name and probability of the class
        predicted then) and ``target`` (the target's value).
    can_ablate
        Whether there are a lens and an image to run.
    """

    ablations = t.Any(()).tag(sync=True)
    outcome = t.Dict().tag(sync=True)
    history = t.List(t.Dict()).tag(sync=True)
    can_ablate = t.Bool(False).tag(sync=True)

    def look_at(self, scene: Scene) -> None:
        """Show another scene; ablations of the one before are forgotten."""
        super().look_at(scene)
        self.background("ablation").cancel()
        with self.hold_sync():
            self.ablations, self.outcome, self.history = (), {}, []
            self.can_ablate = True

    def logits_with(self, ablations: Iterable[Ablation]) -> Float[Tensor, " C"]:
        """Return the logits of the model with these ablations.

        They are those of ``lens.run_with`` with `Ablate` and `Clamp`, and error nodes clean but for
        those that are switched off.

        Raises
        ------
        FeatureError
            When nothing is shown yet, or a node does not exist.
        """
        return _logits(self.scene, tuple(ablations))

    @t.validate("ablations")
    def _ablations_exist(self, proposal: Any) -> tuple[Ablation, ...]:
        try:
            wanted = tuple(_ablation(item) for item in proposal.value)
        except (TypeError, ValueError) as error:
            raise t.TraitError(
                f"{type(self).__name__}.ablations is a list of (layer, feature, value or None), "
                f"not {proposal.value!r}."
            ) from error
        if wanted and self._scene is None:
            raise t.TraitError("Ablations need a lens and an image: use CircuitDiagram.of.")
        for layer, feature, value in wanted:
            try:
                self.scene.check((layer, feature))
            except FeatureError as error:
                raise t.TraitError(f"{type(self).__name__}.ablations: {error}") from error
            if feature == ERROR and value is not None:
                raise t.TraitError("An error node can be switched off, but not set to a value.")
        try:
            _interventions(wanted)
        except FeatureError as error:
            raise t.TraitError(f"{type(self).__name__}.ablations: {error}") from error
        return wanted

    @t.observe("ablations")
    def _ablate(self, change: Any) -> None:
        wanted: tuple[Ablation, ...] = change.new
        worker = self.background("ablation")
        if not wanted:
            worker.cancel()
            self.outcome = {}
            return
        scene = self.scene

        def work(check: Check) -> dict[str, Any]:
            check()
            return _outcome(scene, wanted)

        worker.run(work, self._tell_outcome)

    def _tell_outcome(self, outcome: dict[str, Any]) -> None:
        entry = {
            "ablations": outcome["ablations"],
            "top": outcome["top"],
            "target": outcome["target"],
        }
        earlier = [e for e in self.history if e["ablations"] != entry["ablations"]]
        with self.hold_sync():
            self.outcome = outcome
            self.history = [*earlier, entry][-_LONGEST:]


def _ablation(item: Any) -> Ablation:
    layer, feature, value = item
    if any(isinstance(x, bool | str) or int(x) != x for x in (layer, feature)):
        raise TypeError("layer and feature are whole numbers")
    if layer < 0 or feature <= TARGET:
        raise ValueError("there is no such node")
    if value is not None and not math.isfinite(value):
        raise ValueError("a value is finite")
    return int(layer), int(feature), None if value is None else float(value)


def _interventions(ablations: tuple[Ablation, ...]) -> Interventions:
    return interventions(
        Ablate((layer, feature)) if value is None else Clamp((layer, feature), value)
        for layer, feature, value in dict.fromkeys(ablations)
        if feature != ERROR
    )


def _logits(scene: Scene, ablations: tuple[Ablation, ...]) -> Float[Tensor, " C"]:
    errors: list[ErrorNodes] = ["clean"] * len(scene.lens.saes)
    for layer, feature, _ in ablations:
        if feature == ERROR:
            errors[layer] = "baseline"
    return scene.lens.plan(_interventions(ablations), errors=errors).logits_of(scene.trace)


def _outcome(scene: Scene, ablations: tuple[Ablation, ...]) -> dict[str, Any]:
    before, after = scene.trace.logits, _logits(scene, ablations)
    names, index = scene.class_names, scene.importances.target_index
    shown = _worth_telling(before, after, index)
    best = int(after.argmax())
    target = None if index is None else float(after[index] - after.mean())
    return {
        "ablations": [list(ablation) for ablation in ablations],
        "indices": shown,
        "classes": [names[i] for i in shown],
        "before": _told(before, shown),
        "after": _told(after, shown),
        "top": [names[best], float(after.softmax(-1)[best])],
        "target": target,
    }


def _worth_telling(before: Tensor, after: Tensor, target: int | None) -> list[int]:
    """Return class indices, likeliest before first: all of a few, else the top of both."""
    order = before.argsort(descending=True).tolist()
    if len(order) <= _FEW:
        return order
    best = {*order[:_TOP], *after.topk(_TOP).indices.tolist()}
    return [i for i in order if i in best or i == target]


def _told(logits: Tensor, shown: list[int]) -> dict[str, list[float]]:
    probabilities = torch.softmax(logits, -1)
    return {"logits": logits[shown].tolist(), "probabilities": probabilities[shown].tolist()}
