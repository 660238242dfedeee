"""The GPU engine against the CPU engine, on tiny models in float16.

Half precision rounds, so tokens are not compared one by one: the CPU's float32 engine scores what the GPU chose, and
each choice must be the likeliest there or within rounding of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightllm import LLM, SamplingParams
from lightllm.device.device import find_device
from lightllm.engine import build as building
from lightllm.engine import frame as framing
from lightllm.engine.graphs import DecodeOutput, StepGraphs
from lightllm.engine.transfer import STEPS, Downloads, upload
from lightllm.protocol.plan import StepPlan

pytestmark = pytest.mark.gpu

GPU: dict[str, Any] = {"device": "cuda", "dtype": "float16"}
ROUNDING = 0.05
"""Nats that float16 may move a log-probability by, with these weights."""
EXACT_SHARE = 0.95
"""Tokens of which the CPU says the same."""
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks of 7": {"chunk_size": 7},
    "small steps": {"max_step_tokens": 32},
    "no prefix cache": {"prefix_cache": False},
    "few at a time": {"max_running": 3},
    "preempted": {"max_total_tokens": 150, "max_model_len": 100, "estimator": "fixed", "fixed_output_len": 1},
}

Checkpoint = tuple[Path, Any]


@pytest.fixture(scope="module", params=[("Llama", {}), ("Qwen3", {"head_dim": 32}), ("Qwen2", {})], ids=lambda p: p[0])
def model(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Checkpoint]) -> Path:
    family, changes = request.param
    return make_checkpoint(family, seed=11, **changes)[0]


@pytest.fixture(scope="module")
def reference(model: Path) -> Iterator[LLM]:
    with LLM(str(model), device="cpu", dtype="float32") as llm:
        yield llm


def prompts(count: int, longest: int = 60) -> list[list[int]]:
    rng = random.Random(count)
    shared = [rng.randrange(3, 512) for _ in range(20)]
    lengths = [rng.randint(1, longest) for _ in range(count)]
    return [
        [*(shared if i % 3 == 0 else []), *(rng.randrange(3, 512) for _ in range(n))] for i, n in enumerate(lengths)
    ]


def generate(llm: LLM, given: list[list[int]], count: int) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    return [output.outputs[0].token_ids for output in llm.generate(given, params, progress=False)]


def check_greedy(reference: LLM, given: list[list[int]], chosen: list[list[int]]) -> None:
    """Every token is the likeliest that could follow what stands before it, up to rounding."""
    params = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=1)
    whole = [prompt + ids for prompt, ids in zip(given, chosen, strict=True)]
    ranks: list[int] = []
    for prompt, output in zip(given, reference.generate(whole, params, progress=False), strict=True):
        assert output.prompt_logprobs is not None
        for entry in output.prompt_logprobs[len(prompt) :]:
            assert entry is not None
            assert entry.top[0][1] - entry.logprob < ROUNDING
            ranks.append(entry.rank)
    assert sum(rank == 0 for rank in ranks) >= EXACT_SHARE * len(ranks)


def check_argmax(graphs: StepGraphs | None) -> None:
    """From now on, assert that a graph's greedy ids have the largest of its logits."""
    assert graphs is not None
    replay = graphs.decode

    def checked(*args: Any) -> DecodeOutput | None:
        output = replay(*args)
        assert output is not None
        ids, bad = output.chosen[:, : len(output.logits)]
        best = output.logits.gather(1, ids.long()[:, None])[:, 0]
        assert torch.equal(best, output.logits.amax(1)) and not bad.any()
        return output

    graphs.decode = checked  # type: ignore[method-assign]


