"""From tokens to text: whatever way a text is cut into tokens, the answer is the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from model.errors import CheckpointError
from worker.answers.answer import Answer, AnswerPiece, AnswerRules
from worker.answers.stop_strings import StopStrings
from worker.answers.token_bytes import TokenBytes
from worker.engine.protocol import EngineOutput, TokenLogprobs

SPECIAL = "<|special|>"


def printable(data: bytes) -> str:
    """GPT-2's spelling of bytes, from tokenizers itself."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    spelled = {}
    for character in alphabet:
        spelled[Tokenizer(models.BPE({character: 0}, [])).id_to_token(0)] = character
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(rest)}
    assert set(table.values()) == set(alphabet)
    return "".join(table[byte] for byte in data)


def byte_level(pieces: Sequence[bytes]) -> PreTrainedTokenizerFast:
    """A tokenizer whose token i is the i-th piece (equal pieces share an id), and one special token."""
    vocabulary: dict[str, int] = {}
    for piece in pieces:
        vocabulary.setdefault(printable(piece), len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def sentence_piece(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def run(tokens: TokenBytes, ids: Sequence[int], rules: AnswerRules, end: str = "length") -> list[AnswerPiece]:
    answer = Answer(tokens, rules)
    pieces = []
    for place, token_id in enumerate(ids, start=1):
        reason = end if place == len(ids) else None
        pieces.append(answer.take(EngineOutput(token_id, finish_reason=reason)))  # type: ignore[arg-type]
        if pieces[-1].finish_reason:
            break
    return pieces


def text_of(pieces: Sequence[AnswerPiece]) -> str:
    return "".join(piece.text for piece in pieces)


def cut_at_first_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The plain definition: the stop that is complete first; of those, the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@st.composite
def cut_bytes(draw: st.DrawFn) -> list[bytes]:
    """A text's bytes, cut anywhere: inside characters too."""
    alphabet = st.one_of(st.sampled_from("ab\n é漢🙂"), st.characters(codec="utf-8"))
    data = draw(st.text(alphabet, min_size=1, max_size=24)).encode()
    if draw(st.booleans()):
        data += draw(st.binary(max_size=4))  # no UTF-8 at all, perhaps
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if data[begin:end]]


STOPS = st.lists(st.text("ab\n é漢🙂", min_size=1, max_size=4), max_size=4)


@settings(max_examples=80, deadline=None)
@given(cut_bytes(), STOPS)
def test_any_cut_into_tokens_gives_the_text_that_decoding_at_once_gives(pieces: list[bytes], stops: list[str]) -> None:
    tokenizer = byte_level(pieces)
    ids = [tokenizer.convert_tokens_to_ids(printable(piece)) for piece in pieces]
    whole, stopped = cut_at_first_stop(tokenizer.decode(ids), stops)
    answer = run(TokenBytes(tokenizer), ids, AnswerRules(stops=tuple(stops)))
    assert text_of(answer) == whole
    assert answer[-1].finish_reason == ("stop" if stopped else "length")


@settings(max_examples=80, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_stop_strings_hold_back_no_more_than_could_begin_one(text: str, stops: list[str], data: st.DataObject) -> None:
    scanner = StopStrings(stops)
    released, place = "", 0
    while place < len(text):
        size = data.draw(st.integers(1, 4))
        part, found = scanner.feed(text[place : place + size])
        place += size
        released += part
        if found:
            break
        seen = text[:place]
        rest = seen[len(released) :]
        assert seen.startswith(released)
        assert rest == "" or any(stop.startswith(rest) and stop != rest for stop in stops)
    else:
        released += scanner.flush()
    assert released == cut_at_first_stop(text, stops)[0]


def test_a_character_is_given_out_only_when_all_its_bytes_are_there() -> None:
    pieces = [b"a", b"\xf0\x9f", b"\x99", b"\x82!"]
    tokenizer = byte_level(pieces)
    answer = run(TokenBytes(tokenizer), range(4), AnswerRules())
    assert [piece.text for piece in answer] == ["a", "", "", "🙂!"]


def test_an_answer_cut_off_inside_a_character_ends_with_the_replacement_character() -> None:
    answer = run(TokenBytes(byte_level([b"a", b"\xf0\x9f"])), range(2), AnswerRules())
    assert text_of(answer) == "a\ufffd"


def test_special_tokens_are_left_out_or_shown_as_asked_even_inside_a_character() -> None:
    tokenizer = byte_level([b"\xc3", b"\xa9"])
    tokens = TokenBytes(tokenizer)
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    assert text_of(run(tokens, [0, special, 1], AnswerRules())) == "é"
    shown = text_of(run(tokens, [0, 1, special], AnswerRules(skip_special_tokens=False)))
    assert shown == "é" + SPECIAL


CHARACTER = ["<0xE6>", "<0xBC>", "<0xA2>"]  # one character in three byte tokens
WORDS = ["▁Hello", "▁", "wor", "ld", "é", "▁▁"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([CHARACTER, *([word] for word in WORDS)]), min_size=1))
def test_sentencepiece_text_is_what_its_own_decoder_gives(groups: list[list[str]]) -> None:
    pieces = [piece for group in groups for piece in group]
    tokenizer = sentence_piece(pieces)
    ids = tokenizer.convert_tokens_to_ids(pieces)
    assert text_of(run(TokenBytes(tokenizer), ids, AnswerRules())) == tokenizer.decode(ids)


def test_bytes_that_are_no_text_spoil_only_themselves() -> None:
    # SentencePiece's decoder replaces a whole run of byte tokens when one is wrong; a stream cannot look back so far.
    pieces = ["<0xE6>", *CHARACTER]
    tokens = TokenBytes(sentence_piece(pieces))
    assert text_of(run(tokens, [0, 0, 1, 2], AnswerRules())) == "\ufffd漢"


def test_a_raw_continuation_keeps_the_space_that_a_chat_answer_drops() -> None:
    tokens = TokenBytes(sentence_piece(["▁blue", "▁sky"]))
    assert text_of(run(tokens, [0, 1], AnswerRules())) == "blue sky"
    assert text_of(run(tokens, [0, 1], AnswerRules(continues_text=True))) == " blue sky"


def test_stop_strings_wait_for_min_tokens() -> None:
    tokens = TokenBytes(byte_level([b"a", b"b"]))
    assert text_of(run(tokens, [0, 1, 0, 1, 0], AnswerRules(stops=("b",), min_tokens=2))) == "aba"


def test_a_stop_token_counts_but_is_no_text() -> None:
    tokens = TokenBytes(byte_level([b"a", b"b"]))
    answer = Answer(tokens, AnswerRules())
    answer.take(EngineOutput(0))
    last = answer.take(EngineOutput(1, finish_reason="stop", stop_token=True))
    assert (last.text, last.finish_reason, answer.completion_tokens) == ("", "stop", 2)


def test_scores_come_with_the_text_of_their_token_and_go_with_it() -> None:
    pieces = [b"on", b"e<", b"/s", b"to", b"p>"]
    tokens = TokenBytes(byte_level(pieces))
    answer = Answer(tokens, AnswerRules(stops=("</stop>",)))
    seen = [answer.take(EngineOutput(token, TokenLogprobs(-1.0, ()))) for token in range(5)]
    assert [piece.text for piece in seen] == ["on", "e", "", "", ""]
    assert [[score.drawn.data for score in piece.scores] for piece in seen] == [[b"on"], [], [], [], [b"e<"]]
    assert [score.offset for piece in seen for score in piece.scores] == [0, 2]


def test_a_tokenizer_of_an_unknown_kind_is_refused_in_words() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="decodes by WordPiece"):
        TokenBytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
