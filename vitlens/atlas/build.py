"""One pass over a data set: every feature of every layer, from one forward pass an image."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from vitlens.atlas.gather import Gatherer, new_state
from vitlens.atlas.labels import find_labels, look_up
from vitlens.atlas.pictures import QUALITY
from vitlens.atlas.reading import Reader, count_images, read_batches
from vitlens.atlas.sources import Source, open_source
from vitlens.atlas.state import AtlasState
from vitlens.errors import CheckpointError, ImageError, VitlensError
from vitlens.lens_base import LensBase
from vitlens.progress import Progress

_SECONDS_BETWEEN_SAVES = 60.0
# Saving may not take more than this share of the time.
_SHARE_OF_SAVING = 0.05


def build_state(
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
    part: tuple[int, int] | None = None,
    progress: Progress = True,
) -> AtlasState:
    """Run all images through the model once, and gather what there is to know of every feature.

    All layers are read from one forward pass. Memory grows with features x images kept for each
    (`n_top`, `n_sampled`) and features x classes, not with the number of images.

    Parameters
    ----------
    lens
        The model and its SAEs.
    images
        See `vitlens.atlas.sources.open_source`. Images that cannot be read are left out and
        listed in `AtlasState.skipped`.
    labels
        Classes of the images: None for those of the data, or else what the model predicts;
        "predictions"; the name of an attribute of the data set; a list; a mapping by key; or a
        function of the key. Each is an index, a name, or None.
    groups
        What counts as one image in the top pools, such as crops of one photograph or frames of
        one film: given in the same ways as `labels`. By default images whose perceptual hash
        is the same: most copies that were resized or compressed again, but no crops.
    credits
        Who made an image: in the same ways again.
    n_top, n_sampled
        Images to keep for each feature: those it is most active in, and a sample of those it is
        active in.
    pictures, quality
        Longest side of the stored pictures in pixels, None to store none; and WebP's quality.
    heats
        Keep the activations of the tokens with each image kept.
    batch_size
        Images run at once. All batches have the same shape, so an image gives the same numbers
        with whichever images it is run (on one machine, with one batch size and as many threads).
    out
        The atlas to be written: an unfinished state is kept in ``<out>.partial`` every minute
        and on Ctrl-C.
    resume
        Go on with such a state; False starts anew.
    part
        (i, n), i from 0: only every n-th batch, from the i-th on. Parts with the same settings
        merge to the very state of the whole.
    progress
        Show a bar; or a function of the share that is done and of what is being done. What it
        raises ends the pass, which can be resumed.

    Raises
    ------
    ImageError
        If there is no image that can be read.
    TargetError
        If labels do not go with the images or the classes.
    CheckpointError
        If the unfinished state is damaged or of another run.
    VitlensError
        If a setting is out of range or a file cannot be written.
    """
    part = _checked_part(part)
    _check_sizes(n_top, n_sampled, pictures, quality, batch_size)
    source = open_source(images)
    classes = find_labels(lens, source, labels)
    settings = {
        "n_top": n_top,
        "n_sampled": n_sampled,
        "pictures": pictures,
        "quality": quality,
        "heats": heats,
        "batch_size": batch_size,
        "groups": "perceptual hash" if groups is None else "given",
        "dtype": str(lens.vision.dtype).removeprefix("torch."),
    }
    state = new_state(lens, classes, settings)
    run: dict[str, Any] = {
        "part": list(part),
        "source": _fingerprint(source),
        "done": 0,
        "finished": False,
    }
    saved = partial_path(out) if out is not None else None
    if saved is not None and resume and saved.exists():
        state, run = _resumed(saved, state, run)
        state = state.to(lens.vision.device)
    if not run["finished"]:
        reader = Reader(lens.transform, lens.vision.image_size, pictures)
        state.skipped = tuple(sorted({*state.skipped, *source.skipped}))
        going = Gatherer(
            lens,
            state,
            reader,
            classes,
            start=run["done"],
            groups=None if groups is None else look_up(groups, source, "groups", ImageError),
            credits=None if credits is None else look_up(credits, source, "credits", ImageError),
        )
        _go(going, source, run, saved, progress)
    if not state.n_images:
        remove_partial(out)
        raise ImageError(_none_readable(state))
    state.drop_unused_images()
    return state.to("cpu")


@contextmanager
def writing(out: str | Path | None) -> Iterator[None]:
    """Keep other runs from writing the same atlas meanwhile.

    Raises
    ------
    VitlensError
        If another run is at it. A run that was killed is none.
    """
    if out is None:
        yield
        return
    path = _beside(out, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout:
        raise VitlensError(
            f"Another run is writing {out}. Wait until it has ended, or choose another folder."
        ) from None
    except OSError as error:
        raise VitlensError(f"Could not write {path}: {error.strerror or error}.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before others can have it
        lock.release()


def partial_path(out: str | Path) -> Path:
    """Where the unfinished state of an atlas is kept: a file beside its folder."""
    return _beside(out, ".partial")


def remove_partial(out: str | Path | None) -> None:
    """Remove the unfinished state of an atlas that is written now."""
    if out is not None:
        partial_path(out).unlink(missing_ok=True)


def _go(
    going: Gatherer, source: Source, run: dict[str, Any], saved: Path | None, progress: Progress
) -> None:
    """Take in the batches that are left, saving now and then and when something stops the pass."""
    batch_size = going.state.settings["batch_size"]
    part = (run["part"][0], run["part"][1])
    total = count_images(source, batch_size, part)
    seen = going.n_batches * batch_size
    batches = read_batches(going.reader, source, batch_size, part=part, start=going.n_batches)
    next_save = time.monotonic() + _SECONDS_BETWEEN_SAVES
    silent = callable(progress) or not progress
    try:
        with tqdm(total=total, initial=seen, desc="images", unit="image", disable=silent) as bar:
            for batch in batches:
                going.take(batch)
                bar.update(len(batch))
                seen += len(batch)
                if callable(progress):
                    progress(min(1.0, seen / total) if total else 0.0, "images")
                if saved is not None and time.monotonic() > next_save:
                    next_save = _save(going, saved, run)
        run["finished"] = True
    finally:
        batches.close()
        if saved is not None and going.consistent:
            _save(going, saved, run)


def _save(going: Gatherer, path: Path, run: dict[str, Any]) -> float:
    """Save, and return when to do so again."""
    start = time.monotonic()
    run["done"] = going.n_batches
    going.state.save(path, progress=run)
    now = time.monotonic()
    return now + max(_SECONDS_BETWEEN_SAVES, (now - start) / _SHARE_OF_SAVING)


def _resumed(
    path: Path, fresh: AtlasState, run: dict[str, Any]
) -> tuple[AtlasState, dict[str, Any]]:
    """The unfinished state in a file, when it is of the very run that is asked for."""
    state, found = AtlasState.load_with_progress(path)
    advice = (
        "Start anew (--restart, in Python resume=False), or choose another folder than "
        f"{path.stem}."
    )
    if found is None:
        raise CheckpointError(f"{path} is no unfinished atlas. {advice}")
    if state.model != fresh.model:
        raise CheckpointError(f"{path} was begun with another model or other SAEs. {advice}")
    for name in ("settings", "class_names", "labels_from"):
        if getattr(state, name) != getattr(fresh, name):
            raise CheckpointError(
                f"{path} was begun with other {name.replace('_', ' ')}: "
                f"{getattr(state, name)}, and not {getattr(fresh, name)}. {advice}"
            )
    if (found["part"], found["source"]) != (run["part"], run["source"]):
        raise CheckpointError(f"{path} was begun with other images or another part. {advice}")
    return state, found


def _fingerprint(source: Source) -> str | None:
    """Hash of the keys, where they can be told without reading images."""
    if source.length is None:
        return None
    digest = hashlib.blake2b(digest_size=8)
    if source.parallel:
        for item in source.items():
            digest.update(item.key.encode() + b"\0")
    else:
        digest.update(str(source.length).encode())
    return digest.hexdigest()


def _none_readable(state: AtlasState) -> str:
    if not state.skipped:
        return "This part holds no image: there are fewer batches than parts."
    key, why = state.skipped[0]
    return f"None of the {len(state.skipped)} images could be read. The first, {key}: {why}"


def _checked_part(part: tuple[int, int] | None) -> tuple[int, int]:
    if part is None:
        return 0, 1
    number, of = part
    if not 0 <= number < of:
        raise VitlensError(f"part is (i, n) with i from 0 to n - 1, not {part}.")
    return number, of


def _check_sizes(
    n_top: int, n_sampled: int, pictures: int | None, quality: int, batch_size: int
) -> None:
    least = {"n_top": n_top, "n_sampled": n_sampled, "batch_size": batch_size}
    if pictures is not None:
        least["pictures"] = pictures
    for name, value in least.items():
        if value < 1:
            raise VitlensError(f"{name} must be at least 1, not {value}.")
    if not 0 <= quality <= 100:
        raise VitlensError(f"quality goes from 0 to 100, not to {quality}.")


def _beside(out: str | Path, suffix: str) -> Path:
    path = Path(out).absolute()
    return path.with_name(path.name + suffix)
