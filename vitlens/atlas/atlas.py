"""The atlas: what every feature of every layer represents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from vitlens.atlas import profile, store
from vitlens.atlas.build import build_state, remove_partial, writing
from vitlens.atlas.evolution import Evolution
from vitlens.atlas.exact import UNIT
from vitlens.atlas.finalize import Embed, Readout, effects, finalize, readout_directions
from vitlens.atlas.gallery import FeatureImage, Gallery, spread
from vitlens.atlas.image_store import QUALITY
from vitlens.atlas.names import Names
from vitlens.atlas.profile import FeatureProfile, class_proposals, describe
from vitlens.atlas.proposals import Proposal, TextTower, propose_words
from vitlens.atlas.scores import Scores
from vitlens.atlas.state import AtlasState, merge_states
from vitlens.atlas.store import Contents, LayerTable
from vitlens.errors import CheckpointError, FeatureError
from vitlens.io import check_replaceable
from vitlens.progress import Progress
from vitlens.saes.base import FeatureId

if TYPE_CHECKING:
    from vitlens.lens import Lens
    from vitlens.training.health import HealthReport


class Atlas:
    """What every feature of every layer of a model represents: images, scores, names.

    Made by `build`, `load` or `merge`. A layer is given by the number of its block; its data are
    read on first use.

    Parameters
    ----------
    contents
        The parts of the atlas.
    path
        Its folder, None if it is not saved.
    names
        People's names of its features.
    """

    def __init__(self, contents: Contents, *, path: Path | None, names: Names):
        self._contents = contents
        self._header = contents.header
        self._gallery = Gallery(contents.header, contents.thumbnails)
        self._tables: dict[int, LayerTable] = {}
        self.path = path
        self.names = names

    @classmethod
    def build(
        cls,
        lens: Lens,
        images: Any,
        *,
        labels: Any = None,
        groups: Any = None,
        credits: Any = None,
        n_top: int = 16,
        n_sampled: int = 16,
        thumbnails: int | None = 160,
        quality: int = QUALITY,
        heatmaps: bool = True,
        batch_size: int = 16,
        out: str | Path | None = None,
        resume: bool = True,
        stimuli: bool = True,
        layout: bool = True,
        part: tuple[int, int] | None = None,
        embed: Embed | None = None,
        health: HealthReport | None = None,
        progress: Progress = True,
    ) -> Atlas:
        """Build an atlas of all features from many images, in one pass.

        Parameters
        ----------
        lens
            The model with its SAEs.
        images, labels, groups, credits
            The images, with labels, groups and credits; see `vitlens.atlas.build.build_state`.
        n_top, n_sampled, thumbnails, quality, heatmaps, batch_size, resume, part
            See there.
        out
            Folder to save to, and where an interrupted pass is resumed.
        stimuli, layout, embed, health
            See `vitlens.atlas.finalize.finalize`.
        progress
            Show progress bars.

        Raises
        ------
        ImageError
            If no image could be read.
        VitlensError
            If `out` cannot be written, holds other files, or another build is writing it.
        """
        if out is not None:
            check_replaceable(out, store.files_of(Path(out)))
        with writing(out):
            state = build_state(
                lens,
                images,
                labels=labels,
                groups=groups,
                credits=credits,
                n_top=n_top,
                n_sampled=n_sampled,
                thumbnails=thumbnails,
                quality=quality,
                heatmaps=heatmaps,
                batch_size=batch_size,
                out=out,
                resume=resume,
                part=part,
                progress=progress,
            )
            atlas = cls.from_state(
                state,
                lens,
                stimuli=stimuli,
                layout=layout,
                embed=embed,
                health=health,
                progress=progress,
            )
            if out is not None:
                atlas.save(out)
                remove_partial(out)
        return atlas

    @classmethod
    def from_state(
        cls,
        state: AtlasState,
        lens: Lens,
        *,
        stimuli: bool = True,
        layout: bool = True,
        embed: Embed | None = None,
        health: HealthReport | None = None,
        progress: Progress = True,
    ) -> Atlas:
        """Make an atlas from a finished pass; see `vitlens.atlas.finalize.finalize`."""
        contents = finalize(
            state,
            lens,
            stimuli=stimuli,
            layout=layout,
            embed=embed,
            health=health,
            progress=progress,
        )
        atlas = cls(contents, path=None, names=Names(n_features=contents.header.n_features))
        atlas.lens = lens
        return atlas

    @classmethod
    def load(
        cls,
        path: str | Path,
        lens: Lens | None = None,
        *,
        names: str | Path | None = None,
        images: str | Path | None = None,
    ) -> Atlas:
        """Open an atlas; its layers are read later.

        Parameters
        ----------
        path
            Its folder.
        lens
            The lens it was built with, for neighbours and for data that is not stored.
        names
            File of people's names, by default ``names.jsonl`` in the folder.
        images
            Folder with the original images, if they have moved.

        Raises
        ------
        CheckpointError
            If there is no atlas, it is incomplete, or it is of another model or other SAEs. A
            damaged layer is refused only when it is used.
        """
        path = Path(path)
        contents = store.open_folder(path)
        file = path / store.NAMES if names is None else Path(names)
        atlas = cls(contents, path=path, names=Names(file, n_features=contents.header.n_features))
        atlas.images_folder = None if images is None else Path(images)
        if lens is not None:
            atlas.lens = lens
        return atlas

    @classmethod
    def merge(
        cls,
        atlases: Iterable[Atlas | str | Path],
        *,
        lens: Lens | None = None,
        stimuli: bool = True,
        layout: bool = True,
        embed: Embed | None = None,
        health: HealthReport | None = None,
        progress: Progress = True,
    ) -> Atlas:
        """Merge atlases into one of all their images; their order does not matter.

        Parameters
        ----------
        atlases
            Atlases, or their folders, of one model, with the same settings, of different images.
        lens
            The lens; by default that of the first atlas that has one.
        stimuli, layout, embed, health, progress
            See `vitlens.atlas.finalize.finalize`.

        Raises
        ------
        CheckpointError
            If one was saved without its sums, they do not fit, or there is no lens.
        """
        parts = [cls.load(a) if isinstance(a, str | Path) else a for a in atlases]
        lens = lens or next((part.lens for part in parts if part.lens is not None), None)
        if lens is None:
            raise CheckpointError("Merging needs the lens: Atlas.merge(atlases, lens=lens).")
        merged = cls.from_state(
            merge_states([part.state for part in parts]),
            lens,
            stimuli=stimuli,
            layout=layout,
            embed=embed,
            health=health,
            progress=progress,
        )
        for part in parts:
            merged.names.update(part.names.everything)
        return merged

    def save(self, path: str | Path, *, mergeable: bool = True, originals: bool = True) -> None:
        """Write the atlas to a folder; a failure leaves the folder as it was.

        Parameters
        ----------
        path
            A new folder, or one that holds an atlas, which is replaced; names in it are kept.
        mergeable
            Keep the exact sums, which `merge` needs, and exact peaks; without them the folder is
            much smaller and peaks have 8 bits.
        originals
            Keep the paths of the original images; leave them out of an atlas that you share.

        Raises
        ------
        VitlensError
            If the folder holds other files or cannot be written, or there are no sums.
        """
        path = Path(path)
        contents = replace(self._contents, table=self._table)
        store.write_folder(path, contents, self.names, mergeable=mergeable, originals=originals)
        if self.path is None:
            author = self.names.author
            self.path = path
            self.names = Names(
                path / store.NAMES, n_features=self._header.n_features, author=author
            )

    @property
    def lens(self) -> Lens | None:
        """The lens; setting it checks that the atlas is of its model and SAEs."""
        return self._gallery.lens

    @lens.setter
    def lens(self, lens: Lens | None) -> None:
        if lens is not None:
            store.check_lens(self._header, lens, str(self.path or "This atlas"))
        self._gallery.lens = lens

    @property
    def images_folder(self) -> Path | None:
        """Folder to search for originals that have moved."""
        return self._gallery.folder

    @images_folder.setter
    def images_folder(self, folder: Path | None) -> None:
        self._gallery.folder = folder

    @property
    def model(self) -> str:
        """Fingerprint of the lens it was built with."""
        return self._header.model

    @property
    def layers(self) -> tuple[int, ...]:
        """Block number of each layer with an SAE, in order."""
        return self._header.layers

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of features of each layer, in the order of `layers`."""
        return self._header.sizes

    @property
    def n_layers(self) -> int:
        """Number of layers with SAEs, L."""
        return len(self._header.layers)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._header.grid

    @property
    def prefix_names(self) -> tuple[str, ...]:
        """Names of the tokens before the patches."""
        return self._header.prefix_names

    @property
    def n_images(self) -> int:
        """Number of images it was made from."""
        return self._header.n_images

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._header.class_names

    @property
    def labels_from(self) -> str:
        """Whether classes are from the "data", or "predictions" of the model."""
        return self._header.labels_from

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings of the pass."""
        return self._header.settings

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Images that could not be read, and the reasons."""
        return self._header.skipped

    @property
    def health(self) -> tuple[float | None, ...]:
        """Share of variance that each SAE explains, in the order of `layers`; None if unknown."""
        return self._header.health

    @property
    def state(self) -> AtlasState:
        """The exact sums; raises `CheckpointError` when it was saved without them."""
        state = self._contents.state()
        if state is None:
            raise CheckpointError(
                f"{self.path} was saved without its sums (mergeable=False): it cannot be merged, "
                "and has only the stored logit lens."
            )
        return state

    @property
    def layout(self) -> Float[Tensor, "N 2"] | None:
        """Positions of all features in the plane, layer by layer; None if not computed."""
        return self._contents.layout()

    def feature(self, layer: int, feature: int) -> FeatureProfile:
        """Everything known about one feature; raises `FeatureError` if it does not exist."""
        table = self._checked_table(layer, feature)
        return describe(
            self._header,
            table,
            layer,
            feature,
            name=self.names.get(layer, feature),
            words=self._contents.words().get((layer, feature), ()),
            neighbours={} if self.lens is None else self.neighbours(layer, feature),
        )

    def scores(self, layer: int) -> Scores:
        """Scores of all features of a layer; raises `FeatureError` if it does not exist."""
        table = self._checked_table(layer, 0)
        return Scores(layer, table.scores, table.chance)

    def top(self, layer: int, feature: int, n: int = 8) -> tuple[FeatureImage, ...]:
        """The images a feature is most active on, best first, one of each group."""
        table = self._checked_table(layer, feature)
        ranks = [rank for rank, row in enumerate(table.top.row[feature].tolist()) if row >= 0]
        return tuple(
            self._gallery.entry(table, table.top, layer, feature, rank) for rank in ranks[:n]
        )

    def sampled(self, layer: int, feature: int, n: int = 4) -> tuple[FeatureImage, ...]:
        """Images at spread quantiles of those a feature is active on, highest first."""
        table = self._checked_table(layer, feature)
        ranks = spread(table.sampled.peak[feature], n)
        return tuple(
            self._gallery.entry(table, table.sampled, layer, feature, rank) for rank in ranks
        )

    def neighbours(
        self, layer: int, feature: int, n: int = 5
    ) -> dict[str, tuple[tuple[FeatureId, float], ...]]:
        """See `vitlens.atlas.profile.neighbours`; needs the lens."""
        saes = self._lens_for("neighbours").saes
        return profile.neighbours(saes, self.layers, layer, feature, n=n)

    def lineage(self, layer: int, feature: int) -> list[tuple[FeatureId, float]]:
        """See `vitlens.atlas.profile.lineage`; needs the lens."""
        saes = self._lens_for("lineages").saes
        return profile.lineage(saes, self.layers, layer, feature)

    def logit_lens(
        self, layer: int, feature: int, *, readout: Readout = "both"
    ) -> tuple[tuple[str, float], ...]:
        """(class, effect) of one unit of a feature at some tokens, best first.

        Needs the lens and the exact sums; the profile has the effect at all tokens.

        Parameters
        ----------
        readout
            At which tokens: "both", "prefix" or "patch".
        """
        self._checked_table(layer, feature)
        lens, state = self._lens_for("another logit lens"), self.state
        per_image = UNIT / state.n_images
        position = self._header.position(layer)
        directions = readout_directions(
            lens.vision,
            (state.final_stream.double() * per_image).to(lens.vision.device, lens.vision.dtype),
            [state.layer_states[position].sums.stds.double() * per_image],
            readout=readout,
        )
        moved = effects(lens.saes[position], directions[0])[feature]
        order = moved.argsort(descending=True).tolist()
        return tuple((self._header.name_of_logit(i), float(moved[i])) for i in order)

    def proposals(self, layer: int, feature: int) -> tuple[Proposal, ...]:
        """Computed names of a feature: its class, if one stands out, and words."""
        table = self._checked_table(layer, feature)
        words = self._contents.words().get((layer, feature), ())
        return (*class_proposals(self._header, table, feature), *words)

    def propose(
        self,
        words: Sequence[str],
        text: TextTower,
        *,
        n: int = 3,
        n_images: int = 4,
        patches: int | None = 4,
    ) -> None:
        """Compute proposals from a word list; they are saved in the folder, if there is one.

        Parameters
        ----------
        words
            The words to choose from.
        text
            (encode_text, encode_images) of a model such as CLIP; see
            `vitlens.atlas.proposals.open_clip_tower`.
        n
            Largest number of words per feature.
        n_images
            Number of top images per feature to look at.
        patches
            Side of the crop around the strongest patch, in patches; None takes whole images, which
            are far fewer to encode.

        Raises
        ------
        ModelError
            If there are no words, or the encoders do not fit each other.
        """
        tops = ((layer, self._table(layer).top) for layer in self.layers)
        found = propose_words(
            ((layer, top.row, top.token) for layer, top in tops),
            self._gallery.image,
            words,
            text,
            n=n,
            n_images=n_images,
            patches=patches,
            grid=self.grid,
            n_prefix=len(self.prefix_names),
        )
        self._contents = replace(self._contents, words=lambda: found)
        if self.path is not None:
            store.write_words(self.path, found)

    def add_control(self, name: str, other: Atlas) -> None:
        """Add another atlas's evolution as a control, such as an untrained model's.

        The next `save` writes it.

        Raises
        ------
        FeatureError
            If the other has different layers.
        """
        course = self.evolution().with_control(name, other.evolution()).to_dict()
        self._contents = replace(self._contents, evolution=lambda: course)

    def evolution(self) -> Evolution:
        """How the scores change through the layers, with the controls that were added."""
        found = self._contents.evolution()
        if found is None:
            raise CheckpointError(f"{self.path} has no evolution.")
        return Evolution.from_dict(found)

    def __repr__(self) -> str:
        return (
            f"Atlas({sum(self.sizes)} features of {self.n_layers} layers on {self.n_images} "
            f"images, classes from {self.labels_from})"
        )

    def _table(self, layer: int) -> LayerTable:
        if layer not in self._tables:
            self._tables[layer] = self._contents.table(layer)
        return self._tables[layer]

    def _checked_table(self, layer: int, feature: int) -> LayerTable:
        last = self.sizes[self._header.position(layer)] - 1
        if not 0 <= feature <= last:
            raise FeatureError(f"Layer {layer} has features 0 to {last}; there is no {feature}.")
        return self._table(layer)

    def _lens_for(self, what: str) -> Lens:
        if self.lens is None:
            raise CheckpointError(
                f"{what.capitalize()} need the lens: Atlas.load(path, lens), or lens.atlas = atlas."
            )
        return self.lens
