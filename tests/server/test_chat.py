"""Chat completions as the official client sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from lightllm.protocol.messages import unpack_ids
from lightllm.text.tokenizer import Tokenizer

from .conftest import TEMPLATE
from .fake_engine import REPLY, LiveServer, Script

MESSAGES: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def sse(text: str) -> list[Any]:
    """Decoded events of a stream, with its exact framing checked."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_a_whole_answer(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.chat.completions.create(model="toy", messages=MESSAGES)
    choice = answer.choices[0]
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "toy"
    assert choice.message.role == "assistant" and choice.message.content == REPLY
    assert choice.finish_reason == "stop" and choice.logprobs is None and choice.message.tool_calls is None
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    submit = server.engine.submits[0]
    assert answer.usage.prompt_tokens == len(unpack_ids(submit.prompt))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    prompt = server.engine.tokenizer.decode(unpack_ids(submit.prompt).tolist(), skip_special_tokens=False)
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert submit.max_tokens == 1024 - len(unpack_ids(submit.prompt))  # the rest of the context
    assert submit.request_id >> 48 == 3 and 0 <= submit.seed < 1 << 63


def test_a_stream_has_one_role_pieces_and_an_end(http: httpx.Client) -> None:
    response = http.post("/v1/chat/completions", json={"model": "toy", "messages": MESSAGES, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = sse(response.text)
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert sum("role" in chunk["choices"][0]["delta"] for chunk in chunks) == 1
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], "toy", "chat.completion.chunk")
    }
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == REPLY and "\ufffd" not in "".join(texts)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1]["choices"][0]["delta"] == {} and all("usage" not in chunk for chunk in chunks)


def test_stream_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="toy", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_continuous_usage(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": MESSAGES, "stream": True, "stream_options": options}
    chunks = sse(http.post("/v1/chat/completions", json=body).text)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] > 5


def test_choices_differ_by_seed_and_interleave(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.script = Script(reply=lambda submit: f"seed {submit.seed}", delay=0.002)
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, n=3, seed=(1 << 63) - 1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == [f"seed {(1 << 63) - 1 + i}" for i in range(3)]
    assert answer.usage is not None
    prompt_len = len(unpack_ids(server.engine.submits[0].prompt))
    assert answer.usage.prompt_tokens == prompt_len  # counted once
    stream = client.chat.completions.create(model="toy", messages=MESSAGES, n=3, stream=True)
    texts = {0: "", 1: "", 2: ""}
    order = []
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        order.append(chunk.choices[0].index)
    assert all(text.startswith("seed ") for text in texts.values()) and len(set(texts.values())) == 3
    assert order != sorted(order)


def test_finish_reasons(client: openai.OpenAI) -> None:
    cut = client.chat.completions.create(model="toy", messages=MESSAGES, max_tokens=50, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None and cut.usage.completion_tokens == 2  # max_completion_tokens wins
    stopped = client.chat.completions.create(model="toy", messages=MESSAGES, stop=["How", "never"])
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].message.content == "Hello, wörld 🎉! "
    assert stopped.choices[0].model_extra == {"stop_reason": "How"}


def test_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, logprobs=True, top_logprobs=3)
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None and answer.usage is not None and len(content) == answer.usage.completion_tokens
    data = bytes(byte for entry in content for byte in entry.bytes or [])
    assert data.decode() == REPLY
    assert content[0].logprob == -0.25 and len(content[0].top_logprobs) == 3
    assert content[0].top_logprobs[0].token == content[0].token
    assert content[0].top_logprobs[2].logprob == -9999.0
    stream = client.chat.completions.create(
        model="toy",
        messages=MESSAGES,
        logprobs=True,
        stream=True,
        extra_body={"return_tokens_as_token_ids": True},
    )
    tokens = [
        entry.token
        for chunk in stream
        if chunk.choices[0].logprobs is not None
        for entry in chunk.choices[0].logprobs.content or []
    ]
    ids = server.engine.tokenizer.encode(REPLY, add_special_tokens=False)
    assert tokens == [f"token_id:{token_id}" for token_id in ids]


def test_prompt_logprobs(http: httpx.Client) -> None:
    body = {"messages": MESSAGES, "prompt_logprobs": 1, "max_tokens": 1}
    found = http.post("/v1/chat/completions", json=body).json()["prompt_logprobs"]
    assert found[0] is None
    (token_id,) = found[1]
    assert found[1][token_id]["rank"] == 1 and found[1][token_id]["logprob"] == -2.0


