"""Schedules as functions of the step: how sparse, and at which learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PruneSchedule:
    """When masks are recomputed, and for which sparsity (Zhu & Gupta 2017; settings as in Zafrir et al. 2021).

    Sparsity climbs from 0 to `target` by a cubic over the steps begin … policy_end. Masks are computed anew every
    `frequency` steps from `begin` to `end`, so also after the target is reached: in between, weights may still be
    exchanged. Past `end` the masks stay as they are.
    """

    target: float
    begin: int
    policy_end: int
    end: int
    frequency: int

    def sparsity(self, step: int) -> float:
        """s(t) = target (1 - (1 - x)^3), x = the share of begin … policy_end that is behind."""
        if step >= self.policy_end:
            return self.target  # also where both are the same step: all at once
        done = max(0.0, (step - self.begin) / (self.policy_end - self.begin))
        return self.target * (1 - (1 - done) ** 3)

    def due(self, step: int) -> bool:
        """Whether masks are computed anew after optimiser step number `step`, counted from 1."""
        return self.begin <= step <= self.end and ((step - self.begin) % self.frequency == 0 or step == self.end)


def linear_rate(step: int, *, steps: int, warmup: int) -> float:
    """Share of the peak learning rate for step 0 … steps - 1: up over `warmup` steps, then down to zero."""
    if step < warmup:
        return step / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def rewinding_rate(step: int, *, steps: int, warmup: int, prune: PruneSchedule) -> float:
    """The same with learning-rate rewinding: inside the pruning interval the rate falls for `frequency` steps and snaps
    back with each new mask, and after it goes on as if the interval had not been (Zafrir et al. 2021, 3.2; formulas as
    corrected in their code in May 2022)."""
    a, b, every = prune.begin, prune.policy_end, prune.frequency
    rest = max(1, steps - (b - a) - warmup)
    if step < warmup:
        return step / warmup
    if a <= step < b:
        return max(0.0, (steps - (b - a) - step + (step - a) // every * every) / rest)
    if step < a:
        return max(0.0, (steps - (b - a) - step) / rest)
    return max(0.0, (steps - step) / rest)
