"""Which image is looked at, and what of it is explained."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import traitlets as t
from PIL import Image

from vitlens.attribution.targets import TargetLike, find_class
from vitlens.errors import ImageError
from vitlens.images import ImageLike, open_image
from vitlens.lens import Lens
from vitlens.widgets.buffers import encode_strip
from vitlens.widgets.scene import Scene

_THUMBNAIL = 96  # pixels, for a screen with two to a point


class _Choice(NamedTuple):
    """An image and what of it is explained, with what the view shows of both."""

    image: ImageLike
    target: TargetLike
    image_choice: int | None
    target_choice: int | None
    name: str


class ChoicePart(t.HasTraits):
    """The traits behind the choice of image and target; see `Explorer`.

    A class that has this part says in `_look` what to do with a new choice.
    """

    samples = t.Tuple().tag(sync=True)
    sample_strip = t.Bytes(b"").tag(sync=True)
    image_choice = t.Int(None, allow_none=True).tag(sync=True)
    image_name = t.Unicode("").tag(sync=True)
    classes = t.Tuple().tag(sync=True)
    probabilities = t.Tuple().tag(sync=True)
    target_choice = t.Int(None, allow_none=True).tag(sync=True)
    explained = t.Dict().tag(sync=True)

    _lens: Lens
    _image: ImageLike | None = None
    _target: TargetLike = None
    _choosing = False
    _in_sight: _Choice | None = None

    def load(self, image: ImageLike, *, target: TargetLike = None) -> None:
        """Look at an image.

        Parameters
        ----------
        image
            A path, PIL image, array or tensor.
        target
            As for `Lens.importances`.

        Raises
        ------
        ImageError
            When the image cannot be read.
        TargetError
            When there is no such class.
        """
        self._lens.tensor(image)  # whatever is wrong with it is said here and now
        target_choice = self._class_of(target)
        known = [str(sample.path) for sample in self._lens.samples]
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
        choice = known.index(name) if name in known else None
        self._choose(_Choice(image, target, choice, target_choice, Path(name).name))

    def _offer(self, lens: Lens) -> None:
        """Tell the view what there is to choose from."""
        self._lens = lens
        self.samples = tuple(
            {"name": sample.path.stem, "label": sample.label} for sample in lens.samples
        )
        self.sample_strip = encode_strip(
            [lens.pixels(sample.path) for sample in lens.samples], side=_THUMBNAIL
        )
        self.classes = lens.logit_names

    def _tell_choice(self, scene: Scene) -> None:
        """Tell the view what the model says, and what is explained: the choice is in sight."""
        assert self._image is not None  # the scene's
        self._in_sight = _Choice(
            self._image, self._target, self.image_choice, self.target_choice, self.image_name
        )
        found = scene.importances
        probabilities = scene.trace.logits.softmax(-1)
        best = int(probabilities.argmax())
        self.probabilities = tuple(probabilities.tolist())
        self.explained = {
            "name": found.target,
            "index": found.target_index,
            "value": found.target_value,
            "prediction": [scene.class_names[best], float(probabilities[best])],
        }

    def _look(self) -> None:
        """Do what a new choice asks for."""
        raise NotImplementedError

    def _choose(self, choice: _Choice) -> None:
        self._take(choice)
        self._look()

    def _go_back(self) -> None:
        """Choose what is in sight again, after a look at something else that came to nothing."""
        if self._in_sight is not None:
            self._take(self._in_sight)

    def _take(self, choice: _Choice) -> None:
        self._image, self._target = choice.image, choice.target
        self._choosing = True
        try:
            self.image_choice = choice.image_choice
            self.target_choice = choice.target_choice
            self.image_name = choice.name
        finally:
            self._choosing = False

    def _class_of(self, target: TargetLike) -> int | None:
        """Return a class's index; None for the predicted class and for a function."""
        if target is None or (callable(target) and not isinstance(target, str)):
            return None
        return find_class(target, self._lens.vision.n_classes, self.classes)

    @t.validate("image_choice")
    def _sample_exists(self, proposal: Any) -> int | None:
        number: int | None = proposal["value"]
        if number is not None and not 0 <= number < len(self.samples):
            raise t.TraitError(
                f"There is no sample image {number}; this lens has {len(self.samples)}."
            )
        return number

    @t.validate("target_choice")
    def _class_exists(self, proposal: Any) -> int | None:
        index: int | None = proposal["value"]
        if index is not None and not 0 <= index < len(self.classes):
            raise t.TraitError(f"There is no class {index}; this lens has {len(self.classes)}.")
        return index

    @t.observe("image_choice")
    def _sample_chosen(self, change: Any) -> None:
        number = change["new"]
        if self._choosing or number is None:
            return
        sample = self._lens.samples[number]
        self._choose(_Choice(sample.path, None, number, None, sample.path.name))

    @t.observe("target_choice")
    def _target_chosen(self, change: Any) -> None:
        if self._choosing or self._image is None:
            return
        self._target = change["new"]
        self._look()

    def _answer_upload(self, payload: Any, buffers: Sequence[Any]) -> bool:
        name = str(payload["name"])
        try:
            with Image.open(io.BytesIO(bytes(buffers[0]))) as file:
                image = open_image(file)
        except ImageError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
            raise ImageError(f"{name} is not an image of a known format, or is damaged.") from error
        self._choose(_Choice(image, None, None, None, name))
        return True

    def _answer_open_path(self, payload: Any, buffers: Sequence[Any]) -> bool:
        path = Path(str(payload["path"]).strip()).expanduser()
        self._choose(_Choice(open_image(path), None, None, None, path.name))
        return True
