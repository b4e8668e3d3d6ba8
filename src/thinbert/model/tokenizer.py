"""The tokenizer of a model folder: text to WordPiece numbers, each with its place in the text."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as HFTokenizer

from thinbert.errors import ModelError, quoted
from thinbert.model.checkpoint import read_json
from thinbert.model.weights import Ints

# Texts whose tokens are remembered, up to so many characters each: a paragraph is asked more than one question.
_REMEMBERED, _SHORT = 64, 1 << 15
# Characters tokenised at a time. The library's own form of a text takes about 200 bytes a character.
_PIECE = 1 << 16
_LONGEST_WORD = 1000  # characters: the time for one grows with the square of them, and more

# What a tokenizer.json may be made of: other parts can be made to fail, or to swell, on a text they have not seen yet.
_PARTS = {"model": ("WordPiece",), "normalizer": ("BertNormalizer", None), "pre_tokenizer": ("BertPreTokenizer", None)}

_OF_VOCABULARY = ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast")

# Where a text may be cut without changing its tokens: before white space and punctuation, and before characters that
# the normaliser sets apart (its own ranges of Chinese). Other white space, such as form feeds, is deleted there, which
# joins what it stands between.
_SPACE = r" \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_PUNCTUATION = r"!-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\u3008-\u3011\uff0c\uff0e"
_CHINESE = (
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Tokens:
    """A tokenised text of n tokens, without special tokens."""

    ids: Ints  # [n]
    starts: Ints  # [n] first character of each token in the text, counted in code points
    ends: Ints  # [n] character after its last
    words: Ints  # [n] number of the whitespace- or punctuation-delimited word each token belongs to

    def __post_init__(self) -> None:
        for column in (self.ids, self.starts, self.ends, self.words):
            column.flags.writeable = False  # a tokenizer may give the same ones out again

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, count: int) -> "Tokens":
        """The first `count` tokens."""
        return Tokens(self.ids[:count], self.starts[:count], self.ends[:count], self.words[:count])


class Tokenizer:
    """WordPiece with exact character offsets. Safe to call from several threads."""

    def __init__(self, backend: HFTokenizer, *, where: Path, vocabulary: int, limit: int | None = None) -> None:
        self.limit = limit  # tokens that its configuration says a sequence may have (model_max_length); None: nothing
        backend.no_truncation()  # a tokenizer.json may carry both; windows are cut by thinbert.tasks.qa
        backend.no_padding()
        self._backend = backend
        apart = _CHINESE if getattr(backend.normalizer, "handle_chinese_chars", False) else ""
        self._breaks = re.compile(f"[{_SPACE}{_PUNCTUATION}{apart}]")
        self.cls = self._special("[CLS]", where)
        self.sep = self._special("[SEP]", where)
        self._where = where
        self._short = lru_cache(_REMEMBERED)(self._tokenise)
        self._special(getattr(backend.model, "unk_token", None) or "[UNK]", where)
        largest = max(backend.get_vocab().values())
        if largest >= vocabulary:
            raise ModelError(
                f"{where}: the tokenizer numbers tokens up to {largest}, the model has embeddings for {vocabulary}; "
                "they do not belong together"
            )

    def __call__(self, text: str) -> Tokens:
        """Tokens of a text of any length. Halves of broken surrogate pairs, which are not text, count as unknown."""
        return self._short(text) if len(text) <= _SHORT else self._tokenise(text)

    def _tokenise(self, text: str) -> Tokens:
        text = _SURROGATE.sub("\ufffd", text)
        pieces: list[Tokens] = []
        start = word = 0
        while start < len(text) or not pieces:
            found = self._breaks.search(text, start + _PIECE)
            end = found.start() if found else len(text)
            tokens = _tokens(self._backend.encode(text[start:end], add_special_tokens=False))
            pieces.append(Tokens(tokens.ids, tokens.starts + start, tokens.ends + start, tokens.words + word))
            word += 1 + int(tokens.words.max(initial=-1))
            start = end
        if len(pieces) == 1:
            return pieces[0]
        columns = zip(*((p.ids, p.starts, p.ends, p.words) for p in pieces), strict=True)
        return Tokens(*(np.concatenate(column) for column in columns))

    @property
    def mask(self) -> int:
        """[MASK], which only pre-training needs."""
        return self._special("[MASK]", self._where)

    def vocabulary(self) -> dict[str, int]:
        """Token -> number."""
        found: dict[str, int] = self._backend.get_vocab()
        return found

    def sha256(self) -> str:
        """Of all that tokenising depends on."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def _special(self, token: str, where: Path) -> int:
        number = self._backend.token_to_id(token)
        if number is None:
            raise ModelError(f"{where}: the tokenizer has no {token}; thinbert needs a BERT WordPiece vocabulary")
        return int(number)


def _tokens(encoding: Encoding) -> Tokens:
    # of all ways from a list of pairs to an array the fastest
    offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int32, 2 * len(encoding)).reshape(-1, 2)
    # a token outside any word (none in WordPiece) would be None: give it a word of its own
    words = [-1 - i if w is None else w for i, w in enumerate(encoding.word_ids)]
    return Tokens(np.array(encoding.ids, np.int32), offsets[:, 0], offsets[:, 1], np.array(words, np.int32))


