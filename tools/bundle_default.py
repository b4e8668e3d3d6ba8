"""Packs a model to be the one bundled with thinbert, with its card and no-answer threshold.

python tools/bundle_default.py SOURCE_FOLDER CARD.md [--threshold P]
"""

import argparse
import json
from pathlib import Path

from thinbert.files import write_atomic
from thinbert.model.checkpoint import find_model, read_checkpoint, read_json
from thinbert.model.pack import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("card", type=Path)
    parser.add_argument("--threshold", type=float, help="no-answer threshold, calibrated on held-out data")
    args = parser.parse_args()

    folder = find_model("default")
    card = args.card.read_bytes()
    if not (Path(args.source) / "vocab.txt").is_file():
        parser.error(f"{args.source} has no vocab.txt")
    pack(read_checkpoint(args.source), folder)
    config = read_json(folder / "config.json")
    if args.threshold is not None:
        config["thinbert"]["no_answer_threshold"] = args.threshold
    write_atomic(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    # of the two forms of a tokenizer the one half as large, and read in half the time; without what nobody reads
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    write_atomic(folder / "tokenizer_config.json", (json.dumps(settings) + "\n").encode())
    (folder / "tokenizer.json").unlink(missing_ok=True)
    write_atomic(folder / "README.md", card)
    print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