def test_tool_calls(client: openai.OpenAI, server: LiveServer) -> None:
    call = '{"name": "weather", "arguments": {"city": "Köln", "days": [1, 2]}}'
    server.engine.script = Script(reply=f"Let me see.\n<tool_call>\n{call}\n</tool_call>")
    arguments = '{"city": "Köln", "days": [1, 2]}'
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER], tool_choice="auto")
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    made: Any = choice.message.tool_calls[0]
    assert made.function.name == "weather" and made.function.arguments == arguments
    assert made.id.startswith("call_") and made.type == "function"
    with client.chat.completions.stream(model="toy", messages=MESSAGES, tools=[WEATHER]) as stream:
        deltas = [
            event.chunk.choices[0].delta.tool_calls[0]
            for event in stream
            if event.type == "chunk" and event.chunk.choices[0].delta.tool_calls
        ]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == arguments
    assert [delta.id is not None for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert [delta.function and delta.function.name for delta in deltas] == ["weather"] + [None] * (len(deltas) - 1)
    cut = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER], max_tokens=40)
    assert cut.choices[0].finish_reason == "length"


def test_calls_sent_back_are_shown_as_they_were_written(
    own_server: Any, tokenizer_with: Callable[..., Tokenizer]
) -> None:
    """The client's own objects, whose fields have another order and which hold the arguments once more, parsed."""
    written = '{"name": "weather", "arguments": {"city": "Rome"}}'
    template = TEMPLATE.replace("call.function.arguments", "call.function")
    server = own_server(tokenizer_with(chat_template=template))
    server.engine.script = Script(reply=f"<tool_call>{written}</tool_call>")
    strict: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        with client.chat.completions.stream(model="toy", messages=MESSAGES, tools=[strict]) as stream:
            message: Any = stream.get_final_completion().choices[0].message
        assert message.tool_calls[0].function.parsed_arguments == {"city": "Rome"}
        client.chat.completions.create(model="toy", messages=[*MESSAGES, message], tools=[WEATHER])
    prompt = server.engine.tokenizer.decode(unpack_ids(server.engine.submits[-1].prompt).tolist())
    assert written in prompt and "parsed_arguments" not in prompt


def test_one_call_only_without_parallel_calls(client: openai.OpenAI, server: LiveServer) -> None:
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    server.engine.script = Script(reply=call + call)
    both = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER])
    assert both.choices[0].message.content is None and len(both.choices[0].message.tool_calls or []) == 2
    one = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER], parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls or []) == 1


def test_tools_of_a_template_for_tools(own_server: Any, tokenizer_with: Callable[..., Tokenizer]) -> None:
    """As the checkpoints of Hermes 2 Pro and 3 come: the default template knows no tools, another one does."""
    plain = "{% for message in messages %}{{ message.content }}{% endfor %}"
    templates = [{"name": "default", "template": plain}, {"name": "tool_use", "template": TEMPLATE}]
    server = own_server(tokenizer_with(chat_template=templates))
    server.engine.script = Script(reply='<tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER])
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None


def test_tags_that_are_special_tokens(own_server: Any, tokenizer_with: Callable[..., Tokenizer]) -> None:
    """As where a fine-tune added them, or a checkpoint marks them so: hidden, nothing would tell a call from text."""
    tags = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    added = {str(600 + index): {"content": tag, "special": True} for index, tag in enumerate(tags)}
    server = own_server(tokenizer_with(added_tokens_decoder=added))
    server.engine.script = Script(
        reply='<think>\nHm.\n</think>\n\n<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    )
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER])
        hidden = client.chat.completions.create(
            model="toy", messages=MESSAGES, tools=[WEATHER], extra_body={"skip_special_tokens": True}
        )
    message: Any = answer.choices[0].message
    assert message.reasoning == "Hm." and message.content is None
    assert message.tool_calls[0].function.name == "weather"
    assert "weather" in (hidden.choices[0].message.content or "")


