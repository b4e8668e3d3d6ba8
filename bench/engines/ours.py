"""thinbert's int8 engine."""

from typing import Any

import numpy as np


class Engine:
    def __init__(self, model: str, threads: int, precision: str) -> None:
        import thinbert

        assert precision == "int8"
        self._model = thinbert.load(model, threads=threads)

    def forward(self, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
        batch, length = ids.shape
        return self._model.forward(ids.ravel(), types.ravel(), [length] * batch).reshape(batch, length, 2)

    def describe(self) -> dict[str, Any]:
        import thinbert

        return {"thinbert": thinbert.__version__, "isa": self._model.runtime.isa}
