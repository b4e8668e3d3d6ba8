"""OpenVINO: converted from torch; float32, bfloat16, or int8 by NNCF's post-training quantisation.

A model is compiled for each shape of its inputs, its fastest way. int8 runs with the bfloat16 hint for what is left in
floating point, which is faster still. One input at a time uses all threads; of several at a time each has one thread.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from shared import INPUTS, Row, export, feed, spans

CALIBRATION = (
    "calibration.json"  # [[ids, types], …] in a model's folder; random tokens where the weights are random too
)


def converted(model: str, precision: str) -> Path:
    """The model as OpenVINO reads it."""

    def convert(path: Path) -> None:
        import openvino
        import torch
        from pytorch import load

        example = {n: torch.ones(1, 128, dtype=torch.long) for n in INPUTS}
        openvino.save_model(openvino.convert_model(load(model), example_input=example), path, compress_to_fp16=False)

    def quantise(path: Path) -> None:
        import nncf
        import openvino

        random = np.random.RandomState(0)
        samples = [(random.randint(0, 1000, 128), np.zeros(128)) for _ in range(10)]
        if given:
            samples = [(np.array(i), np.array(t)) for i, t in json.loads(given)]
        data = nncf.Dataset([feed([(ids, types)], len(ids)) for ids, types in samples])
        made = openvino.Core().read_model(whole)
        made = nncf.quantize(made, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
        openvino.save_model(made, path)

    whole = export(model, "openvino.xml", convert, ("torch", "transformers", "openvino"))
    if precision != "int8":
        return whole
    calibration = Path(model) / CALIBRATION
    given = calibration.read_text() if calibration.exists() else ""
    return export(model, "openvino.int8.xml", quantise, ("torch", "transformers", "openvino", "nncf"), given)


class Engine:
    def __init__(self, model: str, threads: int, precision: str) -> None:
        import openvino

        self._path = converted(model, precision)
        self._core = openvino.Core()
        hint = "f32" if precision == "f32" else "bf16"
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        self._threads = threads
        # not pinned: each length is a model of its own, and two of them would have their streams on the same core
        several = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": threads, "ENABLE_CPU_PINNING": False}
        self._streams = {**self._settings, **several}
        self._requests: dict[tuple[int, int, int], Any] = {}

    def forward(self, ids: np.ndarray, types: np.ndarray, pad_to: int | None = None) -> np.ndarray:
        return spans(self._run(list(zip(ids, types, strict=True)), pad_to or ids.shape[1]))[:, : ids.shape[1]]

    def forward_batch(self, rows: Sequence[Row], step: int) -> list[np.ndarray]:
        """Logits [L, 2] of windows that are computed together, padded to the longest's next multiple of `step`."""
        length = -(-max(len(ids) for ids, _ in rows) // step) * step
        return [one[: len(ids)] for one, (ids, _) in zip(spans(self._run(rows, length)), rows, strict=True)]

    def classify(self, rows: Sequence[Row], length: int) -> np.ndarray:
        return self._run(rows, length)[0]

    def forward_many(self, rows: Sequence[Row], step: int) -> list[np.ndarray]:
        """Logits [L, 2] of many windows, padded to a multiple of `step`; as many at a time as there are threads."""
        done = self._run_many(rows, step)
        return [spans(outputs)[0, : len(ids)] for outputs, (ids, _) in zip(done, rows, strict=True)]

    def classify_many(self, rows: Sequence[Row], step: int) -> np.ndarray:
        """Class logits [B, classes], in the same way."""
        return np.concatenate([outputs[0] for outputs in self._run_many(rows, step)])

    def _run(self, rows: Sequence[Row], length: int) -> list[np.ndarray]:
        request = self._request(len(rows), length)
        request.infer(feed(rows, length))
        return _outputs(request)

    def _run_many(self, rows: Sequence[Row], step: int) -> list[list[np.ndarray]]:
        """Each stream takes the next row as soon as it is done with one."""
        out: list[list[np.ndarray]] = [[]] * len(rows)
        left, lock = iter(enumerate(rows)), threading.Lock()

        def work(stream: int) -> None:
            while True:
                with lock:
                    number, row = next(left, (-1, None))
                    if row is None:
                        return
                    length = -(-len(row[0]) // step) * step
                    request = self._request(1, length, stream)
                request.infer(feed([row], length))
                out[number] = _outputs(request)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(work, range(1, self._threads + 1)))
        return out

    def _request(self, batch: int, length: int, stream: int = 0) -> Any:
        """One for each shape and stream; 0 is all threads together."""
        if (batch, length, stream) not in self._requests:
            model = self._core.read_model(self._path)
            model.reshape({i.get_any_name(): [batch, length] for i in model.inputs})
            settings = self._streams if stream else self._settings
            compiled = self._core.compile_model(model, "CPU", settings)
            for n in range(1, self._threads + 1) if stream else (0,):
                self._requests[batch, length, n] = compiled.create_infer_request()
        return self._requests[batch, length, stream]

    def describe(self) -> dict[str, Any]:
        import nncf
        import openvino

        return {
            "openvino": openvino.__version__,
            "nncf": nncf.__version__,
            "hint": self._settings["INFERENCE_PRECISION_HINT"],
        }


def _outputs(request: Any) -> list[np.ndarray]:
    """Of a request that is done, and may be used again."""
    return [np.array(tensor.data) for tensor in request.output_tensors]
