"""transformers on torch: the same weights in its own model class, float32 or bfloat16.

The other engines export from here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import Row, feed


def load(model: str) -> Any:
    """BertForQuestionAnswering, or …SequenceClassification, with the weights of a folder of models.py."""
    import torch
    import transformers

    from thinbert.model.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(model)
    raw = json.loads((Path(model) / "config.json").read_text())
    kind = transformers.BertForQuestionAnswering
    if checkpoint.has_classify:
        kind = transformers.BertForSequenceClassification
    twin = kind(transformers.BertConfig(**raw)).eval()
    twin.load_state_dict({n: torch.from_numpy(checkpoint.array(n).copy()) for n in checkpoint.shapes})
    return twin


class Engine:
    def __init__(self, model: str, threads: int, precision: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = load(model)
        if precision == "bf16":
            self._model = self._model.to(torch.bfloat16)

    def forward(self, ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> np.ndarray:
        import torch

        out = self._run(list(zip(ids, types, strict=True)), pad_to or ids.shape[1])
        return torch.stack([out.start_logits, out.end_logits], dim=2).float().numpy()[:, : ids.shape[1]]

    def classify(self, rows: Sequence[Row], length: int) -> np.ndarray:
        logits: np.ndarray = self._run(rows, length).logits.float().numpy()
        return logits

    def _run(self, rows: Sequence[Row], length: int) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(**{n: torch.from_numpy(a) for n, a in feed(rows, length).items()})

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__}
