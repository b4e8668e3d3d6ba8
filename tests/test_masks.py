"""Masks and schedules: densities, locked zeros, ties, published formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thinbert.compress.masks import block_scores, density, expand, keep_largest, magnitude_masks
from thinbert.compress.schedule import PruneSchedule, linear_rate, rewinding_rate

BLOCKS = st.sampled_from([(1, 1), (1, 4), (4, 1), (4, 4), (2, 3), (32, 32)])
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


# of a matrix: the share of zeros it has already, and whether many of its weights are equal
KINDS = st.sampled_from([(0.0, False), (0.6, False), (0.0, True), (0.6, True)])


def matrix(shape: tuple[int, int], seed: int, zeros: float = 0.0, ties: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return (weight.round() if ties else weight) * (torch.rand(shape, generator=generator) >= zeros)


@settings(max_examples=60, deadline=None)
@given(SHAPES, BLOCKS, KINDS, st.floats(0, 1), st.integers(0, 99))
def test_exactly_the_asked_share_of_blocks_goes(
    shape: tuple[int, int], block: tuple[int, int], kind: tuple[float, bool], sparsity: float, seed: int
) -> None:
    weight = matrix(shape, seed, *kind)
    scores = block_scores(weight, block)
    kept = keep_largest(scores, sparsity)
    assert int((~kept).sum()) == math.floor(sparsity * kept.numel() + 1e-9)
    if kept.any() and not kept.all():
        assert scores[kept].min() >= scores[~kept].max()
    mask = magnitude_masks({"w": weight}, sparsity, block=block)["w"]
    assert mask.shape == weight.shape
    # whole blocks, aligned
    assert torch.equal(mask, expand(block_scores(mask.float(), block) > 0, block, shape))


@settings(max_examples=40, deadline=None)
@given(
    BLOCKS, KINDS, st.floats(0, 0.95), st.floats(0, 0.95), st.sampled_from(["uniform", "global"]), st.integers(0, 99)
)
def test_locked_zeros_never_come_back(
    block: tuple[int, int], kind: tuple[float, bool], before: float, after: float, scope: str, seed: int
) -> None:
    weights = {"a": matrix((24, 32), seed, *kind), "b": matrix((8, 16), seed + 1, *kind) * 10}
    locked = magnitude_masks(weights, before, block=block)
    # weights that moved since: what was locked is now large
    moved = {name: torch.where(mask, weights[name], torch.tensor(100.0)) for name, mask in locked.items()}
    masks = magnitude_masks(moved, after, block=block, scope=scope, locked=locked)
    for name, mask in masks.items():
        assert not (mask & ~locked[name]).any()
    assert density(masks) <= density(locked) + 1e-6


def test_a_sparse_matrix_is_not_pruned_beyond_the_target() -> None:
    """Half of the weights are zero, so all equal: comparing with the k-th smallest would drop half for any target."""
    weight = matrix((16, 32), 0, zeros=0.5)
    kept = magnitude_masks({"w": weight}, 0.2)["w"]
    assert int((~kept).sum()) == math.floor(0.2 * weight.numel())
    assert bool((weight[~kept] == 0).all())
    same = magnitude_masks({"w": torch.ones(10, 10)}, 0.8)["w"]
    assert int(same.sum()) == 20


def test_global_takes_from_where_weights_are_small() -> None:
    weights = {"small": matrix((16, 16), 0) * 0.01, "large": matrix((16, 16), 1)}
    masks = magnitude_masks(weights, 0.5, scope="global")
    assert masks["small"].float().mean() < 0.05
    assert masks["large"].float().mean() > 0.95
    assert abs(density(masks) - 0.5) < 1e-6
    with pytest.raises(ValueError, match="scope is 'layer'"):
        magnitude_masks(weights, 0.5, scope="layer")


def test_edges_of_a_matrix_are_judged_by_their_mean() -> None:
    weight = torch.ones(3, 10)
    assert torch.allclose(block_scores(weight, (2, 4)), torch.ones(2, 3))


def test_cubic_schedule() -> None:
    schedule = PruneSchedule(target=0.9, begin=0, policy_end=50_000, end=80_000, frequency=1_000)
    assert schedule.sparsity(0) == 0
    assert schedule.sparsity(25_000) == pytest.approx(0.9 * (1 - 0.5**3))
    assert schedule.sparsity(50_000) == schedule.sparsity(70_000) == pytest.approx(0.9)
    due = [step for step in range(1, 100_001) if schedule.due(step)]
    assert due == list(range(1_000, 80_001, 1_000))  # also while the target is held, then never again
    late = PruneSchedule(target=0.8, begin=15, policy_end=25, end=31, frequency=10)
    assert [step for step in range(1, 50) if late.due(step)] == [15, 25, 31]
    assert late.sparsity(0) == 0


def test_learning_rates() -> None:
    rates = [linear_rate(step, steps=100, warmup=10) for step in range(100)]
    assert rates[0] == 0
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert linear_rate(0, steps=10, warmup=0) == 1

    prune = PruneSchedule(target=0.9, begin=0, policy_end=50, end=80, frequency=10)
    rates = [rewinding_rate(step, steps=100, warmup=5, prune=prune) for step in range(100)]
    assert rates[10] == rates[20] == rates[40] == 50 / 45  # back at the top with every new mask
    assert rates[19] == pytest.approx((50 - 9) / 45)
    assert rates[50] == 50 / 45
    assert rates[75] == pytest.approx(25 / 45)
    later = PruneSchedule(target=0.9, begin=20, policy_end=40, end=40, frequency=10)
    rates = [rewinding_rate(step, steps=100, warmup=10, prune=later) for step in range(100)]
    assert rates[15] == pytest.approx((80 - 15) / 70)
    assert rates[20] == rates[30] == pytest.approx(60 / 70)
    assert rates[29] == pytest.approx(51 / 70)
    assert rates[40] == pytest.approx(60 / 70)
