"""Log-probabilities of the model's own distribution: from the logits before any stage, at temperature 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightllm.protocol.sampling_params import WHOLE_VOCABULARY
from lightllm.sampling.likeliest import likeliest
from lightllm.sampling.weights import log_total, rows_per_block


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Of L positions, on the device.

    chosen [L] float32: the token's log-probability; ranks [L] int32: how many tokens are strictly likelier;
    top_ids [L, K] int32 and top_values [L, K] float32: the K likeliest, best first, ties by the lowest id.
    """

    chosen: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_values: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> LogprobTensors:
        """The same with `function` applied to each tensor, for instance a copy to the host."""
        return LogprobTensors(
            function(self.chosen), function(self.ranks), function(self.top_ids), function(self.top_values)
        )

    @staticmethod
    def joined(parts: Sequence[LogprobTensors]) -> LogprobTensors:
        """Those of several runs of positions as one; at least one part."""
        if len(parts) == 1:
            return parts[0]
        return LogprobTensors(
            torch.cat([part.chosen for part in parts]),
            torch.cat([part.ranks for part in parts]),
            torch.cat([part.top_ids for part in parts]),
            torch.cat([part.top_values for part in parts]),
        )


def score(logits: Tensor, targets: Tensor, k: int) -> LogprobTensors:
    """Scores of targets [L] under logits [L, vocab] (any float dtype, unchanged), with the k likeliest tokens.

    k is cut to the vocabulary; -1 is all of it.
    """
    vocab_size = logits.shape[1]
    k = vocab_size if k == WHOLE_VOCABULARY else min(k, vocab_size)
    rows = rows_per_block(logits.device.type, vocab_size)
    starts = range(0, max(len(logits), 1), rows)
    return LogprobTensors.joined([_score(logits[i : i + rows], targets[i : i + rows], k) for i in starts])


def _score(logits: Tensor, targets: Tensor, k: int) -> LogprobTensors:
    logits = logits.float()
    target_logits = logits.gather(1, targets.long()[:, None])  # [L, 1]
    total = log_total(logits, logits.amax(dim=1, keepdim=True))
    top, ids = likeliest(logits, k)
    return LogprobTensors(
        chosen=(target_logits.double() - total).float().squeeze(1),
        ranks=(logits > target_logits).sum(dim=1, dtype=torch.int32),
        top_ids=ids.int(),
        top_values=(top.double() - total).float(),
    )
