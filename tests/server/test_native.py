"""Upstream's /generate and /generate_stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from lightllm.protocol.messages import unpack_ids

from .fake_engine import REPLY, LiveServer, Script
from .test_faults import fault


def test_generate(http: httpx.Client, server: LiveServer) -> None:
    answer = http.post("/generate", json={"inputs": "one two"}).json()
    ids = server.engine.tokenizer.encode(REPLY, add_special_tokens=False)
    prompt = server.engine.tokenizer.encode("one two")
    assert answer == {
        "generated_text": [REPLY],
        "count_output_tokens": len(ids),
        "finish_reason": "stop",
        "prompt_tokens": len(prompt),
    }
    params = server.engine.submits[0].params
    assert params.temperature == 0 and params.logprobs is None  # greedy unless do_sample


def test_details_and_choices(http: httpx.Client, server: LiveServer) -> None:
    parameters = {
        "best_of": 2,
        "do_sample": True,
        "max_new_tokens": 3,
        "stop_sequences": ["x", [7]],
        "return_details": True,
        "guided_json": "",
        "suggested_dp_index": -1,
    }
    answer = http.post("/generate", json={"inputs": [5, 6], "parameters": parameters}).json()
    assert answer["finish_reason"] == ["length", "length"] and answer["count_output_tokens"] == 6
    assert [len(tokens) for tokens in answer["tokens"]] == [3, 3]
    ids = server.engine.tokenizer.encode(REPLY, add_special_tokens=False)
    first = answer["tokens"][0][0]
    assert first["id"] == ids[0] and first["logprob"] == -0.25 and first["special"] is False
    submit = server.engine.submits[0]
    assert unpack_ids(submit.prompt).tolist() == [5, 6]
    assert submit.params.stop == ("x",) and submit.params.stop_token_ids == (7,)


def test_stream(http: httpx.Client, server: LiveServer) -> None:
    text = http.post("/generate_stream", json={"inputs": "one", "parameters": {"max_new_tokens": 500}}).text
    events: list[Any] = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-1]]
    assert "".join(event["token"]["text"] for event in events) == REPLY
    ids = server.engine.tokenizer.encode(REPLY, add_special_tokens=False)
    assert [event["token"]["id"] for event in events] == ids
    assert [event["token"]["count_output_tokens"] for event in events] == list(range(1, len(ids) + 1))
    assert [event["finished"] for event in events] == [False] * (len(ids) - 1) + [True]
    assert events[-1]["finish_reason"] == "stop" and events[0]["finish_reason"] is None
    assert events[0]["generated_text"] is None and events[0]["details"] is None


def test_samples_where_the_default_is_greedy(own_server: Callable[..., LiveServer]) -> None:
    server = own_server()
    server.start_workers(generation_defaults={"temperature": 0.0})
    with httpx.Client(base_url=server.url) as http:
        for parameters in ({}, {"do_sample": True}, {"do_sample": True, "temperature": 0.5}):
            assert http.post("/generate", json={"inputs": "one", "parameters": parameters}).status_code == 200
    assert [submit.params.temperature for submit in server.engine.submits] == [0.0, 1.0, 0.5]


def test_an_error_in_a_stream_is_an_event(http: httpx.Client, server: LiveServer) -> None:
    server.engine.script = Script(error=(2, ("engine_error", "a step failed")))
    text = http.post("/generate_stream", json={"inputs": "one"}).text
    last = json.loads(text.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["code"] == "engine_error"


def test_a_stream_has_one_choice(http: httpx.Client) -> None:
    for name in ("n", "best_of"):
        body = {"inputs": "a", "parameters": {name: 2, "do_sample": True}}
        error = fault(http.post("/generate_stream", json=body))
        assert (error["param"], error["message"]) == (name, f"a stream has 1 choice, but {name} is 2")


def test_fields_that_ask_for_nothing_pass(http: httpx.Client) -> None:
    body = {"inputs": "one", "multimodal_params": {"images": []}, "stream": False, "parameters": {"max_new_tokens": 2}}
    assert http.post("/generate", json=body).status_code == 200


def test_mistakes_are_400(http: httpx.Client) -> None:
    for body, param in [
        ({}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"inputs": [5, "a"]}, "inputs[1]"),
        ({"inputs": "a", "parameters": {"best_of": 2, "n": 1}}, "best_of"),
        ({"inputs": "a", "parameters": {"stop_sequences": [[1, 2]]}}, "parameters.stop_sequences[0]"),
        ({"inputs": "a", "parameters": {"stop_sequences": [[9999]]}}, "stop_sequences"),
        ({"inputs": "a", "parameters": {"stop_sequences": [[id_] for id_ in range(257)]}}, "stop_sequences"),
        ({"inputs": "a", "parameters": {"best_of": 100}}, "best_of"),
        ({"inputs": "a", "parameters": {"n": 100}}, "n"),
        ({"inputs": "a", "parameters": {"temperature": -1, "do_sample": True}}, "temperature"),
        ({"inputs": "a", "parameters": {"temperature": -1}}, "temperature"),
        ({"inputs": "a", "max_new_tokens": 5}, "max_new_tokens"),
        ({"inputs": "a", "parameters": {"max_new_tokens": 99999}}, "max_new_tokens"),
        ({"inputs": []}, "inputs"),
        ({"inputs": "a", "multimodal_params": {"images": [{"type": "url", "data": "x"}]}}, "multimodal_params"),
        ({"inputs": "a", "stream": True}, "stream"),
    ]:
        response = http.post("/generate", json=body)
        error = fault(response)
        assert (response.status_code, error["param"]) == (400, param)
        assert "stop_token_ids" not in error["message"]
