"""Patched edges: how far the target falls when one edge is cut, from few runs for all edges.

The edges of equation (20) take everything at the full model: the blocks are linearised, and the
SAEs' sd is constant. A cut, equation (41), is finite, and the sd moves. For the few nodes of a
circuit both can be had. With ``c_f`` what node f adds to the stream ``x_i``::

    Delta_fg = sd_j (z_j(x_i - c_f)[:, g] - z_j[:, g]) x W_dec[g]
    L[f, g]  = - < d r / d x_j, Delta_fg >
    E*[f, g] = L[f, g] + a_fg^2 kappa_g                                        (48)

``Delta_fg`` is exact: one run of the blocks between the sites for each source f gives it for all
g. The derivative is the replacement model's own at the untouched stream, with the error nodes as
in the cut and *through the sd of the SAEs*; one pass forward and back gives it for all sites. The
last term is the curvature, along the change of the source b that changes g most::

    kappa_g = r - r(x_j + Delta_bg) - L[b, g]
    a_fg    = < Delta_fg, Delta_bg > / < Delta_bg, Delta_bg >

one run from site j on for each g; it is left out (0) but for the few features of a site that
change most. Into the target the change is exact itself: ``E*[f] = r - r(x_L - c_f)``, one run of
the last blocks for each f of the last site L. So these edges and those of the pairs (b, g) are
cuts; all others are predictions.

Source: docs/method.md, "Patched edges"; after Goldowsky-Dill et al., "Localizing model behavior
with path patching", arXiv 2304.05969, and Syed et al., "Attribution patching outperforms automated
circuit discovery", arXiv 2310.10348.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.errors import FeatureError, ModelError, TargetError, check_choice, check_count
from vitlens.method.importance import Target
from vitlens.method.logit_lens import contribution
from vitlens.method.replacement import (
    Active,
    ErrorNodes,
    FromSite,
    ReplacementModel,
    SiteState,
    Trace,
)
from vitlens.progress import Progress, StepReporter

#: How the edges of a circuit are computed: as importances, equation (20), or patched, (48).
EdgeKind = Literal["gradient", "patched"]

#: The error nodes of a patched edge: those with which the untouched model is a replaced run.
HeldClean = Literal["clean", "free"]

#: How many features per site have their curvature measured.
CURVED = 2
_BATCH = 16


class PatchedEdges:
    """Edges of equation (48) between given nodes, computed when they are asked for.

    Parameters
    ----------
    replacement
        The model, with its baselines.
    trace
        Trace of one image.
    target
        The target to explain.
    kept
        By site, the nodes between which edges are wanted: feature numbers, F_i for the error node.
    error_nodes
        "clean" or "free", as in the cut; see `vitlens.circuits.verify`.
    active
        Which features may be active without the source: "clean", those that are in the untouched
        model; "running", those of the running stream. Derivatives hold them in either case.
    curved
        For how many features per site the curvature is measured, at most.
    progress
        See `vitlens.progress`; a site counts when its edges are first asked for.

    Raises
    ------
    OptionError
        If `error_nodes` is neither "clean" nor "free", or `active` is unknown.
    FeatureError
        If `curved` is below 0, or there is not one list of nodes per site.
    TargetError, ModelError
        See `run_gradients`.
    """

    def __init__(
        self,
        replacement: ReplacementModel,
        trace: Trace,
        target: Target,
        kept: Sequence[Int[Tensor, " kept"]],
        *,
        error_nodes: HeldClean = "clean",
        active: Active = "clean",
        curved: int = CURVED,
        progress: Progress = False,
    ):
        check_choice("error_nodes", error_nodes, get_args(HeldClean))
        check_choice("active", active, get_args(Active))
        check_count("curved", curved, least=0)
        if len(kept) != len(replacement):
            raise FeatureError(
                f"Patched edges need the nodes of {len(replacement)} sites, not {len(kept)}."
            )
        self._replacement, self._trace, self._target = replacement, trace, target
        self._kept, self._error_nodes = tuple(kept), error_nodes
        self._active, self._curved = active, curved
        self._gradients = run_gradients(replacement, trace, target, error_nodes=error_nodes)
        # With several reference images as baselines, changes are the means over them.
        self._models = [
            ReplacementModel(replacement.vision, replacement.saes, replacement.layers, baselines)
            for baselines in replacement.baselines.runs
        ]
        self._found: dict[int, Tensor] = {}
        self._reporter = StepReporter(progress, total=len(replacement))

    def __call__(self, position: int, features: Int[Tensor, " n"]) -> Float[Tensor, "F+1 n"]:
        """Columns of the edges from site `position` into kept features of the next site.

        Returns
        -------
        Tensor
            [F + 1, n], the error node's row last; 0 for sources that are not kept.
        """
        column = {f: number for number, f in enumerate(self._ends(position + 1))}
        missing = [f for f in features.tolist() if f not in column]
        if missing:
            raise FeatureError(f"Features {missing[:5]} are not among the kept nodes.")
        block = self._block(position)
        full = block.new_zeros(self._replacement.saes[position].n_features + 1, len(features))
        full[self._kept[position].to(full.device)] = block[
            :, [column[f] for f in features.tolist()]
        ]
        return full

    def to_target(self) -> Float[Tensor, " F+1"]:
        """Edges from the nodes of the last site to the target; 0 for nodes that are not kept."""
        last = len(self._replacement) - 1
        found = self._block(last)[:, 0]
        full = found.new_zeros(self._replacement.saes[last].n_features + 1)
        full[self._kept[last].to(full.device)] = found
        return full

    def _ends(self, position: int) -> list[int]:
        """Kept features of a site, its error node left out."""
        size = self._replacement.saes[position].n_features
        return [f for f in self._kept[position].tolist() if f != size]

    @torch.no_grad()
    def _block(self, position: int) -> Float[Tensor, "sources ends"]:
        """Edges between the kept nodes of two sites, or from the last one to the target."""
        if position not in self._found:
            self._reporter.report("patched edges")
            if position == len(self._replacement) - 1:
                found = self._into_target()[:, None]
            else:
                found = self._between(position)
            self._found[position] = found
            self._reporter.done += 1
        return self._found[position]

    def _into_target(self) -> Float[Tensor, " sources"]:
        last = len(self._replacement) - 1
        steps = [-self._contributions(model, last) for model in self._models]
        return torch.stack([self._falls(last, step) for step in steps]).mean(0)

    def _between(self, position: int) -> Float[Tensor, "sources ends"]:
        after, trace = position + 1, self._trace
        sae, ends = self._replacement.saes[after], self._ends(after)
        n_sources = len(self._kept[position])
        if not ends or not n_sources:
            return trace.logits.new_zeros(n_sources, len(ends))
        rows = sae.W_dec[ends]
        changes = [self._changes(model, position, ends) for model in self._models]
        moved = torch.stack(changes).mean(0) * trace.stds[after]
        first = -torch.einsum("ste,te->se", moved, self._gradients[after] @ rows.T)
        # Squared lengths of the changes in the stream, by source and end.
        lengths = moved.square().sum(1) * rows.square().sum(1)
        most, strongest = lengths.max(0)
        order = most.argsort(descending=True)[: self._curved]
        curved = order[most[order] > 0]
        if not len(curved):
            return first
        anchors = strongest[curved]
        anchor = moved[anchors, :, curved]
        falls = self._falls(after, anchor[:, :, None] * rows[curved][:, None])
        kappa = falls - first[anchors, curved]
        along = torch.einsum("ste,et->se", moved[:, :, curved], anchor) / anchor.square().sum(1)
        first[:, curved] += along.square() * kappa
        return first

    def _contributions(self, model: ReplacementModel, position: int) -> Float[Tensor, "n T D"]:
        """What the kept nodes of a site add to its stream."""
        size, layer = model.saes[position].n_features, model.layers[position]
        nodes = [-1 if f == size else f for f in self._kept[position].tolist()]
        found = self._trace.residuals[position].new_empty(len(nodes), *self._trace.output.shape)
        for number, node in enumerate(nodes):
            found[number] = contribution(model, self._trace, layer, node)
        return found

    def _changes(
        self, model: ReplacementModel, position: int, ends: list[int]
    ) -> Float[Tensor, "n T ends"]:
        """Change of the ends' activations without each source, exactly."""
        trace, after = self._trace, position + 1
        advance = model.advance(model.vision.embed(trace.image[None]), after)
        active = trace.features[after] > 0 if self._active == "clean" else None
        found = []
        for step in self._contributions(model, position).split(_BATCH):
            out = advance(trace.residuals[position] - step)
            found.append(model.saes[after].encode(out, active=active)[..., ends])
        return torch.cat(found) - trace.features[after][:, ends]

    def _falls(self, position: int, steps: Float[Tensor, "n T D"]) -> Float[Tensor, " n"]:
        """How far the target falls after each step of the stream of a site."""
        value = self._target.function(self._trace.logits)
        falls = [steps.new_zeros(0)]
        for part in steps.split(_BATCH):
            stream = self._trace.residuals[position] + part
            start = FromSite(position, stream, changed=True, clean=self._trace)
            logits = self._replacement.run(
                start, error_nodes=self._error_nodes, active=self._active
            )
            falls.append(torch.stack([value - self._target.function(row) for row in logits]))
        return torch.cat(falls)


