"""Keeps the zeros of any torch module through training, whoever trains it."""

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.optim.optimizer import register_optimizer_step_post_hook


class PatternLock:
    """Holds weights at zero that were zero when it was made. Use it as a context, or call `remove`."""

    def __init__(self, weights: Sequence[tuple[nn.Module, str]]) -> None:
        self._patterns = [_Pattern(module, name) for module, name in weights]
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
    """Where a parameter of a module stays zero."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self._mask = self.parameter.detach() != 0

    @property
    def parameter(self) -> nn.Parameter:
        """As it is now: others may have put another in its place, as load_state_dict(assign=True) does."""
        found: nn.Parameter = getattr(self._module, self._name)
        return found

    def mask(self) -> Tensor:
        """On the device of the parameter, which trainers move after it was locked."""
        self._mask = self._mask.to(self.parameter.device)
        return self._mask

    def masked(self, gradient: Tensor) -> Tensor:
        return gradient * self.mask()


def lock_pattern(module: nn.Module, exclude: str | Sequence[str] = ()) -> PatternLock:
    """Locks the zero pattern of a module's weights (matrices and kernels of layers that compute with them, not
    embeddings): what is zero now stays zero in training, until `.remove()`.

    Works on any torch module, a transformers model under its own Trainer included, and changes nothing in it: the
    gradients of locked weights are zeroed as they arrive, and the weights after every optimiser step (Zafrir et al.
    2021, "pattern lock").

        lock = lock_pattern(model, exclude=["qa_outputs", "pooler"])
        trainer.train()
        lock.remove()

    Args:
        exclude: one regular expression or several; a weight is left alone where one is in its name, or its layer's.

    Raises:
        ValueError: nothing is locked, because no weight is left or none holds a zero; or a weight with zeros is
            computed from other parameters (torch.nn.utils.parametrize), in which they cannot be kept.
    """
    weights = dict(_weights(module))
    patterns = [exclude] if isinstance(exclude, str) else exclude

    def is_left_alone(name: str) -> bool:
        return any(re.search(pattern, n) for pattern in patterns for n in (name, name.rpartition(".")[0]))

    chosen = {name: w for name, w in weights.items() if not is_left_alone(name)}
    sparse = {name: (m, of) for name, (m, of) in chosen.items() if bool((getattr(m, of) == 0).any())}
    for name, (m, of) in sparse.items():
        if is_parametrized(m, of):
            raise ValueError(f"{name} is computed from other parameters; call remove_parametrizations on it first")
    if not sparse:
        raise ValueError(
            f"nothing to lock: {len(weights)} weights, {len(chosen)} not excluded, none of them with a zero"
        )
    return PatternLock(list(sparse.values()))


def _weights(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """By name, what layers multiply with, less what is an embedding too, as a language model's decoder: the module that
    has it, and what it is called there."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for path, m in module.named_modules():
        if isinstance(m, nn.Embedding | nn.EmbeddingBag | ParametrizationList):
            continue
        own = m.named_parameters(recurse=False)
        names = [name for name, parameter in own if parameter.ndim >= 2 and id(parameter) not in tables]
        if is_parametrized(m):
            names += [name for name in m.parametrizations if getattr(m, name).ndim >= 2]
        for name in names:
            yield f"{path}.{name}" if path else name, (m, name)
