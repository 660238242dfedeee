"""The step: what the scheduler asks of the engine (`StepPlan`) and what comes back (`StepResult`).

A plan is pure data in numpy arrays, broadcast as it is to every rank. One step may mix prompt chunks and decodes:
the batch is one flat run of tokens, sequence after sequence, without padding.

    rows     [S]   row of the slot table that belongs to sequence s
    starts   [S]   position of the first token computed in this step
    lens     [S]   tokens computed in this step (1 for a plain decode)
    slots    [T]   KV slot of each computed token, T = sum(lens)
    sampled  [S]   whether the token after the last computed one is wanted

Token ids do not travel with a step: an opened row brings its known tokens once, and the engine appends what it
samples on the device, so step n+1 can be launched before the values of step n are known on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightllm.protocol.sampling_params import SamplingParams

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]

EMPTY = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class OpenedRow:
    """A row begins to belong to a request: its known tokens [K] (prompt first), and how to sample from it."""

    row: int
    tokens: Int32
    prompt_len: int
    params: SamplingParams
    seed: int
    eos_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class TablePatch:
    """Slots [N] to write into the slot table at `row`, positions start to start+N."""

    row: int
    start: int
    slots: Int32


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, in the order the engine must do it: open rows, patch the table, compute, sample."""

    step: int
    rows: Int32
    starts: Int32
    lens: Int32
    slots: Int32
    sampled: NDArray[np.bool_]
    prompt_logprobs: NDArray[np.bool_]
    opened: tuple[OpenedRow, ...] = ()
    patches: tuple[TablePatch, ...] = ()

    @property
    def num_tokens(self) -> int:
        return len(self.slots)

    @property
    def num_sequences(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of P positions: chosen [P], its rank [P] (0 is the likeliest), the top K ids and values."""

    chosen: Float32
    ranks: Int32
    top_ids: Int32
    top_values: Float32


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave.

    `token_ids` [N] holds the accepted tokens of all sampled sequences, in plan order; `counts` [S'] says how many
    belong to each sampled sequence (1 without speculation). `logprobs` maps an index among the sampled sequences to
    its positions' log-probabilities; `prompt_logprobs` maps a sequence index to those of the chunk's next-token
    positions. `failed` maps a sequence index to an error message: that request alone fails.
    """

    step: int
    token_ids: Int32
    counts: Int32
    logprobs: dict[int, Logprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, Logprobs] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