def test_markup_is_text_without_tools(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.script = Script(reply='<tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    plain = client.chat.completions.create(model="toy", messages=MESSAGES)
    assert plain.choices[0].finish_reason == "stop" and "<tool_call>" in (plain.choices[0].message.content or "")
    none = client.chat.completions.create(model="toy", messages=MESSAGES, tools=[WEATHER], tool_choice="none")
    assert none.choices[0].message.tool_calls is None


@pytest.mark.parametrize(
    ("reply", "thinking"), [("<think>\nHm.\n</think>\n\nYes.", False), ("Hm.\n</think>\n\nYes.", True)]
)
def test_reasoning_has_two_names(client: openai.OpenAI, server: LiveServer, reply: str, thinking: bool) -> None:
    server.engine.script = Script(reply=reply)
    extra = {"chat_template_kwargs": {"enable_thinking": thinking}}
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, extra_body=extra)
    message: Any = answer.choices[0].message
    assert (message.content, message.reasoning, message.reasoning_content) == ("Yes.", "Hm.", "Hm.")
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens
    stream = client.chat.completions.create(model="toy", messages=MESSAGES, stream=True, extra_body=extra)
    deltas: list[Any] = [chunk.choices[0].delta for chunk in stream]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.content or "" for delta in deltas) == "Yes."


def test_an_answer_that_is_held_back_is_no_reasoning(client: openai.OpenAI, server: LiveServer) -> None:
    """Text may come late, as what could begin a stop sequence does; nothing was thought meanwhile."""
    server.engine.script = Script(reply="Yes.")
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, stop="Yes. And", extra_body=extra)
    assert answer.choices[0].message.content == "Yes."
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


def test_unfinished_reasoning_is_all_reasoning(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.script = Script(reply="<think>\nThis takes long")
    answer = client.chat.completions.create(model="toy", messages=MESSAGES, max_tokens=12)
    message: Any = answer.choices[0].message
    assert message.content is None and message.reasoning and answer.choices[0].finish_reason == "length"


def test_messages_in_many_forms(client: openai.OpenAI, server: LiveServer) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]  # fmt: skip
    client.chat.completions.create(
        model="toy-alias",
        messages=messages,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        logit_bias={"17": 5, "18": -100},
        extra_body={"top_k": 7, "min_p": 0.1, "bad_words": ["fox"], "stop_token_ids": [4], "whatever": 1},
    )
    submit = server.engine.submits[0]
    prompt = server.engine.tokenizer.decode(unpack_ids(submit.prompt).tolist(), skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>") and '{"city": "Rome"}' in prompt
    assert submit.params.logit_bias == {17: 5, 18: -100} and submit.params.top_k == 7
    spaced = tuple(server.engine.tokenizer.encode(" fox", add_special_tokens=False))
    bare = tuple(server.engine.tokenizer.encode("fox", add_special_tokens=False))
    assert submit.bad_words == (bare, spaced)


def test_continue_final_message(http: httpx.Client, server: LiveServer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "I am"}]
    body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "model": None}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    prompt = server.engine.tokenizer.decode(unpack_ids(server.engine.submits[0].prompt).tolist())
    assert prompt.endswith("I am")


@pytest.mark.parametrize("content", ["<think>\nSo", [{"type": "text", "text": "<think>\nSo"}]])
def test_continue_reasoning(http: httpx.Client, server: LiveServer, content: Any) -> None:
    """Who writes how the model is to begin to think gets the rest of it as reasoning."""
    server.engine.script = Script(reply=" it is.\n</think>\n\nYes.")
    messages = [*MESSAGES, {"role": "assistant", "content": content}]
    answer = http.post("/v1/chat/completions", json={"messages": messages, "continue_final_message": True}).json()
    message = answer["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (" it is.", "Yes.")


def test_defaults_of_the_model(own_server: Any) -> None:
    server = own_server()
    server.start_workers(generation_defaults={"temperature": 0.6, "top_k": 20, "top_p": 0.95})
    with httpx.Client(base_url=server.url) as http:
        http.post("/v1/chat/completions", json={"messages": MESSAGES, "top_k": -1, "temperature": None})
    params = server.engine.submits[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.6, -1, 0.95)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_several_choices_differ_where_the_default_is_greedy(own_server: Callable[..., LiveServer], path: str) -> None:
    server = own_server()
    server.start_workers(2, generation_defaults={"temperature": 0.0})
    body = {"messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello"}
    with httpx.Client(base_url=server.url) as http:
        assert http.post(path, json=body).status_code == 200
        assert http.post(path, json={**body, "n": 2}).status_code == 200
        assert http.post(path, json={**body, "n": 2, "temperature": 0}).status_code == 400
    assert [submit.params.temperature for submit in server.engine.submits] == [0.0, 1.0, 1.0]
