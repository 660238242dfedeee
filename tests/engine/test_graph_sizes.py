"""Which steps graphs cover. What the graphs compute is in test_gpu.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightllm.engine.graphs import CHUNK_SEQUENCES, StepGraphs, _chunk_sizes, _decode_sizes
from lightllm.engine.rows import RowTables
from lightllm.kernels.ops.contracts import SequenceLayout
from lightllm.kernels.reference.pointwise import embed, place_tokens


@pytest.mark.parametrize("most", [1, 3, 64, 150, 256, 512, 4000])
def test_every_number_of_decodes_has_a_bucket_that_is_hardly_larger(most: int) -> None:
    counts = [size.sequences for size in _decode_sizes(most)]
    assert counts == sorted(set(counts)) and counts[-1] == min(most, 512)
    for count in range(1, counts[-1] + 1):
        bucket = next(size for size in counts if size >= count)
        assert bucket - count <= max(3, count // 4)


@pytest.mark.parametrize(("tokens", "sequences"), [(16, 1), (48, 3), (688, 256), (2048, 16), (8192, 256), (8192, 4000)])
def test_chunks_are_padded_by_a_fifth_at_most(tokens: int, sequences: int) -> None:
    sizes = list(_chunk_sizes(tokens, sequences))
    assert len(set(sizes)) == len(sizes) and not any(size.decodes for size in sizes)
    assert max(size.tokens for size in sizes) == tokens
    for count in range(17, tokens + 1, 7):
        few = min(sequences, CHUNK_SEQUENCES[0])
        bucket = next(size for size in sizes if size.tokens >= count and size.sequences >= few)
        assert bucket.tokens - count < max(16, 0.25 * count)


def test_without_room_for_graphs_none_is_tried() -> None:
    graphs = object.__new__(StepGraphs)  # a GPU is needed to make one
    graphs._decodes, graphs._buckets, graphs._full = list(_decode_sizes(8)), {}, True
    graphs._capture = lambda *_: pytest.fail("captured")  # type: ignore[method-assign]
    one = np.ones(1, np.int32)
    assert graphs.decode(SequenceLayout(one, one, one), one, np.ones(1, np.int64)) is None


def test_padding_is_no_token() -> None:
    """What graphs are padded with, position 0 of the spare row, has an embedding of 0."""
    rows = RowTables(3, 10, 99, torch.device("cpu"))
    where = torch.tensor([rows.spare_row, 0])
    ids = place_tokens(rows.history, rows.table, where, torch.zeros(2, dtype=torch.int64), torch.tensor([99, 5]))
    assert embed(ids, torch.ones(7, 4)).sum(1).tolist() == [0, 4]
