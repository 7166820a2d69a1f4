"""Forms are followed in the bytes that clients read, by tokenizers of both families."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
from llguidance import LLMatcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.prompts.special_tokens import TemplateTokenizer
from worker.answers.token_bytes import TokenBytes
from worker.grammar.bounds import Bounds
from worker.grammar.limits import LIMITS
from worker.grammar.source import Kind, read_structure
from worker.grammar.vocabulary import GrammarVocabulary

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
CORPUS = ['{"name": "a cat", "lives": 9}', "the answer is yes or no", "a red house, a blue house </s>", "12 34 56 789"]
SIZE, END = 640, 2


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    return tokenizer


def whole(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.fixture(
    scope="module", params=["sentencepiece, as a normalizer", "sentencepiece, as a pre-tokenizer", "byte level"]
)
def tokenizer(request: pytest.FixtureRequest, sentence_piece: Callable[..., Tokenizer]) -> PreTrainedTokenizerFast:
    if request.param == "byte level":
        return whole(byte_level())
    return whole(sentence_piece(CORPUS * 8, SPECIAL, 600, legacy=request.param.endswith("normalizer")))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("regex", "(yes|no|a red house) 12", "(yes|no|a red house) 12"),
        ("regex", " a", " a"),
        ("choice", ["</s>", "<image>", "<unk>é漢\n"], "</s>|<image>|<unk>é漢\n"),
        ("choice", ["the answer is yes", "the answer is no", "the"], "the answer is (yes|no)|the"),
        (
            "json_schema",
            {
                "type": "object",
                "properties": {
                    "name": {"enum": ["a cat", "\u2581"]},
                    "lives": {"type": "integer", "maximum": 9, "minimum": 1},
                },
                "required": ["name", "lives"],
                "additionalProperties": False,
            },
            r'\{\s*"name"\s*:\s*"(a cat|▁)"\s*,\s*"lives"\s*:\s*[1-9]\s*\}',
        ),
    ],
)
def test_what_is_drawn_reads_as_the_form_says(
    tokenizer: PreTrainedTokenizerFast, kind: Kind, value: object, expected: str
) -> None:
    tokens = TokenBytes(tokenizer)
    template = TemplateTokenizer(tokenizer, {3})
    vocabulary = GrammarVocabulary(
        tokens, lambda text: template.encode(text, continues=True).ids, size=SIZE, end_token_ids=(END,), structural=(3,)
    )
    grammar = read_structure(kind, value, Bounds()).text
    for seed in range(6):
        matcher = LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=LIMITS)
        draws, answer = random.Random(seed), b""
        for _ in range(300):
            mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)[: len(vocabulary.drawable)] & vocabulary.drawable
            token = draws.choice(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())
            assert matcher.consume_token(token)
            if token == END:
                break
            assert token not in range(4)
            answer += tokens[token]
        assert re.fullmatch(expected, answer.decode()), answer


def test_a_checkpoint_without_an_end_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no end token"):
        GrammarVocabulary(TokenBytes(whole(byte_level())), lambda text: [], size=SIZE, end_token_ids=())
