"""Edges by an engine of choice: some columns on demand, all of them, or those of one node.

The engines agree; they differ in cost. "closed_form" computes all sources at once and is the
fastest where it applies: one block with one softmax attention between the two sites. Where blocks
lie between two sites that have no SAE of their own, "closed_form" leaves the pair to "jvp" or
"vjp", whichever needs fewer passes; `EdgeColumns.engines` says which engine took which pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.errors import ModelError, check_choice
from vitlens.method import closed_form
from vitlens.method.edges import SitePair, jvp, vjp
from vitlens.method.importance import Engine, Importances
from vitlens.method.replacement import ReplacementModel, Trace
from vitlens.progress import Progress, StepReporter

ENGINES: dict[Engine, Callable[[SitePair], Float[Tensor, "F+1 n"]]] = {
    "closed_form": closed_form.edges,
    "jvp": jvp,
    "vjp": vjp,
}


def choose_engine(pair: SitePair, engine: Engine) -> Engine:
    """The engine that computes a pair of sites when `engine` is requested.

    Raises
    ------
    OptionError
        If the engine is unknown.
    """
    check_choice("engine", engine, get_args(Engine))
    if engine != "closed_form" or pair.n_blocks == 1:
        return engine
    return "vjp" if pair.active_targets().sum() <= len(pair.active_sources()) else "jvp"


def compute_edges(pair: SitePair, engine: Engine) -> Float[Tensor, "F+1 n"]:
    """Edge importances of one pair of sites, the error node's row last.

    Parameters
    ----------
    pair
        The two sites.
    engine
        "closed_form", "jvp" or "vjp".

    Raises
    ------
    OptionError
        If the engine is unknown.
    ModelError
        If "closed_form" does not support the block, or the numbers overflow.
    """
    active = pair.active_targets()
    result = pair.stream.new_zeros(pair.coefficients.shape[1] + 1, len(pair.targets))
    if active.any():
        wanted = replace(pair, targets=pair.targets[active])
        with torch.no_grad():
            found = ENGINES[choose_engine(wanted, engine)](wanted)
        if active.all():
            result = found
        else:
            result[:, active] = found
    if not torch.isfinite(result).all():
        raise ModelError(
            f"Edges hold NaN or infinity: the values overflow in {result.dtype}. Load the model in "
            "float32."
        )
    return result


class EdgeColumns:
    """Edges into the features that are asked for, computed when they are and then kept.

    Nothing leads into a feature that is not active on the image: its column is 0, and not kept.

    Parameters
    ----------
    replacement
        The model.
    trace
        Trace of one image.
    nodes
        Node importances of the image, whose settings count; their edges are not looked at.
    engine
        The engine; by default that of `nodes`.
    progress
        Show a progress bar over the pairs of sites, or call this function (see
        `vitlens.progress`); a pair counts when it is first asked for.

    Attributes
    ----------
    engines
        By position, the engine that computed the pair most recently.
    """

    def __init__(
        self,
        replacement: ReplacementModel,
        trace: Trace,
        nodes: Importances,
        *,
        engine: Engine | None = None,
        progress: Progress = False,
    ):
        self._replacement, self._trace, self._nodes = replacement, trace, nodes
        check_choice("engine", engine or nodes.engine, get_args(Engine))
        self._engine: Engine = engine or nodes.engine
        # By position: which column of the second is that of each feature, -1 for none yet.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self.engines: dict[int, Engine] = {}
        self._reporter = StepReporter(progress, total=max(1, len(replacement) - 1))
        self._bar = tqdm(
            total=len(replacement) - 1, desc="edges", disable=progress is not True, leave=False
        )

    def __call__(self, position: int, features: Int[Tensor, " n"]) -> Float[Tensor, "F+1 n"]:
        """Columns of the edges from site `position` into features of the next site.

        Returns
        -------
        Tensor
            [F + 1, n], the error node's row last.
        """
        features = features.to(self._replacement.vision.device)
        first = position not in self._known
        if first:
            self._reporter.report("edges")
            active = (self._trace.features[position + 1] > 0).any(0)
            n_sources = self._trace.features[position].shape[1] + 1
            # Column 0 is that of every feature that is not active.
            no_edges = self._trace.logits.new_zeros(n_sources, 1)
            self._known[position] = -active.long(), no_edges
        column, found = self._known[position]
        missing = features[column[features] < 0].unique()
        if len(missing):
            column[missing] = torch.arange(len(missing), device=column.device) + found.shape[1]
            found = torch.cat([found, self._compute(position, missing)], dim=1)
            self._known[position] = column, found
        if first:
            self._count()
        return found[:, column[features]]

    def all(self) -> tuple[Float[Tensor, "F+1 G"], ...]:
        """All edges of every pair of sites, not kept here."""
        found = []
        for position in range(len(self._replacement) - 1):
            self._reporter.report("edges")
            n = self._replacement.saes[position + 1].n_features
            found.append(self._compute(position, torch.arange(n)))
            self._count()
        return tuple(found)

    def _compute(self, position: int, features: Tensor) -> Tensor:
        pair = site_pair(self._replacement, self._trace, self._nodes, position, targets=features)
        self.engines[position] = choose_engine(pair, self._engine)
        return compute_edges(pair, self._engine)

    def _count(self) -> None:
        self._reporter.done += 1
        self._bar.update()
        if self._reporter.done == self._reporter.total:
            self._reporter.report("edges")
            self._bar.close()


def site_pair(
    replacement: ReplacementModel,
    trace: Trace,
    nodes: Importances,
    position: int,
    *,
    targets: Int[Tensor, " n"] | None = None,
) -> SitePair:
    """What an engine needs for the edges from the site `position` to the next.

    Parameters
    ----------
    replacement, trace, nodes
        See `EdgeColumns`.
    position
        The source site.
    targets
        Only these features of the next site; all by default.
    """
    source, sae = replacement.saes[position], replacement.saes[position + 1]
    device = replacement.vision.device
    baselines, active = replacement.baselines, trace.features[position + 1] > 0
    with torch.no_grad():
        stem = replacement.vision.embed(trace.image[None])
    moved = trace.features[position] - baselines.features[position]
    return SitePair(
        module=replacement.vision.module,
        blocks=replacement.advance(stem, position + 1),
        n_blocks=replacement.layers[position + 1] - replacement.layers[position],
        gradient=nodes.gradient,
        stream=trace.residuals[position],
        coefficients=moved * trace.stds[position],
        directions=source.W_dec,
        error=trace.errors[position] - baselines.errors[position],
        sae=sae,
        weights=torch.where(active, nodes.gradients[position + 1], 0),
        active=active,
        targets=(torch.arange(sae.n_features) if targets is None else targets).to(device),
    )


def edges_into(
    replacement: ReplacementModel, trace: Trace, nodes: Importances, layer: int, feature: int
) -> Float[Tensor, " F+1"]:
    """Edges from every node of the site before into one feature: one reverse pass.

    Parameters
    ----------
    replacement, trace, nodes
        See `EdgeColumns`.
    layer, feature
        The feature; nothing leads into an error node or into the first site.

    Returns
    -------
    Tensor
        [F + 1] for the nodes of the site before, the error node last; empty for the first site.

    Raises
    ------
    FeatureError
        If there is no such feature.
    """
    position = replacement.check_node(layer, feature)
    if position == 0:
        return trace.logits.new_zeros(0)
    if feature == -1:
        return trace.logits.new_zeros(replacement.saes[position - 1].n_features + 1)
    wanted = torch.tensor([feature])
    pair = site_pair(replacement, trace, nodes, position - 1, targets=wanted)
    return compute_edges(pair, "vjp")[:, 0]


def edges_out_of(
    replacement: ReplacementModel, trace: Trace, nodes: Importances, layer: int, feature: int
) -> Float[Tensor, " G"]:
    """Edges from one node to every feature of the next site: one forward-mode pass.

    Parameters
    ----------
    replacement, trace, nodes
        See `EdgeColumns`.
    layer, feature
        The node; feature -1 is the error node.

    Returns
    -------
    Tensor
        [G] for the features of the next site; empty for the last site, which leads to the
        target alone.

    Raises
    ------
    FeatureError
        If there is no such node.
    """
    position = replacement.check_node(layer, feature)
    if position == len(replacement) - 1:
        return trace.logits.new_zeros(0)
    return edge_rows(replacement, trace, nodes, position, [] if feature == -1 else [feature])[0]


def edge_rows(
    replacement: ReplacementModel,
    trace: Trace,
    nodes: Importances,
    position: int,
    features: Sequence[int],
) -> Float[Tensor, "n+1 G"]:
    """Edges from some features of a site to every feature of the next, in forward mode.

    Parameters
    ----------
    replacement, trace, nodes
        See `EdgeColumns`.
    position
        The source site; not the last.
    features
        Feature numbers.

    Returns
    -------
    Tensor
        [n + 1, G], the error node's row last.
    """
    pair = site_pair(replacement, trace, nodes, position)
    some = list(features)
    pair = replace(pair, coefficients=pair.coefficients[:, some], directions=pair.directions[some])
    return compute_edges(pair, "jvp")
