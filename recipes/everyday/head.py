"""Step 4: the classifier. A linear probe, then its head and the upper blocks trained together.

The backbone was fine-tuned for saliency, and there are only about 130 photographic training
cut-outs. So the fit is regularised in every cheap way: half of the patches are dropped, pairs of
images are mixed in the middle of the network, labels are smoothed, learning rates decrease towards
lower blocks, and weights are averaged: along each run, where the best on validation is kept, and
then over the runs.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from recipes.everyday import images
from recipes.everyday.backbone import ARCHITECTURE, BACKBONE
from recipes.everyday.fetch import WORK
from recipes.everyday.images import Composites
from recipes.everyday.sources import CLASSES
from vitlens.io import read_tensors, write_json, write_tensors
from vitlens.models.heads import ClsMeanViT

CLASSIFIER = WORK / "classifier.safetensors"
LOG = WORK / "classifier.json"


@dataclass(frozen=True)
class Settings:
    """Chosen on the validation split."""

    probe_images: int = 1500
    probe_decay: float = 0.1
    steps: int = 180
    batch: int = 48
    first_block: int = 5  # blocks below are frozen
    photo_share: float = 0.6  # share of cut-outs; the others are clip art
    patches_kept: float = 0.5
    mixing: float = 0.3  # both parameters of the Beta distribution
    dropout: float = 0.2
    label_smoothing: float = 0.1
    learning_rate: float = 1e-4
    head_factor: float = 3.0
    block_factor: float = 0.8  # a block's learning rate relative to the one above
    warmup_steps: int = 15
    weight_decay: float = 0.05
    average: float = 0.98
    validate_every: int = 60
    seeds: tuple[int, ...] = (10, 11)  # one run per seed


def train_head(settings: Settings = Settings()) -> None:
    """Train the classifier; write the mean of the runs' weights, each at its best on validation."""
    probe = ClsMeanViT(**ARCHITECTURE, num_classes=len(CLASSES)).eval()
    probe.load_state_dict(read_tensors(BACKBONE)[0], strict=False)
    fit_probe(probe, settings)
    validate = _Validation()
    log = [{"run": "probe", **validate(probe)}]
    best = []
    for seed in settings.seeds:
        run, weights = _run(copy.deepcopy(probe), seed, settings, validate)
        log += run
        best.append(weights)
    mean = {name: torch.stack([w[name] for w in best]).mean(0) for name in best[0]}
    probe.load_state_dict(mean)
    log.append({"run": "mean of runs", **validate(probe)})
    write_tensors(CLASSIFIER, mean, {})
    write_json(LOG, {"settings": asdict(settings), "validation": log})


def _run(
    model: ClsMeanViT, seed: int, settings: Settings, validate: "_Validation"
) -> tuple[list[dict], dict[str, Tensor]]:
    """Train from the probe; return the averaged weights that are best on validation photographs."""
    torch.manual_seed(seed)
    average = copy.deepcopy(model)
    log: list[dict] = []
    best: dict[str, Tensor] = {}
    for step in _steps(model, average, seed, settings):
        if step % settings.validate_every and step != settings.steps:
            continue
        scores = validate(average)
        if not log or scores["photo"] >= max(entry["photo"] for entry in log):
            best = {name: value.clone() for name, value in average.state_dict().items()}
        log.append({"run": seed, "step": step, **scores})
        print(log[-1], flush=True)
    return log, best


class _Validation:
    """Accuracy on validation composites of each kind."""

    def __init__(self) -> None:
        self.pictures = {
            "photo": images.composites("val", 240, seed=2),
            "clip_art": images.composites("val", 100, seed=3, kinds=("clip art",)),
        }

    def __call__(self, model: ClsMeanViT) -> dict[str, float]:
        return {
            kind: float((predict(model, p, bfloat16=True).argmax(1) == p.labels).float().mean())
            for kind, p in self.pictures.items()
        }


