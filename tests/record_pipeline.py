"""Records what transformers' question-answering pipeline says, for test_pipelines.py.

    python tests/record_pipeline.py --float FOLDER     (with thinbert: writes the bundled model as float32)
    python tests/record_pipeline.py FOLDER OUT.json    (with transformers 5.2.0, the last that has the pipeline)

Only names and numbers go into OUT.json: the inputs stand below.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

TOWER = (
    "The Eiffel Tower stands on the Champ de Mars in Paris. It is named after the engineer Gustave Eiffel, whose "
    "company designed and built it between 1887 and 1889."
)
CHOPIN = (
    "Frédéric Chopin, baptised Fryderyk Franciszek (1 March 1810 – 17 October 1849), was a Polish composer and pianist."
)
WOMBAT = (
    "Emoji 😀 are fun. " * 3
    + "The wombat 🐨 lives in Australia.\r\n\tIt eats grass. "
    + "Filler goes on and on, about nothing much at all. " * 120
    + "The wombat sleeps in burrows. The WOMBAT sleeps in Burrows!"
)
QUESTIONS = ("Who is the tower named after?", "When did Chopin live?", "Where does the wombat sleep?", "  where?  ")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 5},
    {"handle_impossible_answer": True, "top_k": 3},
    {"align_to_words": False, "top_k": 4},
    {"max_seq_len": 64, "doc_stride": 20, "max_answer_len": 5, "top_k": 3},
    {"max_answer_len": 1},
)
LONG_QUESTION = "Who built the tower in Paris and why did it take so long? " * 8  # over 64 tokens: not cut


def calls() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"question": q, "context": c, **options}
        for q in QUESTIONS
        for c in (TOWER, CHOPIN, WOMBAT)
        for options in OPTIONS
    ]
    made += [
        {"question": list(QUESTIONS[:3]), "context": [TOWER, CHOPIN, WOMBAT]},
        {"question": list(QUESTIONS[:3]), "context": TOWER, "top_k": 2},
        {"question": [QUESTIONS[0]], "context": [TOWER]},
        {"question": LONG_QUESTION, "context": TOWER, "top_k": 2},
        {"question": "who?", "context": "Eiffel"},
    ]
    return made


def main() -> None:
    if sys.argv[1] == "--float":
        sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
        from models import as_float

        folder = Path(sys.argv[2])
        shutil.copytree(as_float("default"), folder, dirs_exist_ok=True)
        # transformers 5.2 builds its tokenizer from these, not from tokenizer.json alone; uncased is not its default
        settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return
    import transformers

    answer = transformers.pipeline("question-answering", model=sys.argv[1], dtype="float32")
    recorded = {"transformers": transformers.__version__, "results": [answer(**call) for call in calls()]}
    Path(sys.argv[2]).write_text(json.dumps(recorded, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
