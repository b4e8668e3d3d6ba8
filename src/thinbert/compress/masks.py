"""Which weights stay: pure functions from magnitudes to boolean masks, for any R x C block."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def block_scores(weight: Tensor, block: tuple[int, int]) -> Tensor:
    """Mean magnitude of each block of a matrix [N, K]: [ceil(N / R), ceil(K / C)].

    Blocks at the edges may be incomplete: their mean is over the weights that exist, so that a narrow matrix loses no
    more of its edge than of its middle.
    """
    R, C = block
    N, K = weight.shape
    rows, columns = math.ceil(N / R), math.ceil(K / C)
    padded = weight.new_zeros(rows * R, columns * C)
    padded[:N, :K] = weight.abs()
    sums = padded.reshape(rows, R, columns, C).sum(dim=(1, 3))
    heights = torch.full((rows,), R, device=weight.device)
    heights[-1] = N - R * (rows - 1)
    widths = torch.full((columns,), C, device=weight.device)
    widths[-1] = K - C * (columns - 1)
    return sums / (heights[:, None] * widths[None, :])


def saliency(weight: Tensor, squared_gradient: Tensor) -> Tensor:
    """What the loss rises by when a weight goes, w^2 E[g^2] / 2, as if weights did not depend on each other (optimal
    brain damage, LeCun et al. 1990, with the diagonal of the empirical Fisher information for the curvature)."""
    return weight.square() * squared_gradient / 2


def expand(blocks: Tensor, block: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """A mask of blocks as a mask of weights [N, K]."""
    wide = blocks.repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)
    return wide[: shape[0], : shape[1]]


def keep_largest(scores: Tensor, sparsity: float, *, locked: Tensor | None = None) -> Tensor:
    """True for the blocks that stay: all but the floor(sparsity * count) with the smallest scores.

    Exactly that many go, also where scores are equal (then the ones that come first): a strict comparison with the
    k-th score would drop every one of its equals, and so prune an already sparse matrix beyond the target.

    Args:
        locked: True for blocks that are gone for good; they count among those pruned, whatever their score.
    """
    flat = scores.flatten()
    if locked is not None:
        flat = flat.masked_fill(locked.flatten(), -1.0)  # below any magnitude
    count = math.floor(sparsity * flat.numel() + 1e-9)  # 0.8 * 10 is 8, whatever float makes of it
    if locked is not None:
        count = max(count, int(locked.sum()))
    kept = torch.ones_like(flat, dtype=torch.bool)
    kept[torch.argsort(flat, stable=True)[:count]] = False
    return kept.reshape(scores.shape)


def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    *,
    block: tuple[int, int] = (1, 1),
    scope: str = "uniform",
    locked: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks of magnitude pruning (Zafrir et al. 2021, Zhu & Gupta 2017) for matrices by name.

    Args:
        sparsity: share of blocks that go.
        scope: `uniform`, the same share of each matrix, or `global`, the smallest blocks of all matrices together.
        locked: masks of an earlier stage; what they dropped stays dropped.
    """
    scores = {name: block_scores(weight.detach(), block) for name, weight in weights.items()}
    gone = {
        name: ~(block_scores(locked[name].float(), block) > 0)
        for name in scores
        if locked is not None and name in locked
    }
    if scope == "uniform":
        kept = {name: keep_largest(s, sparsity, locked=gone.get(name)) for name, s in scores.items()}
    elif scope == "global":
        flat = torch.cat([s.flatten() for s in scores.values()])
        shut = torch.cat([gone.get(n, torch.zeros_like(s, dtype=torch.bool)).flatten() for n, s in scores.items()])
        parts = torch.split(keep_largest(flat, sparsity, locked=shut), [s.numel() for s in scores.values()])
        kept = {name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}
    else:
        raise ValueError(f"scope is {scope!r}; expected uniform or global")
    masks = {name: expand(kept[name], block, weight.shape) for name, weight in weights.items()}
    for name in gone:
        masks[name] &= locked[name]  # type: ignore[index]  # blocks of another size may have been locked in part
    return masks


def density(masks: Mapping[str, Tensor]) -> float:
    """Kept weights among all."""
    return sum(int(m.sum()) for m in masks.values()) / max(1, sum(m.numel() for m in masks.values()))
