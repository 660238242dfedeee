"""Text completions: prompts in four forms, echo, log-probabilities as evaluations read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from lightllm.protocol.messages import unpack_ids
from lightllm.server.openai import chat, completions
from lightllm.server.openai.logprobs import CompletionLogprobsWriter
from lightllm.text.tokenizer import Tokenizer

from .fake_engine import REPLY, LiveServer, Script
from .test_chat import sse


def test_text_and_default_length(client: openai.OpenAI, server: LiveServer) -> None:
    server.engine.script = Script(reply=REPLY * 3)
    answer = client.completions.create(model="toy", prompt="one two")
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].finish_reason == "length" and answer.usage is not None
    assert answer.usage.completion_tokens == 16
    prompt = unpack_ids(server.engine.submits[0].prompt).tolist()
    assert prompt == server.engine.tokenizer.encode("one two") and prompt[0] == 0  # with the beginning token


def test_stream(client: openai.OpenAI, server: LiveServer) -> None:
    stream = client.completions.create(
        model="toy", prompt="one", max_tokens=100, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == REPLY
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == len(server.engine.tokenizer.encode("one"))


@pytest.mark.parametrize("prompt", [["one", "two three"], [[5, 6, 7], [8, 9]]], ids=["texts", "token id lists"])
def test_several_prompts_and_choices(client: openai.OpenAI, server: LiveServer, prompt: Any) -> None:
    server.engine.script = Script(
        reply=lambda submit: f"{len(server.engine.submits)} {unpack_ids(submit.prompt).tolist()} {submit.seed}"
    )
    answer = client.completions.create(model="toy", prompt=prompt, n=2, seed=7, max_tokens=100)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    encode = server.engine.tokenizer.encode
    ids = [encode(item) if isinstance(item, str) else item for item in prompt]
    ends = [f" {ids[place // 2]} {7 + place % 2}" for place in range(4)]
    assert all(choice.text.endswith(end) for choice, end in zip(answer.choices, ends, strict=True))
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids[0]) + len(ids[1])


def test_token_ids_as_one_prompt(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.completions.create(model="toy", prompt=[5, 6, 7], max_tokens=1, echo=True)
    assert unpack_ids(server.engine.submits[0].prompt).tolist() == [5, 6, 7]
    tokenizer = server.engine.tokenizer
    first = tokenizer.token_text(tokenizer.encode(REPLY, add_special_tokens=False)[0])
    assert answer.choices[0].text == tokenizer.decode([5, 6, 7]) + first


def test_logprobs(client: openai.OpenAI, server: LiveServer) -> None:
    answer = client.completions.create(model="toy", prompt="one", max_tokens=100, logprobs=3)
    found = answer.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.text_offset is not None
    assert found.top_logprobs is not None and found.token_logprobs is not None
    assert found.token_logprobs[0] == -0.25 and found.top_logprobs[0][found.tokens[0]] == -0.25
    assert min(found.top_logprobs[0].values()) == -9999.0
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert "\ufffd" in token or REPLY[offset : offset + len(token)] == token


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_prompt_is_scored_as_lm_eval_asks(client: openai.OpenAI, server: LiveServer, max_tokens: int) -> None:
    prompts = [[20, 21, 22, 23], [24, 25]]
    answer = client.completions.create(
        model="toy", prompt=prompts, max_tokens=max_tokens, echo=True, logprobs=1, temperature=0, seed=1
    )
    for choice, prompt in zip(answer.choices, prompts, strict=True):
        found = choice.logprobs
        assert found is not None and found.tokens is not None and found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert len(found.tokens) == len(prompt) + max_tokens == len(found.text_offset or [])
        assert found.token_logprobs[0] is None and found.token_logprobs[1] == -2.0
        top: list[Any] = found.top_logprobs
        assert top[0] is None and max(top[1].values()) == found.token_logprobs[1]
        assert choice.text.startswith(server.engine.tokenizer.decode(prompt))
        assert choice.finish_reason == "length"
    assert {submit.max_tokens for submit in server.engine.submits} == {max_tokens}
    assert {submit.params.prompt_logprobs for submit in server.engine.submits} == {1}


def test_echo_in_a_stream(http: httpx.Client, server: LiveServer) -> None:
    body = {"prompt": "one two", "echo": True, "logprobs": 1, "stream": True, "max_tokens": 100}
    chunks = sse(http.post("/v1/completions", json=body).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one two" + REPLY
    found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    tokens = [token for part in found for token in part["tokens"]]
    encode = server.engine.tokenizer.encode
    assert len(tokens) == len(encode("one two")) + len(encode(REPLY, add_special_tokens=False))
    assert found[0]["token_logprobs"][0] is None and found[0]["text_offset"][:2] == [0, 0]


def test_no_text_ends_a_line_of_a_stream(http: httpx.Client, server: LiveServer) -> None:
    """Clients that read lines as Unicode has them (httpx's `iter_lines`) would cut an event in two."""
    prompt = "one\u2028two\u2029three\u0085four\r\n\x0bfive\x1c"
    body = {"prompt": prompt, "echo": True, "stream": True, "max_tokens": 1}
    with http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"].startswith(prompt)


def test_offsets_count_special_tokens_of_an_echo(http: httpx.Client, server: LiveServer) -> None:
    """The echo of a text is that text, special tokens and all, but not those that were put before it."""
    tokenizer = server.engine.tokenizer
    for special in map(tokenizer.token_text, sorted(tokenizer.special_ids)):
        body = {"prompt": f"one{special}two three", "echo": True, "logprobs": 1, "max_tokens": 3}
        choice = http.post("/v1/completions", json=body).json()["choices"][0]
        found = choice["logprobs"]
        assert special in found["tokens"]
        shown = zip(found["tokens"], found["text_offset"], strict=True)
        fits = [choice["text"][offset : offset + len(token)] == token for token, offset in shown]
        assert all(fits[1:]), (special, found["tokens"], found["text_offset"])


@pytest.mark.parametrize("prompt", ["one on", "  one", " ", [1, 2, 3, 4], [4, 1, 1]])
def test_offsets_where_the_start_of_a_text_loses_a_space(
    own_server: Callable[..., LiveServer], tmp_path: Path, prompt: Any
) -> None:
    """As with the tokenizers of Llama 2, which put a space before each text and take it away from what they decode."""
    pieces = {piece: token_id for token_id, piece in enumerate(("<unk>", "▁", "o", "n", "▁o", "e"))}
    backend = Backend(models.BPE(pieces, [("▁", "o")], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    server = own_server(Tokenizer.load(tmp_path))
    body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
    choice = httpx.post(server.url + "/v1/completions", json=body).json()["choices"][0]
    text, found = choice["text"], choice["logprobs"]
    ends = [*found["text_offset"][1:], len(text)]
    shown = [text[start:end] for start, end in zip(found["text_offset"], ends, strict=True)]
    assert "".join(shown) == text and shown[1:] == found["tokens"][1:] and shown[0] == found["tokens"][0][1:]


@pytest.mark.parametrize("logprobs", [None, 1])
def test_ids_that_no_token_has_give_an_echo_no_text(
    http: httpx.Client, server: LiveServer, logprobs: int | None
) -> None:
    body = {"echo": True, "logprobs": logprobs, "max_tokens": 2, "seed": 1}
    ids = server.engine.tokenizer.encode("one two", add_special_tokens=False)
    padded = http.post("/v1/completions", json={**body, "prompt": [ids[0], 599, *ids[1:]]})  # the model has 600
    plain = http.post("/v1/completions", json={**body, "prompt": ids})
    assert padded.status_code == 200, padded.text
    shown, usual = padded.json()["choices"][0], plain.json()["choices"][0]
    assert shown["text"] == usual["text"]
    if logprobs is not None:
        offsets = usual["logprobs"]["text_offset"]
        assert shown["logprobs"]["text_offset"] == [offsets[0], offsets[1], *offsets[1:]]


def test_prompt_logprobs_beside_an_echo(http: httpx.Client) -> None:
    body = {"prompt": [20, 21], "echo": True, "logprobs": 2, "prompt_logprobs": 1, "max_tokens": 1}
    choice = http.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["prompt_logprobs"][0] is None and list(choice["prompt_logprobs"][1]) == ["21"]
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2


def test_surrogates_never_reach_the_answer(http: httpx.Client, server: LiveServer) -> None:
    """Bytes that never become a character end as U+FFFD, once, at the end of the text."""
    ids = server.engine.tokenizer.encode("Hello", add_special_tokens=False)
    half = next(i for i in range(600) if server.engine.tokenizer.token_bytes(i) == b"\xf0")
    server.engine.script = Script(ids=[*ids, half])
    text = http.post("/v1/completions", json={"prompt": "one", "stream": True}).text
    assert [chunk["choices"][0]["text"] for chunk in sse(text)][-1] == "\ufffd"
    json.dumps(text)


def test_how_a_request_wants_to_be_served(client: openai.OpenAI, server: LiveServer) -> None:
    terms = {"cache_salt": "s", "priority": 3, "tenant": "acme", "ttft_target": 2.5, "tpot_target": 0.1}
    client.completions.create(model="toy", prompt="one", extra_body={**terms, "refuse_late": True})
    client.completions.create(model="toy", prompt="one", extra_body={"share_prefix": False})
    first, second = server.engine.submits
    assert {name: getattr(first, name) for name in terms} == terms and first.refuse_late and first.share_prefix
    assert not second.share_prefix and second.tenant == ""


@pytest.mark.parametrize("terms", [{"ttft_target": 0}, {"tpot_target": -1}, {"tenant": "x" * 300}, {"tenant": 5}])
def test_impossible_terms(client: openai.OpenAI, terms: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=next(iter(terms))):
        client.completions.create(model="toy", prompt="one", extra_body=terms)


@pytest.mark.parametrize(
    ("module", "route", "field"),
    [(completions, "/v1/completions", "prompt"), (chat, "/v1/chat/completions", "messages")],
)
def test_many_prompt_logprobs_do_not_hold_up_other_requests(
    http: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch, module: ModuleType, route: str, field: str
) -> None:
    text = "one two three " * 10
    prompt = text if field == "prompt" else [{"role": "user", "content": text}]
    body = {field: prompt, "prompt_logprobs": 20}
    assert_others_are_served(http, server.url + route, body, monkeypatch, module, "prompt_logprobs")


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_many_logprobs_does_not_hold_up_other_requests(
    http: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    body = {"prompt": "one two three " * 10, "echo": True, "logprobs": 20, "max_tokens": 1, "stream": stream}
    url = server.url + "/v1/completions"
    assert_others_are_served(http, url, body, monkeypatch, CompletionLogprobsWriter, "add")


def assert_others_are_served(
    http: httpx.Client, url: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    """While a function of `owner` works on the answer, which it does until then."""
    work, begun, others_are_served = getattr(owner, name), Event(), Event()

    def work_slowly(*args: Any) -> Any:
        begun.set()
        assert others_are_served.wait(10)
        return work(*args)

    monkeypatch.setattr(owner, name, work_slowly)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, url, json=body)
        assert begun.wait(10)
        try:
            assert http.get("/live", timeout=5).status_code == 200
        finally:
            others_are_served.set()
        assert answer.result().status_code == 200
