"""What a plan says, in numbers, for small cases; and what results make of it."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device import EOS, expected_output, make_harness

from lightllm.config.settings import SchedulerSettings
from lightllm.errors import ConfigError
from lightllm.protocol.messages import FinishReason
from lightllm.protocol.plan import StepPlan, StepResult


def shape(plan: StepPlan | None) -> list[tuple[int, int, int, bool]]:
    """(row, start, length, sampled) of each sequence."""
    assert plan is not None
    columns = (plan.rows, plan.starts, plan.lens, plan.sampled)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_a_prompt_in_chunks_then_decodes() -> None:
    harness = make_harness(64, chunk_size=4)
    harness.submit(range(2, 12), 3, ignore_eos=True)
    assert shape(harness.step()) == [(0, 0, 4, False)]
    assert shape(harness.step()) == [(0, 4, 4, False)]
    assert shape(harness.step()) == [(0, 8, 2, True)]
    assert shape(harness.step()) == [(0, 10, 1, True)]
    assert shape(harness.step()) == [(0, 11, 1, True)]
    assert harness.step() is None and harness.ends[0].finish is FinishReason.LENGTH


def test_decodes_and_prompts_share_a_step_under_the_budget() -> None:
    harness = make_harness(64, max_step_tokens=6)
    harness.submit([2, 3], 8, ignore_eos=True)
    harness.step()
    harness.submit(range(10, 20), 4)
    plan = harness.step()
    assert shape(plan) == [(0, 2, 1, True), (1, 0, 5, False)]
    assert plan is not None and plan.num_tokens == 6
    assert [opened.row for opened in plan.opened] == [1] and plan.opened[0].tokens.tolist() == list(range(10, 20))


def test_under_overlap_a_row_decodes_before_its_token_is_known() -> None:
    harness = make_harness(64)
    harness.submit([2, 3, 4], 3, ignore_eos=True)
    assert shape(harness.launch()) == [(0, 0, 3, True)]
    assert shape(harness.launch()) == [(0, 3, 1, True)]
    assert shape(harness.launch()) == [(0, 4, 1, True)]
    assert harness.launch() is None, "three tokens are under way and no more are wanted"
    harness.drain()
    harness.assert_outputs()


def test_equal_prompts_are_computed_once() -> None:
    prompt = list(range(2, 32))
    harness = make_harness(400, chunk_size=8, max_step_tokens=16)
    for _ in range(6):
        harness.submit(prompt, 1, ignore_eos=True)
    harness.drain()
    harness.assert_outputs()
    # the last prompt token is computed by each, since its output is wanted
    assert harness.computed_tokens == len(prompt) + 5


def test_a_prompt_in_progress_is_promised_and_counted_once() -> None:
    prompt = list(range(2, 62))
    harness = make_harness(100, max_len=70, chunk_size=8, max_step_tokens=32)
    for _ in range(4):
        harness.submit(prompt, 5, ignore_eos=True)
    harness.step()
    assert harness.scheduler.num_running == 4, "60 + 4 * 6 slots are enough, 4 * 65 are not needed"
    harness.drain()
    harness.assert_outputs()
    assert harness.scheduler.counters.num_preemptions == 0


@pytest.mark.parametrize("settings", [{"prefix_cache": False}, {"shareable_len": 30}], ids=str)
def test_a_prompt_that_enters_no_tree_is_promised_to_nobody(settings: dict[str, Any]) -> None:
    """Without the prefix cache, or where KV depends on more than the tokens, each computes its own."""
    prompt = list(range(2, 62))
    harness = make_harness(90, max_len=70, chunk_size=8, max_step_tokens=32, estimator="conservative", **settings)
    harness.submit(prompt, 5, ignore_eos=True)
    harness.submit(prompt[:30], 5, ignore_eos=True)
    harness.step()
    assert harness.scheduler.num_running == 1, "the prompts alone take 60 + 30 slots"
    harness.drain()
    harness.assert_outputs()


def test_a_promise_ends_with_who_gave_it() -> None:
    prompt = list(range(2, 62))
    harness = make_harness(100, max_len=70, chunk_size=8, max_step_tokens=8)
    for _ in range(3):
        harness.submit(prompt, 5, ignore_eos=True)
    harness.launch()
    harness.abort(0)
    assert all(request.promised_len == 0 for request in harness.scheduler._roster.running.values())
    harness.drain()
    harness.assert_outputs()


def test_a_second_request_patches_the_cached_prefix_into_its_row() -> None:
    harness = make_harness(64)
    first = harness.submit([2, 3, 4, 5], 1, ignore_eos=True)
    plan = harness.step()
    assert plan is not None and plan.patches == ()
    slots = plan.slots[:3].tolist()
    harness.submit([2, 3, 4, 9], 1, ignore_eos=True)
    plan = harness.step()
    assert plan is not None and [(p.start, p.slots.tolist()) for p in plan.patches] == [(0, slots)]
    assert shape(plan) == [(0, 3, 1, True)]
    assert harness.ends[first].cached_tokens == 0 and harness.ends[1].cached_tokens == 3


def test_a_prompt_in_many_chunks_is_one_use_of_its_prefix() -> None:
    harness = make_harness(64, chunk_size=2, prefix_eviction="lfu")
    once, often = list(range(2, 42)), list(range(50, 60))
    harness.submit(once, 1, ignore_eos=True)
    harness.drain()
    for _ in range(3):
        harness.submit([*often, 60], 1, ignore_eos=True)
        harness.drain()
    harness.submit(range(70, 118), 1, ignore_eos=True)
    harness.drain()
    assert harness.scheduler.memory.peek(np.array(often, np.int32)).matched_len == len(often)
    assert harness.scheduler.memory.peek(np.array(once, np.int32)).matched_len < len(once)


def test_salt_opt_out_and_prompt_logprobs_keep_out_of_the_cache() -> None:
    harness = make_harness(200)
    harness.submit([2, 3, 4, 5], 1, ignore_eos=True)
    harness.step()
    for fields in ({"salt": "x"}, {"share_prefix": False}, {"prompt_logprobs": 0}):
        harness.submit([2, 3, 4, 5], 1, ignore_eos=True, **fields)
        assert [length for _, _, length, _ in shape(harness.step())] == [4]
    harness.assert_outputs()


def test_max_tokens_zero_only_computes_the_prompt() -> None:
    harness = make_harness(64, chunk_size=4)
    harness.submit(range(2, 12), 0, prompt_logprobs=0)
    harness.drain(depth=2)
    assert harness.ends[0].finish is FinishReason.LENGTH and harness.tokens[0] == [] and harness.scores[0] == 10


def test_stop_token_ids_are_named_and_min_tokens_holds() -> None:
    harness = make_harness(64)
    every = tuple(range(2, 38))
    harness.submit([2, 3, 4], 8, stop_token_ids=every, min_tokens=3, ignore_eos=True)
    harness.drain()
    end = harness.ends[0]
    assert end.finish is FinishReason.STOP and end.stop_token == harness.tokens[0][-1]
    assert len(harness.tokens[0]) >= 3


def test_memory_that_runs_out_preempts_and_nobody_notices() -> None:
    harness = make_harness(40, estimator="fixed", fixed_output_len=1, prefix_cache=False)
    for start in (2, 12, 22):
        harness.submit(range(start, start + 10), 16, ignore_eos=True)
    harness.drain(depth=1)
    harness.assert_outputs()
    assert harness.scheduler.counters.num_preemptions > 0


def test_a_giant_prompt_blocks_nobody_and_is_not_starved() -> None:
    harness = make_harness(60, max_len=60, overtaking=5)
    harness.submit(range(2, 12), 30, ignore_eos=True)
    harness.step()
    giant = harness.submit(range(2, 50), 8, ignore_eos=True)
    order: list[int] = []
    for number in range(40):
        harness.submit([2 + number % 30, 3], 2, ignore_eos=True)
        plan = harness.step()
        order += [opened.seed for opened in plan.opened] if plan is not None else []
    harness.drain()
    harness.assert_outputs()
    assert order.index(giant) == 5, "five may pass it, then it is its turn"


def test_a_broken_step_fails_its_requests_and_their_readers() -> None:
    harness = make_harness(64, chunk_size=4)
    harness.submit(range(2, 12), 2)
    harness.launch(breaks=True)
    harness.submit(range(2, 12), 2)
    harness.launch()
    harness.land()
    harness.drain()
    assert harness.ends[0].error == ("engine_error", "the step broke")
    harness.assert_outputs()


def test_aborts_tell_themselves_in_every_state() -> None:
    harness = make_harness(64, chunk_size=4, max_running=2)
    running, in_prompt, waiting = (harness.submit(range(2 + i, 12 + i), 4) for i in range(3))
    harness.launch()
    for request_id in (waiting, in_prompt, running, 77):
        harness.abort(request_id)
    harness.drain()
    assert {harness.ends[i].finish for i in range(3)} == {FinishReason.ABORT}
    assert not harness.scheduler.request_ids


def test_many_decodes_under_a_small_budget_take_turns() -> None:
    harness = make_harness(300, max_step_tokens=3)
    for start in range(8):
        harness.submit([2 + start], 6, ignore_eos=True)
    for _ in range(40):
        harness.step()
    lengths = [len(harness.tokens.get(i, [])) for i in range(8)]
    assert min(lengths) == 6
    harness.assert_outputs()


def test_eos_ends_unless_ignored() -> None:
    harness = make_harness(400, max_len=80)
    numbers = [harness.submit([2 + start], 40) for start in range(6)]
    harness.drain()
    harness.assert_outputs()
    stopped = [n for n in numbers if harness.ends[n].finish is FinishReason.STOP]
    assert stopped and all(harness.tokens[n][-1] == EOS for n in stopped)
    assert all(expected_output(harness.submits[n])[-1] == EOS for n in stopped)


def test_what_cannot_fit_leaves_no_trace() -> None:
    harness = make_harness(64, max_len=32)
    for prompt, max_tokens in (([], 4), (range(2, 40), 4), ([2, 3], 60)):
        with pytest.raises(AssertionError, match="do not fit 32"):
            harness.submit(prompt, max_tokens)
    assert not harness.scheduler.has_work and harness.scheduler.num_waiting == 0


def test_results_come_in_order() -> None:
    harness = make_harness(64)
    harness.submit([2, 3], 4)
    harness.launch()
    with pytest.raises(AssertionError, match="result of step 9, expected 0"):
        harness.scheduler.apply(StepResult(9, np.array([5], np.int32), np.array([1], np.int32)), 0.0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_row_takes_memory_for_what_it_holds() -> None:
    """Huge pages would take megabytes for each, and the time to clear them from the step that opens it."""
    harness = make_harness(1 << 16, max_len=1 << 16, max_running=64)
    for token in range(16):
        harness.submit([2 + token], 1)
    before = resident_bytes()
    plan = harness.scheduler.schedule(0.0)
    assert plan is not None and plan.num_sequences == 16
    assert resident_bytes() - before < 2 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("policy", "lifo", "policy must be one of fcfs, priority, shortest.*got 'lifo'"),
        ("estimator", "guess", "estimator must be one of conservative, fixed.*got 'guess'"),
        ("preemption", "all", "preemption must be one of cheapest, newest"),
        ("prefix_eviction", "random", "prefix_eviction must be one of lru, lfu, priority"),
        ("watermark", 1.5, r"watermark must lie in \(0, 1\], got 1.5"),
        ("eviction_target", -0.1, r"eviction_target must lie in \[0, 1\), got -0.1"),
        ("tpot_target", 0.0, "tpot_target must be a positive number, got 0"),
        ("overtaking", -1, "overtaking must not be negative, got -1"),
        ("tenant_weight", ("a",), "tenant_weight is NAME=WEIGHT with a positive number, got 'a'"),
        ("tenant_weight", ("=2",), "tenant_weight is NAME=WEIGHT with a positive number, got '=2'"),
        ("tenant_weight", ("a=1", "b=many"), "tenant_weight is NAME=WEIGHT with a positive number, got 'b=many'"),
        ("tenant_weight", ("a=0",), "tenant_weight is NAME=WEIGHT with a positive number, got 'a=0'"),
        ("tenant_weight", ("a=nan",), "tenant_weight is NAME=WEIGHT with a positive number, got 'a=nan'"),
        ("tenant_weight", ("a=inf",), "tenant_weight is NAME=WEIGHT with a positive number, got 'a=inf'"),
        ("tenant_weight", ("a=1", "a=2"), "tenant_weight names 'a' twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SchedulerSettings(**{field: value})
