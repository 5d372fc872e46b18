"""States: pools in any pieces, and which states merge."""

import torch

from vitlens.atlas import exact
from vitlens.atlas.state import EMPTY, Pool


def test_a_pool_is_the_same_in_any_pieces():
    """Random candidates with ties in peaks and groups, added in batches or merged."""
    generator = torch.Generator().manual_seed(0)
    peaks = torch.randint(0, 4, (60, 7), generator=generator).float()
    ids = exact.mix(torch.arange(60), 9)
    for kind in ("top", "sampled"):
        groups = torch.randint(0, 9, (60,), generator=generator)

        def pool_of(numbers, size, kind=kind, groups=groups):
            pool = Pool.empty(kind, 7, 5, 2)
            for some in torch.tensor(numbers).split(size):
                heatmap = torch.stack([peaks[some] / 2, peaks[some]], dim=2)
                pool.add(heatmap, peaks[some], ids[some], groups[some])
            return pool

        whole = pool_of(list(range(60)), 60)
        shuffled = torch.randperm(60, generator=generator).tolist()
        pieces = [pool_of(shuffled[start::4], 3) for start in range(4)]
        merged = pieces[2].merge(pieces[0]).merge(pieces[3].merge(pieces[1]))
        for other in (pool_of(shuffled, 7), merged):
            for name, tensor in whole.tensors().items():
                assert torch.equal(tensor, other.tensors()[name]), name
        assert (whole.token[whole.id != EMPTY] == 1).all()
