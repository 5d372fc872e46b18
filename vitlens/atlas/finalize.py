"""From the state of a pass to an atlas: scores, logit lens, monosemanticity, trust and the map.

The logit lens is that of docs/method.md, "Logit lens", taken at the mean final stream of all
images. The map places features with similar decoder rows close together, by t-SNE (van der Maaten
and Hinton, "Visualizing data using t-SNE", JMLR 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.atlas import measures, tuning
from vitlens.atlas.evolution import evolution
from vitlens.atlas.exact import SQUARE_UNIT, UNIT
from vitlens.atlas.image_store import ThumbnailsInMemory, decode
from vitlens.atlas.scores import Scores, layer_scores
from vitlens.atlas.state import AtlasState, LayerState, Pool
from vitlens.atlas.store import (
    Contents,
    FeatureImages,
    Header,
    ImageRow,
    LayerTable,
    network_fingerprint,
    sae_fingerprints,
)
from vitlens.atlas.tuning import respond
from vitlens.errors import CheckpointError, ImageError, ModelError, check_choice
from vitlens.interventions.hooks import isolated_model
from vitlens.method.libragrad import backward_rules
from vitlens.models.vision import VisionModel
from vitlens.progress import Progress, steps, waiting
from vitlens.saes.base import SAE

if TYPE_CHECKING:
    from vitlens.lens import Lens
    from vitlens.training.health import HealthReport


#: From images to [n, E]: another embedding to compare images in.
Embed = Callable[[list[Image.Image]], Tensor]

#: Up to this many classes all effects are kept; of more, this many extremes.
MOST_EFFECTS = 16

_BATCH = 32


def finalize(
    state: AtlasState,
    lens: Lens,
    *,
    stimuli: bool = True,
    layout: bool = True,
    embed: Embed | None = None,
    health: HealthReport | None = None,
    progress: Progress = True,
) -> Contents:
    """Compute the contents of an atlas from the sums of a pass.

    Parameters
    ----------
    state
        State of a pass over images.
    lens
        The lens it was made with.
    stimuli
        Show the synthetic stimuli, for the tuning of features.
    layout
        Place the features in the plane.
    embed
        Another embedding of images, for a second measure of monosemanticity
        ("monosemanticity_given").
    health
        Health of the SAEs; by default the figures of the lens's bundle, if it has them.
    progress
        Show progress bars; or a function, see `vitlens.progress`.

    Raises
    ------
    CheckpointError
        If the state is of another lens.
    ImageError
        If it has no images.
    ModelError
        If `embed` does not return one row per image.
    """
    if state.model != lens.fingerprint:
        raise CheckpointError(
            "This state was made with another model or other SAEs than those of the lens."
        )
    if state.n_images < 1:
        raise ImageError("An atlas needs at least one image, but none could be read.")
    responses = respond(lens, progress=progress) if stimuli else None
    embeddings = _Embeddings.of(state, embed)
    directions = readout_directions(
        lens.vision,
        (state.final_stream.double() * (UNIT / state.n_images)).to(
            lens.vision.device, lens.vision.dtype
        ),
        [layer.sums.stds.double() * (UNIT / state.n_images) for layer in state.layer_states],
    )
    explained = _health(lens, health)
    tables, scores = {}, []
    for position in steps(range(len(state.layers)), "scores by layer", progress):
        layer, layer_state = state.layers[position], state.layer_states[position]
        layer_responses = None if responses is None else responses[position]
        found = layer_scores(
            layer,
            layer_state.sums,
            n_images=state.n_images,
            per_class=state.per_class,
            per_bucket=state.per_bucket,
            n_prefix=state.n_prefix,
            responses=layer_responses,
        )
        found = _with_quality(found, layer_state, embeddings, explained[position])
        scores.append(found)
        moved = effects(lens.saes[position], directions[position]).float().cpu()
        tables[layer] = _table(state, layer_state, found, moved, layer_responses, embeddings)
    course = evolution(scores).to_dict()
    positions = place_features(lens.saes, progress=progress) if layout else None
    header = Header(
        model=state.model,
        network=network_fingerprint(lens),
        saes=sae_fingerprints(lens),
        layers=state.layers,
        sizes=state.sizes,
        grid=state.grid,
        prefix_names=lens.vision.prefix_names,
        class_names=state.class_names,
        labels_from=state.labels_from,
        n_images=state.n_images,
        per_class=tuple(state.per_class.tolist()),
        n_top=state.layer_states[0].top.n_places,
        random_similarity=embeddings.random if embeddings.random == embeddings.random else None,
        health=explained,
        settings=state.settings,
        skipped=state.skipped,
        images=tuple(
            ImageRow(image.key, image.path, image.label, image.credit)
            for image in state.images.values()
        ),
        # The classes of a folder of images may differ from the model's.
        logit_names=() if lens.logit_names == state.class_names else lens.logit_names,
    )
    return Contents(
        header=header,
        table=tables.__getitem__,
        thumbnails=ThumbnailsInMemory([image.thumbnail for image in state.images.values()]),
        layout=lambda: positions,
        evolution=lambda: course,
        words=dict,
        state=lambda: state,
    )


@dataclass(frozen=True)
class _Embeddings:
    """Embeddings of the image table, the model's own and perhaps another's."""

    ids: Int[Tensor, " N"]
    own: Float[Tensor, "N D"]
    given: Float[Tensor, "M E"] | None
    given_rows: Int[Tensor, " N"]  # of each image in `given`, -1 without a thumbnail
    random: float

    @classmethod
    def of(cls, state: AtlasState, embed: Embed | None) -> _Embeddings:
        ids = torch.tensor(list(state.images), dtype=torch.int64)
        own = torch.stack([image.embedding.float() for image in state.images.values()])
        encoded = [image.thumbnail for image in state.images.values()]
        there = torch.tensor([data is not None for data in encoded])
        given = None
        if embed is not None:
            thumbnails = [decode(data) for data in encoded if data is not None]
            if not thumbnails:
                raise ModelError("Another embedding needs thumbnails: build with `thumbnails=`.")
            given = _embedded(embed, thumbnails)
        rows = torch.where(there, there.cumsum(0) - 1, -1)
        return cls(ids, own, given, rows, measures.random_similarity(own))

    def rows(self, ids: Int[Tensor, "F n"]) -> Int[Tensor, "F n"]:
        """Rows of the image table, which is sorted by id; -1 stays."""
        ids = ids.cpu().contiguous()
        return torch.where(ids < 0, -1, torch.searchsorted(self.ids, ids))


def _embedded(embed: Embed, images: Sequence[Image.Image]) -> Float[Tensor, "n E"]:
    pieces = [
        embed(list(images[start : start + _BATCH])) for start in range(0, len(images), _BATCH)
    ]
    rows = torch.cat([piece.detach().float().cpu() for piece in pieces])
    if rows.ndim != 2 or len(rows) != len(images):
        raise ModelError(
            f"`embed` gave {list(rows.shape)} for {len(images)} images, not one row per image."
        )
    return rows


def _with_quality(
    scores: Scores, layer: LayerState, embeddings: _Embeddings, health: float | None
) -> Scores:
    """The scores with monosemanticity, its level for random images, and trust."""
    rows = embeddings.rows(layer.top.id)
    own = measures.monosemanticity(embeddings.own, rows, embeddings.random)
    columns = {"monosemanticity": own}
    order = torch.randperm(len(embeddings.own), generator=torch.Generator().manual_seed(0))
    shuffled = {
        "monosemanticity": measures.monosemanticity(embeddings.own[order], rows, embeddings.random)
    }
    if embeddings.given is not None:
        seen = torch.where(rows < 0, -1, embeddings.given_rows[rows.clamp_min(0)])
        columns["monosemanticity_given"] = measures.monosemanticity(
            embeddings.given, seen, measures.random_similarity(embeddings.given)
        )
    parts = measures.trust(
        monosemanticity=own,
        random_similarity=embeddings.random,
        n_images=layer.sums.n_images,
        frequency=scores["frequency"],
        n_top=layer.top.n_places,
        health=health,
    )
    columns["trust"] = torch.tensor([part.value for part in parts])
    return scores.with_columns(columns, shuffled)


def _table(
    state: AtlasState,
    layer: LayerState,
    scores: Scores,
    moved: Float[Tensor, "F C"],
    responses: Float[Tensor, "F N"] | None,
    embeddings: _Embeddings,
) -> LayerTable:
    sums = layer.sums
    per_class = state.per_class.clamp_min(1).double()[:, None]
    values, classes = _extremes(moved)
    return LayerTable(
        n_active=sums.n_active,
        n_images=sums.n_images,
        prefix_active=sums.prefix_active,
        histogram=sums.histogram,
        peak_histogram=sums.peak_histogram,
        mean_map=(sums.position.double() * (UNIT / state.n_images)).float(),
        map_error=_map_error(state, layer),
        class_mean=(sums.class_mean.double() * UNIT / per_class).float(),
        class_share=(sums.class_active / per_class).float(),
        effects=values,
        effect_classes=classes,
        scores=scores.values,
        chance=scores.chance,
        curves=None if responses is None else tuning.curves(responses),
        top=_images_of(layer.top, embeddings),
        sampled=_images_of(layer.sampled, embeddings),
    )


def _map_error(state: AtlasState, layer: LayerState) -> Float[Tensor, " F"]:
    """Standard error of a feature's mean at one patch, from the variance at all patches."""
    patches = layer.sums.position[state.n_prefix :].double() * (UNIT / state.n_images)
    square = layer.sums.squares.double() * SQUARE_UNIT / (state.n_images * len(patches))
    within = (square - patches.square().mean(0)).clamp_min(0)
    return (within / state.n_images).sqrt().float()


