"""Safe files: complete or absent, never pickled; folders to write to; resumable runs; hashes.

torch and safetensors are imported by the functions that need them, so that a folder can be
checked before anything slow is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlens.errors import CheckpointError, VitlensError
from vitlens.progress import interrupts_held

if TYPE_CHECKING:
    from torch import Tensor

_METADATA_KEY = "vitlens"
_RUN_FORMAT, _RUN_VERSION = "vitlens.run", 1
# Most of the time that saving the state of a run may take.
_SHARE_OF_SAVING = 0.05
# The mask can only be read by setting it, which is safe while nothing else runs.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` when the block succeeds.

    Parameters
    ----------
    path
        The file to write. Its folder is made when it is missing; a file already there is
        replaced only at the end. The temporary name keeps the suffix of `path`.

    Raises
    ------
    VitlensError
        When the file cannot be written (disk full, no permission). Whatever the failure, Ctrl-C
        included, the temporary file is removed and an earlier `path` is left as it was.
    """
    final, temporary = _final_and_temporary(path)
    try:
        with _naming(path):
            final.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            temporary.replace(final)
    finally:
        with suppress(OSError):  # what went wrong first is what counts
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, replaces: Collection[str] = ()) -> Iterator[Path]:
    """Yield a new temporary folder next to `path`; swap it in when the block succeeds.

    Parameters
    ----------
    path
        The folder to write. A folder already there is replaced as a whole, provided that it
        holds nothing but files which the new one has too.
    replaces
        Names of files which may be there and which the new folder need not have.

    Raises
    ------
    VitlensError
        When the folder cannot be written, or the one already there holds other files. Whatever
        the failure, the temporary folder is removed and an earlier `path` is left as it was.
    """
    final, temporary = _final_and_temporary(path)
    try:
        with _naming(path):
            temporary.mkdir(parents=True)
            yield temporary
            new = {str(file.relative_to(temporary)) for file in temporary.rglob("*")}
            check_replaceable(path, {*replaces, *new})
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            _swap_in(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write named tensors and JSON metadata to one safetensors file.

    Parameters
    ----------
    path
        The file to write, atomically.
    tensors
        Tensors of any shape, dtype and device; views and tied tensors are stored in full.
    metadata
        Anything JSON can hold, stored in the file's header.

    Raises
    ------
    VitlensError
        When the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    header = {_METADATA_KEY: json.dumps(metadata)}
    own_storage = _without_shared_storage(tensors)
    with atomic_path(path) as temporary:
        try:
            save_file(own_storage, temporary, header)
        except SafetensorError as error:
            raise VitlensError(f"Could not write {path}: {error}") from error


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        The file. Files written by other programs are read too.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU, in the stored dtypes.
    metadata : dict
        What `write_tensors` was given; empty for a file of another program.

    Raises
    ------
    CheckpointError
        When the file is missing, a pickle, truncated, or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} {_why_unreadable(path)}") from error
    try:
        metadata = json.loads(header.get(_METADATA_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} has damaged metadata: {error}.") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} has metadata that is not a JSON object.")
    return tensors, metadata


