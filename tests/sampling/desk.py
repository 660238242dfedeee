"""A sampler with the history that an engine would keep for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightllm.kernels.transfer import Transfer
from lightllm.protocol.plan import OpenedRow
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.sampling.draw import DrawParameters, kept_weights
from lightllm.sampling.sampler import Sampled, Sampler, TokenMasks
from lightllm.sampling.stage import HostBatch


def opened(
    row: int,
    tokens: Sequence[int] = (0,),
    prompt_len: int | None = None,
    *,
    seed: int = 0,
    eos_ids: tuple[int, ...] = (),
    bad_words: tuple[tuple[int, ...], ...] = (),
    **params: Any,
) -> OpenedRow:
    prompt_len = len(tokens) if prompt_len is None else prompt_len
    known = np.array(tokens, np.int32)
    return OpenedRow(row, known, prompt_len, SamplingParams(max_tokens=None, **params), seed, eos_ids, bad_words)


class Desk:
    """Rows are opened, sampled and grow as in an engine."""

    def __init__(self, vocab_size: int, max_rows: int = 64, max_len: int = 128, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.sampler = Sampler(max_rows=max_rows, vocab_size=vocab_size, device=self.device)
        self.history = torch.zeros(max_rows, max_len, dtype=torch.int32, device=self.device)
        self.lengths = np.zeros(max_rows, np.int32)

    def open(self, row: int, tokens: Sequence[int] = (0,), prompt_len: int | None = None, **rest: Any) -> None:
        self.sampler.open(opened(row, tokens, prompt_len, **rest))
        self.history[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32, device=self.device)
        self.lengths[row] = len(tokens)

    def tokens(self, row: int) -> list[int]:
        return self.history[row, : self.lengths[row]].tolist()

    def sample(self, logits: Tensor, rows: Sequence[int] | None = None, masks: TokenMasks | None = None) -> Sampled:
        """Sample once without appending; the logits given are left as they are."""
        chosen = np.array(range(len(logits)) if rows is None else rows, np.int32)
        batch = self.sampler.prepare(chosen, self.lengths[chosen])
        return self.sampler.sample(logits.clone(), batch, self.history, masks=masks)

    def step(self, logits: Tensor, rows: Sequence[int] | None = None) -> list[int]:
        """Sample and append, as an engine does."""
        ids = self.sample(logits, rows).token_ids.tolist()
        for row, token in zip(range(len(logits)) if rows is None else rows, ids, strict=True):
            self.history[row, self.lengths[row]] = token
            self.lengths[row] += 1
        return ids

    def edited(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """The logits as all stages before the temperature leave them."""
        chosen = np.array(range(len(logits)) if rows is None else rows, np.int32)
        batch = self.sampler.prepare(chosen, self.lengths[chosen])
        logits = logits.float().clone()
        for edit in batch.edits:
            edit.apply(logits, self.history)
        return logits


def kept(logits: Tensor, params: Sequence[dict[str, Any]]) -> Tensor:
    """Which tokens [N, vocab] bool the filters of each row keep, all rows in one batch."""
    parameters = DrawParameters(len(params), logits.shape[1], logits.device)
    for row, wanted in enumerate(params):
        parameters.open(opened(row, **wanted))
    transfer = Transfer(logits.device)
    rows = np.arange(len(params), dtype=np.int32)
    plan = parameters.plan(HostBatch(rows, np.ones_like(rows)), transfer)
    transfer.send()
    assert plan is not None and plan.indices is None
    best = logits.amax(dim=1, keepdim=True)
    parts = [kept_weights(logits[g.begin : g.end].clone(), best[g.begin : g.end], plan, g) for g in plan.groups]
    return torch.cat(parts) > 0
