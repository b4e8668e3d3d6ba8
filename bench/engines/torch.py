"""transformers on torch, float32, the same weights in its own model class."""

import numpy as np


class Engine:
    def __init__(self, model: str, threads: int) -> None:
        import torch
        import transformers

        from thinbert.model.checkpoint import read_checkpoint, read_json

        torch.set_num_threads(threads)
        checkpoint = read_checkpoint(model)
        config = transformers.BertConfig(**read_json(checkpoint.folder / "config.json"))
        self._model = transformers.BertForQuestionAnswering(config).eval()
        names = [n for n in checkpoint.tensors if not n.endswith("_scale")]
        self._model.load_state_dict({n: torch.from_numpy(checkpoint.array(n).copy()) for n in names})

    def forward(self, ids: np.ndarray, types: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            out = self._model(
                input_ids=torch.from_numpy(ids[None].astype(np.int64)),
                token_type_ids=torch.from_numpy(types[None].astype(np.int64)),
            )
        return torch.stack([out.start_logits[0], out.end_logits[0]], dim=1).numpy()

    def describe(self) -> dict[str, str]:
        import torch
        import transformers

        return {"torch": torch.__version__, "transformers": transformers.__version__, "precision": "float32"}