def read_result(
    path: str | Path, *, what: str, format: str, version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file whose metadata name its format and version.

    Parameters
    ----------
    path
        The file.
    what
        What it should hold, for the message.
    format, version
        What the metadata must say.

    Raises
    ------
    CheckpointError
        When the file cannot be read, or holds something else, or another version of it.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != format:
        raise CheckpointError(f"{path} does not hold {what} saved by vitlens.")
    if metadata.get("version") != version:
        raise CheckpointError(
            f"{path} holds {what} of format {metadata.get('version')}; this version of vitlens "
            f"reads format {version}."
        )
    return tensors, metadata


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; raises `VitlensError` when it cannot."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises `CheckpointError` when it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error


def finite_values(value: Any) -> Any:
    """Return plain values for JSON, with None instead of NaN and infinity, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite_values(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [finite_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_folder(path: str | Path) -> None:
    """Make sure that files can be written to a folder, before long work whose results go there.

    Parameters
    ----------
    path
        The folder; it may be missing, and is not made.

    Raises
    ------
    VitlensError
        When it is a file or inside one, or the user may not write to it.
    """
    path = Path(path)
    existing = path.absolute()
    # Path.exists raises where a folder may not be searched.
    while not os.path.exists(existing):  # noqa: PTH110
        existing = existing.parent
    if not existing.is_dir():
        raise VitlensError(f"{path} cannot be a folder: {existing} is a file.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise VitlensError(f"{path} cannot be written: you may not write to {existing}.")


def check_replaceable(path: str | Path, replaces: Collection[str]) -> None:
    """Make sure that a folder, which may be missing, holds no other files than these.

    Raises
    ------
    VitlensError
        When it holds another file, or is itself a file.
    """
    folder = Path(path).resolve()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise VitlensError(f"{path} is a file, but a folder must be written there.")
    for old in folder.rglob("*"):
        name = str(old.relative_to(folder))
        if name not in replaces:
            raise VitlensError(
                f"{path} already holds other files, for instance {name}. "
                "Choose a folder that is empty or does not exist yet."
            )


class ResumableRun:
    """The unfinished state of a long run, in one file next to the output it works for.

    How to use it: build it with all that the result depends on; `load` what an earlier run left;
    do the work inside ``with run.writing(), run.saving(state) as save_if_due``, call
    ``save_if_due()`` after each step, and write the result at the end of the block with `stamp`
    in its metadata; then `remove` the state. `check` recognises the stamp of a finished result.

    Parameters
    ----------
    out
        The file or folder that the run will write; the state goes to ``<out>.partial``.
    kind
        What the run does, in the words of an error message: "SAE training".
    identity
        All that the result depends on, as JSON can hold it, by names that a person can read:
        "model", "SAEs", "settings", "images". Values are hashes, numbers or mappings; the parts of
        mappings are compared one by one. None: not known, and not compared.
    seconds
        Least time between two saves. Saving also takes at most a twentieth of all time.

    Attributes
    ----------
    path
        The file of the state, ``<out>.partial``.

    Raises
    ------
    VitlensError
        If files cannot be written there.
    """

    def __init__(
        self, out: str | Path, kind: str, identity: Mapping[str, Any], *, seconds: float = 60.0
    ) -> None:
        self.out = Path(out)
        self.kind = kind
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.path = partial_path(out)
        self._seconds = seconds
        self._next_save = time.monotonic() + seconds
        check_folder(self.path.parent)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read tensors and state of an earlier run; None where there is none.

        Raises
        ------
        CheckpointError
            If the file is damaged, or of a run with another kind or identity.
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_result(
            self.path, what="the state of a run", format=_RUN_FORMAT, version=_RUN_VERSION
        )
        self.check(metadata.get("run"), self.path)
        state = metadata.get("state")
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} is damaged: it lacks the state of the run.")
        return tensors, state

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write tensors and JSON state; an earlier file stays until the new one is complete.

        Raises
        ------
        VitlensError
            If the file cannot be written.
        """
        start = time.monotonic()
        metadata = {"format": _RUN_FORMAT, "version": _RUN_VERSION, "run": self.stamp()}
        with interrupts_held():
            write_tensors(self.path, tensors, {**metadata, "state": dict(state)})
        now = time.monotonic()
        self._next_save = now + max(self._seconds, (now - start) / _SHARE_OF_SAVING)

    @contextmanager
    def saving(
        self, state: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Any]] | None]
    ) -> Iterator[Callable[[], None]]:
        """Save regularly, and when anything ends the block early, including Ctrl-C.

        Parameters
        ----------
        state
            Gives what `save` takes, or None while there is nothing consistent to save.

        Yields
        ------
        callable
            Saves if the time has come; to be called between two steps.
        """

        def save() -> None:
            if (found := state()) is not None:
                self.save(*found)

        def save_if_due() -> None:
            if time.monotonic() >= self._next_save:
                save()

        self._next_save = time.monotonic() + self._seconds
        try:
            yield save_if_due
        except BaseException:
            save()
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other runs from writing the same output meanwhile; a run that was killed does not.

        Raises
        ------
        VitlensError
            If another run is writing it.
        """
        from filelock import FileLock, Timeout

        path = self.path.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=0)
            lock.acquire()
        except Timeout:
            raise VitlensError(
                f"Another run is writing {self.out}. Wait until it has ended, or choose another "
                "output."
            ) from None
        except OSError as error:
            raise VitlensError(f"Could not write {path}: {error.strerror or error}.") from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before another run can take it
            lock.release()

    def remove(self) -> None:
        """Remove the state, once the result is written."""
        self.path.unlink(missing_ok=True)

    def stamp(self) -> dict[str, Any]:
        """What identifies the run, for the metadata of its result; see `check`."""
        return {"kind": self.kind, "identity": self.identity}

    def check(self, stamp: Any, where: str | Path) -> None:
        """Make sure that a stamp is of this very run.

        Parameters
        ----------
        stamp
            As `stamp` gave it, read from the file or folder `where`.
        where
            For the message.

        Raises
        ------
        CheckpointError
            If it is not; the message lists the differences.
        """
        advice = (
            f"Choose another output, delete {where} to start again, or pass resume=False in Python."
        )
        found = stamp if isinstance(stamp, dict) else {}
        kind, identity = found.get("kind"), found.get("identity")
        if kind != self.kind or not isinstance(identity, dict):
            made_by = f"was made by {kind}, not by" if kind else "was not made by"
            raise CheckpointError(f"{where} {made_by} {self.kind}. {advice}")
        if differences := _differences(identity, self.identity):
            raise CheckpointError(
                f"{where} belongs to another {self.kind}. What differs: {', '.join(differences)}."
                f" {advice}"
            )


def partial_path(out: str | Path) -> Path:
    """Where the unfinished state of a result is kept: ``<out>.partial``."""
    out = Path(out)
    out = out if out.name.strip(".") else out.resolve()  # "." and ".." have no name of their own
    return out.with_name(f"{out.name}.partial")


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Names of what differs, with the values where a person can read them."""
    result = []
    for name in {**ours, **theirs}:
        one, other = theirs.get(name), ours.get(name)
        if one is None or other is None or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            result += [
                f"{part} {one.get(part)} (now {other.get(part)})"
                for part in {**other, **one}
                if one.get(part, ...) != other.get(part, ...)
            ]
        elif isinstance(one, int | float) and isinstance(other, int | float):
            result.append(f"{name} {one} (now {other})")
        else:
            result.append(name)
    return result


