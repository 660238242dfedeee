"""The engine through the offline API: what shares a batch changes nothing, and a fault costs no more than it must."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lightllm import LLM, LightLLMError, SamplingParams
from lightllm.engine import runner
from lightllm.errors import ConfigError, ContextLengthExceeded, EngineError, InvalidRequest, Unavailable

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, top_k=40, seed=11, max_tokens=12, ignore_eos=True)


@pytest.fixture
def llm(tiny_llama: Path) -> Iterator[LLM]:
    with LLM(str(tiny_llama), max_step_tokens=32) as llm:
        yield llm
        llm._parts.scheduler.check()
        assert llm._parts.scheduler.memory.ledger().in_use == 0


def ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 512) for _ in range(count)]


def run(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, progress=False)]


def test_a_seed_gives_the_same_tokens_alone_and_in_any_mix(llm: LLM) -> None:
    (alone,) = run(llm, [ids(9)], [SAMPLED])
    others = [ids(n, n) for n in (1, 5, 30, 50)]
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    mixed = run(llm, [*others, ids(9)], [greedy] * 4 + [SAMPLED])
    assert mixed[-1] == alone
    assert len(set(alone)) > 3


def test_choices_differ_and_each_has_its_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=8, ignore_eos=True)
    (output,) = llm.generate([ids(6)], params, progress=False)
    choices = [choice.token_ids for choice in output.outputs]
    assert [choice.index for choice in output.outputs] == [0, 1, 2]
    assert len({tuple(choice) for choice in choices}) == 3
    second = SamplingParams(temperature=1.0, seed=4, max_tokens=8, ignore_eos=True)
    assert run(llm, [ids(6)], [second]) == [choices[1]]


def test_a_burst_of_equal_prompts_computes_the_prompt_once(llm: LLM) -> None:
    prompt = ids(60)
    params = [SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)] * 6
    results = run(llm, [prompt] * 6, params)
    counters = llm._parts.scheduler.counters
    assert len({tuple(result) for result in results}) == 1
    assert counters.queried_tokens == 6 * 60
    assert counters.hit_tokens >= 5 * 59 - 5


class NoGraphs:
    """Graphs of which none fits: what is sampled is rounded to multiples of eight, as to their sizes on a GPU."""

    num_captures = 0

    def __init__(self) -> None:
        self.rounded_counts: set[int] = set()

    def rounded(self, count: int) -> int:
        self.rounded_counts.add(count)
        return -(-count // 8) * 8

    def decode(self, *_: object) -> None:
        return None

    chunks = decode


def test_rounded_numbers_of_sampled_tokens_change_nothing(llm: LLM) -> None:
    """Rows that are computed besides are dropped again, whether tokens are drawn, scored, or prompts are."""
    prompts = [ids(n, n) for n in (1, 3, 9, 31, 40, 64)]
    params = [
        SamplingParams(temperature=0, max_tokens=5, ignore_eos=True),
        SamplingParams(max_tokens=0, prompt_logprobs=2, temperature=0),
        SAMPLED,
        SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=1, ignore_eos=True),
        SamplingParams(temperature=1.0, seed=3, max_tokens=4, logprobs=0, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0),
    ]
    expected = llm.generate(prompts, params, progress=False)
    llm._parts.engine._graphs = graphs = NoGraphs()  # type: ignore[assignment]
    llm._parts.scheduler.memory.forget()
    found = llm.generate(prompts, params, progress=False)
    assert any(count % 8 for count in graphs.rounded_counts) and 0 not in graphs.rounded_counts
    for mine, plain in zip(found, expected, strict=True):
        assert [o.token_ids for o in mine.outputs] == [o.token_ids for o in plain.outputs]
        assert [o.logprobs for o in mine.outputs] == [o.logprobs for o in plain.outputs]
        assert mine.prompt_logprobs == plain.prompt_logprobs


def test_scoring_a_prompt_without_generating(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=2, temperature=0)
    (output,) = llm.generate([ids(40)], params, progress=False)
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == 40
    assert output.outputs[0].token_ids == [] and output.outputs[0].finish_reason == "length"


def test_logprobs_name_the_chosen_token(llm: LLM) -> None:
    params = SamplingParams(temperature=0, logprobs=3, max_tokens=5, ignore_eos=True)
    (output,) = llm.generate([ids(4)], params, progress=False)
    choice = output.outputs[0]
    assert choice.logprobs is not None and len(choice.logprobs) == 5
    for token, entry in zip(choice.token_ids, choice.logprobs, strict=True):
        assert len(entry.top) == 3 and entry.rank == 0
        assert entry.top[0] == (token, pytest.approx(entry.logprob))


def test_a_failed_step_fails_its_requests_only(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llm._parts.engine._model
    whole = model.forward

    def broken(*args: object) -> None:
        raise RuntimeError("the step broke")

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(EngineError, match="RuntimeError"):
        run(llm, [ids(5)], [SAMPLED])
    monkeypatch.setattr(model, "forward", whole)
    assert len(run(llm, [ids(5)], [SAMPLED])[0]) == 12


def test_allowed_ids_are_held_against_the_models_own_end(tiny_llama: Path, tmp_path: Path) -> None:
    """The end ids of the config, which the engine bans for `min_tokens`, not those the tokenizer would name."""
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (directory / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": [7]}))
    with LLM(str(directory)) as llm:

        def only(token_id: int) -> list[list[int]]:
            params = SamplingParams(max_tokens=4, min_tokens=2, temperature=0, allowed_token_ids=(token_id,))
            return run(llm, [ids(5)], [params])

        with pytest.raises(InvalidRequest, match="leaves no token"):
            only(7)
        for end in llm.tokenizer.eos_ids - {7}:
            assert only(end) == [[end] * 4]


@pytest.mark.parametrize("where", ["launch", "collect"])
def test_an_interrupt_ends_what_ran_and_nothing_else(where: str, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a step is launched, or waited for: the next prompt finds all in order."""
    engine, turn, short = llm._parts.engine, itertools.count(), SamplingParams(temperature=0, max_tokens=2)
    expected = run(llm, [ids(5)], [short])
    whole = getattr(engine, where)

    def interrupted(argument: object) -> object:
        if next(turn) == 4:
            raise KeyboardInterrupt
        return whole(argument)

    monkeypatch.setattr(engine, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(llm, [ids(5), ids(9)], [SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)] * 2)
    assert not llm._parts.scheduler.has_work
    assert run(llm, [ids(5)], [short]) == expected


