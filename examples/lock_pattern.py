"""Fine-tune a sparse model with transformers' own Trainer: what is zero stays zero.

    pip install '.[train]' transformers
    python examples/lock_pattern.py Intel/bert-base-uncased-sparse-90-unstructured-pruneofa sst2-train.tsv OUT

The file is GLUE's SST-2 or like it: tab-separated, its first line names `sentence` and `label`, labels are 0 and 1.
OUT is an ordinary folder of transformers, which thinbert packs, evaluates and serves.
"""

import argparse
from pathlib import Path

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from thinbert.compress.lock import lock_pattern
from thinbert.tasks.glue import TASKS, read_glue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub id of a sparse encoder")
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=-1, help="of 32 texts; by default three passes")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    labels = dict(enumerate(TASKS["sst2"].labels))
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, id2label=labels)
    examples = [
        {**tokenizer(e.text, truncation=True, max_length=128), "label": e.label}
        for e in read_glue(args.texts, TASKS["sst2"]).examples
    ]
    settings = TrainingArguments(
        str(args.out),
        learning_rate=5e-5,
        per_device_train_batch_size=32,
        num_train_epochs=3,
        max_steps=args.steps,
        save_strategy="no",
        report_to=[],
    )
    trainer = Trainer(
        model=model, args=settings, data_collator=DataCollatorWithPadding(tokenizer), train_dataset=examples
    )

    lock = lock_pattern(model, exclude=["classifier"])  # the head is new, and has no zeros to keep
    print(f"{lock.sparsity():.1%} of the locked weights are zero")
    trainer.train()
    lock.remove()

    trainer.save_model(str(args.out))
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
