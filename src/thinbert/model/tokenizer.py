"""The tokenizer of a model folder: text to WordPiece numbers, each with its place in the text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from tokenizers import Tokenizer as HFTokenizer

from thinbert.errors import ModelError
from thinbert.model.checkpoint import read_json

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Tokens:
    """A tokenised text of n tokens, without special tokens."""

    ids: Ints  # [n]
    starts: Ints  # [n] first character of each token in the text, counted in code points
    ends: Ints  # [n] character after its last
    words: Ints  # [n] number of the whitespace- or punctuation-delimited word each token belongs to

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, count: int) -> "Tokens":
        """The first `count` tokens."""
        return Tokens(self.ids[:count], self.starts[:count], self.ends[:count], self.words[:count])


class Tokenizer:
    """WordPiece with exact character offsets. Safe to call from several threads."""

    def __init__(self, backend: HFTokenizer, *, where: Path, vocabulary: int) -> None:
        backend.no_truncation()  # a tokenizer.json may carry both; windows are cut by thinbert.tasks.qa
        backend.no_padding()
        self._backend = backend
        self.cls = self._special("[CLS]", where)
        self.sep = self._special("[SEP]", where)
        if backend.get_vocab_size() > vocabulary:
            raise ModelError(
                f"{where}: tokenizer has {backend.get_vocab_size()} tokens, the model's embeddings {vocabulary}; "
                "they do not belong together"
            )

    def __call__(self, text: str) -> Tokens:
        return _tokens(self._backend.encode(text, add_special_tokens=False))

    def _special(self, token: str, where: Path) -> int:
        number = self._backend.token_to_id(token)
        if number is None:
            raise ModelError(f"{where}: the tokenizer has no {token}; thinbert needs a BERT WordPiece vocabulary")
        return int(number)


def _tokens(encoding: Encoding) -> Tokens:
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    # a token outside any word (none in WordPiece) would be None: give it a word of its own
    words = [-1 - i if w is None else w for i, w in enumerate(encoding.word_ids)]
    return Tokens(np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1], np.array(words, np.int32))


def read_tokenizer(folder: Path, *, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, else vocab.txt with the settings of tokenizer_config.json.

    Raises:
        ModelError: neither is there or valid, or it has more tokens than the model's V = `vocabulary`.
    """
    whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    if whole.is_file():
        try:
            backend = HFTokenizer.from_str(whole.read_text(encoding="utf-8"))
        # the Rust side raises a bare Exception
        except Exception as e:
            raise ModelError(f"{whole}: not a tokenizer: {e}") from e
        return Tokenizer(backend, where=whole, vocabulary=vocabulary)
    if vocab.is_file():
        return Tokenizer(_from_vocab(vocab), where=vocab, vocabulary=vocabulary)
    raise ModelError(f"{folder}: no tokenizer; expected tokenizer.json or vocab.txt")


def _from_vocab(vocab: Path) -> HFTokenizer:
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    config = vocab.parent / "tokenizer_config.json"
    settings = read_json(config) if config.is_file() else {}
    try:
        lines = vocab.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ModelError(f"{vocab}: not UTF-8 at byte {e.start}") from e
    # the line number is the token's number, so only what follows the last newline may be dropped
    tokens = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if "[UNK]" not in tokens:
        raise ModelError(f"{vocab}: no [UNK] among {len(tokens)} tokens; expected one WordPiece token a line")
    backend = HFTokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in tokens])
    return backend
