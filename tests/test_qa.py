"""Windows, the span decoder, probabilities, and answers that are always slices of the text."""

import json
import math
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import thinbert
import tiny
from thinbert.api import Model
from thinbert.errors import InputError
from thinbert.model.tokenizer import Tokens
from thinbert.tasks import qa
from thinbert.tasks.qa import Answer, Collector, Reading, Window, best_spans, windows


def numbered(n: int, first: int = 100) -> Tokens:
    """n tokens, each one character long."""
    place = np.arange(n, dtype=np.int32)
    return Tokens(place + first, place, place + 1, place)


# --- windows ----------------------------------------------------------------------------------------------------------


@given(
    context=st.integers(0, 300), question=st.integers(0, 20), max_length=st.integers(40, 80), stride=st.integers(0, 15)
)
def test_windows_cover_the_context_with_the_stated_overlap(
    context: int, question: int, max_length: int, stride: int
) -> None:
    q, c = numbered(question, 1000), numbered(context)
    cut = list(windows(q, c, max_length=max_length, stride=stride, cls=1, sep=2))
    covered: list[int] = []
    for number, w in enumerate(cut):
        assert len(w.ids) <= max_length
        assert w.ids.tolist() == [1, *q.ids, 2, *c.ids[w.offset : w.offset + w.count], 2]
        assert w.types.tolist() == [0] * (question + 2) + [1] * (w.count + 1)
        if number:
            before = cut[number - 1]
            assert before.offset + before.count - w.offset == stride
            assert len(before.ids) == max_length  # only the last may be short
        covered += range(w.offset, w.offset + w.count)
    assert sorted(set(covered)) == list(range(context))
    assert (not cut) == (context == 0)
    if len(cut) > 1:
        assert cut[-1].count > stride  # the last one brings something new