@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_greedy_tokens_are_those_of_the_cpu(model: Path, reference: LLM, way: dict[str, Any]) -> None:
    given = prompts(17)
    with LLM(str(model), **GPU, **way) as llm:
        chosen = generate(llm, given, 24)
        again = generate(llm, given, 24)
        scheduler = llm._parts.scheduler
        scheduler.check()
        assert scheduler.memory.ledger().in_use == 0
        if "estimator" in way:
            assert scheduler.counters.num_preemptions > 0
        elif way.get("prefix_cache", True):
            assert scheduler.counters.hit_tokens > 0
    check_greedy(reference, given, chosen)
    check_greedy(reference, given, again)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 33])
def test_replayed_graphs_give_what_eager_steps_give(model: Path, reference: LLM, count: int) -> None:
    """Batches that fill a bucket and that do not, sequences that end one by one, lengths up to the model's limit."""
    given = prompts(count, longest=20)
    params = [SamplingParams(temperature=0, max_tokens=30 + 5 * i, ignore_eos=True) for i in range(count)]
    params[0] = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    results = []
    for graphs in (True, False):
        with LLM(str(model), **GPU) as llm:
            engine = llm._parts.engine
            if graphs:
                check_argmax(engine._graphs)
            else:
                engine._graphs = None
            outputs = llm.generate(given, params, progress=False)
            results.append([output.outputs[0].token_ids for output in outputs])
            if graphs:
                assert engine._graphs is not None
                buckets = engine._graphs._buckets
                sizes = [size.sequences for size in buckets if size.decodes]
                assert max(sizes) >= count and min(sizes) == 1
                assert all(bucket is not None for bucket in buckets.values())
    replayed, eager = results
    check_greedy(reference, given, replayed)
    check_greedy(reference, given, eager)
    parted = sum(a != b for a, b in zip(replayed, eager, strict=True))
    assert parted <= max(1, count / 2), "rounding parts some sequences, not most"


def test_logits_of_a_graph_are_those_of_an_eager_step(model: Path) -> None:
    """Log-probabilities of the first generated tokens, whose inputs are the same either way."""
    given = prompts(6)
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=20, ignore_eos=True)
    tops = []
    for graphs in (True, False):
        with LLM(str(model), **GPU) as llm:
            if not graphs:
                llm._parts.engine._graphs = None
            outputs = [output.outputs[0] for output in llm.generate(given, params, progress=False)]
            tops.append([dict(o.logprobs[1].top) for o in outputs if o.logprobs is not None])
    for replayed, eager in zip(*tops, strict=True):
        common = sorted(replayed.keys() & eager.keys())
        assert len(common) >= 17
        np.testing.assert_allclose([replayed[i] for i in common], [eager[i] for i in common], atol=ROUNDING)


def test_graphs_of_chunks_give_what_eager_steps_give(model: Path, reference: LLM) -> None:
    """Chunks beside decodes, padded and not, through graphs captured in idle time: every step must find one."""
    given = prompts(21, longest=90)
    params = [SamplingParams(temperature=0, max_tokens=5 + i, ignore_eos=True) for i in range(len(given))]
    with LLM(str(model), **GPU, max_running=32, max_step_tokens=64, chunk_size=40, prefix_cache=False) as llm:
        engine = llm._parts.engine
        while engine.prepare_next():
            pass
        graphs = engine._graphs
        assert graphs is not None
        chunks, seen = graphs.chunks, []

        def watched(*args: Any) -> Any:
            seen.append(chunks(*args))
            return seen[-1]

        graphs.chunks = watched  # type: ignore[method-assign]
        outputs = llm.generate(given, params, progress=False)
    assert len(seen) > 10 and all(output is not None for output in seen)
    check_greedy(reference, given, [output.outputs[0].token_ids for output in outputs])


def test_a_seed_draws_the_same_tokens_alone_and_in_a_batch(model: Path) -> None:
    """Drawn tokens come from the replayed logits. Alone they are the same again; the size of the batch changes
    roundings, which seldom change a token."""
    given = prompts(12)
    drawn = [SamplingParams(temperature=0.8, top_p=0.9, seed=i, max_tokens=3, ignore_eos=True) for i in range(12)]
    with LLM(str(model), **GPU, prefix_cache=False) as llm:

        def draw(first: int, end: int) -> list[list[int]]:
            outputs = llm.generate(given[first:end], drawn[first:end], progress=False)
            return [output.outputs[0].token_ids for output in outputs]

        alone = [draw(i, i + 1) for i in range(12)]
        assert [draw(i, i + 1) for i in range(12)] == alone
        together = draw(0, 12)
    assert sum([tokens] == single for tokens, single in zip(together, alone, strict=True)) >= 9


