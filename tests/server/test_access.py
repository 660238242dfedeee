"""Keys, origins, models, tokenization, metrics and the other small routes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

import lightllm
from lightllm.metrics import Board, MetricSet

from .fake_engine import LiveServer, Script
from .test_faults import fault

HELLO = [{"role": "user", "content": "Hello"}]
Make = Callable[..., LiveServer]


def test_keys_guard_everything_but_health(own_server: Make) -> None:
    server = own_server(api_key=("first-key", "zweiter-schlüssel"), root_path="/llm")
    with httpx.Client(base_url=server.url) as http:
        for path in ("/health", "/live", "/ready", "/healthz", "/liveness", "/readiness"):
            assert http.get(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/docs", "/nothing", "/health/"):
            response = http.get(path)
            assert (response.status_code, fault(response)["code"]) == (401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"authorization": "Bearer first-key"},
            {"authorization": "bearer  first-key"},
            {"x-api-key": "first-key"},
        ):
            assert http.get("/v1/models", headers=headers).status_code == 200
        for headers in (
            {"authorization": "Bearer first-ke"},
            {"authorization": "Basic first-key"},
            {"x-api-key": ""},
            {"authorization": "Bearer"},
        ):
            assert http.get("/v1/models", headers=headers).status_code == 401
    with (
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_origins(own_server: Make) -> None:
    server = own_server(cors_origins=("https://app.example",), api_key=("k",))
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with httpx.Client(base_url=server.url) as http:
        allowed = http.options("/v1/chat/completions", headers={"origin": "https://app.example", **ask})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        refused = http.get("/live", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in refused.headers
        fault_seen = http.get("/v1/models", headers={"origin": "https://app.example"})
        assert fault_seen.status_code == 401 and "access-control-allow-origin" in fault_seen.headers


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["toy", "toy-alias"]
    model = client.models.retrieve("toy-alias")
    assert model.owned_by == "lightllm" and model.created == 1700000000
    assert model.model_extra is not None and model.model_extra["max_model_len"] == 1024
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/else")


def test_tokenize_and_back(http: httpx.Client, server: LiveServer) -> None:
    tokenizer = server.engine.tokenizer
    found = http.post("/tokenize", json={"prompt": "wörld", "return_token_strs": True}).json()
    assert found["tokens"] == tokenizer.encode("wörld") and found["count"] == len(found["tokens"])
    assert found["max_model_len"] == 1024 and found["token_strs"][0] == "<|begin|>"
    bare = http.post("/tokenize", json={"prompt": "wörld", "add_special_tokens": False}).json()
    assert bare["tokens"] == found["tokens"][1:] and bare["token_strs"] is None
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "<|begin|>wörld"}
    chat = http.post("/tokenize", json={"messages": HELLO, "add_generation_prompt": False}).json()
    assert tokenizer.decode(chat["tokens"], skip_special_tokens=False) == "<|im_start|>user\nHello<|im_end|>\n"
    long = http.post("/tokenize", json={"prompt": "Hello " * 20000}).json()
    assert long["count"] > 20000
    assert http.get("/tokenizer_info").json()["eos_token"] == "<|im_end|>"


def test_version_and_docs(http: httpx.Client) -> None:
    assert http.get("/version").json() == {"version": lightllm.__version__}
    assert "/v1/chat/completions" in http.get("/docs").text
    assert http.head("/health").status_code == 200 and http.post("/liveness").status_code == 200
    assert http.get("/metrics").status_code == 404  # this server keeps none


def test_metrics(own_server: Make) -> None:
    board = Board.create()
    server = own_server(metrics=MetricSet(board))
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/ready").status_code == 200  # the probe is not counted
        http.post("/v1/chat/completions", json={"messages": HELLO, "n": 2, "max_tokens": 4})
        http.post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 100000})
        text = http.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['lightllm_requests_finished_total{finish_reason="length"}']) == 2
    assert float(values["lightllm_generation_tokens_total"]) == 8
    assert float(values["lightllm_time_to_first_token_seconds_count"]) == 2
    assert float(values["lightllm_inter_token_latency_seconds_count"]) == 6
    assert float(values["lightllm_e2e_request_latency_seconds_count"]) == 2
    assert float(values['lightllm_requests_refused_total{reason="context_length_exceeded"}']) == 1
    assert float(values['lightllm_http_requests_total{route="/v1/chat/completions",status="400"}']) == 1
    server.stop()
    board.close()


def test_every_route_counts_what_it_refuses(own_server: Make) -> None:
    board = Board.create()
    server = own_server(metrics=MetricSet(board), ready=False)
    server.engine.script = Script(hang_after=0)
    bodies: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": HELLO},
        "/v1/completions": {"prompt": "Hello"},
        "/generate": {"inputs": "Hello"},
        "/generate_stream": {"inputs": "Hello"},
    }
    with httpx.Client(base_url=server.url) as http:
        assert {http.post(route, json=body).status_code for route, body in bodies.items()} == {503}
        server.start_workers()
        filling = {"prompt": "Hello", "n": 32, "stream": True}  # all that may run and wait
        with http.stream("POST", "/v1/completions", json=filling) as stream:
            assert stream.status_code == 200
            assert {http.post(route, json=body).status_code for route, body in bodies.items()} == {429}
        wrong = {"temperature": -1}
        for route in ("/v1/chat/completions", "/v1/completions"):
            assert http.post(route, json={**bodies[route], **wrong}).status_code == 400
        assert http.post("/generate", json={"inputs": "Hello", "parameters": wrong}).status_code == 400
        assert http.post("/v1/completions", json={"prompt": "Hello", "model": "other"}).status_code == 404
        text = http.get("/metrics").text
    refused = dict(re.findall(r'^lightllm_requests_refused_total\{reason="(\w+)"\} (\S+)', text, re.MULTILINE))
    counts = {reason: float(value) for reason, value in refused.items() if float(value)}
    assert counts == {"not_ready": 4, "overloaded": 4, "invalid_request": 3, "model_not_found": 1}
    assert 'lightllm_tenant_requests_refused_total{tenant="other"} 12.0' in text
    server.stop()
    board.close()
