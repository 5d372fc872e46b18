"""From the state of a pass to an atlas: scores, logit lens, monosemanticity, trust, the map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from vitlens.atlas import quality, tuning
from vitlens.atlas.bins import SQUARE_UNIT, UNIT
from vitlens.atlas.contents import Contents
from vitlens.atlas.evolution import evolution
from vitlens.atlas.identity import network_fingerprint, sae_fingerprints
from vitlens.atlas.layout import layout as place_features
from vitlens.atlas.logits import effects, readout_directions
from vitlens.atlas.pictures import PicturesInMemory, decode
from vitlens.atlas.pools import Pool
from vitlens.atlas.responses import respond
from vitlens.atlas.scores import Scores, layer_scores
from vitlens.atlas.state import AtlasState, LayerState
from vitlens.atlas.store import Header, ImageRow
from vitlens.atlas.table import LayerTable, ShownTable
from vitlens.errors import CheckpointError, ImageError, ModelError
from vitlens.progress import Progress, steps

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase
    from vitlens.saes.health import HealthReport

#: Pictures -> [n, E]: another embedding to compare images in.
Embed = Callable[[list[Image.Image]], Tensor]

#: Of so many classes at most the effects are all kept; of more, this many of the extremes.
MOST_EFFECTS = 16

_BATCH = 32


def finish(
    state: AtlasState,
    lens: LensBase,
    *,
    stimuli: bool = True,
    layout: bool = True,
    embed: Embed | None = None,
    health: HealthReport | None = None,
    progress: Progress = True,
) -> Contents:
    """Work out everything an atlas says.

    Parameters
    ----------
    state
        Of a pass over images.
    lens
        The lens it was made with.
    stimuli
        Show the synthetic stimuli, for the tuning of features.
    layout
        Place the features in the plane.
    embed
        Another embedding of pictures, for a second figure of monosemanticity
        ("monosemanticity_given").
    health
        Of the SAEs; by default the figures of the lens's bundle, if it has them.
    progress
        Show progress bars; or a function, see `vitlens.progress`.

    Raises
    ------
    CheckpointError
        If the state is of another lens.
    ImageError
        If it is of no images.
    ModelError
        If `embed` gives something else than a row a picture.
    """
    if state.model != lens.fingerprint:
        raise CheckpointError(
            "This state is of another model or other SAEs than those of the lens."
        )
    if state.n_images < 1:
        raise ImageError("An atlas needs at least one image, and none could be read.")
    responses = respond(lens, progress=progress) if stimuli else None
    embeddings = _Embeddings.of(state, embed)
    directions = readout_directions(
        lens.vision,
        (state.final_stream.double() * (UNIT / state.n_images)).to(
            lens.vision.device, lens.vision.dtype
        ),
        [layer.sums.stds.double() * (UNIT / state.n_images) for layer in state.layers],
    )
    known = _health(lens, health)
    tables, scores = [], []
    for number in steps(range(len(state.layers)), "scores by layer", progress):
        layer = state.layers[number]
        answers = None if responses is None else responses[number]
        found = layer_scores(
            number,
            layer.sums,
            n_images=state.n_images,
            per_class=state.per_class,
            per_bucket=state.per_bucket,
            n_prefix=state.n_prefix,
            responses=answers,
        )
        found = _with_quality(found, layer, embeddings, known[number])
        scores.append(found)
        moved = effects(lens.saes, directions, number).float().cpu()
        tables.append(_table(state, layer, found, moved, answers, embeddings))
    course = evolution(scores).to_dict()
    places = place_features(lens.saes, progress=progress) if layout else None
    header = Header(
        model=state.model,
        network=network_fingerprint(lens),
        saes=sae_fingerprints(lens),
        sizes=state.sizes,
        grid=state.grid,
        prefix_names=lens.vision.prefix_names,
        class_names=state.class_names,
        labels_from=state.labels_from,
        n_images=state.n_images,
        per_class=tuple(state.per_class.tolist()),
        n_top=state.layers[0].top.n_places,
        random_similarity=embeddings.random if embeddings.random == embeddings.random else None,
        health=known,
        settings=state.settings,
        skipped=state.skipped,
        images=tuple(
            ImageRow(image.key, image.path, image.label, image.credit)
            for image in state.images.values()
        ),
        # Folders of images may be other classes than the model's.
        logit_names=() if lens.logit_names == state.class_names else lens.logit_names,
    )
    return Contents(
        header=header,
        table=tables.__getitem__,
        pictures=PicturesInMemory([image.picture for image in state.images.values()]),
        layout=lambda: places,
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
    given_rows: Int[Tensor, " N"]  # of each image in `given`, -1 without a picture
    random: float

    @classmethod
    def of(cls, state: AtlasState, embed: Embed | None) -> _Embeddings:
        ids = torch.tensor(list(state.images), dtype=torch.int64)
        own = torch.stack([image.embedding.float() for image in state.images.values()])
        encoded = [image.picture for image in state.images.values()]
        there = torch.tensor([data is not None for data in encoded])
        given = None
        if embed is not None:
            pictures = [decode(data) for data in encoded if data is not None]
            if not pictures:
                raise ModelError("Another embedding needs pictures: build with `pictures=`.")
            given = _embedded(embed, pictures)
        rows = torch.where(there, there.cumsum(0) - 1, -1)
        return cls(ids, own, given, rows, quality.random_similarity(own))

    def rows(self, ids: Int[Tensor, "F n"]) -> Int[Tensor, "F n"]:
        """Rows of the image table, which is sorted by id; -1 stays."""
        ids = ids.cpu().contiguous()
        return torch.where(ids < 0, -1, torch.searchsorted(self.ids, ids))


def _embedded(embed: Embed, pictures: Sequence[Image.Image]) -> Float[Tensor, "n E"]:
    pieces = [
        embed(list(pictures[start : start + _BATCH])) for start in range(0, len(pictures), _BATCH)
    ]
    rows = torch.cat([piece.detach().float().cpu() for piece in pieces])
    if rows.ndim != 2 or len(rows) != len(pictures):
        raise ModelError(
            f"`embed` gave {list(rows.shape)} for {len(pictures)} pictures, not a row for each."
        )
    return rows


def _with_quality(
    scores: Scores, layer: LayerState, embeddings: _Embeddings, health: float | None
) -> Scores:
    """The scores with monosemanticity, that of random pictures beside it, and trust."""
    rows = embeddings.rows(layer.top.id)
    own = quality.monosemanticity(embeddings.own, rows, embeddings.random)
    columns = {"monosemanticity": own}
    order = torch.randperm(len(embeddings.own), generator=torch.Generator().manual_seed(0))
    shuffled = {
        "monosemanticity": quality.monosemanticity(embeddings.own[order], rows, embeddings.random)
    }
    if embeddings.given is not None:
        seen = torch.where(rows < 0, -1, embeddings.given_rows[rows.clamp_min(0)])
        columns["monosemanticity_given"] = quality.monosemanticity(
            embeddings.given, seen, quality.random_similarity(embeddings.given)
        )
    parts = quality.trust(
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
        top=_shown(layer.top, embeddings),
        sampled=_shown(layer.sampled, embeddings),
    )


def _map_error(state: AtlasState, layer: LayerState) -> Float[Tensor, " F"]:
    """Standard error of a feature's mean at one patch, from the variance at all patches."""
    patches = layer.sums.position[state.n_prefix :].double() * (UNIT / state.n_images)
    square = layer.sums.squares.double() * SQUARE_UNIT / (state.n_images * len(patches))
    within = (square - patches.square().mean(0)).clamp_min(0)
    return (within / state.n_images).sqrt().float()


def _shown(pool: Pool, embeddings: _Embeddings) -> ShownTable:
    return ShownTable(
        row=embeddings.rows(pool.id),
        peak=pool.peak,
        token=pool.token.long().clamp_min(0),
        heat=pool.heat if pool.heat.shape[2] else None,
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


def _health(lens: LensBase, health: HealthReport | None) -> tuple[float | None, ...]:
    """By layer the share of the normalised stream's variance that the SAE explains."""
    if health is not None:
        return tuple(layer.explained_variance_normalized for layer in health.layers)
    layers = lens.about.figures.get("saes", {}).get("layers", [])
    if len(layers) != len(lens.saes):
        return (None,) * len(lens.saes)
    return tuple(layer.get("explained_variance_normalized") for layer in layers)
