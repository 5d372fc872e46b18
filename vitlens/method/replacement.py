"""Residual replacement: features plus one error node per site, and the replaced forward pass.

At every site i the residual stream is what its SAE reconstructs, plus an error node::

    x_i  = x_hat_i(z_i) + e_i                           (8)

A replaced run changes features and continues; the running stream is encoded again at every site,
so that a change is seen by all later layers::

    z'_i   = the SAE's encoding of the running stream x'_i that reaches the site
    z~_i   = change_i(z'_i)
    x''_i  = (z~_i W_dec + b_dec) sd'_i + mu'_i + e~_i  (9)

with the error node ``e~_i`` held at its value in the untouched model ("clean"), recomputed from
the running stream ("free"), at its baseline ("baseline"), or left out ("zero"). Keeping a set S of
features is the change ``z~_i[f] = z'_i[f] if f in S else z_bar_i[f]``, with baselines ``z_bar_i``
[T, F_i] and ``e_bar_i`` [T, D].

Equation (9) is in one place, `ReplacedPass.at_site`. `ReplacementModel.run` runs it over the whole
model: curves, interventions, verification, debiasing, end-to-end training and widgets use it, and
so do the hooks of `Lens.intervene`.

Source: Kim et al., NeurIPS 2025, arXiv 2509.17401, section 3; docs/method.md, "Residual
replacement". T tokens, D channels, F_i features at site i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from vitlens.errors import CheckpointError, FeatureError, ModelError, check_choice
from vitlens.io import read_tensors, write_tensors
from vitlens.models.quantize import dequantize, quantize
from vitlens.models.vision import Block, Site, Stem, VisionModel
from vitlens.repr import ShapeRepr
from vitlens.saes.base import SAE, check_widths

ErrorNodes = Literal["clean", "free", "baseline", "zero"]
BaselineKind = Literal["median", "mean", "zero", "reference", "custom"]
#: Which features may be active in a replaced run: those of the running stream, or those that are
#: active in the untouched model.
Active = Literal["running", "clean"]

# Feature baselines with more non-zeros than this part are stored densely.
_DENSE = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class Trace(ShapeRepr):
    """Activations inside the model on one image, or on a batch of n.

    Sequences are ordered by site. A batch has a leading axis n everywhere; ``trace[i]`` is the
    trace of one image, without that axis.

    Attributes
    ----------
    logits
        Output of the untouched model, [C].
    residuals
        Stream at every site, tensors [T, D].
    features
        Activations z_i, tensors [T, F_i].
    errors
        What the SAEs do not reconstruct, e_i = x_i - x_hat_i, tensors [T, D].
    means, stds
        Statistics of the stream at every SAE, tensors [T, 1].
    output
        Stream after the last block, [T, D].
    image
        The model's input, [3, H, W].
    layers
        Block number of every site.
    """

    logits: Float[Tensor, "*n C"]
    residuals: tuple[Float[Tensor, "*n T D"], ...]
    features: tuple[Float[Tensor, "*n T F"], ...]
    errors: tuple[Float[Tensor, "*n T D"], ...]
    means: tuple[Float[Tensor, "*n T 1"], ...]
    stds: tuple[Float[Tensor, "*n T 1"], ...]
    output: Float[Tensor, "*n T D"]
    image: Float[Tensor, "*n 3 H W"]
    layers: tuple[int, ...]

    @property
    def batched(self) -> bool:
        """Whether there is a batch axis."""
        return self.logits.ndim == 2

    def __len__(self) -> int:
        if not self.batched:
            raise TypeError("This is the trace of one image; only a batch has a length.")
        return len(self.logits)

    def __getitem__(self, index: int) -> Trace:
        if not -len(self) <= index < len(self):
            raise IndexError(f"The batch has {len(self)} images; there is no {index}.")
        return self._map(lambda x: x[index])

    def batch(self) -> Trace:
        """Add a batch axis of one; a batch is returned as it is."""
        return self if self.batched else self._map(lambda x: x[None])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Trace:
        def each(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(map(function, values))

        return Trace(
            logits=function(self.logits),
            residuals=each(self.residuals),
            features=each(self.features),
            errors=each(self.errors),
            means=each(self.means),
            stds=each(self.stds),
            output=function(self.output),
            image=function(self.image),
            layers=self.layers,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Baselines(ShapeRepr):
    """Values that replace features and error nodes, at each position.

    Attributes
    ----------
    features
        A tensor [T, F_i] per site.
    errors
        A tensor [T, D] per site.
    kind
        "median" (the paper's) or "mean" over a sample of images, "zero", "reference" (the
        activations of reference images), or "custom".
    references
        With several reference images, the baselines of each; a replaced run is then the mean of
        the runs with each of them, and `features` and `errors` are the means over them.

    Raises
    ------
    CheckpointError
        If the two lists do not go together, or a value is not finite.
    OptionError
        If the kind is unknown.
    """

    features: Sequence[Float[Tensor, "T F"]]
    errors: Sequence[Float[Tensor, "T D"]]
    kind: BaselineKind = "custom"
    references: tuple[Baselines, ...] = ()

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(BaselineKind))
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "errors", tuple(self.errors))
        object.__setattr__(self, "references", tuple(self.references))
        if len(self.features) != len(self.errors):
            raise CheckpointError(
                "Baselines need as many feature tensors as error tensors, got "
                f"{len(self.features)} and {len(self.errors)}."
            )
        for place, (z, e) in enumerate(zip(self.features, self.errors, strict=True)):
            if z.ndim != 2 or e.ndim != 2 or len(z) != len(e):
                raise CheckpointError(
                    f"Baselines of site {place} must be [T, F] and [T, D], got "
                    f"{tuple(z.shape)} and {tuple(e.shape)}."
                )
            if not (torch.isfinite(z).all() and torch.isfinite(e).all()):
                raise CheckpointError(f"Baselines of site {place} hold NaN or infinite values.")

    @property
    def runs(self) -> tuple[Baselines, ...]:
        """The baselines of which a replaced run is the mean."""
        return self.references or (self,)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Baselines:
        """Move to a device or dtype."""
        return replace(
            self,
            features=[z.to(dtype=dtype, device=device) for z in self.features],
            errors=[e.to(dtype=dtype, device=device) for e in self.errors],
            references=tuple(b.to(dtype=dtype, device=device) for b in self.references),
        )

    def save(self, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write one safetensors file; feature baselines with many zeros are stored sparsely.

        Parameters
        ----------
        path
            File to write.
        dtype
            Stored precision; by default that of the tensors. `torch.int8` stores 8 bits per value
            with a scale per feature or channel (see `vitlens.models.quantize`).

        Raises
        ------
        VitlensError
            If the file cannot be written, or a value does not fit into the precision.
        """
        tensors = self._tensors("", dtype)
        for number, reference in enumerate(self.references):
            tensors |= reference._tensors(f"reference{number}.", dtype)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise CheckpointError(
                f"Baselines do not fit into {dtype}: some would become infinite. Leave out dtype."
            )
        metadata = {
            "kind": "baselines",
            "layers": len(self.features),
            "baseline": self.kind,
            "references": len(self.references),
        }
        write_tensors(path, tensors, metadata)

    def _tensors(self, prefix: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
        dense, sparse = {}, {}
        for place, (z, e) in enumerate(zip(self.features, self.errors, strict=True)):
            name = f"{prefix}{place}"
            where = z.reshape(-1).nonzero().squeeze(1)
            if len(where) > _DENSE * z.numel():
                dense[f"{name}.features"] = z
            else:
                sparse[f"{name}.features.shape"] = torch.tensor(z.shape)
                sparse[f"{name}.features.where"] = where.to(torch.int32)
                values = z.reshape(-1)[where]
                half = torch.float16 if dtype == torch.int8 else dtype
                sparse[f"{name}.features.values"] = values.to(half or z.dtype)
            dense[f"{name}.errors"] = e
        if dtype == torch.int8:
            # One scale per feature or channel, which are the columns.
            return sparse | quantize({name: value.T for name, value in dense.items()})
        return sparse | {name: value.to(dtype or value.dtype) for name, value in dense.items()}

    @classmethod
    def load(cls, path: str | Path) -> Baselines:
        """Read what `save` wrote, as float32 where less precise numbers were stored.

        Raises
        ------
        CheckpointError
            If the file is missing, damaged, or holds something else.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("kind") != "baselines":
            raise CheckpointError(
                f"{path} contains no baselines. Compute them with `fit_baselines`."
            )

        def dense(name: str) -> Tensor:
            value = tensors[name]
            if value.dtype != torch.int8:
                return _at_least_single(value)
            scale = f"{name}.scale"
            return dequantize({name: value, scale: tensors[scale]})[name].T.contiguous()

        def features_of(name: str) -> Tensor:
            if name in tensors:
                return dense(name)
            values = _at_least_single(tensors[f"{name}.values"])
            rows, cols = tensors[f"{name}.shape"].tolist()
            z = torch.zeros(rows * cols, dtype=values.dtype)
            z[tensors[f"{name}.where"].long()] = values
            return z.reshape(rows, cols)

        def read(prefix: str, kind: Any, references: tuple[Baselines, ...] = ()) -> Baselines:
            places = range(metadata["layers"])
            features = [features_of(f"{prefix}{place}.features") for place in places]
            errors = [dense(f"{prefix}{place}.errors") for place in places]
            return cls(features, errors, kind, references)

        try:
            several = metadata.get("references", 0)
            references = tuple(read(f"reference{n}.", "reference") for n in range(several))
            return read("", metadata.get("baseline", "median"), references)
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is not a complete baseline file: {error}") from error


class SiteValues(NamedTuple):
    """Features [*n, T, F] and error node [*n, T, D] of one site."""

    features: Float[Tensor, "*n T F"]
    error: Float[Tensor, "*n T D"]


class SiteState(NamedTuple):
    """What a change sees at one site of a replaced run.

    Attributes
    ----------
    position, sae
        The site, and its SAE.
    stream
        The running stream as the block gave it, [n, T, D].
    features, mean, std
        Its encoding, [n, T, F], [n, T, 1], [n, T, 1].
    clean
        The same site of the untouched model; None where `stream` still is the untouched model's,
        or where nothing asks for it.
    baseline
        The site's baselines, [T, F] and [T, D].
    """

    position: int
    sae: SAE
    stream: Float[Tensor, "n T D"]
    features: Float[Tensor, "n T F"]
    mean: Float[Tensor, "n T 1"]
    std: Float[Tensor, "n T 1"]
    clean: SiteValues | None
    baseline: SiteValues


class Change:
    """What a replaced run changes in equation (9). The base class changes nothing."""

    @property
    def rows(self) -> int | None:
        """How many runs of one image this describes; None for any number."""
        return None

    def touches(self, position: int) -> bool:
        """Whether the site's stream is changed."""
        return False

    def needs_clean(self, position: int) -> bool:
        """Whether the change depends on the untouched model at the site."""
        return False

    def features(self, state: SiteState) -> Float[Tensor, "n T F"] | None:
        """New activations, or None to leave them."""
        return None

    def edit(self, state: SiteState, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """The stream that continues, after equation (9)."""
        return stream


@dataclass(frozen=True, eq=False)
class KeepFeatures(Change):
    """Keep some features; all others are at their baselines.

    Attributes
    ----------
    masks
        By site, True for the features to keep: [F_i], or [n, F_i] for n runs at once.
    """

    masks: Sequence[Bool[Tensor, "*n F"]]

    @property
    def rows(self) -> int | None:
        """The number of masks, where there are several."""
        return next((len(mask) for mask in self.masks if mask.ndim == 2), None)

    def touches(self, position: int) -> bool:
        """Every site, since the features that are kept are given for every site."""
        return True

    def features(self, state: SiteState) -> Float[Tensor, "n T F"]:
        """Kept activations, and baselines."""
        mask = self.masks[state.position].unsqueeze(-2)
        return torch.where(mask, state.features, state.baseline.features)


@dataclass(frozen=True, eq=False)
class FromSite:
    """Where a replaced run starts when it does not start with images.

    Attributes
    ----------
    position
        The site.
    stream
        The stream there, [n, T, D].
    changed
        Whether it has passed the site's change already.
    clean
        The untouched model's trace, of one image or of all n; needed for "clean" error nodes
        once the stream differs from the untouched model's.
    """

    position: int
    stream: Float[Tensor, "n T D"]
    changed: bool = False
    clean: Trace | None = None


#: Called at every site of a run with its state and the stream that continues.
Observer = Callable[[SiteState, Tensor], None]


class ReplacementModel:
    """A vision model with SAEs at some of its sites, and baselines.

    Parameters
    ----------
    vision
        The model.
    saes
        One per site, in the order of `layers`; of the model's dtype and device.
    layers
        Block numbers of the sites, ascending, at least one.
    baselines
        Values that replace features and error nodes; zero if left out.

    Raises
    ------
    CheckpointError
        If SAEs and layers do not go together, or an SAE has another width than the model.
    ModelError
        If there is no such block, or the baselines have other shapes.
    """

    def __init__(
        self,
        vision: VisionModel,
        saes: Sequence[SAE],
        layers: Sequence[int],
        baselines: Baselines | None = None,
    ) -> None:
        self.vision = vision
        self.saes = tuple(saes)
        self.layers = tuple(layers)
        if not self.saes or len(self.saes) != len(self.layers):
            raise CheckpointError(
                f"There must be one SAE per layer, and at least one; got {len(self.saes)} SAEs "
                f"for the layers {list(self.layers)}."
            )
        if list(self.layers) != sorted(set(self.layers)):
            raise CheckpointError(f"Layers must be ascending, not {list(self.layers)}.")
        self.sites: tuple[Site, ...] = tuple(vision.site(layer) for layer in self.layers)
        check_widths(self.saes, self.layers, d_model=vision.d_model)
        self.baselines = baselines or zero_baselines(vision, self.saes)

    def __len__(self) -> int:
        return len(self.saes)

    def __repr__(self) -> str:
        sizes = ", ".join(str(sae.n_features) for sae in self.saes)
        return f"ReplacementModel({self.vision!r}, layers {list(self.layers)}, features {sizes})"

    @property
    def baselines(self) -> Baselines:
        """Values that replace features and error nodes."""
        return self._baselines

    @baselines.setter
    def baselines(self, baselines: Baselines) -> None:
        self._check_baselines(baselines)
        self._baselines = baselines.to(dtype=self.vision.dtype, device=self.vision.device)

    def position(self, layer: int) -> int:
        """Index of a layer's site in all sequences; raises `FeatureError` if it has no SAE."""
        try:
            return self.layers.index(layer)
        except ValueError:
            raise FeatureError(
                f"Layers with SAEs are {_listed(self.layers)}; there is no SAE at {layer}."
            ) from None

    def sae(self, layer: int) -> SAE:
        """The SAE of a layer; raises `FeatureError` if it has none."""
        return self.saes[self.position(layer)]

    def site(self, layer: int) -> Site:
        """The site of a layer; raises `FeatureError` if it has no SAE."""
        return self.sites[self.position(layer)]

    def check_node(self, layer: int, feature: int) -> int:
        """Return the position of a node's layer.

        Parameters
        ----------
        layer, feature
            The node; feature -1 is the layer's error node.

        Raises
        ------
        FeatureError
            If there is no such layer or feature.
        """
        position = self.position(layer)
        n_features = self.saes[position].n_features
        if not hasattr(feature, "__index__") or not -1 <= feature < n_features:
            raise FeatureError(
                f"Layer {layer} has features 0 to {n_features - 1} (-1 is its error node); "
                f"there is no {feature}."
            )
        return position

    def advance(self, stem: Stem, position: int) -> Block:
        """Return the map from the stream at one site to the stream at the next.

        Parameters
        ----------
        stem
            What the blocks are bound to; see `VisionModel.embed`.
        position
            The site the map leads to. It starts at the site before, or at the tokens before the
            first block; the number of sites stands for the stream after the last block.
        """
        start = self.layers[position - 1] if position else -1
        stop = self.layers[position] if position < len(self) else self.vision.depth - 1
        return stem.through(start, stop)

    def trace(self, images: Float[Tensor, "n 3 H W"]) -> Trace:
        """Run the untouched model on images and encode the stream at every site: equation (8)."""
        residuals, coded = [], []
        with torch.no_grad():
            stem = self.vision.embed(images)
            stream = stem.tokens
            for position, sae in enumerate(self.saes):
                stream = self.advance(stem, position)(stream)
                residuals.append(stream)
                coded.append(sae(stream))
            output = self.advance(stem, len(self))(stream)
            logits = self.vision.readout(output)
        return Trace(
            logits=logits,
            residuals=tuple(residuals),
            features=tuple(out.features for out in coded),
            errors=tuple(out.error for out in coded),
            means=tuple(out.mean for out in coded),
            stds=tuple(out.std for out in coded),
            output=output,
            image=images,
            layers=self.layers,
        )

    def run(
        self,
        inputs: Float[Tensor, "n 3 H W"] | Trace | FromSite,
        change: Change | None = None,
        *,
        error_nodes: ErrorNodes | Sequence[ErrorNodes] = "clean",
        active: Active = "running",
        rows: int | None = None,
        observe: Observer | None = None,
        grad: bool = False,
        constant_std: bool = True,
    ) -> Float[Tensor, "n C"]:
        """Logits of a replaced run: equation (9) at every site.

        Parameters
        ----------
        inputs
            Images; or a trace, which saves the untouched model's part of the work; or a stream
            to start from.
        change
            The change; nothing by default.
        error_nodes
            Values of the error nodes, for all sites or for each site: "clean", their values in the
            untouched model; "free", what the running stream gives; "baseline"; "zero".
        active
            Which features may be active: "running", those the SAEs choose on the running stream;
            "clean", those that are active in the untouched model.
        rows
            For the trace of one image: how many runs there are; by default as many as the change
            describes, or one.
        observe
            Called at every site with its state and the stream that continues.
        grad
            Record gradients. The SAEs' masks are constants.
        constant_std
            Whether the SAEs' std is a constant in gradients, too.

        Returns
        -------
        Tensor
            [n, C]; with several reference images as baselines, the mean over them.

        Raises
        ------
        FeatureError
            If `error_nodes` does not fit the sites, or "clean" needs a trace that is missing.
        OptionError
            If an option is unknown.
        """
        held = check_error_nodes(error_nodes, len(self))
        check_choice("active", active, get_args(Active))
        runs = self.baselines.runs if change is not None or "baseline" in held else ()
        with torch.set_grad_enabled(grad):
            logits = [
                self._run_once(inputs, change, held, active, rows, observe, baselines, constant_std)
                for baselines in runs or (self.baselines,)
            ]
            return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)

    def before_and_after(
        self,
        images: Float[Tensor, "n 3 H W"],
        change: Change | None = None,
        *,
        error_nodes: ErrorNodes | Sequence[ErrorNodes] = "clean",
    ) -> tuple[Float[Tensor, "n C"], Float[Tensor, "n C"]]:
        """Logits of the untouched model, and of `run`, in one pass over the blocks."""
        held = check_error_nodes(error_nodes, len(self))
        before, after = None, []
        with torch.no_grad():
            for baselines in self.baselines.runs:
                passing = ReplacedPass(
                    self, change, held, baselines=baselines, until=self.vision.depth
                )
                after.append(self._finish(*self._from_images(images), passing, self.vision.depth))
                before = after[-1] if passing.clean is None else self.vision.readout(passing.clean)
        assert before is not None
        return before, after[0] if len(after) == 1 else torch.stack(after).mean(0)

    def _run_once(
        self,
        inputs: Tensor | Trace | FromSite,
        change: Change | None,
        held: tuple[ErrorNodes, ...],
        active: Active,
        rows: int | None,
        observe: Observer | None,
        baselines: Baselines,
        constant_std: bool = True,
    ) -> Float[Tensor, "n C"]:
        clean = None
        if isinstance(inputs, Trace):
            clean = inputs
        elif isinstance(inputs, FromSite):
            clean = inputs.clean
        passing = ReplacedPass(
            self,
            change,
            held,
            active=active,
            baselines=baselines,
            clean=clean,
            observe=observe,
            constant_std=constant_std,
        )
        if isinstance(inputs, Tensor):
            return self._finish(*self._from_images(inputs), passing, self.vision.depth)
        if isinstance(inputs, FromSite):
            layer, stream = self.layers[inputs.position], inputs.stream
            stem = self._blank_stem()
            if inputs.changed:
                passing.parted = True
            else:
                stream = passing.at_site(inputs.position, stream)
            return self._finish(stem, stream, passing, self.vision.depth, start=layer)
        trace = inputs.batch()
        n = rows or (change.rows if change is not None else None) or len(trace)
        if len(trace) not in (1, n):
            raise FeatureError(f"A trace of {len(trace)} images cannot be run as {n} rows.")
        first = 0 if observe is not None else passing.first
        if first >= len(self):
            return trace.logits.expand(n, -1)
        stem = self.vision.embed(trace.image[:1])
        stream = passing.at_site(first, trace.residuals[first].expand(n, -1, -1))
        return self._finish(stem, stream, passing, self.vision.depth, start=self.layers[first])

    def _from_images(self, images: Tensor) -> tuple[Stem, Tensor]:
        stem = self.vision.embed(images)
        return stem, stem.tokens

    def _finish(
        self, stem: Stem, stream: Tensor, passing: ReplacedPass, depth: int, start: int = -1
    ) -> Float[Tensor, "n C"]:
        for layer in range(start + 1, depth):
            block = stem.blocks[layer]
            stream = passing.after_block(layer, block(stream), block)
        return self.vision.readout(stream)

    def _blank_stem(self) -> Stem:
        """The blocks, with all that images of this size bind to them."""
        vision = self.vision
        with torch.no_grad():
            blank = torch.zeros(1, 3, *vision.image_size, dtype=vision.dtype, device=vision.device)
            return vision.embed(blank)

    def _check_baselines(self, baselines: Baselines) -> None:
        if len(baselines.features) != len(self):
            raise ModelError(
                f"{len(self)} SAEs need baselines of {len(self)} layers, not "
                f"{len(baselines.features)}."
            )
        pairs = zip(baselines.features, baselines.errors, strict=True)
        for site, sae, (z, e) in zip(self.sites, self.saes, pairs, strict=True):
            expected = (site.n_tokens, sae.n_features), (site.n_tokens, site.d_model)
            if (z.shape, e.shape) != expected:
                raise ModelError(
                    f"Baselines of layer {site.layer} are {tuple(z.shape)} and {tuple(e.shape)}; "
                    f"model and SAE need {expected[0]} and {expected[1]}."
                )
        for reference in baselines.references:
            self._check_baselines(reference)


class ReplacedPass:
    """One replaced forward pass, block by block.

    The untouched stream is computed as well from the point where the two differ, unless its trace
    is known.

    Parameters
    ----------
    replacement
        The model.
    change
        The change.
    error_nodes
        Value of each site's error node.
    active
        See `ReplacementModel.run`.
    baselines
        The baselines of this run; by default the model's.
    clean
        Trace of the untouched model, of one image or of all.
    until
        The last block to which the untouched stream is followed; by default as far as the
        change and the error nodes need it.
    observe, constant_std
        See `ReplacementModel.run`.

    Attributes
    ----------
    clean
        The untouched stream after the latest block; None while the two are the same, or where a
        trace is given.
    parted
        Whether the running stream differs from the untouched one.
    first
        The first position at which the stream changes; the number of sites where none does.
    """

    def __init__(
        self,
        replacement: ReplacementModel,
        change: Change | None,
        error_nodes: Sequence[ErrorNodes],
        *,
        active: Active = "running",
        baselines: Baselines | None = None,
        clean: Trace | None = None,
        until: int | None = None,
        observe: Observer | None = None,
        constant_std: bool = True,
    ):
        self._replacement, self._change = replacement, change or Change()
        self._held, self._active, self._observe = tuple(error_nodes), active, observe
        self._constant_std = constant_std
        self._baselines = baselines or replacement.baselines
        self._trace = clean
        self.clean: Tensor | None = None
        self.parted = False
        positions = range(len(replacement))
        changed = (
            p for p in positions if self._change.touches(p) or self._held[p] in ("baseline", "zero")
        )
        self.first = next(changed, len(replacement))
        if until is None:
            needed = (p for p in positions if p > self.first and self._needs(p))
            until = max((replacement.layers[p] for p in needed), default=-1)
        self._until = until

    def after_block(
        self, layer: int, stream: Float[Tensor, "n T D"], block: Block
    ) -> Float[Tensor, "n T D"]:
        """Continue after a block that returned `stream`; called block by block.

        Parameters
        ----------
        layer
            Number of the block.
        stream
            What it gave.
        block
            The block itself, for the untouched stream.
        """
        if self.clean is not None and layer <= self._until:
            with torch.no_grad():
                self.clean = block(self.clean)
        if layer not in self._replacement.layers:
            return stream
        return self.at_site(self._replacement.position(layer), stream)

    def at_site(self, position: int, stream: Float[Tensor, "n T D"]) -> Float[Tensor, "n T D"]:
        """Return the stream that leaves a site: equation (9)."""
        sae, held = self._replacement.saes[position], self._held[position]
        touched = self._change.touches(position)
        parts = not self.parted and position >= self.first
        untouched = not self.parted
        if parts:
            self.parted = True
            if self._trace is None:
                self.clean = stream.detach()
        free = held == "free" or (held == "clean" and untouched)
        if not touched and free and self._observe is None:
            return stream
        clean = None if untouched else self._clean_values(position)
        mask = None
        if self._active == "clean" and clean is not None:
            mask = clean.features > 0
        features, mean, std = sae.encode_with_stats(
            stream, active=mask, constant_std=self._constant_std
        )
        baseline = SiteValues(self._baselines.features[position], self._baselines.errors[position])
        state = SiteState(position, sae, stream, features, mean, std, clean, baseline)
        new = self._change.features(state) if touched else None
        if free:
            # The error node is what the SAE leaves over, so that only the difference counts.
            out = stream if new is None else stream + ((new - features) @ sae.W_dec) * std
        else:
            out = sae.decode(features if new is None else new, mean, std)
            if held == "clean":
                assert clean is not None
                out = out + clean.error
            elif held == "baseline":
                out = out + baseline.error
        if touched:
            out = self._change.edit(state, out)
        if self._observe is not None:
            self._observe(state, out)
        return out

    def _needs(self, position: int) -> bool:
        """Whether what happens at a site depends on the untouched model."""
        return (
            self._held[position] == "clean"
            or self._active == "clean"
            or self._change.needs_clean(position)
        )

    def _clean_values(self, position: int) -> SiteValues | None:
        if not self._needs(position):
            return None
        if self._trace is not None:
            return SiteValues(self._trace.features[position], self._trace.errors[position])
        if self.clean is None:
            raise FeatureError(
                'error_nodes="clean" needs the trace of the untouched model: give `clean`.'
            )
        with torch.no_grad():
            out = self._replacement.saes[position](self.clean)
        return SiteValues(out.features, out.error)


def check_error_nodes(
    error_nodes: ErrorNodes | Sequence[ErrorNodes], n_sites: int
) -> tuple[ErrorNodes, ...]:
    """Return what the error node of each site holds.

    Raises
    ------
    FeatureError
        If there is not one value per site.
    OptionError
        If a value is unknown.
    """
    held = [error_nodes] * n_sites if isinstance(error_nodes, str) else list(error_nodes)
    if len(held) != n_sites:
        raise FeatureError(
            f"error_nodes must be one value, or one for each of {n_sites} layers, not {len(held)}."
        )
    for choice in held:
        check_choice("error_nodes", choice, get_args(ErrorNodes))
    return tuple(held)


def keep_masks(
    replacement: ReplacementModel,
    keep: Sequence[Iterable[int] | Tensor] | Mapping[int, Iterable[int] | Tensor] | None,
) -> tuple[Bool[Tensor, " F"], ...]:
    """Turn the features to keep into one boolean mask per site.

    Parameters
    ----------
    keep
        By site, or by layer in a mapping, the indices of the features to keep or a boolean mask
        [F_i]; None keeps all.

    Raises
    ------
    FeatureError
        If there are too few or too many layers, a layer's features are not one list, or a
        feature does not exist.
    """
    saes, layers, device = replacement.saes, replacement.layers, replacement.vision.device
    if keep is None:
        return tuple(torch.ones(sae.n_features, dtype=torch.bool, device=device) for sae in saes)
    if isinstance(keep, Mapping):
        for layer in keep:
            replacement.position(layer)
        missing = [layer for layer in layers if layer not in keep]
        if missing:
            raise FeatureError(f"`keep` must also list the features of layer {missing[0]}.")
        keep = [keep[layer] for layer in layers]
    keep = list(keep)
    if len(keep) != len(saes):
        raise FeatureError(
            f"`keep` must list the features of all {len(saes)} layers, got {len(keep)} lists."
        )
    masks = []
    for layer, sae, kept in zip(layers, saes, keep, strict=True):
        try:
            given = kept if isinstance(kept, Tensor | int) else list(kept)
            chosen = torch.as_tensor(given, device=device)
        except (TypeError, ValueError):
            raise FeatureError(
                f"The features to keep in layer {layer} must be numbers or a mask, not {kept!r}."
            ) from None
        # What `mask.nonzero()` gives is a column, and a mask may have kept its batch dimension.
        if chosen.ndim == 2 and (chosen.shape[1] == 1 or chosen.shape == (1, sae.n_features)):
            chosen = chosen.flatten()
        if chosen.ndim != 1:
            raise FeatureError(
                f"The features to keep in layer {layer} must be one list of numbers (or a mask), "
                f"not of shape {tuple(chosen.shape)}."
            )
        if chosen.dtype == torch.bool:
            if len(chosen) != sae.n_features:
                raise FeatureError(
                    f"The mask of layer {layer} has {len(chosen)} entries for {sae.n_features} "
                    "features."
                )
            masks.append(chosen)
            continue
        if chosen.is_floating_point() and len(chosen):
            raise FeatureError(f"Features of layer {layer} must be whole numbers.")
        if chosen.dtype == torch.uint8 and len(chosen) == sae.n_features:
            raise FeatureError(f"A mask of layer {layer} must hold booleans: give `mask.bool()`.")
        chosen = chosen.long()
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= sae.n_features):
            wrong = chosen[(chosen < 0) | (chosen >= sae.n_features)].tolist()
            raise FeatureError(
                f"Layer {layer} has features 0 to {sae.n_features - 1}; {wrong[:5]} do not exist."
            )
        mask = torch.zeros(sae.n_features, dtype=torch.bool, device=device)
        mask[chosen] = True
        masks.append(mask)
    return tuple(masks)