def fingerprint(tensors: Mapping[str, Tensor], facts: Any = None) -> str:
    """Return a short hash of named tensors, and of what else JSON can hold.

    Parameters
    ----------
    tensors
        For instance the state dict of a model. Their order and device do not count.
    facts
        Numbers, texts, lists and mappings that belong to the tensors, such as an SAE's settings.

    Returns
    -------
    str
        The first 16 hexadecimal digits of the SHA-256 over sorted names, dtypes, shapes and bytes,
        then over the facts as JSON with sorted keys, if there are any.
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    if facts is not None:
        digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _final_and_temporary(path: str | Path) -> tuple[Path, Path]:
    """Follow links, so that what they point to is written and the rename stays on one disk."""
    final = Path(path).resolve()
    # The suffix stays at the end: writers such as matplotlib choose the format by it.
    return final, final.with_name(f".{secrets.token_hex(4)}-{final.name}")


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `VitlensError` that names `path`."""
    try:
        yield
    except VitlensError:
        raise
    except OSError as error:
        raise VitlensError(f"Could not write {path}: {error.strerror or error}.") from error


def _flush(file: Path) -> None:
    """Wait for the disk: a full one may only say so now, and a rename must not overtake."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
    # safetensors makes files that only their owner can read.
    file.chmod(0o666 & ~_UMASK)


def _swap_in(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    _, old = _final_and_temporary(final)
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _without_shared_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory, which safetensors refuses to write."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result


def _why_unreadable(path: Path) -> str:
    """Say what a file that safetensors rejects is instead, from its first bytes and its size."""
    with path.open("rb") as file:
        start = file.read(8)
        size = path.stat().st_size
        if size == 0:
            return "is empty."
        if start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and 2 <= start[1] <= 5):
            return (
                "is a pickle (as torch.save writes), which can run any code when it is loaded. "
                "Save the tensors with safetensors instead."
            )
        header_size = int.from_bytes(start, "little")
        if len(start) < 8 or file.read(1) != b"{":
            return "is not a safetensors file."
        if size < 8 + header_size:
            return "is a truncated safetensors file: its header is cut off."
        file.seek(8)
        try:
            header = json.loads(file.read(header_size))
            ends = [e["data_offsets"][1] for name, e in header.items() if name != "__metadata__"]
            expected = 8 + header_size + max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "is a safetensors file with a damaged header."
    if size < expected:
        return f"is a truncated safetensors file: {size} of {expected} bytes are present."
    return "is a damaged safetensors file."
