"""The losses of tuning are those of slow runs, for every kind of SAE and any layers."""

import pytest
import torch

from tests.builders import KINDS, sae_of_kind
from tests.training.small import D_MODEL, copy_of, decided_vision, make_images, make_vision
from vitlens.method.replacement import ReplacementModel
from vitlens.saes import TopKSAE
from vitlens.saes.data import sae_residuals
from vitlens.training.health import measure
from vitlens.training.losses import (
    RunningMeans,
    SmallCircuits,
    chain_losses,
    promoted,
    strongest,
)


def rebuild(sae, token):
    """One token through an SAE, by its definition."""
    mean, std = token.mean(), token.detach().std(correction=1)
    normal = (token - mean) / (std + 1e-5)
    active = torch.relu((normal - sae.b_dec) @ sae.W_enc)
    strongest = active.argsort(descending=True)[: sae.k]
    value = sae.b_dec + sum(active[f] * sae.W_dec[f] for f in strongest)
    return value * std + mean


def rebuild_error(sae, token, dead, most):
    """What the strongest dead features make of a token's error, in the stream's units."""
    mean, std = token.mean(), token.std(correction=1)
    active = torch.relu(((token - mean) / (std + 1e-5) - sae.b_dec) @ sae.W_enc)
    strongest = sorted(dead, key=lambda f: -active[f])[:most]
    return sum(active[f] * sae.W_dec[f] for f in strongest) * std