def zero_baselines(vision: VisionModel, saes: Sequence[SAE]) -> Baselines:
    """Baselines that are zero everywhere: a replaced feature is switched off."""
    like = torch.zeros(vision.n_tokens, vision.d_model, dtype=vision.dtype, device=vision.device)
    features = [like.new_zeros(vision.n_tokens, sae.n_features) for sae in saes]
    return Baselines(features, [like] * len(saes), "zero")


def fit_baselines(
    replacement: ReplacementModel,
    batches: Iterable[Float[Tensor, "n 3 H W"]],
    *,
    kind: Literal["median", "mean", "zero"] = "median",
    tokens_at_once: int = 16,
    progress: bool = True,
) -> Baselines:
    """Baselines from a sample of images, for every feature and error at every position.

    Parameters
    ----------
    replacement
        The model.
    batches
        Batches of the model's input; all of them count (paper: 1,024 images).
    kind
        "median": the lower median (the paper's); "mean"; "zero", which looks at no image.
    tokens_at_once
        For medians: positions for which the features of all images are held together. The
        stream itself is kept for all: images x T x D numbers per layer.
    progress
        Show a progress bar.

    Raises
    ------
    ModelError
        If there is no image.
    OptionError
        If the kind is unknown.
    """
    check_choice("kind", kind, ("median", "mean", "zero"))
    if kind == "zero":
        return zero_baselines(replacement.vision, replacement.saes)
    shown = tqdm(batches, desc="images for baselines", disable=not progress)
    if kind == "mean":
        return _means(replacement, shown)
    saes, layers = replacement.saes, replacement.layers
    streams: list[list[Tensor]] = [[] for _ in saes]
    for batch in shown:
        for kept, x in zip(streams, replacement.vision.residuals(batch, layers), strict=True):
            kept.append(x)
    if not streams[0]:
        raise ModelError("Baselines need at least one image.")
    features, errors = [], []
    with torch.no_grad():
        for sae, kept in zip(
            tqdm(saes, desc="medians", disable=not progress), streams, strict=True
        ):
            stream = torch.cat(kept)
            kept.clear()
            parts = [stream] if sae.needs_whole_images else stream.split(tokens_at_once, dim=1)
            medians = [_medians(sae, part) for part in parts]
            features.append(torch.cat([of_features for of_features, _ in medians]))
            errors.append(torch.cat([of_error for _, of_error in medians]))
    return Baselines(features, errors, "median")


