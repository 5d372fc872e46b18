"""What is known of one image: the widgets' common ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor

from vitlens.attribution import importances as attribution
from vitlens.attribution.edges import Engine
from vitlens.attribution.gradients import ErrorPaths, Gradient
from vitlens.attribution.importances import Importances
from vitlens.attribution.logit_lens import check_node, logit_lens
from vitlens.attribution.node_edges import edges_into, edges_out_of
from vitlens.attribution.targets import TargetLike, resolve_target
from vitlens.circuits.circuit import ERROR, TARGET
from vitlens.images import ImageLike
from vitlens.interventions.hooks import isolated_model
from vitlens.lens import Lens
from vitlens.replacement import Trace

if TYPE_CHECKING:
    from vitlens.circuits.graph import AttributionGraph

Node = tuple[int, int]


class Link(NamedTuple):
    """One edge as seen from a node."""

    node: Node  # at the other end
    weight: float  # in units of the target
    share: float  # of the positive importance of the edge's first layer


@dataclass(frozen=True, eq=False)
class Scene:
    """One image as a lens sees it; every widget shows a part of one.

    A node is (layer, feature); feature -1 is the layer's error node.

    Attributes
    ----------
    lens
        The lens.
    trace
        What happens inside the model; the image itself is `trace.image`.
    importances
        Of every node, without edges.
    candidates
        The nodes a circuit can reach and the edges among them, once they are known.
    """

    lens: Lens
    trace: Trace
    importances: Importances
    candidates: AttributionGraph | None = None

    @classmethod
    def of(
        cls,
        lens: Lens,
        image: ImageLike,
        *,
        target: TargetLike = None,
        gradient: Gradient = "libragrad",
        errors: ErrorPaths = "leaf",
        engine: Engine = "closed_form",
        candidates: AttributionGraph | None = None,
    ) -> Scene:
        """Look at an image; the parameters are those of `Lens.importances`.

        Raises
        ------
        ImageError, TargetError, ModelError
            As `Lens.importances` does.
        """
        with isolated_model(lens.vision):
            trace = lens.trace(image)
            found = attribution.importances(
                lens.vision,
                lens.saes,
                trace,
                lens.baselines,
                resolve_target(target, trace.logits, lens.class_names),
                gradient=gradient,
                errors=errors,
                engine=engine,
                edges=False,
            )
        return cls(lens, trace, found, candidates)

    @property
    def n_layers(self) -> int:
        """Layers with features, B-1."""
        return len(self.lens.saes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.lens.vision.grid

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """Names of the tokens before the patches."""
        return self.lens.vision.prefix_names

    @property
    def picture(self) -> UInt8[Tensor, "H W 3"] | None:
        """The image as the model sees it; None for a transform that cannot be undone."""
        return self.lens.pixels(self.trace.image)

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name a class, made up where the lens has none."""
        return self.lens.logit_names

    def check(self, node: Node) -> None:
        """Raise `FeatureError` unless the node exists."""
        check_node(self.lens.saes, *node)

    def activation(self, node: Node) -> Float[Tensor, " T"]:
        """Activation by token; for an error node the length of its vector."""
        self.check(node)
        layer, feature = node
        if feature == ERROR:
            return self.trace.errors[layer].norm(dim=1)
        return self.trace.features[layer][:, feature]

    def token_importance(self, node: Node) -> Float[Tensor, " T"]:
        """Importance by token, in units of the target."""
        self.check(node)
        return self.importances.tokens[node[0]][:, node[1]]

    def importance(self, node: Node) -> float:
        """Importance, in units of the target."""
        self.check(node)
        return float(self.importances.nodes[node[0]][node[1]])

    def positive(self, layer: int) -> float:
        """Sum of a layer's positive importances: what shares are parts of."""
        return float(self.importances.nodes[layer].double().clamp(min=0).sum())

    def share(self, node: Node) -> float:
        """Importance divided by the layer's positive importance; 0 where there is none."""
        return _part(self.importance(node), self.positive(node[0]))

    def most_important(self, layer: int) -> Node:
        """The layer's feature of highest importance; error nodes do not count."""
        return layer, int(self.importances.nodes[layer][:-1].argmax())

    def logit_lens(self, node: Node) -> Float[Tensor, " C"]:
        """What the node alone would do to the logits; see `vitlens.attribution.logit_lens`."""
        lens = self.lens
        return logit_lens(lens.vision, lens.saes, self.trace, lens.baselines, *node)

    def strongest_in(self, node: Node, n: int) -> tuple[Link, ...]:
        """The `n` strongest edges into a node, or into the target, strongest first."""
        lens, layer = self.lens, node[0]
        if node == (self.n_layers, TARGET):
            return self._links(self.importances.nodes[-1], layer - 1, n, shares_of=layer - 1)
        weights = edges_into(
            lens.vision, lens.saes, self.trace, lens.baselines, self.importances, *node
        )
        return self._links(weights, layer - 1, n, shares_of=layer - 1)

    def strongest_out(self, node: Node, n: int) -> tuple[Link, ...]:
        """The node's `n` strongest edges into the next layer, or its one to the target."""
        lens, layer = self.lens, node[0]
        if layer == self.n_layers - 1:
            return (Link((layer + 1, TARGET), self.importance(node), self.share(node)),)
        weights = edges_out_of(
            lens.vision, lens.saes, self.trace, lens.baselines, self.importances, *node
        )
        return self._links(weights, layer + 1, n, shares_of=layer)

    def _links(self, weights: Tensor, layer: int, n: int, *, shares_of: int) -> tuple[Link, ...]:
        order = weights.abs().topk(min(n, len(weights))).indices
        ends = [int(i) for i in order[weights[order] != 0]]
        positive = self.positive(shares_of) if ends else 0.0
        return tuple(
            Link(
                (layer, ERROR if end == self.lens.saes[layer].n_features else end),
                float(weights[end]),
                _part(float(weights[end]), positive),
            )
            for end in ends
        )


def _part(value: float, whole: float) -> float:
    return value / whole if whole > 0 else 0.0
