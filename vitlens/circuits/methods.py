"""How each method chooses the features to keep on an image: one function a method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitlens.attribution.baselines import activation_scores, cla_top_scores, random_scores
from vitlens.attribution.cla import cla_edges
from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.importances import Importances, importances, layer_edges
from vitlens.attribution.targets import Target
from vitlens.circuits.prune import select, walk
from vitlens.errors import FeatureError, near_matches
from vitlens.models.vision import VisionModel
from vitlens.replacement import Baselines, Trace
from vitlens.saes.topk import TopKSAE

#: Gives, for a count a layer, the features to keep: indices by layer, best first.
Keep: TypeAlias = Callable[[int], Sequence[Int[Tensor, " kept"]]]


def _say_nothing(what: str) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Case:
    """One image and all that a method may look at to choose its features.

    Attributes
    ----------
    vit, saes, baselines
        The model, its SAEs and what features are replaced with.
    trace
        The untouched model on the image.
    target
        What is explained.
    engine
        How edges are computed.
    seed, index
        Of the experiment, and the image's number in it.
    report
        Told what is done, before every long step of a method; what it raises ends the experiment.
    """

    vision: VisionModel
    saes: Sequence[TopKSAE]
    baselines: Baselines
    trace: Trace
    target: Target
    engine: Engine = "closed_form"
    seed: int = 0
    index: int = 0
    report: Callable[[str], None] = _say_nothing

    @cached_property
    def nodes(self) -> Importances:
        """Node importances with LibraGrad, error nodes as leaves; without edges."""
        return self._nodes("libragrad", "leaf")

    @cached_property
    def plain(self) -> Importances:
        """Node importances with the model's ordinary gradient; without edges."""
        return self._nodes("plain", "through")

    def _nodes(self, gradient: Gradient, errors: ErrorPaths) -> Importances:
        return importances(
            self.vision,
            self.saes,
            self.trace,
            self.baselines,
            self.target,
            gradient=gradient,
            errors=errors,
            engine=self.engine,
            edges=False,
        )


Method: TypeAlias = Callable[[Case], Keep]


def ranked(scores: Sequence[Float[Tensor, " F"]]) -> Keep:
    """Keep the features with the highest scores of each layer, lower index first among equals.

    Parameters
    ----------
    scores
        By layer, one score a feature.
    """
    orders = [select(layer, count=len(layer)) for layer in scores]
    return lambda count: [order[:count] for order in orders]


def _pairs(case: Case, method: str) -> Iterator[int]:
    """Yield each layer but the last, and report before."""
    for layer in range(len(case.saes) - 1):
        case.report(f"{method}, layer {layer}")
        yield layer


def rrm(case: Case) -> Keep:
    """Walk back over exact edges, for each count anew (Kim et al., arXiv 2509.17401)."""
    edges = [
        layer_edges(case.vision, case.saes, case.trace, case.baselines, case.nodes, layer)
        for layer in _pairs(case, "rrm")
    ]
    return lambda count: walk(case.nodes.nodes, edges, count=count, error_nodes=False)


def cla(case: Case) -> Keep:
    """Walk back over |a_m| |d a_n / d a_m| (Cross-Layer Attribution, arXiv 2404.14349)."""
    # The walk has room for error nodes, which CLA does not know: a last entry of 0.
    edges = [
        F.pad(
            cla_edges(case.vision, case.saes, case.trace, layer, engine=case.engine), (0, 0, 0, 1)
        )
        for layer in _pairs(case, "cla")
    ]
    nodes = [torch.zeros(sae.n_features + 1) for sae in case.saes]
    nodes[-1] = F.pad(cla_top_scores(case.trace, case.plain.gradients[-1]), (0, 1))
    return lambda count: walk(nodes, edges, count=count, error_nodes=False)


def node(case: Case) -> Keep:
    """Rank by node importance alone."""
    return ranked([scores[:-1] for scores in case.nodes.nodes])


def plain(case: Case) -> Keep:
    """Rank by node importance with the model's ordinary gradient."""
    return ranked([scores[:-1] for scores in case.plain.nodes])


def activation(case: Case) -> Keep:
    """Rank by activation, summed over tokens."""
    return ranked(activation_scores(case.trace))


def random(case: Case) -> Keep:
    """Rank at random, for each image anew."""
    sizes = [sae.n_features for sae in case.saes]
    return ranked(random_scores(sizes, seed=case.seed, image=case.index))


#: The methods that go by a name.
METHODS: Mapping[str, Method] = {
    "rrm": rrm,
    "cla": cla,
    "node": node,
    "plain": plain,
    "activation": activation,
    "random": random,
}


def resolve_methods(methods: Sequence[str | Method]) -> dict[str, Method]:
    """Look methods up by name; a function goes by its own name.

    Raises
    ------
    FeatureError
        When a name is unknown (near matches are named), or two methods share one.
    """
    resolved: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, str):
            if method not in METHODS:
                raise FeatureError(
                    f"There is no method {method!r}.{near_matches(method, METHODS)} "
                    f"Known are {', '.join(METHODS)}."
                )
            name, function = method, METHODS[method]
        else:
            name, function = getattr(method, "__name__", type(method).__name__), method
        if name in resolved:
            raise FeatureError(f"Two methods are called {name!r}; give each a name of its own.")
        resolved[name] = function
    if not resolved:
        raise FeatureError(f"Give at least one method, of {', '.join(METHODS)}.")
    return resolved