def reference_baselines(trace: Trace) -> Baselines:
    """Baselines from the activations of reference images.

    Parameters
    ----------
    trace
        Trace of the reference image, or of a batch of several.
    """
    batch = trace.batch()
    each = [
        Baselines([z[n] for z in batch.features], [e[n] for e in batch.errors], "reference")
        for n in range(len(batch))
    ]
    if len(each) == 1:
        return each[0]
    return Baselines(
        [z.mean(0) for z in batch.features],
        [e.mean(0) for e in batch.errors],
        "reference",
        tuple(each),
    )


def _means(replacement: ReplacementModel, batches: Iterable[Tensor]) -> Baselines:
    sums: list[list[Tensor]] = []
    n = 0
    with torch.no_grad():
        for batch in batches:
            streams = replacement.vision.residuals(batch, replacement.layers)
            for position, (sae, x) in enumerate(zip(replacement.saes, streams, strict=True)):
                out = sae(x)
                # In float64, so that the order of the images does not count.
                added = [out.features.double().sum(0), out.error.double().sum(0)]
                if n == 0:
                    sums.append(added)
                else:
                    sums[position] = [a + b for a, b in zip(sums[position], added, strict=True)]
            n += len(batch)
    if n == 0:
        raise ModelError("Baselines need at least one image.")
    dtype = replacement.vision.dtype
    features = [(z / n).to(dtype) for z, _ in sums]
    return Baselines(features, [(e / n).to(dtype) for _, e in sums], "mean")


def _medians(
    sae: SAE, stream: Float[Tensor, "n t D"]
) -> tuple[Float[Tensor, "t F"], Float[Tensor, "t D"]]:
    """Lower medians over images; a function of its own, so that its memory is freed after it."""
    out = sae(stream)
    return out.features.median(0).values, out.error.median(0).values


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
