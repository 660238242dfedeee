"""Trains the demo model: `python -m tools.demo_model.train OUT --minutes 8` on a GPU, `--smoke` on a CPU.

Generator processes write packed rows while the GPU trains; every row received stays on the device, new rows are used
first and old ones again when the generators fall behind. The schedule runs on time (`--minutes`) or on `--steps`.
`--start FOLDER` continues from a saved checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from . import mixture, optimizer, packing
from .model import DEMO, TINY, Llama, load, masked_attend, save

Trunk = Callable[[Llama, Tensor, Tensor], Tensor]  # model, ids, document -> hidden


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    out: Path
    tokenizer: Path
    minutes: float
    steps: int
    rows: int
    length: int
    workers: int
    seed: int
    start: Path | None
    matrix_rate: float
    other_rate: float
    decay_from: float
    weights: dict[str, float]
    smoke: bool
    save_every: float = 100.0  # seconds

    @property
    def device(self) -> str:
        return "cpu" if self.smoke or not torch.cuda.is_available() else "cuda"


class Pool:
    """Every row received so far, on the device; hands out the newest unused ones first."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.blocks: list[Tensor] = []  # each [rows, 2, length] int16
        self.fresh: list[tuple[int, int]] = []
        self.total = self.reused = 0
        self.random = torch.Generator().manual_seed(options.seed)

    def refill(self) -> None:
        found = packing.collect(self.folder)
        if found is not None:
            self.blocks.append(torch.from_numpy(found.view("int16")).to(self.options.device))
            self.fresh += [(len(self.blocks) - 1, row) for row in range(len(found))]
            self.total += len(found)

    def batch(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """ids, target marks and conversation numbers, each [rows, length]."""
        while not self.blocks:
            time.sleep(0.2)
            self.refill()
        if len(self.fresh) < rows:
            self.refill()
        taken, self.fresh = self.fresh[:rows], self.fresh[rows:]
        while len(taken) < rows:
            block = int(torch.randint(len(self.blocks), (1,), generator=self.random))
            taken.append((block, int(torch.randint(len(self.blocks[block]), (1,), generator=self.random))))
            self.reused += 1
        by_block: dict[int, list[int]] = {}
        for block, row in taken:
            by_block.setdefault(block, []).append(row)
        both = torch.cat([self.blocks[block][chosen] for block, chosen in by_block.items()]).int() & 0xFFFF
        return (both[:, 0] & 0x7FFF).long(), both[:, 0] >= packing.TARGET_BIT, both[:, 1]


def trunk_for(device: str) -> Trunk:
    """The forward pass over packed rows: flex attention compiled on a GPU, a dense mask elsewhere."""
    if device == "cpu":
        return lambda model, ids, document: model(ids, positions_of(ids), masked_attend(document))
    from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

    make_mask = torch.compile(create_block_mask)

    def forward(model: Llama, ids: Tensor, positions: Tensor, mask: BlockMask) -> Tensor:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)  # type: ignore[return-value]

        with torch.autocast("cuda", torch.bfloat16):
            hidden: Tensor = model(ids, positions, attend)
        return hidden

    compiled = torch.compile(forward)
    buffers: dict[tuple[int, ...], Tensor] = {}  # one buffer per shape, so that nothing is compiled twice

    def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (held[b, q] == held[b, k])

    held = torch.empty(0)

    def trunk(model: Llama, ids: Tensor, document: Tensor) -> Tensor:
        nonlocal held
        rows, length = ids.shape
        held = buffers.setdefault((rows, length), torch.empty_like(document))
        held.copy_(document)
        mask = make_mask(same, rows, None, length, length, device=device)
        result: Tensor = compiled(model, ids, positions_of(ids), mask)
        return result

    return trunk


def positions_of(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)


def targets(ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of the positions that predict a target, and the targets."""
    chosen = F.pad(marks[:, 1:], (0, 1), value=False).flatten()
    index = chosen.nonzero().squeeze(1)
    return index, ids.flatten()[index + 1]


def loss_of(model: Llama, trunk: Trunk, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    ids, marks, document = batch
    hidden = trunk(model, ids, document)
    index, wanted = targets(ids, marks)
    logits = model.logits(hidden.flatten(0, 1)[index])
    return F.cross_entropy(logits.float(), wanted)


def run(options: Options) -> Llama:
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = options.device
    folder = Path(tempfile.mkdtemp(prefix="rows-"))
    tokenizer_file = options.tokenizer / "tokenizer.json"
    workers = packing.start_workers(
        tokenizer_file, folder, options.workers, options.seed, options.length, options.weights, 8 if options.smoke else 128
    )
    model = load(options.start, device) if options.start else Llama(TINY if options.smoke else DEMO).to(device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}", flush=True)
    try:
        fit(model, options, Pool(options, folder))
    finally:
        for worker in workers:
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
    finish(model, options)
    return model


def fit(model: Llama, options: Options, pool: Pool) -> None:
    trunk = trunk_for(options.device)
    steps = optimizer.Optimizer(model, options.matrix_rate, options.other_rate)
    started = saved = reported = time.monotonic()
    limit = options.minutes * 60
    step, recent = 0, torch.zeros((), device=options.device)
    while True:
        now = time.monotonic()
        progress = step / options.steps if options.steps else (now - started) / limit
        if progress >= 1:
            return
        loss = loss_of(model, trunk, pool.batch(options.rows))
        loss.backward()
        steps.step(optimizer.factor(progress, options.decay_from))
        recent += loss.detach()
        step += 1
        if step == 1:
            print(f"first step after {time.monotonic() - started:.0f} s, loss {loss.item():.3f}", flush=True)
        if step % 100 == 0 or (options.smoke and step % 10 == 0):
            count = 100 if not options.smoke else 10
            mean, seconds = recent.item() / count, time.monotonic() - reported
            rate = count * options.rows * options.length / seconds
            print(f"step {step} {now - started:.0f} s loss {mean:.4f} {rate / 1e6:.2f}M tokens/s "
                  f"rows {pool.total} reused {pool.reused} waiting {len(pool.fresh)}", flush=True)  # fmt: skip
            recent.zero_()
            reported = time.monotonic()
        if now - saved > options.save_every:
            finish(model, options)
            saved = now


def finish(model: Llama, options: Options) -> None:
    save(model, options.out)


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("lightllm/assets/demo"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--other-rate", type=float, default=0.003)
    parser.add_argument("--decay-from", type=float, default=0.5)
    parser.add_argument("--weights", type=json.loads, default={}, help="JSON that changes single task weights")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, a few steps, on the CPU")
    given = vars(parser.parse_args())
    unknown = set(given["weights"]) - set(mixture.WEIGHTS)
    if unknown:
        parser.error(f"unknown tasks in --weights: {sorted(unknown)}")
    given["weights"] = {**mixture.WEIGHTS, **given["weights"]}
    if given["smoke"]:
        torch.set_num_threads(1)
        given.update(steps=given["steps"] or 30, rows=4, length=512, workers=1)
    return Options(**given)


if __name__ == "__main__":
    run(parse())