def test_a_real_step_stays_within_the_measured_peak(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    measure = framing.measure_step

    def note(frame: framing.Frame, step_tokens: int, max_len: int) -> int:
        measured.append(measure(frame, step_tokens, max_len))
        return measured[-1]

    monkeypatch.setattr(framing, "measure_step", note)
    with LLM(str(model), **GPU, max_step_tokens=1024, max_running=16) as llm:
        engine = llm._parts.engine
        engine._graphs = None
        launch = engine.launch
        peaks: dict[int, int] = {}

        def watched(plan: StepPlan) -> Any:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            ticket = launch(plan)
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            peaks[plan.num_tokens] = max(peak, peaks.get(plan.num_tokens, 0))
            return ticket

        monkeypatch.setattr(engine, "launch", watched)
        params = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=2, ignore_eos=True)
        rng = random.Random(0)
        llm.generate([[rng.randrange(512) for _ in range(200)] for _ in range(16)], params, progress=False)
    assert max(peaks) == 1024
    assert 0 < peaks[1024] <= 1.02 * measured[0]  # three times as much is kept free


def test_weights_take_no_more_than_themselves(make_checkpoint: Callable[..., Checkpoint]) -> None:
    """Loading a float32 checkpoint as float16: the peak is the weights and a few pieces, not a second copy."""
    directory, _ = make_checkpoint("Llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8, shard="20MB")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    device, _ = find_device("cuda")
    reader = building.ConfigReader.load(directory)
    spec = building.read_model_spec(reader)
    kernels = building.choose_kernels(device, torch.float16, spec.head_shape)
    workspace = torch.cuda.memory_allocated() - before
    settings = building.ModelSettings(model=str(directory))
    _, weights = building._load(settings, directory, spec, 256, torch.float16, device, kernels)
    torch.cuda.synchronize()
    taken = torch.cuda.memory_allocated() - before - workspace
    peak = torch.cuda.max_memory_allocated() - before - workspace
    assert weights.name == "weights" and taken > 40 << 20
    assert peak - taken < 8 * (4 << 20) + (2 << 20)


def test_arrays_cross_both_ways() -> None:
    device = torch.device("cuda")
    arrays = [np.arange(5), np.arange(0), np.arange(100, 103)]
    tensors = upload(arrays, device)
    assert [tensor.device.type for tensor in tensors] == ["cuda"] * 3
    assert [tensor.tolist() for tensor in tensors] == [array.tolist() for array in arrays]
    from lightllm.kernels.triton.tokens import move

    download = Downloads(device, move).open()
    hosts = [download.add(tensor * 2) for tensor in tensors]
    download.seal()
    download.wait()
    assert all(host.is_pinned() for host in hosts if host.numel())
    assert [host.tolist() for host in hosts] == [(array * 2).tolist() for array in arrays]


def test_a_download_holds_what_was_there_when_it_was_sealed() -> None:
    """Later work on the stream does not reach back into what is on its way, whether it is small or large."""
    tensors = [torch.zeros(size, dtype=torch.int32, device="cuda") for size in (100, 1 << 20)]
    from lightllm.kernels.triton.tokens import move

    downloads = Downloads(tensors[0].device, move)
    seen = []
    for step in range(STEPS):
        download = downloads.open()
        for tensor in tensors:
            tensor.add_(1)
            seen.append((download, download.add(tensor), step + 1))
        download.seal()
    for download, host, value in seen:
        download.wait()
        assert int(host.min()) == int(host.max()) == value