def slow_losses(vision, saes, images, dead, most):
    """The four losses, image by image and token by token."""
    model = vision.module
    own, replaced = [[] for _ in saes], [[] for _ in saes]
    alone, divergences, left = [[] for _ in saes], [], [[] for _ in saes]
    for image in images:
        stream = other = model._pos_embed(model.patch_embed(image[None])).detach()
        for layer, block in enumerate(model.blocks):
            stream, other = block(stream).detach(), block(other)
            if layer < len(saes):
                other = torch.stack([rebuild(saes[layer], t) for t in other[0]])[None]
                own[layer].append(stream[0])
                replaced[layer].append(other[0])
                alone[layer].append(torch.stack([rebuild(saes[layer], t) for t in stream[0]]))
                error = (stream[0] - alone[layer][-1]).detach()
                again = [rebuild_error(saes[layer], t, dead[layer], most) for t in stream[0]]
                left[layer].append(stream[0] - error + torch.stack(again))
        p, q = (model.forward_head(model.norm(s))[0].softmax(-1) for s in (stream, other))
        divergences.append((p.detach() * (p.detach().log() - q.log())).sum())

    def unexplained(found, truth):
        found, truth = torch.cat(found), torch.cat(truth)
        return ((found - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum()

    return (
        [unexplained(f, t) for f, t in zip(alone, own, strict=True)],
        [unexplained(f, t) for f, t in zip(replaced, own, strict=True)],
        sum(divergences) / len(divergences),
        [unexplained(f, t) for f, t in zip(left, own, strict=True)],
    )


def test_losses_and_gradients_equal_the_slow_ones(trained):
    vision, images = decided_vision(), make_images(3)  # so that the divergence has a direction
    ours = [copy_of(sae).requires_grad_() for sae in trained.values()]
    replacement = ReplacementModel(vision, ours, (0, 1))
    theirs = [copy_of(sae).requires_grad_() for sae in trained.values()]
    dead = [[2, 5, 7, 11], [0, 23]]
    found = chain_losses(replacement, images, dead=list(map(torch.tensor, dead)), aux_features=3)
    alone, chain, output, aux = slow_losses(vision, theirs, images, dead, 3)
    torch.testing.assert_close(found.alone, torch.stack(alone))
    torch.testing.assert_close(found.chain, torch.stack(chain))
    torch.testing.assert_close(found.output, output)
    torch.testing.assert_close(found.alone[0], found.chain[0])
    torch.testing.assert_close(found.aux, torch.stack(aux))
    found_loss = found.alone.mean() + 0.7 * found.chain.mean() + 0.3 * found.output
    (found_loss + 0.4 * found.aux.mean()).backward()
    (sum(alone) / 2 + 0.7 * sum(chain) / 2 + 0.3 * output + 0.4 * sum(aux) / 2).backward()
    for one, other in zip(ours, theirs, strict=True):
        for name in ("W_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(getattr(one, name).grad, getattr(other, name).grad)


def test_active_features_are_those_of_the_models_own_stream(trained):
    vision, images = make_vision(), make_images(2)
    found = chain_losses(ReplacementModel(vision, trained.values(), trained), images)
    assert found.aux.count_nonzero() == 0  # none is dead
    layers = measure(vision, trained, [images]).layers
    for active, layer in zip(found.active, layers, strict=True):
        assert 1 - active.double().mean().item() == pytest.approx(layer.dead_fraction)
        assert 0 < active.sum() < len(active)


def test_perfect_saes_have_no_loss():
    identity = torch.eye(D_MODEL, dtype=torch.float64)
    both = torch.cat([identity, -identity])
    sae = TopKSAE.from_weights(
        W_enc=both.T, W_dec=both, b_dec=torch.zeros(D_MODEL).double(), k=D_MODEL
    )
    for layers in ((0, 1), (1,), (0, 2)):  # the last block's output among them
        replacement = ReplacementModel(make_vision(), [sae] * len(layers), layers)
        losses = chain_losses(replacement, make_images(4))
        assert len(losses.alone) == len(losses.chain) == len(losses.active) == len(layers)
        assert losses.alone.max() < 1e-8
        assert losses.chain.max() < 1e-8
        assert losses.output < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_every_kind_equal_those_of_its_encoder_and_decoder(kind):
    vision, images, layers = decided_vision(), make_images(3), (0, 2)
    saes = [
        sae_of_kind(
            kind,
            seed=layer,
            d_model=D_MODEL,
            normalization="fixed",
            scale=1.0,
            b_enc=True,
            dtype=torch.float64,
        ).requires_grad_()
        for layer in layers
    ]
    dead = [torch.tensor([0, 3]), torch.tensor([5])]
    found = chain_losses(ReplacementModel(vision, saes, layers), images, dead=dead, aux_features=1)
    own = vision.residuals(images)
    stream = saes[0](own[0]).reconstruction
    for block in vision.blocks[1:]:
        stream = block(stream)
    both = zip(layers, saes, (own[0], stream), strict=True)
    for position, (layer, sae, running) in enumerate(both):
        truth = own[layer]
        total = (truth - truth.mean((0, 1))).square().sum()
        alone, chain = sae(truth), sae(running)
        torch.testing.assert_close(found.alone[position], alone.error.square().sum() / total)
        left = (chain.reconstruction - truth).square().sum()
        torch.testing.assert_close(found.chain[position], left / total)
        assert torch.equal(found.active[position], (alone.features > 0).flatten(0, 1).any(0))
        values, _, std = sae.normalize(truth)
        pre = torch.relu((values - sae.b_dec) @ sae.W_enc + sae.b_enc)[..., dead[position]]
        best, index = pre.max(-1, keepdim=True)
        explained = best * sae.W_dec[dead[position][index[..., 0]]] * std
        left = (explained - alone.error).square().sum()
        torch.testing.assert_close(found.aux[position], left / total)
    last = saes[1](stream).reconstruction
    divergence = torch.nn.functional.kl_div(
        vision.readout(last).log_softmax(-1),
        vision.readout(own[-1]).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(found.output, divergence)


def test_bfloat16_is_close_to_full_precision(trained):
    vision, images = make_vision(torch.float32), make_images(8, torch.float32)
    replacement = ReplacementModel(vision, [copy_of(s).float() for s in trained.values()], (0, 1))
    full, low = (chain_losses(replacement, images, bfloat16=low) for low in (False, True))
    torch.testing.assert_close(low.alone, full.alone, rtol=0.05, atol=0.01)
    torch.testing.assert_close(low.chain, full.chain, rtol=0.1, atol=0.02)


def test_a_model_in_half_precision_can_have_a_stream_in_single_precision():
    vision, images = make_vision(torch.bfloat16), make_images(2, torch.float32)
    assert promoted(vision, torch.bfloat16) is vision
    single = promoted(vision, torch.float32)
    assert vision.dtype == torch.bfloat16 and single.dtype == torch.float32
    streams = sae_residuals(single, images, (0, 2))
    expected = sae_residuals(vision, images, (0, 2))
    for stream, half in zip(streams, expected, strict=True):
        assert stream.dtype == torch.float32
        assert torch.equal(stream.bfloat16(), half)
    assert torch.equal(single.readout(streams[1]).bfloat16(), vision.readout(expected[1]))


def slow_circuits(vision, saes, images, n_features, error_nodes):
    """Equation (49), image by image, with the means of these images."""
    model = vision.module
    streams = [[] for _ in saes]
    logits = []
    for image in images:
        stream = model._pos_embed(model.patch_embed(image[None])).detach()
        for layer, block in enumerate(model.blocks):
            stream = block(stream).detach()
            if layer < len(saes):
                streams[layer].append(stream)
        logits.append(model.forward_head(model.norm(stream))[0].detach())
    features = [
        torch.cat([s.encode(x) for x in xs]).detach() for s, xs in zip(saes, streams, strict=True)
    ]
    errors = [
        torch.cat([s(x).error for x in xs]).detach() for s, xs in zip(saes, streams, strict=True)
    ]
    lost = []
    for n, image in enumerate(images):
        stream = model._pos_embed(model.patch_embed(image[None])).detach()
        for layer, block in enumerate(model.blocks):
            stream = block(stream)
            if layer >= len(saes):
                continue
            z_bar = features[layer].mean(0)
            moved = (features[layer][n] - z_bar).square().sum(0)
            active = [f for f in range(len(moved)) if (features[layer][n][:, f] > 0).any()]
            kept = sorted(active, key=lambda f: -float(moved[f]))[:n_features]
            z, mean, std = saes[layer].encode_with_stats(stream)
            new = z_bar.expand_as(z).clone()
            new[..., kept] = z[..., kept]
            held = errors[layer].mean(0) if error_nodes == "baseline" else errors[layer][n]
            stream = saes[layer].decode(new, mean, std) + held
        p, q = logits[n].softmax(0), model.forward_head(model.norm(stream))[0].softmax(0)
        lost.append((p * (p.log() - q.log())).sum())
    return sum(lost) / len(lost), features, errors


@pytest.mark.parametrize("error_nodes", ["clean", "baseline"])
def test_the_loss_of_small_circuits_equals_the_slow_one(trained, error_nodes):
    vision, images = decided_vision(), make_images(4)
    ours = [copy_of(sae).requires_grad_() for sae in trained.values()]
    theirs = [copy_of(sae).requires_grad_() for sae in trained.values()]
    circuits = SmallCircuits(3, error_nodes, RunningMeans())
    found = chain_losses(ReplacementModel(vision, ours, (0, 1)), images, circuits=circuits)
    expected, features, errors = slow_circuits(vision, theirs, images, 3, error_nodes)
    torch.testing.assert_close(found.circuit, expected)
    assert float(expected.detach()) > 1e-3
    for mean, values in zip(found.means.features, features, strict=True):
        torch.testing.assert_close(mean, values.mean(0))
    for mean, values in zip(found.means.errors, errors, strict=True):
        torch.testing.assert_close(mean, values.mean(0))
    found.circuit.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        for name in ("W_enc", "W_dec", "b_dec"):
            torch.testing.assert_close(getattr(one, name).grad, getattr(other, name).grad)


def test_running_means_weigh_batches_equally_and_then_forget():
    values = [torch.full((2, 3, 1), float(n)).double() for n in range(200)]
    means = RunningMeans()
    for n, value in enumerate(values[:10]):
        means = means.after([value], [value])
        assert float(means.features[0].mean()) == pytest.approx(n / 2)
    expected = means.features[0]
    for n, value in enumerate(values[10:], 11):
        means = means.after([value], [value])
        expected = expected + max(1 / n, 0.02) * (value[0] - expected)
    torch.testing.assert_close(means.features[0], expected)
    again = RunningMeans.from_tensors(means.to_tensors([7]), [7])
    assert again.n_batches == 200 and torch.equal(again.errors[0], means.errors[0])


def test_the_strongest_features_are_active_and_far_from_their_means():
    z = torch.tensor([[[5.0, 1.0, 0.0, 2.0], [5.0, 0.0, 0.0, 0.0]]])
    z_bar = torch.tensor([[5.0, 0.0, 9.0, 0.0], [4.0, 0.0, 9.0, 0.0]])
    (one,) = strongest([z], [z_bar], 1)
    (two,) = strongest([z], [z_bar], 2)
    (all_,) = strongest([z], [z_bar], 100)
    # Moved by 1, 1, 162 (not active) and 4.
    assert one.tolist() == [[False, False, False, True]]
    assert int(two.sum()) == 2 and two[0, 3] and not two[0, 2]
    assert all_.tolist() == [[True, True, False, True]]