def run_gradients(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    *,
    error_nodes: ErrorNodes = "clean",
) -> tuple[Float[Tensor, "T D"], ...]:
    """Derivative of a replaced run by the stream that leaves each site, at the untouched model.

    Active features are held; the SAEs' sd is no constant, other than in importances.

    Parameters
    ----------
    replacement, trace, target
        See `PatchedEdges`.
    error_nodes
        Values of the error nodes at later sites.

    Raises
    ------
    TargetError
        If the target has no derivative with respect to the logits.
    ModelError
        If a derivative is not finite.
    """
    streams = [trace.residuals[0][None].detach().clone().requires_grad_()]

    def observe(state: SiteState, stream: Tensor) -> None:
        streams.append(stream)

    logits = replacement.run(
        FromSite(0, streams[0], changed=True, clean=trace),
        error_nodes=error_nodes,
        active="clean",
        observe=observe,
        grad=True,
        constant_std=False,
    )
    with torch.enable_grad():
        value = target.function(logits[0])
    if not value.requires_grad:
        raise TargetError(
            f"The target {target.name!r} has no derivative with respect to the logits, so edges "
            'cannot be patched. Compute them with edges="gradient".'
        )
    found = [grad[0] for grad in torch.autograd.grad(value, streams)]
    if not all(torch.isfinite(grad).all() for grad in found):
        raise ModelError(
            "Derivatives hold NaN or infinity: a token's channels are all equal, or values "
            f'overflow in {logits.dtype}. Use edges="gradient".'
        )
    return tuple(found)
