"""A lens that changes features, and sees what follows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from vitlens import replacement
from vitlens.attribution.targets import TargetLike, resolve_target
from vitlens.circuits.circuit import Circuit
from vitlens.circuits.verify import Active, Link, Verification, verify_circuit
from vitlens.errors import FeatureError, TargetError
from vitlens.images import ImageLike
from vitlens.interventions.hooks import intervening, isolated, outer_plan
from vitlens.interventions.kinds import InterventionsLike, interventions
from vitlens.interventions.outcome import BatchOutcome, Outcome
from vitlens.interventions.run import Plan, make_plan
from vitlens.lens_base import LensBase
from vitlens.progress import Progress
from vitlens.replacement import ErrorNodes
from vitlens.saes.data import batched
from vitlens.selections import keep_masks

Keep = Sequence[Iterable[int] | Tensor]
Errors = ErrorNodes | Sequence[ErrorNodes]


class ChangingLens(LensBase):
    """Interventions, and what follows from them; see `Lens`."""

    @overload
    def run_with(
        self, image: ImageLike, wanted: InterventionsLike = (), *, errors: Errors = "clean"
    ) -> Outcome: ...

    @overload
    def run_with(
        self,
        image: list[Any] | tuple[Any, ...],
        wanted: InterventionsLike = (),
        *,
        errors: Errors = "clean",
        batch_size: int = 16,
    ) -> BatchOutcome: ...

    @overload
    def run_with(
        self, image: ImageLike, *, keep: Keep, errors: Errors = "clean"
    ) -> Float[Tensor, " C"]: ...

    @isolated
    def run_with(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        wanted: InterventionsLike = (),
        *,
        keep: Keep | None = None,
        errors: Errors = "clean",
        batch_size: int = 16,
    ) -> Outcome | BatchOutcome | Float[Tensor, " C"]:
        """Run the model with interventions; or on a circuit, with only some features kept.

        Parameters
        ----------
        image
            An image, or a list of them.
        wanted
            One of `vitlens.Ablate`, `Project`, `Scale`, `Clamp`, `Steer` and `Patch`, or several:
            ``a + b`` or a list, done in this order. At every layer the running stream is encoded
            anew, so that later interventions see what earlier ones did. Without any, the model's
            own output.
        keep
            Instead of interventions, for each layer the indices of the features to keep, or a
            boolean mask [F_l]; all others are at their baselines.
        errors
            What error nodes hold, for all layers or for each: "clean", what they hold on the
            untouched model (the paper's default); "free", what the running stream gives, so that
            nothing but the changed features' difference is added to it; "baseline". Held error
            nodes do not make up for a feature that drops out of a later layer's top k: small
            changes then have larger and rougher effects than with "free".
        batch_size
            How many of the images run at once.

        Returns
        -------
        Outcome, BatchOutcome or Tensor
            Before and after, for one image or for several; with `keep` the logits, [C].

        Raises
        ------
        FeatureError
            If a feature or patch does not exist, layers are missing, or interventions contradict
            each other; the message names both.
        ImageError
            If an image cannot be read.
        """
        if keep is not None:
            if interventions(wanted) or isinstance(image, list | tuple):
                raise FeatureError("`keep` is for one image, and without interventions.")
            return self._run_on(image, keep, errors)
        plan = self.plan(wanted, errors=errors)
        several = isinstance(image, list | tuple)
        images: Iterable[ImageLike] = image if isinstance(image, list | tuple) else [image]
        tensors = batched(map(self.tensor, images), batch_size, self.vision.image_size)
        runs = [plan.before_and_after(batch) for batch in tensors]
        if not runs:
            raise FeatureError("There is no image to run.")
        before, after = (torch.cat(part) for part in zip(*runs, strict=True))
        facts = (self.logit_names, plan.interventions, plan.error_nodes)
        if several:
            return BatchOutcome(before, after, *facts)
        return Outcome(before[0], after[0], *facts)

    @contextmanager
    def intervene(
        self, wanted: InterventionsLike, *, errors: Errors | None = None
    ) -> Iterator[None]:
        """Make the user's own model run with interventions, inside a `with` block.

        Every forward pass of the model gives what `run_with` calls "after", for any batch; so
        `predict` and `trace` change, too. All other verbs of the lens, `circuit`, `importances` and
        `run_with` among them, give what they give outside: they look at the untouched model.

        Gradients pass through, with the SAEs' sd and choice of features as constants. The weights
        are never touched: hooks on the blocks do it, and are removed when the block ends, also by
        an exception; a copy made of the model inside is an untouched model. Blocks nest: inside,
        the inner interventions come after the outer ones. Only passes in the thread that opened
        the block change; with several GPUs or compiled models, none do.

        Parameters
        ----------
        wanted
            As for `run_with`.
        errors
            As for `run_with`; by default "clean", or what a block around this one says. "free"
            is the quickest: the untouched model need not run along.

        Raises
        ------
        FeatureError
            As for `run_with`, or if another lens has a block open on the same model.

        Examples
        --------
        >>> with lens.intervene(vitlens.Ablate((5, 213)), errors="free"):
        ...     logits = model(batch)
        """
        outer = outer_plan(self.vision.module, self.saes)
        around = outer.interventions if outer else ()
        held = errors or (outer.error_nodes if outer else "clean")
        with intervening(self.plan(interventions(around, wanted), errors=held)):
            yield

    @isolated
    def verify(
        self,
        circuit: Circuit,
        image: ImageLike,
        *,
        n: int | None = None,
        paths: Sequence[Link] | None = None,
        target: TargetLike = None,
        errors: ErrorNodes | None = None,
        active: Active = "clean",
        control: bool = True,
        seed: int = 0,
        batch_size: int = 16,
        progress: Progress = False,
    ) -> Verification:
        """Cut a circuit's edges one by one, and compare what follows with their importances.

        Only the one path is cut: the feature at the end of the edge sees the source at its
        baseline, all else is as on the untouched model (path patching; see
        `vitlens.circuits.verify`).

        Parameters
        ----------
        circuit, image
            A circuit, and the image it is of.
        n
            How many edges, drawn by chance; None for all. Each takes a run of the layers after it.
        paths
            Instead of the circuit's edges, these: each two nodes (layer, feature) or more, of one
            layer after another. At every layer on the way only the path's feature changes. They
            come without a control.
        target
            Only for a circuit whose target was a function: this function.
        errors
            What error nodes hold in the layers after the edge; by default "clean" for importances
            with error nodes as leaves, "free" for those with gradients through them.
        active
            Which features may be active once an edge is cut: "clean", those that are on the
            untouched model, as importances assume; "running", the top k of the running stream.
        control
            Also measure as many random edges between active features of the same layers.
        seed
            Of what is drawn.
        batch_size
            How many edges run at once.
        progress
            As for `importances`.

        Raises
        ------
        FeatureError
            If the circuit is of another model or image or has no edges, `n` is below 1, or a path
            is not of the circuit's nodes.
        TargetError
            If the target is missing.
        """
        if circuit.model and circuit.model != self.fingerprint:
            raise FeatureError("The circuit is of another model or other SAEs than this lens.")
        if target is None and circuit.target_index is None:
            raise TargetError(
                f"The circuit's target, {circuit.target!r}, is no class: give the function again, "
                "as `target`."
            )
        trace = self.trace(image)
        wanted = circuit.target_index if target is None else target
        return verify_circuit(
            self.vision,
            self.saes,
            trace,
            self.baselines,
            resolve_target(wanted, trace.logits, self.class_names),
            circuit,
            n=n,
            paths=paths,
            error_nodes=errors,
            active=active,
            control=control,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )

    @isolated
    def plan(self, wanted: InterventionsLike, *, errors: Errors = "clean") -> Plan:
        """Check interventions against this lens, to run them on batches of tensors again and again.

        `Plan.logits` takes the model's input, [n, 3, H, W]. The other parameters and what is raised
        are as for `run_with`.
        """
        return make_plan(
            self.vision, self.saes, self.baselines, wanted, error_nodes=errors, tensor=self.tensor
        )

    def _run_on(self, image: ImageLike, keep: Keep, errors: Errors) -> Float[Tensor, " C"]:
        masks = keep_masks(self.saes, keep, self.vision.device)
        trace = self.trace(image)
        return replacement.run_with(
            self.vision,
            self.saes,
            trace.image[None],
            masks,
            self.baselines,
            errors=errors,
            clean_errors=trace.errors,
        )[0]
