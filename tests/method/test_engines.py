"""What the engines refuse, and how they agree where they work in parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitlens
from tests.builders import lens_with, tiny_image, tiny_lens
from vitlens.errors import ModelError, OptionError
from vitlens.method import engines
from vitlens.method.closed_form import _ROWS
from vitlens.method.engines import EdgeColumns, edges_into
from vitlens.method.logit_lens import contribution

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
attention = F.scaled_dot_product_attention


class _Attention(nn.Module):
    """A block's attention by a function of queries, keys and values, [n, heads, T, E]."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend
        self.qkv = nn.Linear(24, 72)

    def forward(self, x: Tensor, **_: object) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 3, 8)).permute(2, 0, 3, 1, 4)
        return self.attend(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("attend", "message"),
    [
        (lambda q, k, v: attention(q, k, v, is_causal=True), "plain softmax attention only"),
        (lambda q, k, v: attention(q, k, v, torch.ones(10, 10).tril().bool()), "without masks"),
        (lambda q, k, v: attention(q, k, v, scale=0.1), "plain softmax attention only"),
        (lambda q, k, v: attention(q, k[:, :1], v[:, :1], enable_gqa=True), "grouped queries"),
        (lambda q, k, v: attention(q, k[..., :5, :], v[..., :5, :]), "plain softmax"),
        (lambda q, k, v: attention(q, k, v) + attention(q, v, k), "calls it 2 times"),
        (lambda q, k, v: v, "calls it 0 times"),
    ],
    ids=["causal", "mask", "scale", "grouped", "fewer keys", "twice", "none"],
)
def test_the_closed_form_refuses_attention_that_it_does_not_know(
    attend: Attend, message: str
) -> None:
    lens = tiny_lens(depth=3)
    lens.vision.blocks[1].attn = _Attention(attend).eval()
    with pytest.raises(ModelError, match=rf'{message}.*engine="jvp"'):
        lens.importances(tiny_image(), target=0, engine="closed_form")


@pytest.mark.parametrize("gradient", ["libragrad", "plain"])
def test_engines_agree_on_more_features_per_token_than_are_pulled_together(gradient: str) -> None:
    lens = tiny_lens(depth=3, features=80, dtype=torch.float64)
    for sae in lens.saes:
        sae.k = 60
    image = tiny_image(dtype=torch.float64)
    assert lens.trace(image).features[1].gt(0).sum(1).max() > _ROWS
    exact, slow = (
        lens.importances(image, gradient=gradient, engine=engine)
        for engine in ("closed_form", "vjp")
    )
    for a, b in zip(exact.edges, slow.edges, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_columns_on_demand_are_those_of_all_edges() -> None:
    lens, image = tiny_lens(dtype=torch.float64), tiny_image(dtype=torch.float64)
    found = lens.importances(image)
    columns = EdgeColumns(lens.replacement, lens.trace(image), found)
    order = found.edges[1].abs().sum(0).argsort(descending=True)
    # New ones, some of these in another order, known ones next to new ones.
    for wanted in (order[:3], order[[2, 0]], order[[1, 5]]):
        torch.testing.assert_close(columns(1, wanted), found.edges[1][:, wanted])
        torch.testing.assert_close(columns(0, wanted), found.edges[0][:, wanted])
    for wanted in (order[:0], order[[7, 7, 0, 7]], order.flip(0)):
        torch.testing.assert_close(columns(1, wanted), found.edges[1][:, wanted])


def test_no_column_is_computed_for_features_that_are_not_active(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lens, image = tiny_lens(dtype=torch.float64), tiny_image(dtype=torch.float64)
    trace, found = lens.trace(image), lens.importances(image)
    columns = EdgeColumns(lens.replacement, trace, found)
    active = trace.features[1].gt(0).any(0)
    assert not active.all()
    monkeypatch.setattr(engines, "compute_edges", None)
    nothing = columns(0, (~active).nonzero()[:, 0])
    assert nothing.shape == (31, int((~active).sum())) and not nothing.any()
    assert columns.engines == {}


def test_the_engine_that_is_named_is_the_one_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = lens_with(layers=(0, 2), n_features=120, dtype=torch.float64)
    image, ran = tiny_image(dtype=torch.float64), []
    for name, engine in list(engines.ENGINES.items()):
        run = partial(lambda pair, name, engine: ran.append(name) or engine(pair), name=name)
        monkeypatch.setitem(engines.ENGINES, name, partial(run, engine=engine))
    for baselines in (lens.baselines, lens.reference_baselines(tiny_image(1, torch.float64))):
        lens.baselines = baselines
        assert lens.importances(image).engines == (ran[-1],)


def test_an_unknown_engine_is_refused_before_the_work() -> None:
    lens, image = tiny_lens(), tiny_image()
    found = lens.importances(image)
    with pytest.raises(OptionError, match="engine must be one of closed_form, jvp, vjp"):
        EdgeColumns(lens.replacement, lens.trace(image), found, engine="fast")  # type: ignore[arg-type]


def test_contributions_add_up_to_what_the_stream_is_beyond_its_baseline() -> None:
    lens = tiny_lens(dtype=torch.float64)
    traced = lens.trace(tiny_image(dtype=torch.float64))
    sae, z, e = lens.saes[1], lens.baselines.features[1], lens.baselines.errors[1]
    parts = [contribution(lens.replacement, traced, 1, f) for f in range(-1, sae.n_features)]
    usual = (z @ sae.W_dec + sae.b_dec) * traced.stds[1] + traced.means[1] + e
    torch.testing.assert_close(torch.stack(parts).sum(0), traced.residuals[1] - usual)


def test_nothing_leads_into_an_error_node_from_a_layer_of_another_size() -> None:
    tiny, image = tiny_lens(depth=3), tiny_image()
    first = tiny.saes[0]
    small = vitlens.TopKSAE.from_weights(
        W_enc=first.W_enc[:, :20], W_dec=first.W_dec[:20], b_dec=first.b_dec, k=4
    )
    lens = vitlens.Lens(tiny.vision, [small, tiny.saes[1]], transform=tiny.transform)
    known = (lens.replacement, lens.trace(image), lens.importances(image))
    assert edges_into(*known, 1, -1).tolist() == [0.0] * 21
    assert edges_into(*known, 1, 3).shape == (21,)
