"""Selection of a circuit's features: the few that carry the answer by themselves.

The walk of `vitlens.circuits.prune` follows edges at the full model. The selections here look at
the model on the way from the empty circuit to the kept one, equation (43), and keep features that
are active on the image::

    path       keep the largest P_i[f], computed once for all features
    eliminate  K_0 = the features active on the image
               K_{r+1} = those of K_r with the largest P within K_r             (45)
    learned    keep the largest gates, trained on the image to keep the target with few open gates

Each gives one nested `Ranking`, from which sets of any size are taken: the same number per layer,
or one number for all layers with a floor for each.

Source: docs/method.md, "Selection by elimination". Learned gates: Louizos et al., "Learning sparse
neural networks through L0 regularization", arXiv 1712.01312.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitlens.circuits.prune import Rules
from vitlens.errors import FeatureError
from vitlens.method.importance import Target
from vitlens.method.path_importance import GateFeatures, path_importances
from vitlens.method.rankings import Case, Keep
from vitlens.method.replacement import ErrorNodes, KeepFeatures, ReplacementModel, Trace
from vitlens.progress import Progress
from vitlens.progress import steps as progress_steps
from vitlens.repr import ShapeRepr

#: Part of the features that a round of elimination removes, and its steps on the path; chosen on
#: validation images of `everyday`.
DROP, STEPS = 0.5, 3
#: Steps on the path of a single ranking by path-integrated importance.
PATH_STEPS = 8

_LEARNED_STEPS, _LEARNED_RATE, _LEARNED_SPARSITY, _TEMPERATURE = 60, 0.2, 4.0, 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Ranking(ShapeRepr):
    """All features of one image, in the order in which a selection keeps them.

    Attributes
    ----------
    scores
        By site, [F_i], float64 on the CPU: the higher, the longer a feature is kept, comparable
        between sites; -inf for features that are not active on the image.
    """

    scores: tuple[Float[Tensor, " F"], ...]

    @property
    def n_active(self) -> tuple[int, ...]:
        """By site, how many features can be kept."""
        return tuple(int(torch.isfinite(score).sum()) for score in self.scores)

    def keep(self, count: int) -> tuple[Int[Tensor, " kept"], ...]:
        """The best features of every site: at most `count`, best first.

        Raises
        ------
        FeatureError
            If `count` is below 0.
        """
        if count < 0:
            raise FeatureError(f"The number of features must be at least 0, not {count}.")
        return tuple(_best(score)[:count] for score in self.scores)

    def keep_total(self, total: int, *, floor: int = 1) -> tuple[Int[Tensor, " kept"], ...]:
        """The best features of all sites together, but at least `floor` per site.

        Parameters
        ----------
        total
            Number of features of all sites.
        floor
            Least number of features per site; sites with fewer active features keep these.

        Raises
        ------
        FeatureError
            If the total is below the sum of the floors.
        """
        check_floor(total, floor, len(self.scores))
        orders = [_best(score) for score in self.scores]
        kept = [min(floor, len(order)) for order in orders]
        rest = [
            (float(self.scores[site][feature]), -site)
            for site, order in enumerate(orders)
            for feature in order[kept[site] :].tolist()
        ]
        for _, site in sorted(rest, reverse=True)[: max(0, total - sum(kept))]:
            kept[-site] += 1
        return tuple(order[:n] for order, n in zip(orders, kept, strict=True))


def check_floor(total: int, floor: int, n_sites: int) -> None:
    """Raise `FeatureError` unless a budget for all sites reaches the floor of each."""
    if floor < 1:
        raise FeatureError(f"The floor must be at least 1 feature per layer, not {floor}.")
    if total < floor * n_sites:
        raise FeatureError(
            f"A budget of {total} features is below the floor: {floor} for each of {n_sites} "
            f"layers are {floor * n_sites}."
        )


def rank_by_path(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    *,
    steps: int = PATH_STEPS,
    error_nodes: ErrorNodes = "clean",
) -> Ranking:
    """Rank the active features by path-integrated importance, equation (43).

    Parameters
    ----------
    replacement, trace, target, steps, error_nodes
        See `vitlens.method.path_importance.path_importances`.
    """
    found = path_importances(replacement, trace, target, steps=steps, error_nodes=error_nodes)
    return Ranking(
        tuple(
            torch.where(active, score.double(), -torch.inf).cpu()
            for score, active in zip(found, active_features(trace), strict=True)
        )
    )


def active_features(trace: Trace) -> tuple[Bool[Tensor, " F"], ...]:
    """By site, which features are active on some token of one image."""
    return tuple((features > 0).any(0) for features in trace.features)


def schedule(n_start: int, n_end: int, drop: float) -> list[int]:
    """Numbers of features after every round of elimination, from `n_start` down to `n_end`.

    Every round keeps about the same part, at least ``1 - drop``.
    """
    if n_end >= n_start:
        return []
    rounds = max(1, math.ceil(math.log(n_end / n_start) / math.log(1 - drop) - 1e-9))
    return [round(n_start * (n_end / n_start) ** (r / rounds)) for r in range(1, rounds + 1)]


def eliminate(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    *,
    down_to: int,
    floor: int | None = None,
    drop: float = DROP,
    steps: int = STEPS,
    error_nodes: ErrorNodes = "clean",
    progress: Progress = False,
) -> Ranking:
    """Rank features by repeated elimination, equation (45).

    Every round computes the path-integrated importance from the empty circuit to the features
    that are left, and removes those with the smallest. A round takes `steps` forward and backward
    passes; about ``log(n_active / down_to) / log(1 / (1 - drop))`` rounds are needed.

    Parameters
    ----------
    replacement, trace, target
        The model, the trace of one image, and the target.
    down_to
        Number of features at which elimination ends: per site, or of all sites if there is a
        floor. The last ones are ranked by their importance in the last round.
    floor
        One budget for all sites: importances of all sites compete, and every site keeps at least
        this many features. Without it every site has the same budget.
    drop
        Part of the features that a round removes, above 0 and below 1.
    steps
        Steps on the path of a round.
    error_nodes
        Values of the error nodes.
    progress
        Show a progress bar over the rounds, or call this function (see `vitlens.progress`); both
        name the number of passes. What the function raises ends the elimination.

    Raises
    ------
    FeatureError
        If `drop`, `down_to`, `floor` or `steps` is out of range.
    TargetError
        If the target has no derivative with respect to the logits.
    """
    if not 0 < drop < 1:
        raise FeatureError(f"The part removed per round must be between 0 and 1, not {drop}.")
    if down_to < 1:
        raise FeatureError(f"Elimination must leave at least 1 feature, not {down_to}.")
    if floor is not None:
        check_floor(down_to, floor, len(replacement))
    kept = [active.clone() for active in active_features(trace)]
    left = _Left(kept, down_to, floor, drop)
    passes = f"elimination, {left.n_rounds * steps} forward and backward passes"
    for number in progress_steps(range(left.n_rounds), passes, progress):
        scores = path_importances(
            replacement,
            trace,
            target,
            steps=steps,
            within=left.kept,
            error_nodes=error_nodes,
            batch_size=steps,
        )
        left.remove(scores, number)
    return left.ranking()


class _Left:
    """What elimination has left, and the order in which the rest was removed."""

    def __init__(
        self, kept: list[Bool[Tensor, " F"]], down_to: int, floor: int | None, drop: float
    ) -> None:
        self.kept, self._floor = kept, floor
        counts = [int(mask.sum()) for mask in kept]
        if floor is None:
            each = [schedule(n, min(down_to, n), drop) for n in counts]
        else:
            each = [schedule(sum(counts), min(down_to, sum(counts)), drop)]
        # Every site ends in the last round, so that all shrink at the same pace.
        self.n_rounds = max(map(len, each))
        sizes = counts if floor is None else [sum(counts)]
        self._sizes = [
            [size] * (self.n_rounds - len(one)) + one for size, one in zip(sizes, each, strict=True)
        ]
        self._removed = [_unranked(mask) for mask in kept]
        self._last = [_unranked(mask) for mask in kept]
        self._n_removed = 0

    def remove(self, scores: Sequence[Float[Tensor, " F"]], number: int) -> None:
        """Remove the features with the smallest scores, down to the sizes of this round."""
        self._last = [score.double().cpu() for score in scores]
        if self._floor is None:
            for site, sizes in enumerate(self._sizes):
                self._drop([(site, f) for f in self._ascending(site)], sizes[number])
            return
        # The best `floor` of every site are not candidates.
        fixed = 0
        candidates = []
        for site in range(len(self.kept)):
            order = self._ascending(site)
            n_fixed = min(self._floor, len(order))
            fixed += n_fixed
            candidates += [(site, f) for f in order[: len(order) - n_fixed]]
        candidates.sort(key=lambda at: float(self._last[at[0]][at[1]]))
        self._drop(candidates, self._sizes[0][number] - fixed)

    def ranking(self) -> Ranking:
        """All features by the order of removal; those that are left by their last score."""
        ends = [(site, f) for site in range(len(self.kept)) for f in self._ascending(site)]
        ends.sort(key=lambda at: float(self._last[at[0]][at[1]]))
        self._drop(ends, 0)
        return Ranking(tuple(self._removed))

    def _ascending(self, site: int) -> list[int]:
        """The features of a site that are left, smallest score first, higher index first."""
        left = self.kept[site].nonzero()[:, 0].tolist()
        return sorted(left, key=lambda f: (float(self._last[site][f]), -f))

    def _drop(self, candidates: list[tuple[int, int]], n_left: int) -> None:
        for site, feature in candidates[: max(0, len(candidates) - n_left)]:
            self.kept[site][feature] = False
            self._removed[site][feature] = self._n_removed
            self._n_removed += 1


def learn_gates(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    *,
    steps: int = _LEARNED_STEPS,
    sparsity: float = _LEARNED_SPARSITY,
    seed: int = 0,
    error_nodes: ErrorNodes = "clean",
    progress: Progress = False,
) -> Ranking:
    """Rank the active features by gates that are trained on the one image.

    Gates are concrete (a sigmoid with logistic noise, temperature 0.5). The loss is the squared
    distance of the target from the full model's, in units of the distance between the full and
    the empty model, plus `sparsity` times the mean of the open gates. Adam takes `steps` steps.

    Parameters
    ----------
    replacement, trace, target, error_nodes
        As for `eliminate`.
    steps
        Steps of training.
    sparsity
        Weight of the open gates.
    seed
        Seed of the noise.
    progress
        See `eliminate`.
    """
    active = active_features(trace)
    empty = KeepFeatures([torch.zeros_like(mask) for mask in active])
    logits = replacement.run(trace, empty, error_nodes=error_nodes)[0]
    low, high = float(target.function(logits)), float(target.function(trace.logits))
    span = abs(high - low) or 1.0
    generator = torch.Generator("cpu").manual_seed(seed)
    like = trace.residuals[0]
    openness = [like.new_zeros(int(mask.sum())).requires_grad_() for mask in active]
    optimizer = torch.optim.Adam(openness, lr=_LEARNED_RATE)
    for _ in progress_steps(range(steps), "learned gates", progress):
        gates = []
        for mask, logit in zip(active, openness, strict=True):
            noise = torch.rand(len(logit), generator=generator, dtype=torch.float64, device="cpu")
            noise = noise.clamp(1e-6, 1 - 1e-6).logit().to(logit)
            gate = ((logit + noise) / _TEMPERATURE).sigmoid()
            gates.append(torch.zeros_like(mask, dtype=like.dtype).masked_scatter(mask, gate)[None])
        logits = replacement.run(trace, GateFeatures(gates), error_nodes=error_nodes, grad=True)
        lost = (high - target.function(logits[0])) / span
        opened = torch.cat([logit.sigmoid() for logit in openness]).mean()
        loss = lost.square() + sparsity * opened
        gradients = torch.autograd.grad(loss, openness)
        for logit, gradient in zip(openness, gradients, strict=True):
            logit.grad = gradient
        optimizer.step()
    return Ranking(
        tuple(
            _unranked(mask).masked_scatter(mask.cpu(), logit.detach().double().cpu())
            for mask, logit in zip(active, openness, strict=True)
        )
    )


def select_features(
    replacement: ReplacementModel,
    trace: Trace,
    target: Target,
    rules: Rules,
    *,
    error_nodes: ErrorNodes = "clean",
    progress: Progress = False,
) -> tuple[Int[Tensor, " kept"], ...]:
    """Select the nodes of a circuit by path-integrated importance or elimination.

    Where error nodes have the image's values, in a replaced run all of them do. So all of them
    are nodes of the circuit, and count: one node of every layer is its error node.

    Parameters
    ----------
    replacement, trace, target
        The model, the trace of one image, and the target.
    rules
        The selection, "path" or "eliminate", and its budget: `nodes_per_layer`, a `share` of each
        layer's features, or `nodes` with a `floor`.
    error_nodes
        Values of the error nodes.
    progress
        See `eliminate`.

    Returns
    -------
    tuple of Tensor
        By site, the kept nodes, best first; index F_i is the error node.

    Raises
    ------
    FeatureError
        If the budget leaves no feature in some layer.
    """
    n_errors = int(error_nodes in ("clean", "free"))
    n_sites = len(replacement)
    widest = max(sae.n_features for sae in replacement.saes)
    floor = None
    if rules.nodes is not None:
        floor = rules.floor - n_errors
        budget = rules.nodes - n_errors * n_sites
        _check_budget("floor", rules.floor, n_errors)
        check_floor(budget, floor, n_sites)
    elif rules.share is not None:
        budget = math.ceil(rules.share * widest - 1e-9)
    else:
        assert rules.nodes_per_layer is not None
        budget = rules.nodes_per_layer - n_errors
        _check_budget("nodes_per_layer", rules.nodes_per_layer, n_errors)
    if rules.select == "path":
        ranking = rank_by_path(replacement, trace, target, error_nodes=error_nodes)
    else:
        ranking = eliminate(
            replacement,
            trace,
            target,
            down_to=budget,
            floor=floor,
            error_nodes=error_nodes,
            progress=progress,
        )
    kept = ranking.keep(budget) if floor is None else ranking.keep_total(budget, floor=floor)
    if rules.share is not None:
        counts = [math.ceil(rules.share * sae.n_features - 1e-9) for sae in replacement.saes]
        kept = tuple(features[:n] for features, n in zip(kept, counts, strict=True))
    if not n_errors:
        return kept
    return tuple(
        torch.cat([features, features.new_tensor([sae.n_features])])
        for features, sae in zip(kept, replacement.saes, strict=True)
    )


def _check_budget(name: str, value: int, n_errors: int) -> None:
    if value <= n_errors:
        raise FeatureError(
            f"{name} must be at least {n_errors + 1}: one node per layer is its error node, and "
            f"at least one is a feature. It is {value}."
        )


def path(case: Case) -> Keep:
    """Rank by path-integrated importance."""
    return rank_by_path(
        case.replacement, case.trace, case.target, error_nodes=case.error_nodes
    ).keep


def elimination(case: Case) -> Keep:
    """Rank by elimination, down to 4 features per layer."""
    return eliminate(
        case.replacement,
        case.trace,
        case.target,
        down_to=4,
        error_nodes=case.error_nodes,
        progress=lambda _, what: case.report(what),
    ).keep


def learned(case: Case) -> Keep:
    """Rank by learned gates."""
    return learn_gates(
        case.replacement,
        case.trace,
        case.target,
        seed=case.seed,
        error_nodes=case.error_nodes,
        progress=lambda _, what: case.report(what),
    ).keep


def _best(score: Float[Tensor, " F"]) -> Int[Tensor, " n"]:
    """Features with a score, the highest first, lower index first among equals."""
    order = score.argsort(descending=True, stable=True)
    return order[: int(torch.isfinite(score).sum())]


def _unranked(mask: Bool[Tensor, " F"]) -> Float[Tensor, " F"]:
    return torch.full(mask.shape, -torch.inf, dtype=torch.float64, device="cpu")
