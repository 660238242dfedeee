"""The seam for structured output: a grammar says which tokens may come next; a mask brings that to the logits.

The host computes a step's masks while the device runs the forward pass and hands them to `Sampler.sample`. A mask has
one bit per token, token i in bit i % 32 of word i // 32, set when the token may come; xgrammar and llguidance pack
theirs the same way. No grammar is implemented here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer
from lightllm.protocol.plan import Int32
from lightllm.sampling.bans import BANNED
from lightllm.sampling.stage import Int64

WORD_BITS = 32


class Grammar(Protocol):
    """Where one request stands in its grammar."""

    @property
    def finished(self) -> bool:
        """Whether the output is complete, so that only an end-of-sequence token may follow."""

    def mask(self, words: Int32) -> None:
        """Write the mask of the next token into words [mask_words(vocab_size)]."""

    def advance(self, token_id: int) -> bool:
        """Take one token; False, and no change, when the grammar does not allow it."""

    def rollback(self, count: int) -> None:
        """Take back the last `count` tokens: drafts that were not accepted."""


class GrammarCompiler(Protocol):
    """Makes grammars for one tokenizer. Compiling may be slow and belongs on a thread; results may be shared."""

    def compile(self, kind: str, source: str) -> Grammar:
        """A grammar at its start; `kind` says how to read `source` (json_schema, regex, ebnf, choice).

        Raises InvalidRequest when the source cannot be compiled.
        """


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Masks of one batch: indices [G] in the batch, words [G, mask_words(vocab_size)]."""

    indices: Int64
    words: Int32


def mask_words(vocab_size: int) -> int:
    """32-bit words in the mask of a vocabulary."""
    return -(-vocab_size // WORD_BITS)


def apply_masks(logits: Tensor, masks: TokenMasks, transfer: Transfer) -> None:
    """Ban what the masks do not allow, in place in logits [N, vocab]."""
    indices, words = transfer.add(masks.indices), transfer.add(masks.words)
    transfer.send()
    ids = torch.arange(logits.shape[1], device=logits.device)
    bits = (words.tensor[:, ids // WORD_BITS] >> (ids % WORD_BITS)) & 1  # [G, vocab]
    limited = logits[indices.tensor].masked_fill_(bits == 0, BANNED)
    logits.index_copy_(0, indices.tensor, limited)
