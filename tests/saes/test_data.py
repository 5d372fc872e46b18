"""Images of any source are counted, skipped and batched as they come; tokens wait normalised."""

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from tests.training.small import D_MODEL, N_IMAGES, T, make_images
from vitlens.errors import ImageError
from vitlens.saes.base import normalize_tokens
from vitlens.saes.data import (
    TokenBuffer,
    count_images,
    first_image,
    iterate_images,
    n_batches,
)


def test_the_first_image_is_the_same_in_batches_of_any_size():
    images = make_images()
    sources = [images, TensorDataset(images), list(images), *map(list, map(images.split, (3, 5)))]
    assert len({first_image(source) for source in sources}) == 1
    assert first_image(images.flip(0)) != first_image(images)


def test_images_to_skip_are_not_read():
    class Late:
        def __len__(self):
            return N_IMAGES

        def __getitem__(self, position):
            assert position >= 3
            return make_images()[position]

    assert torch.equal(torch.stack(list(iterate_images(Late(), 3))), make_images()[3:])


def test_tokens_wait_normalised_in_single_precision_and_finite():
    stream = torch.randn(2, T, D_MODEL, generator=torch.Generator().manual_seed(0)).bfloat16() + 3
    buffer = TokenBuffer(2, dtype=torch.float32)
    buffer.add((stream, stream))
    ((tokens, _),) = buffer.batches(2 * T, torch.Generator())
    expected = normalize_tokens(stream.float().flatten(0, 1)).values
    assert torch.equal(tokens.sort(0).values, expected.sort(0).values)
    with pytest.raises(ImageError, match="overflows in this precision"):
        buffer.add((stream, stream * torch.inf))


def test_a_buffer_is_split_into_about_equal_batches():
    counts = {3: 1, 10: 1, 14: 1, 16: 2, 24: 2, 26: 3}
    assert {n: n_batches(n, 10, n) for n in counts} == counts
    assert n_batches(100, 10, 4) == 4
    buffer = TokenBuffer(1, dtype=torch.float64)
    buffer.add((torch.randn(1, 26, D_MODEL).double(),))
    batches = buffer.batches(10, torch.Generator())
    assert [len(tokens) for (tokens,) in batches] == [9, 9, 8]


def test_whole_images_are_shuffled_for_an_image_budget():
    streams = [torch.randn(6, T, D_MODEL).double() for _ in range(2)]
    buffer = TokenBuffer(2, dtype=torch.float64, whole_images=True)
    for part in zip(*(stream.split(4) for stream in streams), strict=True):
        buffer.add(part)
    assert (buffer.n_images, buffer.n_tokens) == (6, 6 * T)
    batches = list(buffer.batches(2 * T, torch.Generator().manual_seed(0)))
    assert [tuple(b[0].shape) for b in batches] == [(2, T, D_MODEL)] * 3
    orders = []
    for layer, stream in enumerate(streams):
        expected = normalize_tokens(stream).values
        seen = torch.cat([batch[layer] for batch in batches])
        orders.append([[torch.equal(x, y) for y in expected].index(True) for x in seen])
    assert orders[0] == orders[1] != list(range(6))
    assert sorted(orders[0]) == list(range(6))


def test_images_of_a_loader_are_counted_as_it_gives_them():
    images = make_images(50)
    one_by_one, pairs = (
        TensorDataset(images),
        TensorDataset(images.reshape(25, 2, *images.shape[1:])),
    )
    few = RandomSampler(one_by_one, num_samples=10, replacement=True)
    loaders = [
        DataLoader(one_by_one, batch_size=16),
        DataLoader(one_by_one, batch_size=16, drop_last=True),
        DataLoader(one_by_one, batch_size=16, sampler=few),
        DataLoader(list(images.split(7)), batch_size=None),
        DataLoader(pairs, batch_size=None),
    ]
    for loader in loaders:
        planned = count_images(loader)
        assert planned in (None, sum(1 for _ in iterate_images(loader)))
    assert [count_images(loader) for loader in loaders[:4]] == [50, 48, 10, 50]
    stacked = DataLoader(list(images.split(7)), batch_size=1, collate_fn=lambda items: items[0])
    assert count_images(stacked) == 50

    class Unsized(Sampler):
        def __iter__(self):
            return iter(range(10))

    assert count_images(DataLoader(one_by_one, batch_size=2, sampler=Unsized())) is None
    batches = BatchSampler(SequentialSampler(one_by_one), 16, drop_last=True)
    assert count_images(DataLoader(one_by_one, batch_sampler=batches)) is None
