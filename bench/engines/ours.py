"""thinbert itself: the NumPy reference runtime, float32."""

import os

import numpy as np

THREADS = "OPENBLAS_NUM_THREADS"


class Engine:
    def __init__(self, model: str, threads: int) -> None:
        os.environ[THREADS] = str(threads)
        import thinbert

        self._model = thinbert.load(model)

    def forward(self, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
        return self._model.forward(ids, types, [len(ids)])

    def describe(self) -> dict[str, str]:
        import thinbert

        return {"thinbert": thinbert.__version__, "numpy": np.__version__, "precision": "float32"}