def test_windows_are_those_of_the_tokenizers_library() -> None:
    """Truncation with overflow, as transformers uses it, cuts the same pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    import tiny

    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tiny.VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(50, stride=13, strategy="only_second")
    for n in (1, 30, 40, 41, 42, 43, 100, 251):
        text = " ".join("abcdefghijklm"[i % 13] for i in range(n))
        whole = backend.encode("who is the", text)
        expected = [e.ids for e in (whole, *whole.overflowing)]
        backend.no_truncation()
        q, c = (backend.encode(t, add_special_tokens=False).ids for t in ("who is the", text))
        backend.enable_truncation(50, stride=13, strategy="only_second")
        tokens = [Tokens(np.array(t, np.int32), *[np.zeros(len(t), np.int32)] * 3) for t in (q, c)]
        ours = [w.ids.tolist() for w in windows(*tokens, max_length=50, stride=13, cls=2, sep=3)]
        assert ours == expected


def test_a_question_too_long_for_the_stride() -> None:
    with pytest.raises(InputError, match="a question of 20 tokens leaves 17 of 40 for the text"):
        list(windows(numbered(20), numbered(100), max_length=40, stride=17, cls=1, sep=2))
    # but a text that fits needs no second window
    assert len(list(windows(numbered(20), numbered(17), max_length=40, stride=17, cls=1, sep=2))) == 1


# --- the decoder ------------------------------------------------------------------------------------------------------

logits = st.lists(st.integers(-3, 3), min_size=1, max_size=24)  # few values: ties are the rule


@given(start=logits, seed=st.integers(0, 99), k=st.integers(1, 40), max_tokens=st.integers(1, 30))
def test_decoder_equals_trying_every_span(start: list[int], seed: int, k: int, max_tokens: int) -> None:
    n = len(start)
    end = np.random.RandomState(seed).randint(-20, 20, n).astype(np.float32)
    spans = best_spans(np.array(start, np.float32), end, k=k, max_tokens=max_tokens)
    every = [(float(start[i]) + float(end[j]), i, j) for i in range(n) for j in range(i, min(i + max_tokens, n))]
    every.sort(key=lambda span: (-span[0], span[1], span[2]))
    got = list(zip(spans.scores.tolist(), spans.starts.tolist(), spans.ends.tolist(), strict=True))
    assert got == every[:k]
    total = math.log(sum(math.exp(s - every[0][0]) for s, _, _ in every)) + every[0][0]
    assert spans.log_total == pytest.approx(total)


def test_ties_go_to_the_earlier_and_shorter_span() -> None:
    spans = best_spans(np.zeros(4, np.float32), np.zeros(4, np.float32), k=5, max_tokens=2)
    assert list(zip(spans.starts, spans.ends, strict=True)) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    for n in range(1, 60):
        spans = best_spans(np.zeros(n, np.float32), np.zeros(n, np.float32), k=1, max_tokens=30)
        assert (spans.starts[0], spans.ends[0]) == (0, 0)


def reading(
    piece: np.ndarray, null: float, context: str, count: int = 1, calibration: tuple[float, float] = (1, 0)
) -> Reading:
    """One or several identical windows over a context of one-character tokens."""
    tokens = numbered(len(context))
    window = Window(np.zeros(len(context) + 3, np.int32), np.zeros(len(context) + 3, np.int32), 2, 0, len(context))
    logits = np.full((len(context) + 3, 2), -50, np.float32)
    logits[0] = null / 2
    logits[2:-1] = piece
    collector = Collector(n_best=100, max_tokens=30, threshold=0.5, calibration=calibration)
    for _ in range(count):
        collector.add(logits, window, tokens, 0)
    return collector.close([context])


def test_probabilities_of_one_window_sum_to_one() -> None:
    piece = np.random.RandomState(0).uniform(-3, 3, (8, 2)).astype(np.float32)
    r = reading(piece, null=1.5, context="abcdefgh")
    assert len(r.answers) == 8 * 9 / 2
    assert sum(a.score for a in r.answers) + r.no_answer == pytest.approx(1)
    best = r.answers[0]
    assert best.text == "abcdefgh"[best.start : best.end]
    # no_answer is the null span's share of the softmax over itself and all spans
    mass = np.exp(piece[:, :1] + piece[:, 1][None])[np.triu_indices(8)].sum()
    assert r.no_answer == pytest.approx(math.exp(1.5) / (math.exp(1.5) + mass), rel=1e-5)


@given(length=st.integers(1, 60), room=st.integers(5, 30), shared=st.integers(0, 29), seed=st.integers(0, 99))
def test_probabilities_of_windows_that_overlap_sum_to_one(length: int, room: int, shared: int, seed: int) -> None:
    """Also where three or more windows hold a span, and whichever of them is surest of it."""
    question, tokens = numbered(2), numbered(length)
    stride = shared % room
    collector = Collector(n_best=10_000, max_tokens=7, threshold=0.5)
    random = np.random.RandomState(seed)
    best: dict[tuple[int, int], float] = {}
    for context in range(2):
        for w in windows(question, tokens, max_length=room + 5, stride=stride, cls=1, sep=2):
            logits = random.uniform(-9, 9, (len(w.ids), 2)).astype(np.float32)
            collector.add(logits, w, tokens, context)
            for i in range(w.count):
                for j in range(i, min(i + 7, w.count)):
                    at = (1000 * context + w.offset + i, 1000 * context + w.offset + j)
                    score = float(logits[w.first + i, 0]) + float(logits[w.first + j, 1])
                    best[at] = max(score, best.get(at, -99))
    r = collector.close(["x" * length] * 2)
    assert len(r.answers) == len(best)
    assert sum(a.score for a in r.answers) + r.no_answer == pytest.approx(1)
    mass = sum(math.exp(score) for score in best.values())
    first = r.answers[0]
    assert first.score == pytest.approx(math.exp(max(best.values())) / mass * (1 - r.no_answer), rel=1e-6)


def test_no_answer_decides_by_the_threshold() -> None:
    surely_none = Reading((Answer("a", 0, 1, 0.0),), no_answer=1.0, threshold=1.0)
    assert surely_none.best is not None  # a threshold of one says: always answer
    piece = np.zeros((4, 2), np.float32)
    assert reading(piece, null=10, context="abcd").best is None
    assert reading(piece, null=-10, context="abcd").best is not None


def test_more_windows_do_not_move_the_no_answer_probability() -> None:
    piece = np.random.RandomState(1).uniform(-1, 1, (6, 2)).astype(np.float32)
    one, many = (reading(piece, null=2, context="abcdef", count=n) for n in (1, 50))
    assert one.no_answer == many.no_answer
    assert [a.start for a in one.answers] == [a.start for a in many.answers]


def test_calibration_maps_the_odds_and_nothing_else() -> None:
    piece = np.random.RandomState(1).uniform(-1, 1, (6, 2)).astype(np.float32)
    plain = reading(piece, null=2, context="abcdef")
    mapped = reading(piece, null=2, context="abcdef", calibration=(0.5, -1.0))
    odds = math.log(plain.no_answer / (1 - plain.no_answer))
    assert mapped.no_answer == pytest.approx(1 / (1 + math.exp(-(0.5 * odds - 1))))
    assert [(a.start, a.end) for a in plain.answers] == [(a.start, a.end) for a in mapped.answers]
    assert sum(a.score for a in mapped.answers) + mapped.no_answer == pytest.approx(1)


# --- whole texts ------------------------------------------------------------------------------------------------------

TRICKY = [
    "Frédéric Chopin (1 March 1810 – 17 October 1849) was a composer.",
    "naïve café, ÅNGSTRÖM, İstanbul, straße",
    "the 🐨 sleeps; 👩‍👩‍👧 too 🇫🇷",
    "one\r\ntwo\r\n\r\nthree\tfour\t\tfive",
    "  leading and trailing   ",
    "ﬁne ﬂow ½ ｆｕｌｌ",
    "de\u0301compose\u0301 e\u0301",  # combining accents, which the tokenizer strips
    "中文字符 and the tower",
    "zero\u200bwidth and \u00a0 no-break \ufeff mark",
]


@pytest.mark.parametrize("text", TRICKY)
def test_answers_are_slices(tiny_model: Model, text: str) -> None:
    r = tiny_model.read("who is the composer", [text], n_best=50)
    assert r.answers
    for a in r.answers:
        assert text[a.start : a.end] == a.text
        assert a.text.strip() == a.text != ""


@pytest.mark.parametrize("text", TRICKY)
def test_tokens_stand_where_they_say(text: str) -> None:
    """Each known token is what the text has between its ends, but for case, accents and width."""
    model = thinbert.load("default")
    words = {number: word for word, number in model.tokenizer.vocabulary().items()}
    tokens = model.tokenizer(text)
    known = 0
    for number, start, end in zip(tokens.ids.tolist(), tokens.starts.tolist(), tokens.ends.tolist(), strict=True):
        if words[number] != "[UNK]":
            plain = unicodedata.normalize("NFD", text[start:end].lower())
            plain = "".join(c for c in plain if not unicodedata.combining(c) and unicodedata.category(c) != "Cf")
            assert plain == words[number].removeprefix("##")
            known += 1
    assert known > len(tokens) // 2


def test_answers_end_after_their_accents(tiny_model: Model) -> None:
    text = "de\u0301compose\u0301 e\u0301\u0323 by Andre\u0301"
    for answer in tiny_model.read("who is the composer", [text], n_best=50).answers:
        assert not unicodedata.combining((text + "x")[answer.end])
        assert text[answer.start : answer.end] == answer.text
    vowels = "हिन्दु है"  # signs of combining class 0, which a tokenizer that strips accents leaves out too
    ends = {answer.end for answer in tiny_model.read("who", [vowels], n_best=50).answers}
    assert ends
    assert all(unicodedata.category((vowels + "x")[end]) != "Mn" for end in ends)


@pytest.mark.parametrize(
    ("tokens", "settings", "text", "tokens_of_a_place"),
    [
        (["##\u0301"], {"do_lower_case": False, "strip_accents": False}, "the cafe\u0301 is in paris", 1),
        (["\u1100", "##\u1161"], {}, "a \uac00 b", 2),  # the two letters of one character, which has one place
    ],
)
def test_no_two_answers_are_the_same_place(
    tmp_path: Path, tokens: list[str], settings: dict[str, Any], text: str, tokens_of_a_place: int
) -> None:
    """And they sum to one: where accents are tokens of their own, and where a character is several tokens."""
    config = tiny.bert_config(vocab_size=len(tiny.VOCABULARY) + len(tokens))
    folder = tiny.write_model(tmp_path / "m", config, tiny.bert_tensors(config))
    (folder / "vocab.txt").write_text("\n".join([*tiny.VOCABULARY, *tokens]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = thinbert.load(folder)
    read = model.tokenizer(text)
    assert set(range(len(tiny.VOCABULARY), config["vocab_size"])) <= set(read.ids.tolist())
    places = list(zip(read.starts.tolist(), read.ends.tolist(), strict=True))
    assert max(places.count(place) for place in places) == tokens_of_a_place
    r = model.read("who built it", [text], n_best=1000)
    found = [(a.start, a.end) for a in r.answers]
    assert len(set(found)) == len(found)
    assert sum(a.score for a in r.answers) + r.no_answer == pytest.approx(1)
    assert all(a.text == text[a.start : a.end] for a in r.answers)


def test_windows_of_a_long_question_move_on(tiny_model: Model) -> None:
    """And not by a token at a time."""
    question, text = (tiny_model.tokenizer(t) for t in ("who built it " * 50, "the tower is in paris " * 100))
    kept = qa.fitting(question, text, max_length=64, stride=32)
    assert 10 < len(kept) < len(question)
    count = len(list(tiny_model.windows(kept, text, max_length=64, stride=32)))
    assert count <= len(text) / 8 + 1
    longest = question.cut(qa.MAX_QUESTION_TOKENS)
    assert len(qa.fitting(longest, text, max_length=qa.MAX_LENGTH, stride=qa.STRIDE)) == len(longest)


@pytest.mark.parametrize("words", [0, 1, 511, 5_000, 200_000])
def test_contexts_of_any_size(tiny_model: Model, words: int) -> None:
    text = " ".join(["tower", "paris", "built", "the", "composer"][i % 5] for i in range(words))
    r = tiny_model.read("who built", [text])
    assert bool(r.answers) == bool(words)
    for a in r.answers:
        assert text[a.start : a.end] == a.text
    if not words:
        assert (r.no_answer, r.best) == (1.0, None)


def test_a_question_that_is_cut_is_said(default_model: Model, caplog: pytest.LogCaptureFixture) -> None:
    text = "The mill was built by Anna Voss."
    best = default_model.read("Please tell me. " * 25 + "Who built the mill?", [text], threshold=1).best  # 105 tokens
    assert best is not None
    assert best.text == "Anna Voss"
    assert not caplog.messages
    default_model.read("Please tell me. " * 50, [text])
    assert caplog.messages == ["a question of 200 tokens is cut to 128"]


@pytest.mark.parametrize("blank", ["", " ", "\n\t\r\n", "\u200b"])
def test_nothing_to_read(tiny_model: Model, blank: str) -> None:
    r = tiny_model.read("who", [blank])
    assert (r.answers, r.no_answer, r.best) == ((), 1.0, None)


def test_several_contexts(tiny_model: Model) -> None:
    texts = ["the tower", "", "paris is in the composer", "built by who"]
    r = tiny_model.read("who built", texts, n_best=40)
    assert {a.context for a in r.answers} == {0, 2, 3}
    for a in r.answers:
        assert texts[a.context][a.start : a.end] == a.text
    alone = [tiny_model.read("who built", [t]).no_answer for t in texts]
    assert r.no_answer == pytest.approx(min(alone), abs=1e-6)


def test_streams_equal_single_questions(tiny_model: Model) -> None:
    random = np.random.RandomState(0)
    words = ["tower", "paris", "built", "the", "composer", "born", "named", "after", "x", "y", "z"]
    pairs = [(f"who {i}", [" ".join(random.choice(words, i * 7 % 60))]) for i in range(40)]
    together = list(tiny_model.read_many(iter(pairs)))
    assert len(together) == len(pairs)
    for (question, contexts), r in zip(pairs, together, strict=True):
        alone = tiny_model.read(question, contexts)
        assert [(a.start, a.end) for a in r.answers[:3]] == [(a.start, a.end) for a in alone.answers[:3]]
        assert r.no_answer == pytest.approx(alone.no_answer, abs=1e-5)


def test_one_model_in_many_threads(tiny_model: Model) -> None:
    text = " ".join(["the tower is in paris"] * 30)
    expected = tiny_model.read("who built", [text])
    got: list[Reading] = []
    threads = [threading.Thread(target=lambda: got.append(tiny_model.read("who built", [text]))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == [expected] * 8


def test_options_out_of_range(tiny_model: Model) -> None:
    for options, message in (
        ({"n_best": 0}, "n_best is 0 and max_answer_tokens 30; both must be at least 1"),
        ({"max_length": 65}, "windows of 65 tokens; model .* takes from 8 to 64"),
        ({"max_length": 7}, "windows of 7 tokens"),
        ({"stride": 64}, "a stride of 64 tokens; expected from 0 to less than the window's 64"),
        ({"stride": -1}, "a stride of -1 tokens"),
        ({"threshold": -5}, "threshold is -5; expected a probability from 0 to 1"),
        ({"threshold": math.nan}, "threshold is nan"),
    ):
        with pytest.raises(InputError, match=message):
            tiny_model.read("who", ["the tower"], **options)


def test_contexts_are_a_list_and_may_be_a_generator(tiny_model: Model) -> None:
    with pytest.raises(InputError, match="contexts is one string; give a list of texts"):
        tiny_model.read("who", "the tower")
    texts = ["the tower", "built by who"]
    assert tiny_model.read("who", (t for t in texts)) == tiny_model.read("who", texts)  # type: ignore[arg-type]


def test_a_stream_of_empty_texts_moves_on(tiny_model: Model) -> None:
    taken = 0

    def endless() -> Iterator[tuple[str, list[str]]]:
        nonlocal taken
        while True:
            taken += 1
            yield "who", [""]

    stream = tiny_model.read_many(endless())
    assert [next(stream).no_answer for _ in range(10)] == [1.0] * 10
    assert taken < 1000


def test_broken_surrogates_are_read_as_unknown_characters(tiny_model: Model) -> None:
    text = "the \ud800 tower in paris"
    for a in tiny_model.read("who \udcff", [text]).answers:
        assert text[a.start : a.end] == a.text


def test_long_texts_are_tokenised_in_pieces(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        " ".join(TRICKY * 20) + "x" * 500 + " the  end" + "中文字符" * 200 + "one\u00a0two\u2003" * 100 + "a,b。" * 99
    )
    whole = tiny_model.tokenizer(text)
    for size in (1, 7, 50, 1000):
        monkeypatch.setattr("thinbert.model.tokenizer._PIECE", size)
        cut = tiny_model.tokenizer(text)
        for field in ("ids", "starts", "ends"):
            np.testing.assert_array_equal(getattr(cut, field), getattr(whole, field))
        same_word = [np.diff(t.words) == 0 for t in (cut, whole)]
        np.testing.assert_array_equal(*same_word)


def test_scripts_without_spaces_are_tokenised_in_pieces_too(tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own form of a text is large, and a book may be one long line of them."""
    longest = 0
    encode = tiny_model.tokenizer._backend.encode

    class Watching:
        def encode(self, text: str, **options: Any) -> Any:
            nonlocal longest
            longest = max(longest, len(text))
            return encode(text, **options)

    monkeypatch.setattr(tiny_model.tokenizer, "_backend", Watching())
    for text in ("中文" * 100_000, "a\u00a0" * 100_000, "a," * 100_000):
        assert len(tiny_model.tokenizer(text)) >= 100_000
    assert longest <= (1 << 16) + 2


# --- the bundled model ------------------------------------------------------------------------------------------------

EIFFEL = "The Eiffel Tower stands on the Champ de Mars in Paris. It is named after the engineer Gustave Eiffel."
CHOPIN = (
    "Frédéric Chopin, baptised Fryderyk Franciszek (1 March 1810 – 17 October 1849), was a Polish composer and pianist."
)


@pytest.mark.parametrize(
    ("question", "context", "answer"),
    [
        ("Where is the Eiffel Tower located?", EIFFEL, "Champ de Mars in Paris"),
        ("Who is the Eiffel Tower named after?", EIFFEL, "Gustave Eiffel"),
        ("When did Chopin live?", CHOPIN, "1 March 1810 – 17 October 1849"),
        ("What was Chopin's nationality?", CHOPIN, "Polish"),
    ],
)
def test_default_model_answers(default_model: Model, question: str, context: str, answer: str) -> None:
    found = default_model.answer(question, context)
    assert found is not None
    assert found.text == answer
    assert (found.start, found.end) == (context.index(answer), context.index(answer) + len(answer))


def test_default_model_refuses(default_model: Model) -> None:
    r = default_model.read("What does a kilogram of butter cost?", [EIFFEL])
    assert r.best is None
    assert r.no_answer > 0.5
