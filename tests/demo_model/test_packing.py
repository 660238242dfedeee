"""Rows hold whole conversations, and only what the assistant says is a target."""

from __future__ import annotations

import itertools

import numpy as np
from tokenizers import Tokenizer

from tools.demo_model import packing, template

LENGTH = 1024


def test_rows_are_full_and_targets_are_the_assistants(tokenizer: Tokenizer) -> None:
    weights = {"chat": 1.0, "arithmetic": 1.0, "facts": 1.0}
    end = tokenizer.token_to_id(template.TURN_END)
    filled = 0
    for ids, document in itertools.islice(packing.rows(tokenizer, 3, LENGTH, weights), 12):
        plain, targets = ids & 0x7FFF, ids >= packing.TARGET_BIT
        padding = document == document.max()
        filled += int((~padding).sum())
        assert ids.shape == document.shape == (LENGTH,) and (np.diff(document.astype(int)) >= 0).all()
        assert not targets[padding & (plain == 0)].any()
        text = tokenizer.decode(plain[document == 0].tolist(), skip_special_tokens=False)
        assert text.startswith(template.TURN_START) and text.endswith(template.TURN_END + "\n")
        # a run of targets ends with the end of the turn
        last = np.flatnonzero(targets & ~np.append(targets[1:], False))
        assert (plain[last] == end).all()
    assert filled > 0.9 * 12 * LENGTH


def test_a_conversation_longer_than_a_row_is_dropped() -> None:
    packer = packing.Packer(8)
    assert packer.add(np.ones(9, dtype=np.uint16)) is None
    assert packer.used == [0] * packing.OPEN_ROWS
