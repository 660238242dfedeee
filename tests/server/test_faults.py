"""What is wrong with a request is said with the right status, in one shape, and never with a traceback."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import openai
import pytest

from lightllm.errors import LightLLMError

from .fake_engine import LiveServer, Script

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def fault(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, whose shape is checked."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text and "/lightllm/" not in response.text
    error: dict[str, Any] = body["error"]
    return error


MALFORMED = {
    "empty": (b"", "the request has no body; a JSON object is expected"),
    "cut": (b'{"messages": [', "the body is not valid JSON: it, or a character in it, ends too early"),
    "garbage": (b"messages=1", "the body is not valid JSON: invalid character (byte 0)"),
    "trailing": (b"{} {}", "the body is not valid JSON: trailing characters (byte 4)"),
    "nan": (b'{"temperature": NaN}', "the body is not valid JSON: invalid character (byte 16)"),
    "infinity": (b'{"temperature": -Infinity}', "the body is not valid JSON: invalid character (byte 17)"),
    "too large a number": (b'{"temperature": 1e999}', "the body is not valid JSON: Number out of range"),
    "too long a number": (b'{"seed": 1' + b"0" * 5000 + b"}", None),
    "repeated key": (b'{"n": 1, "n": 2}', "the body is not valid JSON: the key 'n' appears twice in one object"),
    "utf-8": (b'{"prompt": "\xff"}', "the body is not valid UTF-8: invalid start byte"),
    "utf-16": ('{"prompt": "a"}'.encode("utf-16"), None),
    "surrogate": (b'{"prompt": "\\ud800"}', None),
    "surrogate bytes": (b'{"prompt": "\xed\xa0\x80"}', "the body is not valid UTF-8: invalid continuation byte"),
    "a list": (b"[1]", "the body must be a JSON object"),
    "a text": (b'"hello"', "the body must be a JSON object"),
    "deep": (b'{"a":' * 50000 + b"1" + b"}" * 50000, "the body is nested too deeply"),
}


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/generate"])
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies(http: httpx.Client, name: str, path: str) -> None:
    content, message = MALFORMED[name]
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = fault(response)
    assert error["type"] == "BadRequestError" and error["code"] == "invalid_request"
    assert error["message"] == message or message is None


FIELDS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no messages": (CHAT, {}, "messages", "messages is required"),
    "empty messages": (CHAT, {"messages": []}, "messages", "messages is empty"),
    "messages no list": (CHAT, {"messages": "hi"}, "messages", "messages must be a list, not a string"),
    "message no object": (CHAT, {"messages": [1]}, "messages[0]", "messages[0] must be an object, not an integer"),
    "no role": (CHAT, {"messages": [{"content": "a"}]}, "messages[0].role", "messages[0].role must be a string"),
    "role": (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "'robot'"),
    "content": (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "not an integer"),
    "text for a number": (CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature",
                          "temperature must be a number or null, not a string"),
    "true for a number": (CHAT, {"messages": HELLO, "max_tokens": True}, "max_tokens", "not true or false"),
    "fraction": (CHAT, {"messages": HELLO, "n": 1.5}, "n", "n must be an integer or null, not a number"),
    "stop": (CHAT, {"messages": HELLO, "stop": ["a", 1]}, "stop[1]", "stop[1] must be a string, not an integer"),
    "empty stop": (CHAT, {"messages": HELLO, "stop": ""}, "stop", "non-empty"),
    "negative temperature": (CHAT, {"messages": HELLO, "temperature": -1}, "temperature",
                             "temperature must lie in [0, 100], got -1"),
    "tiny repetition_penalty": (CHAT, {"messages": HELLO, "repetition_penalty": 1e-320}, "repetition_penalty",
                                "repetition_penalty must lie in [0.01, 100], got 1e-320"),
    "part type": (CHAT, {"messages": [{"role": "user", "content": [{"type": ["text"], "text": "a"}]}]},
                  "messages[0].content[0].type", "must be a string, not a list"),
    "part type too long": (CHAT, {"messages": [{"role": "user", "content": [{"type": "t" * 5000}]}]},
                           "messages[0].content[0].type", "'" + "t" * 80 + "' is not supported"),
    "top_p": (CHAT, {"messages": HELLO, "top_p": 0}, "top_p", "top_p must lie in (0, 1], got 0"),
    "negative max_tokens": (CHAT, {"messages": HELLO, "max_tokens": -5}, "max_tokens", "at least 1, got -5"),
    "zero max_tokens": (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens", "got 0"),
    "huge n": (CHAT, {"messages": HELLO, "n": 10**30}, "n", "n must be between 1 and 128"),
    "n above the queue": (CHAT, {"messages": HELLO, "n": 100}, "n", "at most 32 can be queued"),
    "huge seed": (CHAT, {"messages": HELLO, "seed": 1 << 64}, "seed", "seed must be between"),
    "greedy n": (CHAT, {"messages": HELLO, "temperature": 0, "n": 2}, "n", "n must be 1 when temperature is 0"),
    "stream options": (CHAT, {"messages": HELLO, "stream_options": {}}, "stream_options", "needs stream"),
    "top_logprobs": (CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    "many top_logprobs": (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs",
                          "top_logprobs must be between 0 and 20, got 21"),
    "streamed prompt_logprobs": (CHAT, {"messages": HELLO, "stream": True, "prompt_logprobs": 1}, "prompt_logprobs",
                                 "cannot be streamed"),
    "prompt_logprobs beside an echo": (TEXT, {"prompt": "a", "echo": True, "logprobs": 3, "prompt_logprobs": -2},
                                       "prompt_logprobs", "got -2"),
    "logit_bias key": (CHAT, {"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias", "token ids, got 'a'"),
    "logit_bias twice": (CHAT, {"messages": HELLO, "logit_bias": {"5": 1, "05": 2}}, "logit_bias", "once as '05'"),
    "logit_bias value": (CHAT, {"messages": HELLO, "logit_bias": {"1": 101}}, "logit_bias", "[-100, 100]"),
    "huge logit_bias key": (CHAT, {"messages": HELLO, "logit_bias": {str(1 << 31): 1}}, "logit_bias", "2147483647"),
    "negative stop id": (CHAT, {"messages": HELLO, "stop_token_ids": [-1]}, "stop_token_ids", "got -1"),
    "logit_bias id": (CHAT, {"messages": HELLO, "logit_bias": {"600": 1}}, "logit_bias", "ids 0 to 599"),
    "allowed ids": (CHAT, {"messages": HELLO, "allowed_token_ids": [601]}, "allowed_token_ids", "601"),
    "allowed end": (CHAT, {"messages": HELLO, "allowed_token_ids": [1], "min_tokens": 1}, "allowed_token_ids",
                    "leaves no token to choose"),
    "allowed stop": (TEXT, {"prompt": "a", "allowed_token_ids": [5, 6], "stop_token_ids": [5, 6, 7], "min_tokens": 1},
                     "allowed_token_ids", "leaves no token to choose"),
    "min above max": (CHAT, {"messages": HELLO, "min_tokens": 5, "max_tokens": 4}, "min_tokens", "exceed"),
    "no tools": (CHAT, {"messages": HELLO, "tools": []}, "tools", "got 0"),
    "tool without a name": (CHAT, {"messages": HELLO, "tools": [{"type": "function", "function": {}}]},
                            "tools[0].function.name", "is required"),
    "tool of a kind": (CHAT, {"messages": HELLO, "tools": [{"type": "web", "function": {"name": "a"}}]},
                       "tools[0].type", "web"),
    "choice without tools": (CHAT, {"messages": HELLO, "tool_choice": "auto"}, "tool_choice", "needs tools"),
    "forced choice": (CHAT, {"messages": HELLO, "tool_choice": "required",
                             "tools": [{"function": {"name": "a"}}]}, "tool_choice", "constrained decoding"),
    "choice of tools": (CHAT, {"messages": HELLO, "tools": [{"function": {"name": "a"}}], "tool_choice": {
                            "type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
                        "tool_choice", "tool_choice.type 'allowed_tools' is not supported"),
    "unknown choice": (CHAT, {"messages": HELLO, "tool_choice": {"type": "function", "function": {"name": "b"}},
                              "tools": [{"function": {"name": "a"}}]}, "tool_choice", "'b'"),
    "json output": (CHAT, {"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format",
                    "response_format is not supported"),
    "guided": (CHAT, {"messages": HELLO, "guided_json": {}}, "guided_json", "guided_json is not supported"),
    "best_of": (TEXT, {"prompt": "a", "best_of": 2}, "best_of", "best_of is not supported"),
    "beam": (TEXT, {"prompt": "a", "use_beam_search": True}, "use_beam_search", "not supported"),
    "suffix": (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "suffix is not supported"),
    "template variable": (CHAT, {"messages": HELLO, "chat_template_kwargs": {"messages": []}},
                          "chat_template_kwargs", "messages"),
    "template self": (CHAT, {"messages": HELLO, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs", "self"),
    "effort": (CHAT, {"messages": HELLO, "reasoning_effort": "extreme"}, "reasoning_effort", "extreme"),
    "priority": (TEXT, {"prompt": "a", "priority": 10**30}, "priority", "priority must be an integer <= 2147483647"),
    "salt": (TEXT, {"prompt": "a", "cache_salt": "a" * 257}, "cache_salt", "a string of length <= 256"),
    "too many entries of all choices": (TEXT, {"prompt": [5] * 1000, "prompt_logprobs": -1, "n": 8, "max_tokens": 1},
                                        "prompt_logprobs", "asks for 4800000 entries in all, at most 4194304"),
    "too many entries": (TEXT, {"prompt": [[5] * 1000] * 8, "prompt_logprobs": -1, "max_tokens": 1}, "prompt_logprobs",
                         "asks for 4800000 entries in all, at most 4194304"),
    "no prompt": (TEXT, {}, "prompt", "prompt is required"),
    "empty prompt": (TEXT, {"prompt": []}, "prompt", "prompt is an empty list"),
    "no tokens": (TEXT, {"prompt": "", "add_special_tokens": False}, "prompt", "no tokens"),
    "mixed prompt": (TEXT, {"prompt": ["a", 1]}, "prompt[1]", "prompt[1] must be a string"),
    "mixed ids": (TEXT, {"prompt": [1, "a"]}, "prompt[1]", "prompt[1] must be a token id"),
    "negative id": (TEXT, {"prompt": [-1]}, "prompt[0]", "prompt[0] must be a token id, got -1"),
    "unknown id": (TEXT, {"prompt": [[5], [600]]}, "prompt", "token id 600, but the vocabulary has ids 0 to 599"),
    "huge id": (TEXT, {"prompt": [10**40]}, "prompt[0]", "must be a token id"),
    "no output": (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1, or 0 with echo"),
    "text logprobs": (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs", "logprobs must be between 0 and 20, got 21"),
    "both": ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "not both"),
    "bad token": ("/detokenize", {"tokens": [5, 100000]}, "tokens", "100000"),
    "tokens": ("/detokenize", {"tokens": [5, "a"]}, "tokens[1]", "must be an integer, not a string"),
    "parameter": ("/generate", {"inputs": "a", "parameters": {"heat": 1}}, "parameters.heat",
                  "parameters.heat is not a known field"),
    "parameter type": ("/generate", {"inputs": "a", "parameters": {"top_k": "x"}}, "parameters.top_k", "a string"),
    "constraint": ("/generate", {"inputs": "a", "parameters": {"guided_json": "{}"}}, "guided_json", "not available"),
    "max_new_tokens": ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": -1}}, "max_new_tokens",
                       "max_new_tokens must be between 0 and 16777216, got -1"),
    "min_new_tokens": ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1, "min_new_tokens": 2}},
                       "min_new_tokens", "min_new_tokens (2) must not exceed max_new_tokens (1)"),
    "best_of 0": ("/generate", {"inputs": "a", "parameters": {"best_of": 0}}, "best_of", "best_of must be between"),
    "stream of two": ("/generate_stream", {"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}},
                      "best_of", "a stream has 1 choice"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (
            CHAT,
            {"messages": HELLO, "max_completion_tokens": 9000},
            "max_completion_tokens",
            "completion_tokens of 9000",
        ),
        (CHAT, {"messages": HELLO, "max_tokens": 9000}, "max_tokens", "max_tokens of 9000"),
        (CHAT, {"messages": [{"role": "user", "content": "one " * 9000}]}, "messages", "no room"),
        ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 9000}}, "max_new_tokens", "max_new_tokens of"),
        ("/generate", {"inputs": "one " * 9000}, "inputs", "no room"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "one " * 9000}], "max_completion_tokens": 5},
            "messages",
            "and max_completion_tokens of 5",
        ),
        ("/generate", {"inputs": "one " * 9000, "parameters": {"max_new_tokens": 5}}, "inputs", "max_new_tokens of 5"),
    ],
)
def test_what_does_not_fit_is_named_as_it_was_sent(
    http: httpx.Client, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    error = fault(http.post(path, json=body))
    assert (error["param"], error["code"]) == (param, "context_length_exceeded") and words in error["message"]


@pytest.mark.parametrize("name", FIELDS)
def test_fields(http: httpx.Client, server: LiveServer, name: str) -> None:
    path, body, param, words = FIELDS[name]
    response = http.post(path, json=body)
    error = fault(response)
    assert response.status_code == 400, error
    assert (error["param"], error["type"], error["code"]) == (param, "BadRequestError", "invalid_request"), error
    assert words in error["message"]
    assert not server.engine.submits


@pytest.mark.parametrize(
    ("fields", "param", "numbers"),
    [
        ({"prompt": [5] * 1024}, "prompt", ["1024 tokens", "a prompt of 1024"]),
        ({"prompt": [5] * 5000}, "prompt", ["1024 tokens", "5000"]),
        ({"prompt": [5] * 1000, "max_tokens": 100}, "max_tokens", ["1024 tokens", "1000", "100"]),
        ({"prompt": "word " * 400, "max_tokens": 1}, "prompt", ["1024 tokens", "a prompt of"]),
    ],
)
def test_too_long_a_prompt(http: httpx.Client, fields: dict[str, Any], param: str, numbers: list[str]) -> None:
    response = http.post(TEXT, json=fields)
    error = fault(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", param)
    assert all(number in error["message"] for number in numbers)


def test_a_word_both_allowed_and_bad(http: httpx.Client, server: LiveServer) -> None:
    ids = server.engine.tokenizer.encode("!", add_special_tokens=False)
    body = {"prompt": "a", "allowed_token_ids": ids, "bad_words": ["!"]}
    response = http.post(TEXT, json=body)
    assert (response.status_code, fault(response)["param"]) == (400, "allowed_token_ids")
    assert http.post(TEXT, json={**body, "allowed_token_ids": [*ids, 7]}).status_code == 200


def test_texts_that_cannot_fit_are_not_tokenized(own_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.workers.intake.READ_CHARS", 5000)
    server = own_server()
    monkeypatch.setattr(server.frontend.tokenizer, "longest_entry", 4)
    monkeypatch.setattr(server.frontend.tokenizer, "encode", lambda *_: [5])
    text = "a" * 5001
    with httpx.Client(base_url=server.url) as http:
        for path, param, given in [
            (TEXT, "prompt", text),
            (CHAT, "messages", [{"role": "user", "content": text}]),
            ("/generate", "inputs", text),
            ("/tokenize", "prompt", text),
            ("/tokenize", "messages", [{"role": "user", "content": text}]),
        ]:
            error = fault(http.post(path, json={param: given}))
            assert (error["code"], error["param"]) == ("context_length_exceeded", param), path
            assert "at most 5000 are read" in error["message"], path
        batch = http.post(TEXT, json={"prompt": ["a", text]})
        assert (batch.status_code, fault(batch)["param"]) == (400, "prompt")
        assert http.post("/tokenize", json={"prompt": text[1:]}).status_code == 200


def test_neutral_values_of_unsupported_fields_are_accepted(http: httpx.Client) -> None:
    body = {
        "messages": HELLO,
        "response_format": {"type": "text"},
        "best_of": None,
        "use_beam_search": False,
        "functions": None,
        "tool_choice": "none",
        "tools": None,
        "stream_options": None,
        "top_logprobs": None,
        "modalities": ["text"],
    }
    assert http.post(CHAT, json=body).status_code == 200


def test_unknown_model_and_route_and_method(http: httpx.Client, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="served: toy, toy-alias") as caught:
        client.chat.completions.create(model="gpt-4", messages=HELLO)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    route = http.get("/v1/nothing")
    assert (route.status_code, fault(route)["code"]) == (404, "not_found")
    method = http.get(CHAT)
    assert (method.status_code, fault(method)["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"
    assert fault(http.put("/health"))["message"].startswith("/health takes")


def test_content_type_and_size(http: httpx.Client, server: LiveServer) -> None:
    form = http.post(TEXT, content=b"prompt=a", headers={"content-type": "application/x-www-form-urlencoded"})
    assert (form.status_code, fault(form)["code"]) == (415, "unsupported_media_type")
    request = http.build_request("POST", TEXT, content=b'{"prompt": "a"}')
    assert "content-type" not in request.headers and http.send(request).status_code == 200
    charset = {"content-type": "application/json; charset=utf-8"}
    assert http.post(TEXT, content=b'{"prompt": "a"}', headers=charset).status_code == 200
    marked = http.post(TEXT, content=b'\xef\xbb\xbf{"prompt": "a"}', headers=charset)
    assert marked.status_code == 200, marked.text
    packed = http.post(TEXT, content=gzip.compress(b'{"prompt": "a"}'), headers={"content-encoding": "gzip"})
    assert (packed.status_code, fault(packed)["code"]) == (415, "unsupported_media_type")
    assert "compressed" in fault(packed)["message"] and "gzip" in fault(packed)["message"]
    large = http.post(TEXT, json={"prompt": "a" * (1 << 20)})
    assert (large.status_code, fault(large)["code"]) == (413, "body_too_large")
    assert "1048576" in fault(large)["message"]

    def pieces() -> Any:
        for _ in range(20):
            yield b" " * (1 << 16)

    streamed = http.post(TEXT, content=pieces(), headers={"content-type": "application/json"})
    assert (streamed.status_code, fault(streamed)["code"]) == (413, "body_too_large")
    assert len(server.engine.submits) == 3


def test_error_before_and_in_a_stream(client: openai.OpenAI, http: httpx.Client, server: LiveServer) -> None:
    server.engine.script = Script(error=(3, ("out_of_memory", "the device has no room left")))
    with pytest.raises(openai.InternalServerError, match="no room left") as whole:
        client.chat.completions.create(model="toy", messages=HELLO)  # type: ignore[arg-type]
    assert whole.value.response.headers["x-should-retry"] == "false"
    stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)  # type: ignore[arg-type]
    with pytest.raises(openai.APIError, match="no room left") as streamed:
        list(stream)
    assert streamed.value.code == "out_of_memory"
    lines = http.post(CHAT, json={"messages": HELLO, "stream": True}).text.split("\n\n")
    assert lines[-3].startswith('data: {"error":{"message":') and lines[-2:] == ["data: [DONE]", ""]


def test_one_failing_choice_stops_the_others(http: httpx.Client, server: LiveServer) -> None:
    server.engine.script = Script(error=(1, ("engine_error", "a step failed")), delay=0.01)
    response = http.post(CHAT, json={"messages": HELLO, "n": 3})
    assert (response.status_code, fault(response)["code"]) == (500, "engine_error")
    server.wait(lambda: len(server.engine.aborted) >= 2 or not server.frontend.num_live)


def test_a_fault_of_ours_keeps_its_words(http: httpx.Client, server: LiveServer, caplog: Any) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret at /srv/key")

    kept = server.frontend.generate
    server.frontend.generate = broken  # type: ignore[method-assign]
    try:
        response = http.post(CHAT, json={"messages": HELLO}, headers={"x-request-id": "abc-1"})
    finally:
        server.frontend.generate = kept  # type: ignore[method-assign]
    assert response.status_code == 500 and "secret" not in response.text
    assert fault(response)["code"] == "internal_error" and response.headers["x-request-id"] == "abc-1"
    assert "secret at /srv/key" in caplog.text and "abc-1" in caplog.text


def test_overload_says_when_to_come_back(http: httpx.Client, server: LiveServer) -> None:
    server.engine.script = Script(hang_after=0)
    body = {"messages": HELLO, "n": 32, "stream": True}
    with http.stream("POST", CHAT, json=body):
        server.wait(lambda: server.frontend.num_live == 32)
        with httpx.Client(base_url=server.url) as other:
            response = other.post(CHAT, json={"messages": HELLO})
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    error = fault(response)
    assert (error["type"], error["code"]) == ("RateLimitError", "overloaded") and "limit of 32" in error["message"]


def test_request_ids(http: httpx.Client) -> None:
    assert http.get("/version", headers={"x-request-id": "mine"}).headers["x-request-id"] == "mine"
    assert http.get("/version").headers["x-request-id"].startswith("req_")
    assert http.get("/version", headers={"x-request-id": "a b" * 99}).headers["x-request-id"].startswith("req_")


def test_every_error_of_the_tree_has_the_shape() -> None:
    from lightllm.errors import error_tree
    from lightllm.server.faults import fault_response

    for kind in error_tree():
        response = fault_response(kind("words \ud800"))
        assert response.status_code == kind.status
        assert ("retry-after" in response.headers) == (kind.retry_after is not None)
    assert issubclass(LightLLMError, Exception)


def test_bad_words_that_may_come_to_forbid_all_that_is_allowed(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 8 nothing else is allowed, and another 8 would complete the bad word."""
    monkeypatch.setattr("lightllm.workers.intake.Intake.bad_word_ids", lambda *_: ((8, 8), (8, 9)))
    body = {"prompt": "a", "bad_words": ["any"]}
    response = http.post(TEXT, json={**body, "allowed_token_ids": [8]})
    assert response.status_code == 400 and "leaves no token to choose" in response.text
    assert http.post(TEXT, json={**body, "allowed_token_ids": [8, 7]}).status_code == 200


def test_too_many_prompts_are_refused_before_they_are_read(
    http: httpx.Client, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.engine.tokenizer, "encode_batch", lambda *_: pytest.fail("they were read"))
    for prompt in (["a"] * 100_000, [[1]] * 100_000):
        response = http.post("/v1/completions", json={"prompt": prompt, "n": 2})
        assert response.status_code == 400 and "asks for 200000 choices" in response.text


def test_too_many_messages_are_not_rendered(http: httpx.Client) -> None:
    response = http.post(CHAT, json={"messages": [{"role": "user", "content": ""}] * 1500})
    assert (response.status_code, fault(response)["code"]) == (400, "context_length_exceeded")
    assert "messages has 1500 entries, at most 1024" in response.text
