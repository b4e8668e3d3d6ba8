"""Packs a model to be the one bundled with thinbert, with its card and no-answer threshold.

python tools/bundle_default.py SOURCE_FOLDER CARD.md [--threshold P]
"""

import argparse
import json
import shutil
from pathlib import Path

import thinbert
from thinbert.files import write_atomic
from thinbert.model.checkpoint import find_model, read_checkpoint, read_json
from thinbert.model.pack import pack
from thinbert.model.tokenizer import Tokenizer

# what is kept of tokenizer_config.json: the rest is read by nobody
SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "added_tokens_decoder", "model_max_length")
SENTENCE = "Zoë’s naïve 東京 café cost €3.50, e.g. in U.S. dollars."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("--threshold", type=float, help="no-answer threshold, calibrated on held-out data")
    args = parser.parse_args()

    card = args.card.read_bytes()
    if not (args.source / "vocab.txt").is_file():
        parser.error(f"{args.source} has no vocab.txt")
    default = find_model("default")
    made = default.with_name("default.new")
    shutil.rmtree(made, ignore_errors=True)
    pack(read_checkpoint(args.source), made)
    config = read_json(made / "config.json")
    if args.threshold is not None:
        config["thinbert"]["no_answer_threshold"] = args.threshold
    write_atomic(made / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    # of the two forms of a tokenizer the one half as large, and read in half the time
    told = read_json(args.source / "tokenizer_config.json")
    settings = {"tokenizer_class": "BertTokenizer", **{name: told[name] for name in SETTINGS if name in told}}
    write_atomic(made / "tokenizer_config.json", (json.dumps(settings) + "\n").encode())
    (made / "tokenizer.json").unlink(missing_ok=True)
    write_atomic(made / "README.md", card)

    model, source = thinbert.load(made), thinbert.load(args.source, precision="float32")
    if seen(model.tokenizer) != seen(source.tokenizer):
        parser.error(f"{args.source}: its tokenizer.json and vocab.txt read {SENTENCE!r} differently")
    shutil.rmtree(default)
    made.rename(default)
    print(f"{default}: {sum(f.stat().st_size for f in default.iterdir()) / 1e6:.1f} MB")


def seen(tokenizer: Tokenizer) -> list[int]:
    return [int(i) for i in tokenizer(SENTENCE).ids]


if __name__ == "__main__":
    main()
