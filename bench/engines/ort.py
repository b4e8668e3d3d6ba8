"""ONNX Runtime: the model exported by torch, float32 or with dynamically quantised int8 weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from shared import INPUTS, Row, export, feed, spans


def converted(model: str, precision: str) -> Path:
    """The model as ONNX with any batch and sequence length."""

    def convert(path: Path) -> None:
        import torch
        from pytorch import load

        example = (torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long), torch.zeros(1, 8).long())
        twin = load(model)
        outputs = ("logits",) if "SequenceClassification" in type(twin).__name__ else ("start", "end")
        torch.onnx.export(
            twin,
            example,
            path,
            input_names=INPUTS,
            output_names=outputs,
            dynamic_axes={n: {0: "batch", 1: "length"} for n in (*INPUTS, *outputs)},
            dynamo=False,
        )

    def quantise(path: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(whole, path)

    whole = export(model, "batched.onnx", convert, ("torch", "transformers"))
    if precision != "int8":
        return whole
    return export(model, "batched.int8.onnx", quantise, ("torch", "transformers", "onnxruntime"))


class Engine:
    def __init__(self, model: str, threads: int, precision: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            converted(model, precision), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> np.ndarray:
        given = feed(list(zip(ids, types, strict=True)), pad_to or ids.shape[1])
        return spans(self._session.run(None, given))[:, : ids.shape[1]]

    def classify(self, rows: Sequence[Row], length: int) -> np.ndarray:
        logits: np.ndarray = self._session.run(None, feed(rows, length))[0]
        return logits

    def describe(self) -> dict[str, Any]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__}
