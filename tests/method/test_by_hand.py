"""A model small enough to work out on paper.

One token of three channels goes through the blocks x -> x, x -> 2x, x -> x; the logits are
(x[0], 0), so the target of class 0 is x[0] - x[0] / 2 = x[0] / 2. The image is the token
(1, 0, -1): mean 0 and (Bessel) standard deviation 1 at layer 0, 0 and 2 at layer 1. Both SAEs have
W_enc = W_dec = identity, so z = (1, 0, 0) and e = (0, 0, -sd) at both layers.

Layer 1: the gradient at the stream is (1/2, 0, 0), G = sd / 2 = 1, so feature 0 has importance 1,
all of the target; the error node has none.

Layer 0, error nodes as leaves: z_1[0] = ((2x)[0] - mean(2x)) / 2 has gradient (2/3, -1/3, -1/3),
so feature 0 has 2/3 and the error node -1/3 * -1 = 1/3: the edges into feature 0 of layer 1.
Gradients through error nodes give (1, 0, 0) instead: 1 and 0.

K does not matter, as only one feature is above zero. With every feature replaced by zero and
clean error nodes, layer 0 is its mean plus its error, (0, 0, -1), layer 1 then 2 (0, 0, -1) with
mean -2/3, replaced by -2/3 + (0, 0, -2): the first logit is -2/3.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vitlens


class _Patches(nn.Module):
    grid_size, img_size = (1, 1), (1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2).transpose(1, 2)


class _Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class OnPaper(nn.Module):
    num_prefix_tokens, embed_dim = 0, 3

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.norm = _Patches(), nn.Identity()
        self.blocks = nn.ModuleList([nn.Identity(), _Twice(), nn.Identity()])
        self.head = nn.Linear(3, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 0]])

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x[:, 0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images)
        for block in self.blocks:
            x = block(x)
        return self.forward_head(x)


IMAGE = torch.tensor([1.0, 0.0, -1.0]).double().reshape(3, 1, 1)


@pytest.fixture(params=[1, 3], ids=["K=1", "K=3"])
def lens(request: pytest.FixtureRequest) -> vitlens.Lens:
    eye = torch.eye(3).double()
    sae = vitlens.TopKSAE.from_weights(
        W_enc=eye, W_dec=eye, b_dec=torch.zeros(3).double(), k=request.param
    )
    return vitlens.Lens(OnPaper().double().eval(), [sae, sae], transform=lambda picture: IMAGE)


def close(found: torch.Tensor, expected: list) -> None:
    # 1e-5 is added to the standard deviation in the encoder.
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=3e-5, atol=3e-5)


def test_trace(lens: vitlens.Lens) -> None:
    trace = lens.trace(IMAGE)
    close(trace.logits, [2, 0])
    close(trace.features[1], [[1, 0, 0]])
    close(trace.errors[0], [[0, 0, -1]])
    close(trace.errors[1], [[0, 0, -2]])


@pytest.mark.parametrize("engine", ["jvp", "vjp"])
def test_leaf(lens: vitlens.Lens, engine: str) -> None:
    found = lens.importances(IMAGE, target=0, engine=engine)
    close(found.nodes[1], [1, 0, 0, 0])
    close(found.nodes[0], [2 / 3, 0, 0, 1 / 3])
    close(found.edges[0], [[2 / 3, 0, 0], [0, 0, 0], [0, 0, 0], [1 / 3, 0, 0]])
    assert found.target_value == pytest.approx(1)
    close(found.residual, [0, 0])


def test_through(lens: vitlens.Lens) -> None:
    found = lens.importances(IMAGE, target=0, error_gradients="through", engine="vjp")
    close(found.nodes[0], [1, 0, 0, 0])
    close(found.nodes[1], [1, 0, 0, 0])


def test_circuit(lens: vitlens.Lens) -> None:
    circuit = lens.circuit(IMAGE, target=0, nodes_per_layer=1, engine="vjp", select="walk")
    assert [(node.layer, node.feature) for node in circuit.nodes] == [(0, 0), (1, 0)]
    assert [node.share for node in circuit.nodes] == pytest.approx([2 / 3, 1], abs=1e-4)


def test_run_with(lens: vitlens.Lens) -> None:
    close(lens.run_with(IMAGE, keep=[[0], [0]]), [2, 0])
    close(lens.run_with(IMAGE, keep=[[], []]), [-2 / 3, 0])


def test_exact_engine_says_why_it_cannot(lens: vitlens.Lens) -> None:
    with pytest.raises(vitlens.VitlensError, match=r'one softmax attention.*engine="jvp"'):
        lens.importances(IMAGE, target=0, engine="closed_form")
