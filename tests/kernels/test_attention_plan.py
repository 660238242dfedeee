"""The items of a step cover every key of every token exactly once, whatever the step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.kernels.ops.contracts import SequenceLayout
from lightllm.kernels.triton.attention_plan import (
    COUNT,
    KEY_END,
    KEY_START,
    NUM_PARTS,
    PART,
    POSITION,
    ROW,
    START_COST,
    TOKEN,
    DecodeItems,
    TileShape,
    make_items,
    share_units,
)

sequences = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), min_size=1, max_size=12)
shapes = st.builds(
    TileShape,
    st.sampled_from([16, 64, 128]),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(1, 400),
    st.sampled_from([1, 900, 1 << 20]),
)


@settings(max_examples=200, deadline=None)
@given(sequences, shapes)
def test_items_cover_each_tokens_keys_once(sequences, shape):
    starts, lens = np.array(sequences, np.int32).T
    layout = SequenceLayout(np.arange(len(starts), dtype=np.int32)[::-1].copy(), starts, lens)
    items, merges = make_items(layout, np.arange(len(starts)), shape)
    firsts = np.cumsum(lens) - lens
    covered = np.zeros(int(lens.sum()), np.int64)
    expected_merges = []
    for token in np.unique(items[:, TOKEN]):
        parts = items[items[:, TOKEN] == token]
        head = parts[0]
        sequence = len(starts) - 1 - head[ROW]
        assert head[POSITION] - starts[sequence] == token - firsts[sequence]
        assert 0 < head[COUNT] <= shape.tokens
        covered[token : token + head[COUNT]] += 1
        parts = parts[np.argsort(parts[:, KEY_START])]
        assert len(parts) == head[NUM_PARTS]
        keys = np.concatenate([np.arange(start, end) for start, end in parts[:, [KEY_START, KEY_END]]])
        assert np.array_equal(keys, np.arange(head[POSITION] + head[COUNT]))
        if len(parts) > 1:
            assert np.array_equal(parts[:, PART], parts[0, PART] + np.arange(len(parts)))
            expected_merges.append([token, head[COUNT], parts[0, PART], len(parts)])
    assert (covered == 1).all()
    split = items[items[:, NUM_PARTS] > 1]
    assert sorted(split[:, PART]) == list(range(len(split)))
    assert merges.tolist() == expected_merges
    assert len(items) <= shape.most_items(len(np.unique(items[:, TOKEN])))
    assert len(merges) <= shape.most_merges(len(np.unique(items[:, TOKEN])))
    assert len(split) <= shape.most_parts(len(np.unique(items[:, TOKEN])))


@settings(max_examples=100, deadline=None)
@given(sequences, shapes, st.integers(1, 150))
def test_programs_that_stay_share_all_units_evenly(sequences, shape, num_programs):
    starts, lens = np.array(sequences, np.int32).T
    layout = SequenceLayout(np.arange(len(starts), dtype=np.int32), starts, lens)
    items, _ = make_items(layout, np.arange(len(starts)), shape)
    shared = share_units(items, shape.num_kv_heads, num_programs)
    num_units = len(items) * shape.num_kv_heads
    assert np.array_equal(np.sort(shared[shared > 0]), 1 + np.arange(num_units))
    for lap, units in enumerate(shared):  # neighbours in the list are computed at the same time
        assert np.array_equal(np.sort(units[units > 0]), 1 + np.arange(num_units)[lap * num_programs :][:num_programs])
    lengths = np.append(0, np.repeat(items[:, KEY_END] - items[:, KEY_START], shape.num_kv_heads))[shared]
    work = (lengths + START_COST * (shared > 0)).sum(0)
    assert work.max() - work.min() <= lengths.max() + START_COST


def test_four_prompts_keep_all_programs_busy():
    """As a step of 8192 tokens of a model with two query heads a key/value head: in turns, one would have 17% more."""
    shape = TileShape(rows=128, group=2, num_kv_heads=8, slots=132, cached_keys=6144)
    layout = SequenceLayout(np.arange(4, dtype=np.int32), np.zeros(4, np.int32), np.full(4, 2048, np.int32))
    items, _ = make_items(layout, np.arange(4), shape)
    shared = share_units(items, 8, 132)
    blocks = np.append(-1, np.repeat(-(-items[:, KEY_END] // 128), 8))[shared] + 1
    assert blocks.sum(0).max() < 1.07 * blocks.sum(0).mean()


def test_a_full_device_is_not_split():
    shape = TileShape(rows=16, group=4, num_kv_heads=8, slots=264, cached_keys=6144)
    layout = SequenceLayout(*(np.array(a, np.int32) for a in (range(256), [600] * 256, [1] * 256)))
    items, merges = make_items(layout, np.arange(256), shape)
    assert len(items) == 256 and len(merges) == 0


def test_one_long_sequence_fills_the_device():
    shape = TileShape(rows=16, group=4, num_kv_heads=8, slots=264, cached_keys=6144)
    layout = SequenceLayout(*(np.array(a, np.int32) for a in ([0], [32767], [1])))
    assert 24 <= len(make_items(layout, np.arange(1), shape)[0]) <= 66


def test_a_million_keys_are_not_too_many():
    shape = TileShape(rows=128, group=4, num_kv_heads=8, slots=132, cached_keys=6144)
    layout = SequenceLayout(*(np.array(a, np.int32) for a in ([0], [9_000_000], [2048])))
    assert len(make_items(layout, np.arange(1), shape)[0]) <= shape.most_items(64)


def test_sequences_that_share_the_cache_are_taken_together_and_the_longest_items_first():
    shape = TileShape(rows=128, group=2, num_kv_heads=8, slots=132, cached_keys=4000)
    layout = SequenceLayout(*(np.array(a, np.int32) for a in (range(4), [0] * 4, [2048, 1024, 2048, 2048])))
    items, _ = make_items(layout, np.arange(4), shape)
    loads = [items[np.isin(items[:, ROW], rows)] for rows in ([0, 2], [3, 1])]
    assert np.array_equal(np.concatenate(loads), items)
    for load in loads:
        assert (np.diff(load[:, KEY_END] - load[:, KEY_START]) <= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=9), shapes)
def test_growing_decodes_keep_their_items_and_still_cover_every_key(starts, shape):
    kept = DecodeItems()
    starts = np.array(starts, np.int32)
    for step in range(20):
        count = len(starts) - (step > 10)  # one sequence leaves
        layout = SequenceLayout(np.arange(count, dtype=np.int32), starts[:count] + step, np.ones(count, np.int32))
        items, merges = kept.at(layout, shape)
        for row in range(count):
            parts = items[items[:, ROW] == row]
            parts = parts[np.argsort(parts[:, KEY_START])]
            keys = np.concatenate([np.arange(start, end) for start, end in parts[:, [KEY_START, KEY_END]]])
            assert np.array_equal(keys, np.arange(starts[row] + step + 1))
            assert (parts[:, POSITION] == starts[row] + step).all() and (parts[:, NUM_PARTS] == len(parts)).all()
        assert len(merges) == len(np.unique(items[items[:, NUM_PARTS] > 1][:, ROW]))
