"""Measuring which kernel computes each matrix product of a model fastest: the tables of `lightllm/kernels/tuned`.

Our own kernels are compiled together beforehand. Of the library's algorithms, which are thousands, those that a rough
timing finds fastest stand beside them. Each candidate is then checked against the vendor's product and timed by turns,
each time after a norm: within a step what counts is also how well a product begins while the kernel before it ends.
A product is timed as a block uses it: that of gate and up with the gate, be it in the kernel or one of its own, and
those whose result is added to the residual stream with the sum.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightllm.bench.kernel_timing import time_in_turn
from lightllm.bench.kernels import Inputs, ModelShape, product_weights
from lightllm.errors import ConfigError
from lightllm.kernels import cublaslt
from lightllm.kernels.cublaslt import Algorithm
from lightllm.kernels.triton.compiling import compiled_together
from lightllm.kernels.triton.launch import launcher_for
from lightllm.kernels.triton.linear_choice import (
    MOST_TILE_TOKENS,
    MOST_TOKENS,
    MOST_VECTOR_TOKENS,
    Choice,
    Choices,
    Persistent,
    Tile,
    Vector,
    choices_for,
    table_name,
    write_choice,
)
from lightllm.kernels.triton.linear_op import SplitWorkspace, TritonLinear
from lightllm.kernels.triton.norm import rms_norm

TOKENS = (
    *(1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128),
    *(144, 160, 176, 192, 208, 224, 240, 256, 320, 384, 448, 512),
)
"""Numbers of tokens that are measured: those of most graphs of decodes."""
GATED_TOKENS = (768, 1024, 2048, 4096)
"""Measured, too, where there is a gate; each stands for many numbers, for which no algorithm is searched."""
PROMPT_TOKENS = 8192
UNMEASURED_TOKENS = 7168
"""Above what was measured before and up to here, as above PROMPT_TOKENS, an algorithm for these means nothing."""
BANDS = (16, 32, 64)
VECTOR_BLOCKS = ((512, 2), (1024, 2), (1024, 4), (2048, 4), (2048, 8), (4096, 4), (4096, 8))
"""Columns at a time, warps."""
TILE_BLOCKS = ((64, 64, 6), (64, 128, 3), (64, 128, 5), (64, 256, 3), (128, 64, 4), (128, 128, 3))
"""Rows and columns of the weight at a time, pipeline stages."""
FEWEST_LIBRARY_TOKENS = 64
SEARCH_SECONDS = 1.5
KEPT_ALGORITHMS = 3
GAIN = 0.01
"""A library's algorithm must be so much faster than the library's own choice, or noise would choose."""
TOLERANCE = 0.1
"""Products, of weights scaled to one, differ by less in half precision, and gated ones by less of themselves."""

Table = dict[str, dict[str, list[str | int]]]
Use = Literal["plain", "gated", "added"]
"""What becomes of a product: see `LinearOp`."""
USES: dict[str, Use] = {"gate_up": "gated", "output": "added", "down": "added"}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best choice for a weight [num_rows, size] and a number of tokens, and the seconds every candidate took, the
    norm before it included."""

    model: str
    weight: str
    num_rows: int
    size: int
    tokens: int
    choice: Choice
    seconds: float
    vendor_seconds: float
    tried: dict[str, float] = field(default_factory=dict)


def candidates(tokens: int, *, gated: bool = False) -> list[Vector | Tile | Persistent]:
    """Which of our kernels are worth trying for so many tokens."""
    found: list[Vector | Tile | Persistent] = []
    if tokens <= MOST_VECTOR_TOKENS:
        most_registers = 4096 if tokens == 1 else 2048
        found += [
            Vector(rows, block, warps)
            for rows in ((2, 4) if gated else (1, 2, 4))
            for block, warps in VECTOR_BLOCKS
            if rows * tokens * block // warps <= most_registers
        ]
    if 1 < tokens <= MOST_TILE_TOKENS:
        found += [Tile(n, k, split, stages, 4) for n, k, stages in TILE_BLOCKS for split in (1, 2, 4)]
    if gated and tokens > MOST_TILE_TOKENS:
        found += [Persistent(band) for band in BANDS]
    return found


