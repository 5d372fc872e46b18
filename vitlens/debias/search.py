"""Search for the few features whose removal undoes a shortcut.

Candidates are features that depend on the attribute and not on the class (`candidates`). They are
added one by one: next comes the one with the lowest loss to first order, where every group has the
same weight. For some numbers of features the model runs without them, and these measured accuracies
decide how many features are removed. Reports are on images that the search did not see, if given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens.debias import baselines
from vitlens.debias.candidates import Candidate, conflicting, find_candidates
from vitlens.debias.groups import GroupedImages
from vitlens.debias.model import DebiasedModel, Removal
from vitlens.debias.report import GroupReport, TradeOff, group_report, mean_report, table
from vitlens.debias.runs import GroupRuns, last_layer, margins
from vitlens.errors import FeatureError, GroupError
from vitlens.interventions.kinds import ProjectTo
from vitlens.lens import Lens
from vitlens.method.libragrad import Gradient
from vitlens.progress import Progress, steps
from vitlens.saes.base import FeatureId

#: Numbers of features for which the model runs.
NUMBERS = (1, 2, 5, 10, 20, 50, 100)
_CIRCUIT_NODES = 16


@dataclass(frozen=True)
class Debiasing:
    """Result of a search.

    Attributes
    ----------
    candidates
        Candidate features; first those whose removal helps the misclassified images most, to
        first order (`Candidate.relief`).
    path
        Features in the order in which they were added.
    n_features
        Number of features of `path` that were chosen.
    validation
        Accuracies along `path`, on the images of the search.
    test
        Accuracies along `path` on the test images, for some numbers of features; None without
        test images.
    table
        Reports on the chosen features and the alternatives, on the test images; without test
        images on those of the search, which is too optimistic.
    random
        Reports on single draws of as many random features, on the same images.
    removal
        How features were removed.
    tested
        Whether `table` is of images that the search did not see.
    lens
        The lens.
    """

    candidates: tuple[Candidate, ...]
    path: tuple[FeatureId, ...]
    n_features: int
    validation: TradeOff
    test: TradeOff | None
    table: tuple[GroupReport, ...]
    random: tuple[GroupReport, ...]
    removal: Removal
    tested: bool
    lens: Lens = field(repr=False, compare=False)

    @property
    def features(self) -> tuple[FeatureId, ...]:
        """The chosen features."""
        return self.path[: self.n_features]

    @property
    def reports(self) -> dict[str, GroupReport]:
        """`table` by name: "nothing", "removed", "random features", ..."""
        return {report.name: report for report in self.table}

    @property
    def collateral(self) -> dict[str, float]:
        """Groups that lost accuracy when the chosen features were removed, and how much."""
        return self.reports["removed"].collateral(self.reports["nothing"])

    def model(self, n_features: int | None = None) -> DebiasedModel:
        """Return the classifier without the chosen features, or without the first `n_features`.

        Raises
        ------
        FeatureError
            If `path` has fewer features.
        """
        n = self.n_features if n_features is None else n_features
        if not 0 <= n <= len(self.path):
            raise FeatureError(f"n_features must be 0 to {len(self.path)}, not {n}.")
        how = self.removal
        return DebiasedModel(self.lens, self.path[:n], to=how.to, project=how.project)

    def __str__(self) -> str:
        chosen = ", ".join(f"{layer}/{feature}" for layer, feature in self.features) or "none"
        where = "test images" if self.tested else "the images of the search itself"
        lost = "; ".join(f"{name} {100 * x:+.1f}" for name, x in self.collateral.items())
        return "\n".join(
            [
                f"{len(self.candidates)} candidates; {self.removal}: {chosen}",
                f"Accuracy on {where}, in %:",
                table(self.table),
                f"Collateral damage, in points: {lost or 'none'}",
            ]
        )


def debias(
    lens: Lens,
    groups: GroupedImages,
    *,
    test: GroupedImages | None = None,
    layers: Sequence[int] | None = None,
    picks: Iterable[FeatureId] = (),
    features: Iterable[FeatureId] | None = None,
    circuits: int = 0,
    max_features: int = 20,
    max_drop: float = 0.02,
    alpha: float = 0.01,
    to: ProjectTo = "baseline",
    project: bool = False,
    gradient: Gradient = "plain",
    n_random: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress = True,
) -> Debiasing:
    """Find features that carry an attribute but not the class, remove them, and report the effect.

    Parameters
    ----------
    lens
        The classifier; its classes are those of `groups`, in the same order.
    groups
        Images on which features and their number are chosen; every group needs some.
    test
        Images to report on.
    layers
        Layers to search; by default the three with SAEs closest to the middle of the model. Their
        streams are kept in memory, n x T x D numbers per layer.
    picks
        Features that are always candidates.
    features
        Remove exactly these features, in this order, instead of searching.
    circuits
        Number of circuits whose features are candidates too; the circuits are those of the most
        wrong images of the worst group.
    max_features
        Most features to remove.
    max_drop
        Largest fall of the average accuracy on `groups` that is allowed.
    alpha
        False discovery rate of candidates.
    to, project
        How features are removed; see `vitlens.debias.model.Removal`.
    gradient
        Gradient of the first-order effects: "plain", the derivative itself; or "libragrad", which
        predicts poorly here.
    n_random
        Draws of the control: as many features of the same layers that are active on `groups`.
    seed
        Seed of the control and of DFR's subsets.
    batch_size
        Number of images per batch.
    progress
        See `Lens.importances`.

    Raises
    ------
    GroupError
        If a group is empty, there is one class only, the attribute is identical to the class, or
        the classes are not those of the model.
    FeatureError
        If a layer or feature does not exist.
    OptionError
        If `to`, `project` or `gradient` is unknown.
    """
    removal = Removal(to, project)
    for part in (groups, *([test] if test is not None else [])):
        part.check()
        _check_classes(lens, part)
    if layers is None:
        layers = default_layers(lens)
    if features is not None:
        features = tuple(features)
        layers = sorted({*layers, *(layer for layer, _ in features)})
    runs = GroupRuns(lens, groups, layers, batch_size=batch_size, progress=progress)
    candidates = find_candidates(
        runs.activations,
        groups,
        alpha=alpha,
        circuits=_from_circuits(lens, runs, circuits),
        picks=picks,
    )
    effects = runs.effects([c.key for c in candidates], removal=removal, gradient=gradient)
    candidates, effects = _with_relief(runs, candidates, effects)
    if features is None:
        path, validation = _search(
            runs, candidates, effects, max_features, removal, gradient, progress
        )
        chosen = int(validation.n_features[validation.best(max_drop=max_drop)])
    else:
        path = tuple((int(layer), int(feature)) for layer, feature in features)
        validation, chosen = _curve(runs, path, len(path), removal), len(path)
    test_runs = runs
    if test is not None:
        used = sorted({layer for layer, _ in path}) or [max(runs.layers)]
        test_runs = GroupRuns(lens, test, used, batch_size=batch_size, progress=progress)
    curve = _curve(test_runs, path, chosen, removal)
    controls = [
        test_runs.report(draw, name="random features", removal=removal)
        for draw in _random_features(runs, path[:chosen], n_random, seed)
    ]
    reports = [
        test_runs.report((), name="nothing"),
        next(report for report in curve.reports if report.n_features == chosen),
        *([mean_report(controls, "random features")] if controls else []),
        *_alternatives(lens, runs, test_runs, seed),
    ]
    return Debiasing(
        candidates,
        path,
        chosen,
        validation,
        None if test is None else curve,
        tuple(reports),
        tuple(controls),
        removal,
        test is not None,
        lens,
    )


def default_layers(lens: Lens) -> tuple[int, ...]:
    """Layers to search by default: the three with SAEs that are closest to the middle block.

    There a shortcut is in few features, and half of the model still reads them.
    """
    middle = lens.vision.depth // 2
    return tuple(sorted(sorted(lens.layers, key=lambda layer: abs(layer - middle))[:3]))


def _check_classes(lens: Lens, groups: GroupedImages) -> None:
    names = lens.class_names
    if len(groups.class_names) != (len(names) if names else lens.vision.n_classes):
        raise GroupError(
            f"The images have {len(groups.class_names)} classes ({', '.join(groups.class_names)}), "
            f"the model has {lens.vision.n_classes}."
        )
    if names and set(names) == set(groups.class_names) and tuple(names) != groups.class_names:
        raise GroupError(
            f"The classes of the images are in another order ({', '.join(groups.class_names)}) "
            f"than those of the model ({', '.join(names)}). Give `class_names` to the loader."
        )


def _from_circuits(lens: Lens, runs: GroupRuns, n: int) -> dict[FeatureId, float]:
    """Mean share of every feature in circuits of wrong predictions."""
    shares: dict[FeatureId, float] = {}
    index = conflicting(runs.groups, runs.logits.cpu(), n=n).tolist()
    for i in index:
        wrong = int(runs.logits[i].argmax())
        circuit = lens.circuit(
            runs.groups.images[i], target=wrong, nodes_per_layer=_CIRCUIT_NODES, select="walk"
        )
        for node in circuit.nodes:
            if node.feature >= 0 and node.layer in runs.layers:
                shares[node.key] = shares.get(node.key, 0.0) + node.share / len(index)
    return shares


def _with_relief(
    runs: GroupRuns, candidates: Sequence[Candidate], effects: Float[Tensor, "n k"]
) -> tuple[tuple[Candidate, ...], Float[Tensor, "n k"]]:
    """Rank candidates by their mean effect on the images that are classified wrongly."""
    margin = margins(runs.logits, runs.groups.labels).cpu()
    reliefs = effects[margin <= max(0.0, float(margin.min()))].mean(0)
    order = reliefs.argsort(descending=True, stable=True)
    ranked = tuple(replace(candidates[i], relief=float(reliefs[i])) for i in order.tolist())
    return ranked, effects[:, order]


def _search(
    runs: GroupRuns,
    candidates: Sequence[Candidate],
    effects: Float[Tensor, "n k"],
    max_features: int,
    removal: Removal,
    gradient: Gradient,
    progress: Progress,
) -> tuple[tuple[FeatureId, ...], TradeOff]:
    """Add features one by one, with reports for 0 and `NUMBERS` of them."""
    groups, left = runs.groups, [candidate.key for candidate in candidates]
    path: list[FeatureId] = []
    reports = [runs.report((), name="nothing")]
    margin = margins(runs.logits, groups.labels).cpu()
    taken_at = 0
    n = min(max_features, len(left))
    for _ in steps(range(n), "features", progress):
        best = int(_balanced_loss(margin[:, None] + effects, groups).argmin())
        path.append(left.pop(best))
        margin = margin + effects[:, best]
        effects = torch.cat([effects[:, :best], effects[:, best + 1 :]], 1)
        if len(path) not in {*NUMBERS, n}:
            continue
        logits = runs.without(path, removal=removal)
        reports.append(group_report("removed", logits, groups, n_features=len(path)))
        margin = margins(logits, groups.labels).cpu()
        if n > len(path) > 2 * taken_at + 1:
            effects = runs.effects(left, given=path, removal=removal, gradient=gradient)
            taken_at = len(path)
    return tuple(path), TradeOff(tuple(reports))


def _balanced_loss(margin: Float[Tensor, "n k"], groups: GroupedImages) -> Float[Tensor, " k"]:
    """Logistic loss, averaged within groups and then over groups, for every column."""
    loss = torch.nn.functional.softplus(-margin)
    means = [loss[groups.groups == g].mean(0) for g in range(len(groups.group_names))]
    return torch.stack(means).mean(0)


def _random_features(
    runs: GroupRuns, features: Sequence[FeatureId], n_draws: int, seed: int
) -> list[tuple[FeatureId, ...]]:
    """Draw other features of the same layers that are active on some image."""
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(n_draws if features else 0):
        draw: list[FeatureId] = []
        for layer in sorted({layer for layer, _ in features}):
            active = (runs.activations[layer] > 0).any(0)
            active[[f for at, f in features if at == layer]] = False
            pool = active.nonzero().squeeze(1)
            wanted = sum(at == layer for at, _ in features)
            order = torch.randperm(len(pool), generator=generator)[:wanted]
            draw += [(layer, int(feature)) for feature in pool[order]]
        draws.append(tuple(draw))
    return [draw for draw in draws if draw]


def _alternatives(
    lens: Lens, runs: GroupRuns, test_runs: GroupRuns, seed: int
) -> list[GroupReport]:
    """Linear concept removal and DFR, fitted on the images of the search."""
    head = last_layer(lens)
    if head is None or runs.inputs is None or test_runs.inputs is None:
        return []
    seen, x = runs.inputs.cpu(), test_runs.inputs.cpu()
    found = {
        "mean difference": baselines.mean_difference(seen, runs.groups),
        "LEACE": baselines.leace(seen, runs.groups),
    }
    logits = {name: baselines.erased(eraser, x, head) for name, eraser in found.items() if eraser}
    logits["DFR"] = baselines.dfr(seen, runs.groups, seed=seed)(x)
    return [group_report(name, value, test_runs.groups) for name, value in logits.items()]


def _curve(runs: GroupRuns, path: tuple[FeatureId, ...], chosen: int, removal: Removal) -> TradeOff:
    """Reports for `NUMBERS` of features, for the chosen number, and for all."""
    numbers = sorted({0, chosen, len(path), *(n for n in NUMBERS if n < len(path))})
    return TradeOff(tuple(runs.report(path[:n], name="removed", removal=removal) for n in numbers))
