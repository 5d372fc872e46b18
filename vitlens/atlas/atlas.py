"""The atlas: what every feature of every layer stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlens.atlas import neighbours as relatives
from vitlens.atlas import store
from vitlens.atlas.base import AtlasBase
from vitlens.atlas.bins import UNIT
from vitlens.atlas.build import build_state, remove_partial, writing
from vitlens.atlas.contents import open_folder, write_folder, write_words
from vitlens.atlas.describe import class_proposals, describe
from vitlens.atlas.evolution import Evolution
from vitlens.atlas.finish import Embed, finish
from vitlens.atlas.logits import Readout, effects, readout_directions
from vitlens.atlas.names import Names
from vitlens.atlas.pictures import QUALITY
from vitlens.atlas.profile import FeatureProfile, Node, Shown
from vitlens.atlas.proposals import Proposal, TextTower
from vitlens.atlas.scores import Scores
from vitlens.atlas.shown import spread
from vitlens.atlas.state import AtlasState, merge_states
from vitlens.atlas.words import word_proposals
from vitlens.errors import CheckpointError
from vitlens.io import check_replaceable
from vitlens.progress import Progress

if TYPE_CHECKING:
    from vitlens.lens_base import LensBase
    from vitlens.saes.health import HealthReport


class Atlas(AtlasBase):
    """What every feature of every layer of a model stands for: pictures, figures, names.

    Made by `build`, `load` or `merge`. Layers are read when they are first asked for.

    Parameters
    ----------
    contents
        What it is made of.
    path
        Its folder, None for one that is not saved.
    names
        People's names of its features.
    """

    @classmethod
    def build(
        cls,
        lens: LensBase,
        images: Any,
        *,
        labels: Any = None,
        groups: Any = None,
        credits: Any = None,
        n_top: int = 16,
        n_sampled: int = 16,
        pictures: int | None = 160,
        quality: int = QUALITY,
        heats: bool = True,
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
        """Look at every feature on many images, in one pass.

        Parameters
        ----------
        lens
            The model with its SAEs.
        images, labels, groups, credits, n_top, n_sampled, pictures, quality, heats
            What to look at and what to keep of it; see `vitlens.atlas.build.build_state`.
        batch_size, resume, part
            See there, too.
        out
            Folder to save to; also where an interrupted pass is taken up again.
        stimuli, layout, embed, health
            See `vitlens.atlas.finish.finish`.
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
                pictures=pictures,
                quality=quality,
                heats=heats,
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
    def from_state(cls, state: AtlasState, lens: LensBase, **options: Any) -> Atlas:
        """An atlas of a finished pass; see `vitlens.atlas.finish.finish` for the options."""
        contents = finish(state, lens, **options)
        atlas = cls(contents, path=None, names=Names(sizes=contents.header.sizes))
        atlas.lens = lens
        return atlas

    @classmethod
    def load(
        cls,
        path: str | Path,
        lens: LensBase | None = None,
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
            The lens it was built with, for neighbours, and for what is not stored.
        names
            File of people's names, by default ``names.jsonl`` in the folder.
        images
            Folder with the original images, if they are no longer where they were.

        Raises
        ------
        CheckpointError
            If there is no atlas, it is not whole, or it is of another model or other SAEs. A
            damaged layer is only refused where it is asked for.
        """
        path = Path(path)
        contents = open_folder(path)
        file = path / store.NAMES if names is None else Path(names)
        atlas = cls(contents, path=path, names=Names(file, sizes=contents.header.sizes))
        atlas.images_folder = None if images is None else Path(images)
        if lens is not None:
            atlas.lens = lens
        return atlas

    @classmethod
    def merge(
        cls,
        atlases: Iterable[Atlas | str | Path],
        *,
        lens: LensBase | None = None,
        **options: Any,
    ) -> Atlas:
        """The atlas of all images of several; their order does not matter.

        Parameters
        ----------
        atlases
            Atlases, or their folders, of one model, with the same settings, of different images.
        lens
            By default that of the first atlas which has one.
        options
            See `vitlens.atlas.finish.finish`.

        Raises
        ------
        CheckpointError
            If one was saved without its sums, they do not fit, or there is no lens.
        """
        parts = [cls.load(a) if isinstance(a, str | Path) else a for a in atlases]
        lens = lens or next((part.lens for part in parts if part.lens is not None), None)
        if lens is None:
            raise CheckpointError("Merging needs the lens: Atlas.merge(atlases, lens=lens).")
        merged = cls.from_state(merge_states([part.state for part in parts]), lens, **options)
        for part in parts:
            merged.names.update(part.names.everything)
        return merged

    def save(self, path: str | Path, *, mergeable: bool = True, originals: bool = True) -> None:
        """Write the atlas to a folder; a failure leaves what was there before.

        Parameters
        ----------
        path
            A new folder, or one that holds an atlas, which is replaced; names in it are kept.
        mergeable
            Keep the exact sums, which `merge` needs, and exact peaks; without them the folder is
            much smaller and peaks have 11 bits.
        originals
            Keep where the original images were; leave that out for an atlas that travels.

        Raises
        ------
        VitlensError
            If the folder holds other files or cannot be written, or the sums are not there.
        """
        path = Path(path)
        contents = replace(self._contents, table=self._table)
        write_folder(path, contents, self.names, mergeable=mergeable, originals=originals)
        if self.path is None:
            author = self.names.author
            self.path = path
            self.names = Names(path / store.NAMES, sizes=self.sizes, author=author)

    def feature(self, layer: int, feature: int) -> FeatureProfile:
        """All that is known of one feature; raises `FeatureError` if it does not exist."""
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

    def top(self, layer: int, feature: int, n: int = 8) -> tuple[Shown, ...]:
        """The pictures a feature is most active on, best first, one of each group."""
        table = self._checked_table(layer, feature)
        places = [i for i, row in enumerate(table.top.row[feature].tolist()) if row >= 0]
        return tuple(
            self._gallery.show(table, table.top, layer, feature, place) for place in places[:n]
        )

    def sampled(self, layer: int, feature: int, n: int = 4) -> tuple[Shown, ...]:
        """Pictures at spread quantiles of those a feature is active on, highest first."""
        table = self._checked_table(layer, feature)
        places = spread(table.sampled.peak[feature], n)
        return tuple(
            self._gallery.show(table, table.sampled, layer, feature, place) for place in places
        )

    def neighbours(
        self, layer: int, feature: int, n: int = 5
    ) -> dict[str, tuple[tuple[Node, float], ...]]:
        """See `vitlens.atlas.neighbours.neighbours`; needs the lens."""
        return relatives.neighbours(self._lens_for("neighbours").saes, layer, feature, n=n)

    def lineage(self, layer: int, feature: int) -> list[tuple[Node, float]]:
        """See `vitlens.atlas.neighbours.lineage`; needs the lens."""
        return relatives.lineage(self._lens_for("lineages").saes, layer, feature)

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
        directions = readout_directions(
            lens.vision,
            (state.final_stream.double() * per_image).to(lens.vision.device, lens.vision.dtype),
            [state.layers[layer].sums.stds.double() * per_image],
            readout=readout,
        )
        moved = effects(lens.saes[layer : layer + 1], directions, 0)[feature]
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
        n_pictures: int = 4,
        patches: int | None = 4,
    ) -> None:
        """Work out proposals from a word list; kept in the folder, if there is one.

        Parameters
        ----------
        words
            To choose from.
        text
            (encode_text, encode_images) of a model such as CLIP; see
            `vitlens.atlas.proposals.open_clip_tower`.
        n
            At most how many words a feature.
        n_pictures
            How many of each feature's strongest pictures to look at.
        patches
            Side of what is cut out of them around the strongest patch, in patches; None takes
            whole pictures, which are far fewer to encode.

        Raises
        ------
        ModelError
            If there are no words, or the encoders do not fit each other.
        """
        found = word_proposals(
            self._table,
            self._gallery,
            words,
            text,
            n=n,
            n_pictures=n_pictures,
            patches=patches,
        )
        self._contents = replace(self._contents, words=lambda: found)
        if self.path is not None:
            write_words(self.path, found)

    def add_control(self, name: str, other: Atlas) -> None:
        """Put another atlas's evolution beside this one's, such as an untrained model's.

        It is written by the next `save`.

        Raises
        ------
        FeatureError
            If the other has not the same layers.
        """
        course = self.evolution().with_control(name, other.evolution()).to_dict()
        self._contents = replace(self._contents, evolution=lambda: course)

    def evolution(self) -> Evolution:
        """How the scores move through the layers, with the controls that were added."""
        found = self._contents.evolution()
        if found is None:
            raise CheckpointError(f"{self.path} has no evolution.")
        return Evolution.from_dict(found)