class AlgorithmSearch:
    """The library's algorithms for the products of one model: what it suggests for any of them, recombined."""

    def __init__(self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, room: int) -> None:
        self._room = room
        known = {
            algorithm
            for num_rows, size in shapes
            for tokens in (*TOKENS, 1024, PROMPT_TOKENS)
            if tokens >= FEWEST_LIBRARY_TOKENS
            for algorithm in cublaslt.cublaslt().suggestions((tokens, num_rows, size), dtype, room)
        }
        bases = {replace(a, tile=0, split=1, reduction=0, custom=0, cluster=0) for a in known}
        tiles, customs, clusters = {a.tile for a in known}, {a.custom for a in known}, {a.cluster for a in known}
        splits = {(a.split, a.reduction) for a in known}
        self._all = sorted(
            (
                replace(base, tile=tile, custom=custom, cluster=cluster, split=split, reduction=reduction)
                for base, tile, custom, cluster, (split, reduction) in product(bases, tiles, customs, clusters, splits)
            ),
            key=str,
        )
        random.Random(0).shuffle(self._all)
        self._found: dict[Algorithm, None] = {}

    def fastest(self, x: Tensor, weights: Sequence[Tensor], workspace: SplitWorkspace) -> list[Algorithm]:
        """The best few found in `SEARCH_SECONDS`: of the library's own suggestions, those found for other products, and
        as many more as there is time for."""
        library, sizes = cublaslt.cublaslt(), (x.shape[0], weights[0].shape[0], weights[0].shape[1])
        out = x.new_empty(sizes[:2])
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        timed: list[tuple[float, Algorithm]] = []
        give_up_at = time.perf_counter() + SEARCH_SECONDS
        for algorithm in dict.fromkeys([*library.suggestions(sizes, x.dtype, self._room), *self._found, *self._all]):
            if time.perf_counter() > give_up_at:
                break
            run = library.product(sizes, x.dtype, algorithm, self._room)
            if run is not None:
                begin.record()
                for weight in islice(cycle(weights), 6):
                    run(x, weight, out, workspace.partials)
                end.record()
                torch.cuda.synchronize()
                timed.append((begin.elapsed_time(end), algorithm))
        best = [algorithm for _, algorithm in sorted(timed, key=lambda pair: pair[0])[:KEPT_ALGORITHMS]]
        self._found.update(dict.fromkeys(best))
        return best


def tune(models: Sequence[ModelShape], inputs: Inputs, device_name: str) -> Iterator[Tuned]:
    """The best for every weight and number of tokens, as it is found; what the device's table says now takes part."""
    workspace, hopper = SplitWorkspace(inputs.device), launcher_for(inputs.device).hopper
    for model in models:
        shapes = model.weights()
        search = None
        if cublaslt.version():
            blocks = [shape for name, shape in shapes.items() if name != "head"]
            search = AlgorithmSearch(blocks, inputs.dtype, workspace.partials.nbytes)
        for name, (num_rows, size) in shapes.items():
            weights, use = product_weights(num_rows, size, inputs), USES.get(name, "plain")
            known = choices_for(num_rows, size, inputs.dtype, device_name, hopper=hopper)
            gated = hopper and use == "gated"
            prompts = () if name == "head" else (PROMPT_TOKENS,)
            numbers = (*TOKENS, *(GATED_TOKENS if gated else ()), *prompts)
            ours = {tokens: candidates(tokens, gated=gated) for tokens in numbers}
            _compile(weights[0], ours, use, inputs, workspace)
            for tokens, choices in ours.items():
                x, before = inputs.random(tokens, size), known.at(tokens)
                found: list[Choice] = [*choices]
                if before is not None and (gated or not isinstance(before, Persistent)):
                    found.insert(0, before)
                searched = name != "head" and tokens >= FEWEST_LIBRARY_TOKENS and tokens not in GATED_TOKENS
                if search is not None and searched:
                    found += search.fastest(x, weights, workspace)
                trial = _Trial(x, weights, use, workspace)
                choice, seconds, vendor, tried = trial.run(list(dict.fromkeys(found)))
                yield Tuned(model.name, name, num_rows, size, tokens, choice, seconds, vendor, tried)


def _compile(
    weight: Tensor,
    ours: Mapping[int, Sequence[Vector | Tile | Persistent]],
    use: Use,
    inputs: Inputs,
    workspace: SplitWorkspace,
) -> None:
    with compiled_together():
        for tokens, choices in ours.items():
            trial = _Trial(inputs.random(tokens, weight.shape[1]), [weight], use, workspace)
            for choice in choices:
                with suppress(Exception):  # what cannot be launched is told apart when it is timed
                    trial.products(choice)[0](trial.x)


