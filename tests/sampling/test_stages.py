"""Each stage before the temperature, against Transformers' processors where there is one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from lightllm.sampling.grammar import TokenMasks, mask_words

from .desk import Desk

VOCAB = 97
BANNED = float("-inf")


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, VOCAB) * 4


def test_allowed_token_ids_ban_all_others() -> None:
    desk, logits = Desk(VOCAB), logits_of(3)
    desk.open(0)
    desk.open(1, allowed_token_ids=(5, 7, 5, 96))
    desk.open(2, allowed_token_ids=(0,))
    edited = desk.edited(logits)
    assert torch.equal(edited[0], logits[0])
    assert edited[1].isfinite().nonzero().flatten().tolist() == [5, 7, 96]
    assert torch.equal(edited[1, [5, 7, 96]], logits[1, [5, 7, 96]])
    assert desk.sample(logits).token_ids[2] == 0


@settings(max_examples=80, deadline=None)
@given(
    history=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8),
)
def test_bad_words_are_those_of_transformers(history: list[int], words: list[list[int]]) -> None:
    desk, logits = Desk(VOCAB), logits_of(3)
    desk.open(0, [9, 9])
    desk.open(1, history, bad_words=tuple(map(tuple, words)))
    desk.open(2, [9], bad_words=((8, 1), (9, 2)))
    edited = desk.edited(logits)
    unique = [list(word) for word in dict.fromkeys(map(tuple, words))]
    expected = NoBadWordsLogitsProcessor(unique)(torch.tensor([history]), logits[1:2])
    assert torch.equal(edited[0], logits[0])
    assert torch.equal(edited[1:2], expected)
    assert edited[2].isinf().nonzero().flatten().tolist() == [2]


def test_bad_words_follow_the_tokens_that_are_sampled() -> None:
    desk = Desk(VOCAB)
    desk.open(0, [1], temperature=0.0, bad_words=((4, 4, 4),))
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 6]] = torch.tensor([2.0, 1.0])
    assert [desk.step(logits)[0] for _ in range(6)] == [4, 4, 6, 4, 4, 6]


def test_many_bad_words_are_read_once(count_calls: Callable[[Callable[[], object]], int]) -> None:
    """A step does as many calls for two hundred words as for two: they were read when the row was opened."""

    def calls(num_words: int) -> int:
        desk = Desk(VOCAB)
        desk.open(0, [1, 2, 3], bad_words=tuple((i % VOCAB, i // VOCAB, 5) for i in range(num_words)))
        rows = np.zeros(1, np.int32)
        return count_calls(lambda: desk.sampler.prepare(rows, desk.lengths[rows]))

    assert calls(200) == calls(2)


def test_a_word_with_an_id_beyond_the_vocabulary_bans_nothing() -> None:
    desk, logits = Desk(VOCAB), logits_of(2)
    desk.open(0, bad_words=((VOCAB,), (VOCAB + 1, 3)), eos_ids=(VOCAB,), min_tokens=3)
    desk.open(1)
    assert torch.equal(desk.edited(logits), logits)


def test_no_end_before_min_tokens() -> None:
    desk, logits = Desk(VOCAB), logits_of(1)
    for generated in range(5):
        desk.open(0, range(10 + generated), 10, min_tokens=3, eos_ids=(7, 8), stop_token_ids=(20,))
        processor = MinNewTokensLengthLogitsProcessor(10, 3, [7, 8, 20], device="cpu")
        expected = processor(torch.zeros(1, 10 + generated, dtype=torch.long), logits.clone())
        assert torch.equal(desk.edited(logits), expected)


def test_logit_bias_is_added_and_frees_no_banned_token() -> None:
    desk, logits = Desk(VOCAB), logits_of(2)
    bias = {3: 5.5, 96: -100.0, 0: 100.0}
    desk.open(0)
    desk.open(1, logit_bias=bias, bad_words=((0,),))
    edited = desk.edited(logits)
    expected = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(
        torch.tensor([[0]]), logits[1:2].clone()
    )
    expected[0, 0] = BANNED
    assert torch.equal(edited[0], logits[0])
    assert torch.equal(edited[1:2], expected)


def test_repetition_penalty_is_that_of_transformers() -> None:
    desk, logits = Desk(VOCAB), logits_of(3)
    histories = [[1, 2, 2, 3, 50], [96], [0, 0, 0, 9, 9, 1, 5]]
    penalties = [1.3, 0.7, 1.0]
    for row, (history, penalty) in enumerate(zip(histories, penalties, strict=True)):
        desk.open(row, history, 1, repetition_penalty=penalty)
    edited = desk.edited(logits)
    for row, (history, penalty) in enumerate(zip(histories, penalties, strict=True)):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([history]), logits[row : row + 1].clone())
        assert torch.equal(edited[row : row + 1], expected)


class Penalised:
    """The definitions of OpenAI and of CTRL, one token after the other."""

    def __init__(self, prompt: list[int], repetition: float, presence: float, frequency: float) -> None:
        self.prompt, self.output = prompt, list[int]()
        self.strengths = (repetition, presence, frequency)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        repetition, presence, frequency = self.strengths
        result = logits.double().clone()
        for token in range(len(result)):
            count = self.output.count(token)
            if token in self.prompt or count:
                result[token] *= 1 / repetition if result[token] > 0 else repetition
            result[token] -= presence * (count > 0) + frequency * count
        return result.float()


def test_penalties_follow_rows_that_grow_and_are_opened_again() -> None:
    """Rows generate, are preempted to another row with all their tokens, and are replaced by other requests."""
    generator = np.random.default_rng(3)
    desk, references = Desk(VOCAB, max_rows=6), dict[int, Penalised]()

    def start(row: int) -> None:
        prompt = generator.integers(0, VOCAB, generator.integers(1, 30)).tolist()
        strengths = [(1.0, 0.0, 0.0), (1.4, 0.0, 0.0), (1.0, 0.9, -0.4), (0.8, -1.0, 1.1)][generator.integers(4)]
        references[row] = Penalised(prompt, *strengths)
        reopen(row)

    def reopen(row: int) -> None:
        reference = references[row]
        names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        params = dict(zip(names, reference.strengths, strict=True))
        desk.open(row, reference.prompt + reference.output, len(reference.prompt), seed=row, **params)

    for row in range(6):
        start(row)
    for step in range(40):
        rows = generator.permutation(6)[: generator.integers(1, 7)].tolist()
        logits = logits_of(len(rows), step)
        expected = torch.stack([references[row].apply(logits[i]) for i, row in enumerate(rows)])
        torch.testing.assert_close(desk.edited(logits, rows), expected, rtol=1e-5, atol=1e-5)
        for row, token in zip(rows, desk.step(logits, rows), strict=True):
            references[row].output.append(token)
        if step % 5 == 4:
            moved, replaced = generator.permutation(6)[:2].tolist()
            references[replaced] = references[moved]
            reopen(replaced)
            start(moved)


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 97])
def test_grammar_masks_ban_what_they_do_not_allow(vocab_size: int) -> None:
    desk = Desk(vocab_size)
    for row in range(3):
        desk.open(row, temperature=0.0)
    allowed = np.random.default_rng(vocab_size).random((2, vocab_size)) < 0.3
    allowed[:, vocab_size // 2] = True
    words = np.zeros((2, mask_words(vocab_size) * 32), np.uint8)
    words[:, :vocab_size] = allowed
    packed = np.packbits(words, axis=1, bitorder="little").view(np.int32)
    torch.manual_seed(0)
    logits = torch.randn(3, vocab_size)
    ids = desk.sample(logits, masks=TokenMasks(np.array([0, 2]), packed)).token_ids
    masked = logits[[0, 2]].masked_fill(~torch.from_numpy(allowed), BANNED)
    assert ids.tolist() == [int(masked[0].argmax()), int(logits[1].argmax()), int(masked[1].argmax())]