def read_tokenizer(folder: Path, *, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, else vocab.txt with the tokens that were added to it.
    tokenizer_config.json overrides how either treats case, accents and Chinese characters, as in transformers, unless
    its class is no BERT's. (Where it says nothing, tokenizer.json is taken at its word; transformers lowercases.)

    Raises:
        ModelError: neither is there or valid, or it numbers tokens past the model's V = `vocabulary`.
    """
    config = folder / "tokenizer_config.json"
    told = read_json(config) if config.is_file() else {}
    kind = told.get("tokenizer_class")
    settings = _normalizer_settings(told, config) if kind in (None, *_OF_VOCABULARY) else {}
    limit = told.get("model_max_length")
    limit = int(limit) if isinstance(limit, int | float) and 3 < limit < 1 << 20 else None  # 1e30 says: none
    whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    if whole.is_file():
        described = read_json(whole)
        if isinstance(described.get("model"), dict):
            described["model"] = {"type": "WordPiece"} | described["model"]  # files of 2020 and 2021 do not say it
        for part, kinds in _PARTS.items():
            stored = described.get(part)
            kind = stored.get("type") if isinstance(stored, dict) else stored
            if kind not in kinds:
                raise ModelError(f"{whole}: its {part} is {quoted(kind)}; thinbert reads BERT's WordPiece ({kinds[0]})")
        model = described["model"]
        longest = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
        if isinstance(longest, int) and longest > _LONGEST_WORD:
            raise ModelError(
                f"{whole}: max_input_chars_per_word is {longest}; expected at most {_LONGEST_WORD} (BERT has 100)"
            )
        if described.get("normalizer") is not None:
            described["normalizer"] |= settings
        described |= {"post_processor": None, "decoder": None}  # which nobody needs
        try:
            backend = HFTokenizer.from_str(json.dumps(described))
        # the Rust side raises a bare Exception
        except Exception as e:
            raise ModelError(f"{whole}: not a tokenizer: {e}") from e
        return Tokenizer(backend, where=whole, vocabulary=vocabulary, limit=limit)
    if vocab.is_file():
        if kind is not None and kind not in _OF_VOCABULARY:  # others read the same kind of file otherwise
            raise ModelError(f"{config}: tokenizer_class is {quoted(kind)}; thinbert reads BERT's WordPiece")
        backend = _from_vocab(vocab, settings)
        _add_tokens(backend, folder, told)
        return Tokenizer(backend, where=vocab, vocabulary=vocabulary, limit=limit)
    raise ModelError(f"{folder}: no tokenizer; expected tokenizer.json or vocab.txt")


def _normalizer_settings(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """What tokenizer_config.json says of normalisation, in the words of the tokenizers library."""
    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    for name in names:
        value = config.get(name, False)
        if not isinstance(value, bool) and not (name == "strip_accents" and value is None):
            raise ModelError(f"{where}: {name} is {value!r}; expected true or false")
    return {ours: config[name] for name, ours in names.items() if name in config}


def _from_vocab(vocab: Path, settings: dict[str, Any]) -> HFTokenizer:
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    try:
        lines = vocab.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ModelError(f"{vocab}: not UTF-8 at byte {e.start}") from e
    except OSError as e:
        raise ModelError(f"{vocab}: cannot be read: {e.strerror}") from e
    # the line number is the token's number, so only what follows the last newline may be dropped
    tokens = lines[:-1] if lines[-1] == "" else lines
    if "[UNK]" not in tokens:
        raise ModelError(f"{vocab}: no [UNK] among {len(tokens)} tokens; expected one WordPiece token a line")
    backend = HFTokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**settings)  # lowercase unless told otherwise
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in tokens])
    return backend


def _add_tokens(backend: HFTokenizer, folder: Path, told: dict[str, Any]) -> None:
    """Tokens beside vocab.txt. Slow tokenizers of transformers keep them in added_tokens.json (token -> number)
    or, with the ways to find them, in tokenizer_config.json (number -> token).

    Raises:
        ModelError: they are no tokens, or their numbers do not follow the vocabulary's.
    """
    where = folder / "added_tokens.json"
    plain = read_json(where) if where.is_file() else {}
    added: dict[Any, Any] = {number: {"content": content} for content, number in plain.items()}
    if isinstance(decoder := told.get("added_tokens_decoder"), dict):
        where = folder / "tokenizer_config.json"
        added |= {int(number) if number.isdecimal() else number: token for number, token in decoder.items()}
    try:
        for number, token in sorted(added.items()):
            flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "special") if name in token}
            flags["normalized"] = token.get("normalized", not token.get("special", False))
            backend.add_tokens([AddedToken(token["content"], **flags)])
            if backend.token_to_id(token["content"]) != number:
                raise ModelError(
                    f"{where}: token {quoted(token['content'])} has number {number}; with the vocabulary it would get "
                    f"{backend.token_to_id(token['content'])}"
                )
    except (TypeError, KeyError, AttributeError) as e:
        raise ModelError(f"{where}: its added tokens are not understood: {e!r}") from None
