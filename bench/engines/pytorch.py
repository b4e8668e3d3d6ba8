"""transformers on torch: the same weights in its own model class, float32 or bfloat16.

The other engines export from here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from padding import feed


def load(model: str) -> Any:
    """BertForQuestionAnswering with the weights of a portable or packed folder."""
    import torch
    import transformers

    from thinbert.model.checkpoint import find_model, read_checkpoint

    checkpoint = read_checkpoint(model)
    raw = json.loads((Path(find_model(model)) / "config.json").read_text())
    raw.pop("pruned_heads", None)  # none are pruned in these models; transformers 5 does not know the field
    twin = transformers.BertForQuestionAnswering(transformers.BertConfig(**raw)).eval()
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

        with torch.inference_mode():
            out = self._model(**{n: torch.from_numpy(a) for n, a in feed(ids, types, pad_to).items()})
        return torch.stack([out.start_logits, out.end_logits], dim=2).float().numpy()[:, : ids.shape[1]]

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__}