def test_an_interrupt_waits_until_the_scheduler_is_done(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a request that ends gives back what it has: nothing is lost or given back twice."""
    expected = run(llm, [ids(5)], [SAMPLED])
    residence = llm._parts.scheduler._residence
    whole = residence._forget_row

    def interrupted(row: int) -> None:
        monkeypatch.setattr(residence, "_forget_row", whole)
        signal.raise_signal(signal.SIGINT)
        whole(row)

    monkeypatch.setattr(residence, "_forget_row", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    lengths = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (3, 60)]
    with pytest.raises(KeyboardInterrupt):
        run(llm, [ids(5), ids(9)], lengths)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not llm._parts.scheduler.has_work
    llm._parts.scheduler.check()
    assert run(llm, [ids(5)], [SAMPLED]) == expected


def test_a_dropped_engine_frees_its_memory(tiny_llama: Path) -> None:
    """At once, without a garbage collection, which may be far away: the next one needs the room."""
    llm = LLM(str(tiny_llama))
    run(llm, [ids(5)], [SAMPLED])
    engine = llm._parts.engine
    left = [weakref.ref(part) for part in (llm, engine, engine._model)]
    llm.close()
    del llm, engine
    assert [part() for part in left] == [None] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_callers_default_dtype_does_not_matter(llm: LLM, tiny_llama: Path, dtype: torch.dtype) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, bad_words=("a b", "c"))
    expected = run(llm, [ids(40)], [params])
    torch.set_default_dtype(dtype)
    try:
        with LLM(str(tiny_llama)) as other:
            assert run(other, [ids(40)], [params]) == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_prompt_is_scored_beside_others_as_alone(llm: LLM, tiny_llama: Path) -> None:
    """Chunks of scored prompts, of others, and decodes share steps, some of which sample nothing."""
    lengths, scored = (90, 33, 70, 5), (True, False, True, False)
    params = [SamplingParams(temperature=0, max_tokens=9, prompt_logprobs=2 if yes else None) for yes in scored]
    prompts = [ids(length, number) for number, length in enumerate(lengths)]
    alone = [llm.generate([prompt], [one], progress=False)[0] for prompt, one in zip(prompts, params, strict=True)]
    with LLM(str(tiny_llama), max_step_tokens=32, chunk_size=24, prefix_cache=False) as small:
        together = small.generate(prompts, params, progress=False)
    for mine, expected in zip(together, alone, strict=True):
        assert mine.outputs[0].token_ids == expected.outputs[0].token_ids
        for found, wanted in zip(mine.prompt_logprobs or (), expected.prompt_logprobs or (), strict=True):
            if wanted is not None:
                assert found is not None and found.logprob == pytest.approx(wanted.logprob, abs=1e-4)


def test_prompts_are_scored_by_blocks(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = [SamplingParams(max_tokens=0, prompt_logprobs=k, temperature=0) for k in (2, -1)]
    whole = llm.generate([ids(70), ids(33, 1)], params, progress=False)
    monkeypatch.setattr(runner, "SCORED_LOGITS", 3 * 512)
    blocks = llm.generate([ids(70), ids(33, 1)], params, progress=False)
    for mine, plain in zip(blocks, whole, strict=True):
        assert mine.prompt_logprobs is not None and plain.prompt_logprobs is not None
        for found, expected in zip(mine.prompt_logprobs[1:], plain.prompt_logprobs[1:], strict=True):
            assert found is not None and expected is not None
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-4) and found.rank == expected.rank


def test_idle_time_is_for_rehearsals_until_they_end_or_memory_does(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def rehearsals() -> Iterator[None]:
        yield
        yield
        raise torch.OutOfMemoryError

    engine = llm._parts.engine
    assert not engine.prepare_next()
    monkeypatch.setattr(engine, "_rehearsals", rehearsals())
    assert [engine.prepare_next() for _ in range(4)] == [True, True, False, False]


def test_leaving_a_stream_frees_its_slots(llm: LLM) -> None:
    pieces = llm.stream(ids(10), SamplingParams(temperature=0, max_tokens=200, ignore_eos=True))
    next(pieces)
    assert llm._parts.scheduler.num_running == 1
    pieces.close()
    run(llm, [ids(3)], [SAMPLED])
    assert llm._parts.scheduler.num_requests == 0


def test_a_closed_engine_says_so(tiny_llama: Path) -> None:
    llm = LLM(str(tiny_llama))
    for _ in range(2):
        llm.close()
    for use in (lambda: run(llm, [ids(5)], [SAMPLED]), lambda: llm.stream(ids(5), SAMPLED)):
        with pytest.raises(Unavailable, match="closed"):
            use()
    assert not llm._parts.scheduler.has_work


def test_threads_take_turns_and_share_steps(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = [ids(5 + number, number) for number in range(6)]
    expected = run(llm, prompts, [greedy] * 6)

    def ask(number: int) -> list[list[int]]:
        if number % 2:
            return [[i for piece in llm.stream(prompts[number], greedy) for i in piece.token_ids] for _ in range(3)]
        return [run(llm, [prompts[number]], [greedy])[0] for _ in range(3)]

    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(6))) == [[tokens] * 3 for tokens in expected]
    assert not llm._parts.scheduler.has_work


def test_a_stream_may_be_dropped_in_the_middle_of_a_turn(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a garbage collection does, which comes when it likes."""
    endless = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    expected = run(llm, [ids(9)], [SAMPLED])
    pieces = llm.stream(ids(10), endless)
    next(pieces)
    scheduler = llm._parts.scheduler
    whole = scheduler.schedule

    def collecting(now: float) -> object:
        plan = whole(now)
        monkeypatch.setattr(scheduler, "schedule", whole)
        pieces.close()
        return plan

    monkeypatch.setattr(scheduler, "schedule", collecting)
    assert run(llm, [ids(9)], [SAMPLED]) == expected
    assert scheduler.num_requests == 0


@pytest.mark.parametrize(
    ("prompt", "params", "error", "words"),
    [
        ([], SamplingParams(), InvalidRequest, ["at least 1"]),
        ([1, 600], SamplingParams(), InvalidRequest, ["600", "511"]),
        (list(range(3, 260)), SamplingParams(), ContextLengthExceeded, ["256", "257"]),
        ([1, 2], SamplingParams(max_tokens=300), ContextLengthExceeded, ["300", "256"]),
        ([1, 2], SamplingParams(stop_token_ids=(512,)), InvalidRequest, ["512", "511"]),
    ],
)
def test_mistakes_name_the_limit_and_the_value(
    llm: LLM, prompt: list[int], params: SamplingParams, error: type[LightLLMError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        llm.generate([prompt], params, progress=False)
    assert all(word in caught.value.message for word in words), caught.value.message


def test_token_ids_may_be_of_any_integer_type_and_of_no_other(llm: LLM) -> None:
    prompts = np.array([ids(5, 1), ids(5, 2)])
    expected = run(llm, prompts.tolist(), [SAMPLED] * 2)
    assert run(llm, prompts, [SAMPLED] * 2) == expected  # type: ignore[arg-type]
    assert run(llm, prompts[0], [SAMPLED]) == expected[:1]  # type: ignore[arg-type]
    assert run(llm, torch.from_numpy(prompts)[1], [SAMPLED]) == expected[1:]  # type: ignore[arg-type]
    for wrong in ([5.5, 6.0], [5, "6"], [[5, None]], np.array([1.0]), [None]):
        with pytest.raises(InvalidRequest, match="a prompt is text or token ids, got"):
            llm.generate(wrong, progress=False)  # type: ignore[arg-type]


def test_parameters_must_match_the_prompts(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="2 sampling parameters for 1 prompts"):
        llm.generate([ids(3)], [SAMPLED, SAMPLED], progress=False)


def test_a_chat_template_file_is_found_as_the_server_finds_it(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.jinja").write_text("§ {{ messages[0].content }}", encoding="utf-8")
    with LLM(str(tiny_llama), chat_template="~/own.jinja") as llm:
        output = llm.chat([{"role": "user", "content": "Hi"}], SamplingParams(max_tokens=1))[0]
        assert output.prompt == "§ Hi"
    with LLM(str(tiny_llama), chat_template="~/other.jinja") as llm, pytest.raises(ConfigError, match=r"other\.jinja"):
        llm.chat([{"role": "user", "content": "Hi"}])