@torch.inference_mode()
def predict(model: ClsMeanViT, pictures: Composites, *, bfloat16: bool = False) -> Tensor:
    """Logits [n, classes], float32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return torch.cat([model(x).float() for x in pictures.batches(32)])


def fit_probe(model: ClsMeanViT, settings: Settings) -> None:
    """Set the head to a ridge-penalised logistic regression on the untouched backbone."""
    pictures = images.composites(
        "train",
        settings.probe_images,
        seed=1,
        kinds=("photo", "clip art"),
        augment=True,
        photo_share=settings.photo_share,
    )
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        pooled = [model.pool(model.forward_features(x)).float() for x in pictures.batches(32)]
    features = torch.cat(pooled).clone()
    mean, std = features.mean(0), features.std(0) + 1e-3
    weight = torch.zeros(len(CLASSES), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=60)

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = F.linear((features - mean) / std, weight, bias)
        penalty = settings.probe_decay * weight.square().sum()
        total = F.cross_entropy(logits, pictures.labels, label_smoothing=0.05) + penalty
        total.backward()
        return total

    optimiser.step(loss)
    with torch.no_grad():
        model.head.weight.copy_(weight / std)
        model.head.bias.copy_(bias - weight @ (mean / std))


def _steps(model: ClsMeanViT, average: ClsMeanViT, seed: int, settings: Settings) -> Iterator[int]:
    """Train `model`, keep `average` up to date, and yield the number of each step taken."""
    groups = _parameter_groups(model, settings)
    trained = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _pace(i, settings))
    stream = DataLoader(_Stream(seed, settings), batch_size=None, num_workers=1, prefetch_factor=3)
    for step, (x, labels) in enumerate(stream, start=1):
        loss = _loss(model, x, labels, settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        schedule.step()
        # A short memory at first, so that the average does not start from the probe.
        memory = min(settings.average, step / (9 + step))
        with torch.no_grad():
            for mean, new in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(new, 1 - memory)
        yield step
        if step == settings.steps:
            return


def _loss(
    model: ClsMeanViT, x: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"], settings: Settings
) -> Tensor:
    targets = F.one_hot(labels, len(CLASSES)).float()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            tokens = _drop_patches(model._pos_embed(model.patch_embed(x)), settings)
            for block in model.blocks[: settings.first_block]:
                tokens = block(tokens)
        share = float(torch.distributions.Beta(settings.mixing, settings.mixing).sample())
        share = max(share, 1 - share)
        partner = torch.randperm(len(labels))
        tokens = share * tokens + (1 - share) * tokens[partner]
        targets = share * targets + (1 - share) * targets[partner]
        for block in model.blocks[settings.first_block :]:
            tokens = block(tokens)
        pooled = F.dropout(model.pool(model.norm(tokens)), settings.dropout)
        logits = model.head(pooled).float()
    return F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)


def _drop_patches(tokens: Float[Tensor, "n t d"], settings: Settings) -> Float[Tensor, "n s d"]:
    """Keep CLS and the same random patches of every image of a batch."""
    patches = tokens.shape[1] - 1
    kept = 1 + torch.randperm(patches)[: int(settings.patches_kept * patches)]
    return tokens[:, torch.cat([torch.zeros(1, dtype=torch.long), kept])]


def _parameter_groups(model: ClsMeanViT, settings: Settings) -> list[dict]:
    rate = settings.learning_rate
    groups: list[dict] = [
        {"params": list(model.norm.parameters()), "lr": rate},
        {"params": list(model.head.parameters()), "lr": settings.head_factor * rate},
    ]
    top = len(model.blocks) - 1
    for index in range(settings.first_block, len(model.blocks)):
        factor = settings.block_factor ** (top - index)
        groups.append({"params": list(model.blocks[index].parameters()), "lr": factor * rate})
    return groups


def _pace(step: int, settings: Settings) -> float:
    """Linear warm-up times a half cosine, down to one per cent."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    left = 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / settings.steps))
    return warm * left + 0.01


class _Stream(IterableDataset):
    """Endless batches of new training composites, made in another process."""

    def __init__(self, seed: int, settings: Settings) -> None:
        self.seed, self.settings = seed, settings

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        torch.set_num_threads(1)
        seed = 1000 * self.seed
        while True:
            pictures = images.composites(
                "train",
                self.settings.batch,
                seed=seed,
                kinds=("photo", "clip art"),
                augment=True,
                photo_share=self.settings.photo_share,
            )
            yield images.normalise(pictures.pixels), pictures.labels
            seed += 1