def _images_of(pool: Pool, embeddings: _Embeddings) -> FeatureImages:
    return FeatureImages(
        row=embeddings.rows(pool.id),
        peak=pool.peak,
        token=pool.token.long().clamp_min(0),
        heatmap=pool.heatmap if pool.heatmap.shape[2] else None,
    )


def _extremes(
    moved: Float[Tensor, "F C"],
) -> tuple[Float[Tensor, "F m"], Int[Tensor, "F m"]]:
    """The effects, best first; of many classes only the best and the worst."""
    values, classes = moved.sort(dim=1, descending=True, stable=True)
    if values.shape[1] <= MOST_EFFECTS:
        return values, classes
    half = MOST_EFFECTS // 2
    ends = [*range(half), *range(-half, 0)]
    return values[:, ends], classes[:, ends]


def _health(lens: Lens, health: HealthReport | None) -> tuple[float | None, ...]:
    """By layer the share of the normalised stream's variance that the SAE explains."""
    if health is not None:
        return tuple(layer.explained_variance_normalized for layer in health.layers)
    layers = lens.measured.get("layers", [])
    if len(layers) != len(lens.saes):
        return (None,) * len(lens.saes)
    return tuple(layer.get("explained_variance_normalized") for layer in layers)


#: Tokens at which a feature is added: all, those before the patches, or the patches.
Readout: TypeAlias = Literal["both", "prefix", "patch"]


