"""Safe writing and reading: complete files or none, tensors never pickled, hashes of tensors."""

import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitlens.errors import CheckpointError, VitlensError
from vitlens.folders import check_replaceable

_METADATA_KEY = "vitlens"
# The mask can only be read by setting it, which is safe while nothing else runs.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

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
    """Yield a new temporary folder beside `path`; swap it in when the block succeeds.

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
        When the file is missing, a pickle, truncated, or no safetensors file.
    """
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
    """Return plain values for JSON, with None in the place of NaN and infinity, which it lacks."""
    if isinstance(value, Mapping):
        return {key: finite_values(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [finite_values(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of named tensors, independent of their order and device.

    Parameters
    ----------
    tensors
        For instance the state dict of a model.

    Returns
    -------
    str
        The first 16 hexadecimal digits of the SHA-256 over sorted names, dtypes, shapes, bytes.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _final_and_temporary(path: str | Path) -> tuple[Path, Path]:
    """Follow links, so that what they point to is written and the rename stays on one disk."""
    final = Path(path).resolve()
    # The suffix stays at the end because writers such as matplotlib go by it.
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
        return f"is a truncated safetensors file: {size} of {expected} bytes are there."
    return "is a damaged safetensors file."