@dataclass(frozen=True, slots=True)
class _Trial:
    """Candidates for the product of x [T, K] and any of the weights [N, K]."""

    x: Tensor
    weights: Sequence[Tensor]
    use: Use
    workspace: SplitWorkspace

    def run(self, choices: Sequence[Choice]) -> tuple[Choice, float, float, dict[str, float]]:
        """The best, its seconds, those of the vendor's product, and those of every candidate that serves."""
        expected = self.products(None)[0](self.x).float()
        right = [choice for choice in choices if self._is_right(choice, expected)]
        groups = [[partial(self._after_norm, op) for op in self.products(choice)] for choice in (None, *right)]
        vendor, *times = time_in_turn(groups)
        best: tuple[float, Choice] = (vendor, None)
        for choice, seconds in zip(right, times, strict=True):
            if not isinstance(choice, Algorithm) or seconds < (1 - GAIN) * vendor:
                best = min(best, (seconds, choice), key=lambda pair: pair[0])
        tried = {
            "-".join(map(str, write_choice(choice))): seconds for choice, seconds in zip(right, times, strict=True)
        }
        return best[1], best[0], vendor, tried

    def products(self, choice: Choice) -> list[Callable[[Tensor], Tensor]]:
        """x [T, K] -> the product as `choice` says, in its use, for each weight."""
        choices = Choices(((MOST_TOKENS, choice),), "on trial")
        ops = [TritonLinear(weight, None, choices, self.workspace) for weight in self.weights]
        match self.use:
            case "plain":
                return list(ops)
            case "gated":
                return [partial(op.gated, kind="silu") for op in ops]
            case "added":
                residual = self.x.new_ones(len(self.x), len(self.weights[0]))
                return [partial(_added, op, residual) for op in ops]

    def _is_right(self, choice: Choice, expected: Tensor) -> bool:
        """Whether a candidate runs here and gives the expected product, in float32."""
        try:
            found = self.products(choice)[0](self.x)
        except Exception as problem:  # too much shared memory, for example: no candidate on this device
            if "CUDA error" in str(problem):
                raise
            return False
        return bool(((found.float() - expected).abs() <= TOLERANCE * (1 + expected.abs())).all())

    def _after_norm(self, product: Callable[[Tensor], Tensor]) -> Tensor:
        """A product behind a small kernel that makes its input, as in a step: what starts early gains there, not
        alone."""
        return product(rms_norm(self.x, self.weights[0][0], 1e-5))


def _added(op: TritonLinear, residual: Tensor, x: Tensor) -> Tensor:
    op.add(x, residual)
    return residual


def as_table(tuned: Sequence[Tuned]) -> Table:
    """The choices in the form of the tables."""
    table: Table = {}
    for found in tuned:
        steps = table.setdefault(f"{found.num_rows}x{found.size}", {})
        steps[str(found.tokens)] = write_choice(found.choice)
        if found.tokens == PROMPT_TOKENS:
            beyond = write_choice(found.choice if isinstance(found.choice, Persistent) else None)
            steps[str(UNMEASURED_TOKENS)] = steps[str(MOST_TOKENS)] = beyond
    return table


def installed_table(device_name: str) -> Path:
    """Where the engine looks for the table of a device."""
    return Path(str(resources.files("lightllm.kernels"))) / "tuned" / table_name(device_name)


def write_table(path: Path, device_name: str, table: Table) -> None:
    """Write a table, keeping the shapes and numbers of tokens it already has; whoever reads meanwhile sees the old one
    or the new. Raises ConfigError when that cannot be done."""
    try:
        known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        kept: Table = known.get("linear", {})
        if known.get("cublaslt") != cublaslt.version():  # the numbers of its algorithms mean nothing any more
            kept = {
                shape: {m: e if e[0] != "cublaslt" else ["cublas"] for m, e in s.items()} for shape, s in kept.items()
            }
        merged = {**kept, **{shape: {**kept.get(shape, {}), **steps} for shape, steps in table.items()}}
        content = {"device": device_name, "linear": merged, "cublaslt": cublaslt.version()}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(path)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"cannot write the table {path}: {error}", param="table") from error
