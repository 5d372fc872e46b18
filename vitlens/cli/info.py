"""``vitlens info``: versions, a model, its SAEs and its sample images."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from vitlens import __version__
from vitlens.cli.options import Commands, add_command, add_model_options, load_lens
from vitlens.cli.report import indented
from vitlens.tables import text_table

if TYPE_CHECKING:
    from vitlens.lens import Lens

_PACKAGES = ("torch", "timm", "safetensors", "numpy", "matplotlib")

_TEXT = """\
Print versions, the model's structure, its SAEs with their measured quality, and the sample images.
"""
_EXAMPLES = """\
  vitlens info
  vitlens info --card
  vitlens info --model vit_base_patch16_224 --saes saes/
"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = add_command(
        commands, "info", "describe a model, its SAEs and this installation", _TEXT, _EXAMPLES
    )
    command.add_argument("--card", action="store_true", help="print the model card instead")
    add_model_options(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    lens = load_lens(arguments)
    if arguments.card:
        print(lens.about.card or f"{arguments.model!r} has no model card.")
        return
    parts = [_versions(), _model(arguments.model, lens), _saes(lens), _samples(lens)]
    print("\n\n".join(part for part in parts if part))


def _versions() -> str:
    import torch

    versions = [f"vitlens {__version__}"]
    versions += [f"{name} {metadata.version(name)}" for name in _PACKAGES]
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"Python {platform.python_version()}, {', '.join(versions)}\nCUDA device: {cuda}"


def _model(name: str, lens: Lens) -> str:
    vision = lens.vision
    rows, columns = vision.grid
    prefix = f"{', '.join(vision.prefix_names)} + " if vision.n_prefix else ""
    n_parameters = sum(weight.numel() for weight in vision.module.parameters())
    lines = [
        f"Model {name} ({type(vision.module).__name__}), fingerprint {lens.fingerprint}",
        f"  {vision.depth} blocks, width {vision.d_model}, {n_parameters / 1e6:.1f} M parameters",
        f"  input {vision.image_size[0]} × {vision.image_size[1]} pixels",
        f"  {vision.n_tokens} tokens: {prefix}{rows} × {columns} patches",
    ]
    if lens.class_names and len(lens.class_names) <= 20:
        lines.append(f"  {len(lens.class_names)} classes: {', '.join(lens.class_names)}")
    else:
        lines.append(f"  {vision.n_classes} classes")
    return "\n".join(lines)


def _saes(lens: Lens) -> str:
    """List the SAEs by layer, with the measured quality if a bundle contains it."""
    measured = lens.measured
    by_layer: dict[int, Mapping[str, Any]] = {h["layer"]: h for h in measured.get("layers", ())}
    header = ["layer", "kind", "features", "active per token"]
    if by_layer:
        header += ["explained variance", "dead", "accuracy kept"]
    rows = []
    for layer, sae in zip(lens.layers, lens.saes, strict=True):
        row = [f"{layer}", sae.kind, f"{sae.n_features}", f"at most {sae.max_active}"]
        if layer in by_layer:
            h = by_layer[layer]
            row += [f"{h['explained_variance']:.3f}", f"{h['dead_fraction']:.1%}"]
            row += [f"{h['accuracy_kept']:.1%}"]
        rows.append(row + [""] * (len(header) - len(row)))
    lines = ["SAEs", indented(text_table(header, rows, align="rl" + "r" * (len(header) - 2)))]
    if by_layer:
        lines.append(
            "  accuracy with all layers replaced and no error nodes: "
            f"{measured['accuracy_all']:.1%} (original model: {measured['accuracy']:.1%})"
        )
    return "\n".join(lines)


def _samples(lens: Lens) -> str:
    if not lens.samples:
        return ""
    lines = [
        f"  {sample.path.stem} ({sample.label or 'no label'})\n{indented(sample.credit, by=4)}"
        for sample in lens.samples
    ]
    return "\n".join(["Sample images", *lines])
