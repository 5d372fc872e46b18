"""The method of docs/method.md as a slow, independent program in float64.

It is written from that page alone and imports nothing of vitlens: plain autograd on a timm
`VisionTransformer` whose blocks are written out again here, one image at a time, full Jacobians
instead of engines. Numbers in parentheses are the equations of the page. Lists with one entry
per site are ordered as `layers`; T tokens, D channels, F features of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# --- SAEs ------------------------------------------------------------------------------------


@dataclass
class SparseAutoencoder:
    """Weights and settings of one SAE; `kind` says which of the optional ones count."""

    kind: str  # "topk", "relu", "jumprelu", "batchtopk" or "matryoshka"
    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    b_enc: Tensor | None = None
    k: int = 0
    budget: int | None = None
    threshold: Tensor | float = 0.0
    normalization: str = "layer"
    input_mean: Tensor | None = None
    input_scale: float = 1.0
    subtract_b_dec: bool = True
    constant_std: bool = True

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """mu, sd and what (1) divides by; sd is a constant in derivatives but (48), mu is not."""
        ones = torch.ones(len(x), 1, dtype=x.dtype)
        if self.normalization == "none":
            return 0 * ones, ones, 1.0
        if self.normalization == "fixed":
            assert self.input_mean is not None
            return self.input_mean.expand_as(x), self.input_scale * ones, self.input_scale
        mean = x.sum(1, keepdim=True) / x.shape[1]
        variance = (x - mean).square().sum(1, keepdim=True) / (x.shape[1] - 1)
        std = variance.sqrt()
        std = std.detach() if self.constant_std else std
        return mean, std, std + 1e-5

    def activations(self, x: Tensor) -> Tensor:
        """Rectified pre-activations a of the tokens of one image, (1) and (2)."""
        mean, _, scale = self.statistics(x)
        xn = (x - mean) / scale
        pre = (xn - self.b_dec if self.subtract_b_dec else xn) @ self.W_enc
        pre = pre if self.b_enc is None else pre + self.b_enc
        return torch.where(pre > 0, pre, 0.0)

    def mask(self, a: Tensor) -> Tensor:
        """Which entries of a are feature activations, (3) and (7); a constant."""
        a = a.detach()
        if self.kind == "relu":
            return a > 0
        if self.kind in ("jumprelu", "batchtopk", "matryoshka"):
            return (a > self.threshold) & (a > 0)
        allowed = range(a.shape[1])
        if self.budget is not None:
            strength = a.square().sum(0).tolist()
            allowed = sorted(allowed, key=lambda f: (-strength[f], f))[: self.budget]
        mask = torch.zeros_like(a, dtype=torch.bool)
        for t, row in enumerate(a.tolist()):
            for f in sorted(allowed, key=lambda f: -row[f])[: self.k]:
                mask[t, f] = row[f] > 0
        return mask

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Feature activations z of the tokens of one image, (3)."""
        a = self.activations(x)
        return a * (self.mask(a) if mask is None else mask)

    def decode(self, z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Reconstruction x_hat, (4)."""
        return (z @ self.W_dec + self.b_dec) * std + mean


# --- The model -------------------------------------------------------------------------------


@dataclass
class Transformer:
    """A timm `VisionTransformer`, its blocks written out with the wanted derivatives."""

    vit: torch.nn.Module
    gradient: str = "libragrad"  # or "plain"

    @property
    def depth(self) -> int:
        """B, the number of blocks."""
        return len(self.vit.blocks)

    def embed(self, image: Tensor) -> Tensor:
        """Stream before the first block, [T, D]."""
        with torch.no_grad():
            return self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(image[None])))[0]

    def block(self, number: int, x: Tensor, by_head: Sequence[Tensor] | None = None) -> Tensor:
        """One block; with `by_head`, head h reads its values from its own copy of the stream."""
        block = self.vit.blocks[number]
        if by_head is None:
            by_head = [x] * block.attn.num_heads
        x = x + _scaled(block.ls1, self._attention(block, x, by_head))
        hidden = _linear(block.mlp.fc1, self._norm(block.norm2, x))
        gate = self._constant(0.5 * (1 + torch.erf(hidden / 2**0.5)))  # (14)
        return x + _scaled(block.ls2, _linear(block.mlp.fc2, hidden * gate))

    def blocks(self, start: int, stop: int, x: Tensor) -> Tensor:
        """Blocks start + 1 to stop."""
        for number in range(start + 1, stop + 1):
            x = self.block(number, x)
        return x

    def readout(self, x: Tensor) -> Tensor:
        """Logits from the stream after the last block, [C]."""
        x = self._norm(self.vit.norm, x)
        prefix = self.vit.num_prefix_tokens
        x = x[prefix:].mean(0) if self.vit.global_pool == "avg" else x[0]
        return _linear(self.vit.head, self._norm(self.vit.fc_norm, x))

    def _attention(self, block: torch.nn.Module, x: Tensor, by_head: Sequence[Tensor]) -> Tensor:
        n_heads, head_dim = block.attn.num_heads, block.attn.head_dim
        qkv = _linear(block.attn.qkv, self._norm(block.norm1, x))
        q, k, _ = qkv.chunk(3, 1)
        attended = []
        for h in range(n_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            v = _linear(block.attn.qkv, self._norm(block.norm1, by_head[h])).chunk(3, 1)[2]
            probabilities = (q[:, part] @ k[:, part].T / head_dim**0.5).softmax(1)
            attended.append(self._constant(probabilities) @ v[:, part])  # (13)
        return _linear(block.attn.proj, torch.cat(attended, 1))

    def _norm(self, norm: torch.nn.Module, x: Tensor) -> Tensor:
        if isinstance(norm, torch.nn.Identity):
            return x
        centred = x - x.mean(-1, keepdim=True)
        std = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        return centred / self._constant(std) * norm.weight + norm.bias  # (12)

    def _constant(self, x: Tensor) -> Tensor:
        return x.detach() if self.gradient == "libragrad" else x


def _linear(layer: torch.nn.Module, x: Tensor) -> Tensor:
    x = x @ layer.weight.T
    return x if layer.bias is None else x + layer.bias


def _scaled(scale: torch.nn.Module, x: Tensor) -> Tensor:
    return x if isinstance(scale, torch.nn.Identity) else x * scale.gamma


# --- Traces and baselines --------------------------------------------------------------------


@dataclass
class ImageTrace:
    """The untouched model on one image, by site."""

    image: Tensor
    streams: list[Tensor]
    features: list[Tensor]
    masks: list[Tensor]
    means: list[Tensor]
    stds: list[Tensor]
    errors: list[Tensor]
    output: Tensor
    logits: Tensor


Saes = Sequence[SparseAutoencoder]
Layers = Sequence[int]


def trace(model: Transformer, saes: Saes, layers: Layers, image: Tensor) -> ImageTrace:
    """Streams, features and error nodes of one image, (8)."""
    with torch.no_grad():
        x, at, kept = model.embed(image), -1, []
        for layer in layers:
            x, at = model.blocks(at, layer, x), layer
            kept.append(x)
        output = model.blocks(at, model.depth - 1, x)
        logits = model.readout(output)
        features = [sae.encode(x) for sae, x in zip(saes, kept, strict=True)]
        statistics = [sae.statistics(x)[:2] for sae, x in zip(saes, kept, strict=True)]
        errors = [
            x - sae.decode(z, *stats)
            for sae, x, z, stats in zip(saes, kept, features, statistics, strict=True)
        ]
    means, stds = ([s[i] for s in statistics] for i in range(2))
    masks = [z > 0 for z in features]
    return ImageTrace(image, kept, features, masks, means, stds, errors, output, logits)


@dataclass
class Reference:
    """What features and error nodes are compared with and replaced by, by site."""

    features: list[Tensor]
    errors: list[Tensor]


def baselines(traces: Sequence[ImageTrace], kind: str) -> Reference:
    """Lower median or mean over images at every position, or zero, (10)."""

    def centre(values: list[Tensor]) -> Tensor:
        stacked = torch.stack(values)
        if kind == "median":
            return stacked.sort(0).values[(len(values) - 1) // 2]
        return stacked.sum(0) / len(values) if kind == "mean" else 0 * stacked[0]

    sites = range(len(traces[0].features))
    return Reference(
        [centre([t.features[i] for t in traces]) for i in sites],
        [centre([t.errors[i] for t in traces]) for i in sites],
    )


# --- Importances -----------------------------------------------------------------------------


def centred_logit(logits: Tensor, target: int) -> Tensor:
    """The class's logit minus the mean of all, (11)."""
    return logits[target] - logits.mean()


@dataclass
class NodesAndEdges:
    """Importances of one image by site; error nodes last, their rows too."""

    nodes: list[Tensor]
    tokens: list[Tensor]
    edges: list[Tensor]
    gradients: list[Tensor]


def importances(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    target: int,
    error_gradients: str = "leaf",
) -> NodesAndEdges:
    """Node and edge importances, (15) to (22), from the last site down."""
    top = len(saes) - 1
    stream = found.streams[top].clone().requires_grad_()
    logits = model.readout(model.blocks(layers[top], model.depth - 1, stream))
    (grad,) = torch.autograd.grad(centred_logit(logits, target), stream)
    out = NodesAndEdges([], [], [], [])
    for i in reversed(range(len(saes))):
        if i < top:
            G = out.gradients[0]
            jacobian = weighted_jacobian(model, saes, layers, found, i, G)
            out.edges.insert(0, edges_from(jacobian, saes[i], found, baseline, i))
            if error_gradients == "leaf":
                grad = jacobian.sum(0)  # (18)
            else:
                stream = found.streams[i].clone().requires_grad_()
                logits = model.readout(model.blocks(layers[i], model.depth - 1, stream))
                (grad,) = torch.autograd.grad(centred_logit(logits, target), stream)
        G = found.stds[i] * (grad @ saes[i].W_dec.T)  # (15)
        moved = found.features[i] - baseline.features[i]
        error = (grad * (found.errors[i] - baseline.errors[i])).sum(1, keepdim=True)
        tokens = torch.cat([G * moved, error], 1)  # (16), (17)
        out.gradients.insert(0, G)
        out.tokens.insert(0, tokens)
        out.nodes.insert(0, tokens.sum(0))
    return out


def weighted_jacobian(
    model: Transformer, saes: Saes, layers: Layers, found: ImageTrace, i: int, weights: Tensor
) -> Tensor:
    """d (sum_t weights[t, f] z_{i+1}[t, f]) / d x_i, [F, T, D], for every feature f."""
    stream = found.streams[i].clone().requires_grad_()
    after = model.blocks(layers[i], layers[i + 1], stream)
    return _jacobian(saes[i + 1], found.masks[i + 1], after, weights, stream)


def edges_from(
    jacobian: Tensor, sae: SparseAutoencoder, found: ImageTrace, baseline: Reference, i: int
) -> Tensor:
    """Edges out of site i, [F_i + 1, F_{i+1}], from a weighted Jacobian: (20), (21)."""
    reach = (found.features[i] - baseline.features[i]) * found.stds[i]
    of_features = torch.einsum("ntd,fd,tf->fn", jacobian, sae.W_dec, reach)
    of_error = torch.einsum("ntd,td->n", jacobian, found.errors[i] - baseline.errors[i])
    return torch.cat([of_features, of_error[None]])


def edges_by_head(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    i: int,
    G: Tensor,
) -> Tensor:
    """Edges out of site i by attention head, the part through no head last, (44).

    G are the target's gradients at the features of site i + 1. One block lies between the sites.
    """
    direct = found.streams[i].clone().requires_grad_()
    n_heads = model.vit.blocks[layers[i + 1]].attn.num_heads
    by_head = [found.streams[i].clone().requires_grad_() for _ in range(n_heads)]
    after = model.block(layers[i + 1], direct, by_head)
    parts = [
        _jacobian(saes[i + 1], found.masks[i + 1], after, G, copy) for copy in (*by_head, direct)
    ]
    return torch.stack([edges_from(part, saes[i], found, baseline, i) for part in parts])


def _jacobian(
    sae: SparseAutoencoder, mask: Tensor, after: Tensor, weights: Tensor, source: Tensor
) -> Tensor:
    sums = (sae.encode(after, mask) * weights).sum(0)
    rows = []
    for f in range(len(sums)):
        if mask[:, f].any():
            (row,) = torch.autograd.grad(sums[f], source, retain_graph=True)
        else:
            row = torch.zeros_like(source)
        rows.append(row)
    return torch.stack(rows)


def cla_edges(model: Transformer, saes: Saes, layers: Layers, found: ImageTrace, i: int) -> Tensor:
    """Scores of Cross-Layer Attribution, [F_i, F_{i+1}], (38); the model's gradient is "plain"."""
    jacobian = weighted_jacobian(
        model, saes, layers, found, i, found.masks[i + 1].to(found.logits.dtype)
    )
    reach = found.features[i] * found.stds[i]
    return torch.einsum("ntd,fd,tf->fn", jacobian, saes[i].W_dec, reach).abs()


def contribution(
    saes: Saes, found: ImageTrace, baseline: Reference, i: int, feature: int
) -> Tensor:
    """What a node adds to the stream of its site beyond its baseline, [T, D]; -1: error node."""
    if feature == -1:
        return found.errors[i] - baseline.errors[i]
    moved = (found.features[i] - baseline.features[i])[:, feature]
    return moved[:, None] * found.stds[i] * saes[i].W_dec[feature]


def logit_lens(model: Transformer, found: ImageTrace, added: Tensor) -> Tensor:
    """Change of the logits, less its mean, when a contribution reaches the read-out, (40)."""
    output = found.output.clone().requires_grad_()
    logits = model.readout(output)
    rows = [torch.autograd.grad(y, output, retain_graph=True)[0] for y in logits]
    effect = torch.stack([(row * added).sum() for row in rows])
    return effect - effect.mean()


# --- Replaced runs ---------------------------------------------------------------------------


def replaced_run(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    keep: Sequence[Sequence[int]],
    error_nodes: str | Sequence[str] = "clean",
    active: str = "running",
) -> Tensor:
    """Logits with all features but the kept ones at their baseline, (9).

    `error_nodes` are "clean", "free", "baseline" or "zero", for all sites or for each; `active`
    says whose mask counts, that of the "running" stream or of the untouched ("clean") model.
    """
    held = [error_nodes] * len(saes) if isinstance(error_nodes, str) else error_nodes
    with torch.no_grad():
        x, at = model.embed(found.image), -1
        for i, (sae, layer) in enumerate(zip(saes, layers, strict=True)):
            x, at = model.blocks(at, layer, x), layer
            z = sae.encode(x, found.masks[i] if active == "clean" else None)
            mean, std, _ = sae.statistics(x)
            error = {
                "clean": found.errors[i],
                "free": x - sae.decode(z, mean, std),
                "baseline": baseline.errors[i],
                "zero": 0 * x,
            }[held[i]]
            kept = torch.zeros(z.shape[1], dtype=torch.bool)
            kept[list(keep[i])] = True
            x = sae.decode(torch.where(kept, z, baseline.features[i]), mean, std) + error
        return model.readout(model.blocks(at, model.depth - 1, x))


def path_integrated(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    target: int,
    steps: int,
) -> list[Tensor]:
    """Path-integrated importance of the features, [F] by site, (43); the model's is "plain"."""
    total = [torch.zeros(sae.W_enc.shape[1], dtype=found.logits.dtype) for sae in saes]
    for s in range(1, steps + 1):
        gates = [torch.full_like(p, (s - 0.5) / steps).requires_grad_() for p in total]
        x, at = model.embed(found.image), -1
        for i, (sae, layer) in enumerate(zip(saes, layers, strict=True)):
            x, at = model.blocks(at, layer, x), layer
            z, base = sae.encode(x), baseline.features[i]
            mean, std, _ = sae.statistics(x)
            x = sae.decode(base + gates[i] * (z - base), mean, std) + found.errors[i]
        logits = model.readout(model.blocks(at, model.depth - 1, x))
        slopes = torch.autograd.grad(centred_logit(logits, target), gates)
        total = [p + slope / steps for p, slope in zip(total, slopes, strict=True)]
    return total


def cut_edge(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    i: int,
    source: int,
    end: int,
    target: int,
    error_nodes: str,
) -> Tensor:
    """How much lower the target is with one edge of site i cut, (41); masks stay."""
    with torch.no_grad():
        j = i + 1
        x = found.streams[i] - contribution(saes, found, baseline, i, source)
        patched = saes[j].encode(model.blocks(layers[i], layers[j], x), found.masks[j])
        moved = (patched - found.features[j])[:, end]
        x = found.streams[j] + moved[:, None] * found.stds[j] * saes[j].W_dec[end]
        for at in range(j + 1, len(saes)):
            x = model.blocks(layers[at - 1], layers[at], x)
            if error_nodes == "clean":
                z = saes[at].encode(x, found.masks[at])
                mean, std, _ = saes[at].statistics(x)
                x = saes[at].decode(z, mean, std) + found.errors[at]
        logits = model.readout(model.blocks(layers[-1], model.depth - 1, x))
        return centred_logit(found.logits, target) - centred_logit(logits, target)


def patched_edges(
    model: Transformer,
    saes: Saes,
    layers: Layers,
    found: ImageTrace,
    baseline: Reference,
    i: int,
    sources: Sequence[int],
    ends: Sequence[int],
    target: int,
    error_nodes: str,
    active: str = "clean",
    curved: int = 0,
) -> Tensor:
    """Patched edges of site i, [sources, ends], (48); the model's gradient is "plain"."""
    moving, j = [replace(sae, constant_std=False) for sae in saes], i + 1

    def value(x: Tensor) -> Tensor:
        for at in range(j + 1, len(saes)):
            x = model.blocks(layers[at - 1], layers[at], x)
            if error_nodes == "clean":
                z = moving[at].encode(x, found.masks[at] if active == "clean" else None)
                mean, std, _ = moving[at].statistics(x)
                x = moving[at].decode(z, mean, std) + found.errors[at]
        return centred_logit(model.readout(model.blocks(layers[-1], model.depth - 1, x)), target)

    clean = found.streams[j].clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(clean), clean)
    changes = torch.zeros(len(sources), len(ends), *clean.shape, dtype=clean.dtype)
    with torch.no_grad():
        for s, source in enumerate(sources):
            x = found.streams[i] - contribution(saes, found, baseline, i, source)
            mask = found.masks[j] if active == "clean" else None
            patched = saes[j].encode(model.blocks(layers[i], layers[j], x), mask)
            for e, end in enumerate(ends):
                moved = (patched - found.features[j])[:, end]
                changes[s, e] = moved[:, None] * found.stds[j] * saes[j].W_dec[end]
        edges = -(changes * slope).sum((2, 3))
        size = changes.square().sum((2, 3))
        most = size.max(0).values.tolist()
        for e in sorted(range(len(ends)), key=lambda e: -most[e])[:curved]:
            b = int(size[:, e].argmax())
            kappa = value(clean) - value(clean + changes[b, e]) - edges[b, e]
            along = (changes[:, e] * changes[b, e]).sum((1, 2)) / size[b, e]
            edges[:, e] += along.square() * kappa
    return edges
