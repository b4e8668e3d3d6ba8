"""ONNX Runtime: the model exported by torch, float32 or with dynamically quantised int8 weights."""

from pathlib import Path
from typing import Any

import numpy as np
from padding import INPUTS, feed


def export(model: str, work: Path) -> Path:
    """The model as ONNX with any batch and sequence length, made once."""
    path = work / "batched.onnx"
    if not path.exists():
        import torch
        from pytorch import load

        work.mkdir(parents=True, exist_ok=True)
        example = (torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long), torch.zeros(1, 8).long())
        torch.onnx.export(
            load(model),
            example,
            path,
            input_names=INPUTS,
            output_names=("start", "end"),
            dynamic_axes={n: {0: "batch", 1: "length"} for n in (*INPUTS, "start", "end")},
            dynamo=False,
        )
    return path


class Engine:
    def __init__(self, model: str, threads: int, precision: str) -> None:
        import onnxruntime

        work = Path(model) / "exported"
        path = export(model, work)
        if precision == "int8":
            from onnxruntime.quantization import quantize_dynamic

            quantised = work / "batched.int8.onnx"
            if not quantised.exists():
                quantize_dynamic(path, quantised)
            path = quantised
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> np.ndarray:
        start, end = self._session.run(None, feed(ids, types, pad_to))
        return np.stack([start, end], axis=2)[:, : ids.shape[1]]

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}
