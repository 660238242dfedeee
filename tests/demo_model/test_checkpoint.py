"""The bundled checkpoints: sizes, Transformers as a witness, and a short run of the evaluator through lightllm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tools.demo_model import acceptance, companions, decode, evaluate, mixture, template
from tools.demo_model.backends import LightllmBackend
from tools.demo_model.conversation import Case
from tools.demo_model.model import load

LIMITS = {
    "demo/model.safetensors": 16_000_000,
    "demo_draft/model.safetensors": 3_000_000,
    "demo_medusa/medusa_lm_head.safetensors": 7_000_000,
}


@pytest.mark.parametrize("name", LIMITS)
def test_weights_are_small(assets: Path, name: str) -> None:
    assert (assets / name).stat().st_size < LIMITS[name]


@pytest.mark.parametrize("name", ["demo", "demo_draft"])
def test_transformers_loads_it_unchanged_and_agrees(assets: Path, tokenizer: Tokenizer, name: str) -> None:
    from transformers import AutoModelForCausalLM

    ids = tokenizer.encode(template.prompt([{"role": "user", "content": "What is 12 + 30?"}])).ids
    theirs, info = AutoModelForCausalLM.from_pretrained(assets / name, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ours = load(assets / name)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
        found = ours.logits(acceptance.hidden_states(ours, ids))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)


def test_it_answers_through_lightllm(demo: Path, tokenizer: Tokenizer) -> None:
    """Two held-out prompts per task and lists of up to 1024 tokens: at most one answer may be wrong."""
    cases = mixture.cases(11, 2, lambda text: len(tokenizer.encode(text).ids), lookup_count=1)
    cases = [case for case in cases if case.task != "lookup" or case.group.startswith(("256@", "1024@"))]
    outcomes = evaluate.ask(LightllmBackend(demo), tokenizer, cases)
    assert {outcome.case.task for outcome in outcomes} >= set(evaluate.GOALS)
    assert all(outcome.stopped for outcome in outcomes)
    wrong = [(outcome.case.messages[-1]["content"], outcome.text) for outcome in outcomes if not outcome.right]
    assert len(wrong) <= 1, wrong


def test_a_tool_call_reads_the_name_from_the_list(demo: Path, tokenizer: Tokenizer) -> None:
    parameters = {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}
    tools = [{"type": "function", "function": {"name": "get_current_weather", "parameters": parameters}}]
    ids = tokenizer.encode(
        template.prompt([{"role": "user", "content": "What is the weather like in Boston?"}], tools)
    ).ids
    answer = tokenizer.decode(decode.greedy(load(demo), [ids], [60])[0][:-1])
    call = json.loads(answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": "get_current_weather", "arguments": {"location": "Boston"}}


def test_companions_are_accepted(assets: Path, tokenizer: Tokenizer) -> None:
    demo, draft = load(assets / "demo"), load(assets / "demo_draft")
    medusa = companions.load(assets / "demo_medusa")
    text = template.prompt([{"role": "user", "content": "What is TokenAttention?"}])
    prompt = tokenizer.encode(text).ids
    answer = decode.greedy(demo, [prompt], [60])[0]
    with torch.inference_mode():
        drafted, verified = acceptance.walk(acceptance.draft_right(draft, prompt, answer), len(answer))
        guessed, checked = acceptance.walk(acceptance.medusa_right(medusa, demo, prompt, answer), len(answer))
    assert drafted / verified >= 2.0
    assert guessed / checked >= 1.8


def test_a_walk_counts_accepted_tokens_and_verifications() -> None:
    always, never = [True] * 9, [False] * 9
    assert acceptance.walk([always] * 4, 10) == (8, 2)  # 4 and one of the model, then the last 4
    assert acceptance.walk([never] * 4, 10) == (0, 9)
    assert acceptance.walk([always, never], 7) == (3, 3)


@pytest.mark.parametrize(
    ("check", "expected", "text", "stopped", "right"),
    [
        ("exact", "a, b", "a, b", True, True),
        ("exact", "a, b", "a, b", False, False),
        ("number", "3 - 5 = -2", "3 - 5 = -2", True, True),
        ("number", "3 - 5 = -2", "3 - 5 = 2", True, False),
        ("json", '{"a": 1}', '{"a":1}', True, True),
        ("json", '{"a": 1}', '{"a": 1', True, False),
        (
            "tool",
            '{"name": "f", "arguments": {}}',
            '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
            True,
            True,
        ),
        ("tool", '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', True, False),
        ("ends", "", "anything", True, True),
    ],
)
def test_the_evaluator_judges(check: str, expected: str, text: str, stopped: bool, right: bool) -> None:
    assert evaluate.is_right(Case("t", [], expected, check), text, stopped) is right
