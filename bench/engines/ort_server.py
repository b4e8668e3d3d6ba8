"""What people write: FastAPI around ONNX Runtime, one question a request, nothing gathered. For bench/serve.py.

python ort_server.py MODEL_FOLDER PORT [int8|f32] [threads]
"""

import sys
from pathlib import Path

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Asked(BaseModel):
    question: str
    context: str


def main() -> None:
    folder, port, precision, threads = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    sys.path.insert(0, str(Path(__file__).parent))
    from ort import Engine
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    engine = Engine(folder, threads, precision)
    whole = Path(folder) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else BertWordPieceTokenizer(f"{folder}/vocab.txt")
    tokenizer.enable_truncation(384, stride=128, strategy="only_second")
    app = FastAPI()

    @app.post("/predict")
    def predict(asked: Asked) -> dict[str, object]:
        first = tokenizer.encode(asked.question, asked.context)
        best, answer = -np.inf, {}
        for window in (first, *first.overflowing):
            ids, types = np.array([window.ids], np.int32), np.array([window.type_ids], np.int32)
            logits = engine.forward(ids, types)[0].astype(np.float64)
            inside = np.array([s == 1 for s in window.sequence_ids])
            start, end = (np.where(inside, logits[:, i], -np.inf) for i in (0, 1))
            start, end = start - np.logaddexp.reduce(start), end - np.logaddexp.reduce(end)
            scores = start[:, None] + end[None, :]
            scores[np.tri(len(start), k=-1, dtype=bool) | np.tri(len(start), k=-15, dtype=bool).T] = -np.inf
            a, b = np.unravel_index(scores.argmax(), scores.shape)
            if scores[a, b] > best:
                best, (low, high) = scores[a, b], (window.offsets[a][0], window.offsets[b][1])
                answer = {"score": float(np.exp(best)), "start": low, "end": high, "answer": asked.context[low:high]}
        return answer

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
