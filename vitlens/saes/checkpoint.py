"""The file from which a run on SAEs goes on, and the check that it is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vitlens.errors import CheckpointError
from vitlens.io import check_folder, read_tensors, write_tensors
from vitlens.progress import interrupts_held
from vitlens.saes.io import MANIFEST, read_manifest

CHECKPOINT = "checkpoint.safetensors"
_WHAT = {
    "model": "another model",
    "saes": "other SAEs",
    "n_images": "other images",
    "first_image": "other images",
}
_NOT_ALWAYS_KNOWN = {"first_image"}
_CHANGES_NOTHING = {"checkpoint_seconds"}


@dataclass(frozen=True)
class RunFiles:
    """The files of one run: a checkpoint while it is under way, then the SAEs.

    Attributes
    ----------
    folder
        Where they are.
    kind
        Name of the checkpoint's format.
    identity
        What must be the same for a run to go on: "config" (settings by name), and fingerprints or
        counts by any of the names in `_WHAT`.
    """

    folder: Path
    kind: str
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_folder(self.folder)

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self.folder / CHECKPOINT

    @property
    def manifest(self) -> Path:
        """There when the run is finished."""
        return self.folder / MANIFEST

    def write(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Write the checkpoint; an earlier one stays until the new one is whole."""
        with interrupts_held():
            write_tensors(self.path, tensors, {**self.identity, "format": self.kind, **metadata})

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and metadata of the checkpoint.

        Raises
        ------
        CheckpointError
            If it is of another kind of run, of another model or with other settings.
        """
        tensors, metadata = read_tensors(self.path)
        if metadata.get("format") != self.kind:
            raise CheckpointError(f"{self.path} is not a checkpoint of {self.kind}.")
        self._check(self.path, metadata)
        return tensors, metadata

    def figures(self, name: str) -> dict[str, Any]:
        """What the finished run wrote into the manifest under `name`.

        Raises
        ------
        CheckpointError
            If the SAEs in the folder are of something else.
        """
        metadata = read_manifest(self.folder)["metadata"]
        if name not in metadata:
            raise CheckpointError(
                f"{self.folder} holds SAEs that are not of such a run ({self.kind}). Choose"
                " another folder."
            )
        self._check(self.manifest, metadata)
        return metadata[name]

    def _check(self, path: Path, found: dict[str, Any]) -> None:
        for name, what in _WHAT.items():
            theirs, ours = found.get(name), self.identity.get(name)
            if name in _NOT_ALWAYS_KNOWN and None in (theirs, ours):
                continue
            if theirs != ours:
                raise CheckpointError(
                    f"{path} is of a run on {what}. Choose another folder, or remove the file to"
                    " start anew (in Python, resume=False)."
                )
        before, now = found.get("config", {}), self.identity["config"]
        telling = [name for name in now if name not in _CHANGES_NOTHING]
        changed = [name for name in telling if before.get(name) != now[name]]
        if changed:
            listed = ", ".join(f"{name} {before.get(name)} (now {now[name]})" for name in changed)
            raise CheckpointError(
                f"{path} is of a run with other settings: {listed}. Use the former, choose another"
                " folder, or remove the file to start anew (in Python, resume=False)."
            )
