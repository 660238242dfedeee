"""Trains the demo model, its draft model and its Medusa heads together.

`python -m tools.demo_model.train OUT --minutes 8` on a GPU, `--smoke` for a tiny run on a CPU.

Generator processes write packed rows while the GPU trains; every row received stays on the device, new rows are used
first and old ones again when the generators fall behind. The schedule runs on time (`--minutes`) or on `--steps`.
`--start FOLDER` continues from the three checkpoints saved there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import companions, mixture, optimizer, packing
from .model import DEMO, DRAFT, TINY, TINY_DRAFT, Llama, load, masked_attend, save


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


class PackedForward:
    """Forward passes over packed rows: flex attention compiled on a GPU, a dense mask elsewhere."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.document = torch.empty(0)  # one buffer for all steps, so that nothing is compiled twice
        if device == "cuda":
            from torch.nn.attention.flex_attention import create_block_mask

            self.make_mask = torch.compile(create_block_mask)
            self.compiled = torch.compile(_flex_forward)

    def mask(self, document: Tensor) -> Any:
        """What `hidden` needs to keep attention inside one conversation; document: [rows, length]."""
        if self.device != "cuda":
            return masked_attend(document)
        rows, length = document.shape
        if self.document.shape != document.shape:
            self.document = held = torch.empty_like(document)

            def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                return (q >= k) & (held[b, q] == held[b, k])

            self.same = same
        self.document.copy_(document)
        return self.make_mask(self.same, rows, None, length, length, device=self.device)

    def hidden(self, model: Llama, ids: Tensor, mask: Any) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        if self.device != "cuda":
            dense: Tensor = model(ids, positions, mask)
            return dense
        packed: Tensor = self.compiled(model, ids, positions, mask)
        return packed


def _flex_forward(model: Llama, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)

    with torch.autocast("cuda", torch.bfloat16):
        hidden: Tensor = model(ids, positions, attend)
    return hidden


def targets(ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices of the positions that predict a target, and the targets."""
    chosen = F.pad(marks[:, 1:], (0, 1), value=False).flatten()
    index = chosen.nonzero().squeeze(1)
    return index, ids.flatten()[index + 1]


def run(options: Options) -> None:
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    folder = Path(tempfile.mkdtemp(prefix="rows-"))
    workers = packing.start_workers(
        options.tokenizer / "tokenizer.json", folder, options.workers, options.seed, options.length, options.weights,
        8 if options.smoke else 128,
    )  # fmt: skip
    try:
        family = Family(options)
        fit(family, options, Pool(options, folder))
        family.save()
    finally:
        for worker in workers:
            worker.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Family:
    """The demo model, its draft model and its Medusa heads, each with its optimizer, trained in one loop."""

    def __init__(self, options: Options) -> None:
        self.options, device = options, options.device
        start = options.start
        self.demo = load(start / "demo", device) if start else Llama(TINY if options.smoke else DEMO).to(device)
        self.draft = (
            load(start / "demo_draft", device) if start else Llama(TINY_DRAFT if options.smoke else DRAFT).to(device)
        )
        sizes = (self.demo.shape.hidden_size, self.demo.shape.vocab_size)
        self.medusa = (companions.load(start / "demo_medusa") if start else companions.Medusa(*sizes)).to(device)
        rates = options.matrix_rate, options.other_rate
        self.optimizers = [optimizer.Optimizer(part, *rates) for part in (self.demo, self.draft, self.medusa)]
        self.forward = PackedForward(device)
        counts = [sum(p.numel() for p in part.parameters()) for part in (self.demo, self.draft, self.medusa)]
        print(f"parameters: demo {counts[0]:,}, draft {counts[1]:,}, medusa {counts[2]:,} on {device}", flush=True)

    def step(self, batch: tuple[Tensor, Tensor, Tensor], progress: float) -> Tensor:
        """One training step; returns the three losses."""
        ids, marks, document = batch
        mask = self.forward.mask(document)
        index, wanted = targets(ids, marks)
        hidden = self.forward.hidden(self.demo, ids, mask).flatten(0, 1)[index]
        logits = self.demo.logits(hidden).float()
        loss = F.cross_entropy(logits, wanted)
        # In the last third the heads no longer pull on the model, which then serves its own task alone.
        pull = companions.PULL if progress < 0.65 else 0.0
        medusa_loss = companions.medusa_loss(self.medusa, hidden, ids, marks, index, pull)
        (loss + medusa_loss).backward()
        draft_hidden = self.forward.hidden(self.draft, ids, mask).flatten(0, 1)[index]
        draft_loss = companions.draft_loss(self.draft.logits(draft_hidden).float(), logits.detach())
        draft_loss.backward()
        factor = optimizer.factor(progress, self.options.decay_from)
        for each in self.optimizers:
            each.step(factor)
        return torch.stack((loss.detach(), draft_loss.detach(), medusa_loss.detach()))

    def save(self) -> None:
        save(self.demo, self.options.out / "demo")
        save(self.draft, self.options.out / "demo_draft")
        companions.save(self.medusa, self.options.out / "demo_medusa")


def fit(family: Family, options: Options, pool: Pool) -> None:
    started = saved = reported = time.monotonic()
    every = 10 if options.smoke else 100
    step, recent = 0, torch.zeros(3, device=options.device)
    while True:
        now = time.monotonic()
        progress = step / options.steps if options.steps else (now - started) / (options.minutes * 60)
        if progress >= 1:
            return
        recent += family.step(pool.batch(options.rows), progress)
        step += 1
        if step == 1:
            print(f"first step after {time.monotonic() - started:.0f} s", flush=True)
        if step % every == 0:
            demo, draft, medusa = (recent / every).tolist()
            rate = every * options.rows * options.length / (time.monotonic() - reported) / 1e6
            print(f"step {step} {now - started:.0f} s loss {demo:.4f} draft {draft:.3f} medusa {medusa:.3f} "
                  f"{rate:.2f}M tokens/s rows {pool.total} reused {pool.reused}", flush=True)  # fmt: skip
            recent.zero_()
            reported = time.monotonic()
        if now - saved > options.save_every:
            family.save()
            saved = now


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("lightllm/assets/demo"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=13)
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
