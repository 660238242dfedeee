"""`lightllm chat --url` beside servers that answer as they should not."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lightllm.cli.answers import RemoteAnswerer
from lightllm.cli.flags import SamplingFlags
from lightllm.errors import ConfigError, LightLLMError, NotReady

MODELS = b'{"data": [{"id": "m"}]}'


def event(word: str) -> bytes:
    chunk: dict[str, Any] = {"choices": [{"delta": {"content": word}}]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server that lists its models with one body and streams another as an answer; its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(models: bytes, answer: bytes = b"") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(models)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(answer)

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url: str, api_key: str | None = None) -> list[str]:
    return list(RemoteAnswerer(url, None, api_key, SamplingFlags()).answer([{"role": "user", "content": "hi"}]))


def test_a_whole_answer(serve: Callable[..., str]) -> None:
    assert ask(serve(MODELS, event("a") + event("b") + b"data: [DONE]\n\n")) == ["a", "b"]


@pytest.mark.parametrize(
    ("models", "answer", "words"),
    [
        (b"<html>", b"", "not that of a server with the OpenAI API"),
        (b"[]", b"", "not that of a server with the OpenAI API"),
        (b'{"data": ["m"]}', b"", "serves no model"),
        (MODELS, event("a"), "broke off"),
        (MODELS, event("a") + b"data: {oops\n\n", "not that of a server with the OpenAI API"),
        (MODELS, b'data: {"error": "it broke"}\n\n', "it broke"),
    ],
)
def test_other_answers_are_errors(serve: Callable[..., str], models: bytes, answer: bytes, words: str) -> None:
    with pytest.raises(LightLLMError, match=words):
        ask(serve(models, answer))


def test_what_cannot_be_asked(serve: Callable[..., str]) -> None:
    for url in ("http://x:port", "http://x:99999", "http://[::1", "ftp://x"):
        with pytest.raises(ConfigError, match="url must look like"):
            ask(url)
    with pytest.raises(ConfigError, match="API key"):
        ask(serve(MODELS), api_key="kl\u00fcch\u0142")
    with pytest.raises(NotReady, match="no answer from"):
        ask("http://127.0.0.1:9")
