"""Turns conversations into rows of token ids, many conversations to a row, and streams them from several processes.

A row is three arrays of `length` entries: ids, whether the id is a training target, and the number of the conversation
within the row (attention stays inside one conversation).

```
ids      [ conversation 0 ......... | conversation 1 ... | conversation 2 ..... | padding ]
document [ 0 0 0 0 0 0 0 0 0 0 0 0  | 1 1 1 1 1 1 1 1 1  | 2 2 2 2 2 2 2 2 2 2  | 3 3 3   ]
```
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import mixture, template

TARGET_BIT = 0x8000  # ids are below 2**15, so the top bit of an id can say "train on me"
OPEN_ROWS = 6
CONVERSATIONS_AT_ONCE = 256

Row = tuple[np.ndarray, np.ndarray]


def encode(tokenizer: Tokenizer, rng: random.Random, weights: dict[str, float]) -> list[np.ndarray]:
    """A batch of conversations as ids with TARGET_BIT set on targets, each shape [tokens] uint16."""
    texts: list[str] = []
    marks: list[bool] = []
    counts: list[int] = []
    for _ in range(CONVERSATIONS_AT_ONCE):
        found = template.pieces(mixture.conversation(rng, weights))
        counts.append(len(found))
        texts += [text for text, _ in found]
        marks += [mark for _, mark in found]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    result: list[np.ndarray] = []
    start = 0
    for count in counts:
        parts = [
            np.array(encoded[i].ids, dtype=np.uint16) | (TARGET_BIT if marks[i] else 0)
            for i in range(start, start + count)
        ]
        result.append(np.concatenate(parts).astype(np.uint16))
        start += count
    return result


class Packer:
    """Fills a few open rows at a time; the fullest is closed when nothing fits."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.open: list[list[np.ndarray]] = [[] for _ in range(OPEN_ROWS)]
        self.used = [0] * OPEN_ROWS

    def add(self, document: np.ndarray) -> Row | None:
        """Place one conversation; returns a row when one had to be closed. Too long a conversation is dropped."""
        size = len(document)
        if size > self.length:
            return None
        closed: Row | None = None
        fitting = [i for i in range(OPEN_ROWS) if self.used[i] + size <= self.length]
        if fitting:
            place = max(fitting, key=self.used.__getitem__)
        else:
            place = max(range(OPEN_ROWS), key=self.used.__getitem__)
            closed = self._close(place)
        self.open[place].append(document)
        self.used[place] += size
        return closed

    def _close(self, place: int) -> Row:
        documents = self.open[place]
        ids = np.zeros(self.length, dtype=np.uint16)
        numbers = np.full(self.length, len(documents), dtype=np.uint16)
        filled = self.used[place]
        ids[:filled] = np.concatenate(documents)
        numbers[:filled] = np.repeat(np.arange(len(documents), dtype=np.uint16), [len(d) for d in documents])
        self.open[place], self.used[place] = [], 0
        return ids, numbers


def rows(tokenizer: Tokenizer, seed: int, length: int, weights: dict[str, float] | None = None) -> Iterator[Row]:
    """An endless stream of packed rows."""
    rng, packer = random.Random(seed), Packer(length)
    while True:
        for document in encode(tokenizer, rng, weights or mixture.WEIGHTS):
            closed = packer.add(document)
            if closed is not None:
                yield closed


def _work(
    tokenizer_file: str, seed: int, length: int, weights: dict[str, float], folder: str, block: int, ahead: int
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stream = rows(Tokenizer.from_file(tokenizer_file), seed, length, weights)
    parent = os.getppid()
    number = 0
    while os.getppid() == parent:
        if len(list(Path(folder).glob(f"{seed}-*.npy"))) >= ahead:
            time.sleep(0.05)
            continue
        taken = [next(stream) for _ in range(block)]
        both = np.stack([np.stack(row) for row in taken])  # [block, 2, length]
        temporary = Path(folder) / f".{seed}-{number}.npy"
        np.save(temporary, both)
        temporary.rename(Path(folder) / f"{seed}-{number:06d}.npy")
        number += 1


def start_workers(
    tokenizer_file: Path,
    folder: Path,
    count: int,
    seed: int,
    length: int,
    weights: dict[str, float],
    block: int = 128,
    ahead: int = 4,
) -> list[multiprocessing.process.BaseProcess]:
    """`count` processes that keep up to `ahead` files of `block` rows each in `folder`; they end with their parent."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    workers: list[multiprocessing.process.BaseProcess] = []
    for index in range(count):
        arguments = (str(tokenizer_file), seed * 1000 + index, length, weights, str(folder), block, ahead)
        worker = context.Process(target=_work, args=arguments, daemon=True)
        worker.start()
        workers.append(worker)
    return workers


def collect(folder: Path) -> np.ndarray | None:
    """All rows now waiting in `folder`, shape [rows, 2, length], or None; the files are removed."""
    found = []
    for file in sorted(folder.glob("[0-9]*.npy")):
        found.append(np.load(file))
        file.unlink()
    return np.concatenate(found) if found else None
