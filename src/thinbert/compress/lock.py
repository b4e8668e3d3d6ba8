"""Keeps the zeros of any torch module through training, whoever trains it."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook


class PatternLock:
    """Holds weights at zero that were zero when it was made. Use it as a context, or call `remove`."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self._patterns = [_Pattern(layer) for layer in layers]
        self._handles = [
            pattern.parameter.register_hook(pattern.masked)  # type: ignore[no-untyped-call]
            for pattern in self._patterns
            if pattern.parameter.requires_grad
        ]
        # Weight decay and momentum never move a zero whose gradient is zero; but other code may (noise, an average of
        # weights, a load_state_dict), so what every optimiser leaves behind is masked as well.
        self._optimizer_hook = register_optimizer_step_post_hook(self._after_step)

    def apply(self) -> None:
        """Zeroes what must be zero, now."""
        with torch.no_grad():
            for pattern in self._patterns:
                pattern.parameter.mul_(pattern.mask())

    def sparsity(self) -> float:
        """Share of the locked parameters' weights that are held at zero."""
        masks = [pattern.mask() for pattern in self._patterns]
        return sum(int((~mask).sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    def remove(self) -> None:
        """Lets go: weights may change freely from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._optimizer_hook.remove()

    def __enter__(self) -> "PatternLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        mine = {id(pattern.parameter) for pattern in self._patterns}
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            self.apply()


class _Pattern:
    """Where the weight of a layer stays zero."""

    def __init__(self, layer: nn.Linear) -> None:
        self._layer = layer
        self._mask = layer.weight.detach() != 0

    @property
    def parameter(self) -> Tensor:
        """As it is now: others may have put another in its place, as load_state_dict(assign=True) does."""
        return self._layer.weight

    def mask(self) -> Tensor:
        """On the device of the parameter, which trainers move after it was locked."""
        self._mask = self._mask.to(self.parameter.device)
        return self._mask

    def masked(self, gradient: Tensor) -> Tensor:
        return gradient * self.mask()


def lock_pattern(module: nn.Module, exclude: Sequence[str] = ()) -> PatternLock:
    """Locks the zero pattern of a module's linear layers: what is zero now stays zero in training, until `.remove()`.

    Works on any torch module, a transformers model under its own Trainer included, and changes nothing in it: the
    gradients of locked weights are zeroed as they arrive, and the weights after every optimiser step (Zafrir et al.
    2021, "pattern lock").

        lock = lock_pattern(model, exclude=["qa_outputs", "pooler"])
        trainer.train()
        lock.remove()

    Args:
        exclude: regular expressions; a linear layer is left alone where one is found in its name.

    Raises:
        ValueError: nothing is locked, because no layer is left or none holds a zero.
    """
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
    chosen = {n: m for n, m in layers.items() if not any(re.search(pattern, n) for pattern in exclude)}
    sparse = [m for m in chosen.values() if not bool((m.weight != 0).all())]
    if not sparse:
        raise ValueError(
            f"nothing to lock: {len(layers)} linear layers, {len(chosen)} not excluded, none of them with a zero weight"
        )
    return PatternLock(sparse)