def readout_directions(
    vision: VisionModel,
    stream: Float[Tensor, "T D"],
    stds: Sequence[Float[Tensor, " T"]],
    *,
    readout: Readout = "both",
) -> Float[Tensor, "L C D"]:
    """By layer and class, the direction in the stream that raises the logit.

    The derivative of the model's read-out at `stream`, with the scale of the final norm constant
    (as in LibraGrad); summed over the chosen tokens, each weighted by the length of one unit of a
    feature there.

    Parameters
    ----------
    vision
        The model.
    stream
        Mean of the stream after the last block over the data set.
    stds
        By layer, the mean standard deviation of the stream by position: a unit of activation adds
        the decoder row times this.
    readout
        Which tokens: "both", "prefix" or "patch".

    Returns
    -------
    Tensor
        [L, C, D], less the mean over classes, which a softmax does not see. The inner
        product with a decoder row is the effect of one unit of the feature at all chosen tokens
        together, in logits.

    Raises
    ------
    OptionError
        If `readout` is unknown.
    """
    check_choice("readout", readout, get_args(Readout))
    weights = torch.stack([std.to(stream) for std in stds])
    if readout != "both":
        others = slice(vision.n_prefix) if readout == "patch" else slice(vision.n_prefix, None)
        weights[:, others] = 0
    with isolated_model(vision), torch.enable_grad():
        point = stream.detach()[None].requires_grad_()
        with backward_rules(vision.module, "libragrad"):
            logits = vision.readout(point)[0]
        rows = []
        for logit in logits:
            (gradient,) = torch.autograd.grad(logit, point, retain_graph=True)
            rows.append(weights @ gradient[0])
    directions = torch.stack(rows, 1)
    return directions - directions.mean(1, keepdim=True)


def effects(sae: SAE, directions: Float[Tensor, "C D"]) -> Float[Tensor, "F C"]:
    """Effect of one unit of each feature on each logit; see `readout_directions`."""
    return sae.W_dec @ directions.to(sae.W_dec).T


def place_features(
    saes: Sequence[SAE],
    *,
    perplexity: float = 30.0,
    seed: int = 0,
    progress: Progress = True,
) -> Float[Tensor, "N 2"]:
    """Place the features of all layers in the plane by cosine similarity of their decoder rows.

    Parameters
    ----------
    perplexity
        Approximate number of neighbours that count; smaller for very few features.
    seed
        The same seed gives the same map on the same machine.
    progress
        Show the step and the time it has taken: scikit-learn's t-SNE does not report how far it
        is. Or a function, see `vitlens.progress`.

    Returns
    -------
    Tensor
        [F_0 + F_1 + ..., 2] in float32, layer by layer; centred, the largest coordinate 1.
        Distances between distant groups mean nothing.
    """
    from sklearn.manifold import TSNE

    rows = torch.cat([F.normalize(sae.W_dec.detach().float(), dim=1) for sae in saes]).cpu()
    n = len(rows)
    if n < 4:
        return torch.stack([torch.linspace(-1, 1, n), torch.zeros(n)], 1)
    # t-SNE uses the squared distance, which is 2 - 2 cosine for unit vectors.
    tsne = TSNE(
        metric="euclidean",
        init="pca",
        perplexity=min(perplexity, (n - 1) / 3),
        random_state=seed,
        n_jobs=1,
    )
    with waiting(f"map of {n:,} features (t-SNE, a minute or more for thousands)", progress):
        placed = tsne.fit_transform(rows.numpy())
    positions = torch.from_numpy(placed).float()
    positions -= positions.mean(0)
    return positions / positions.abs().max().clamp_min(1e-12)
