"""Where a chat's answers come from: a model in this process, or any server with the OpenAI API."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from lightllm.cli.flags import SamplingFlags
from lightllm.cli.sampling import sampling_params
from lightllm.config.checks import split_url
from lightllm.config.json_text import parse_json
from lightllm.config.settings import Settings
from lightllm.errors import ConfigError, LightLLMError, NotReady

Messages = Sequence[Mapping[str, Any]]
CONNECT_SECONDS = 600.0


class Answerer(Protocol):
    """Answers a conversation piece by piece. A KeyboardInterrupt leaves it fit for the next question."""

    name: str

    def answer(self, messages: Messages) -> Iterator[str]: ...

    def close(self) -> None: ...


class LocalAnswerer:
    """A model in this process."""

    def __init__(self, settings: Settings, directory: Path, flags: SamplingFlags) -> None:
        from lightllm.llm import LLM

        self._params = sampling_params(flags, directory)
        self._llm = LLM(settings=settings, model=str(directory))
        self.name = directory.name

    def answer(self, messages: Messages) -> Iterator[str]:
        text = self._llm.template.render(messages)
        ids = self._llm.tokenizer.encode(text, add_special_tokens=False)
        stream: Any = self._llm.stream(ids, self._params)
        with _noted_interrupt() as interrupted, closing(stream) as pieces:
            for output in pieces:
                yield output.text
                if interrupted:
                    raise KeyboardInterrupt

    def close(self) -> None:
        self._llm.close()


class RemoteAnswerer:
    """A server at `url`, e.g. http://127.0.0.1:8000 (with or without /v1)."""

    def __init__(self, url: str, model: str | None, api_key: str | None, flags: SamplingFlags) -> None:
        parts = split_url(url, "http", "https")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._body = flags.given()
        self.name = model or self._first_model()

    def answer(self, messages: Messages) -> Iterator[str]:
        body = {"model": self.name, "messages": list(messages), "stream": True, **self._body}
        with self._response("POST", "/v1/chat/completions", body) as response:
            for line in response:
                data = line.decode(errors="replace").removeprefix("data:").strip()
                if not line.startswith(b"data:"):
                    continue
                if data == "[DONE]":
                    return
                yield _delta(_parse(data))
            raise NotReady(f"the answer of {self._host} broke off")

    def close(self) -> None:
        pass

    def _first_model(self) -> str:
        with self._response("GET", "/v1/models", None) as response:
            listed = _parse(response.read())
        models = listed.get("data")
        if not isinstance(models, list) or not models or not isinstance(models[0], dict) or "id" not in models[0]:
            raise ConfigError(f"{self._host} serves no model", param="url")
        return str(models[0]["id"])

    @contextmanager
    def _response(self, method: str, path: str, body: Any) -> Iterator[http.client.HTTPResponse]:
        """An answer with status 200. Raises NotReady when nobody listens, LightLLMError with the server's words."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS)
        try:
            encoded = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + path, encoded, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise LightLLMError(_fault(response.status, response.read()))
            yield response
        except UnicodeEncodeError as error:  # of a header: HTTP knows Latin-1 only
            raise ConfigError("the API key has characters that no header can hold", param="api_key") from error
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._host}:{self._port or connection.default_port}"
            raise NotReady(f"no answer from {where}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def _parse(data: str | bytes) -> dict[str, Any]:
    """The JSON object that a server sent. Raises LightLLMError for anything else."""
    try:
        value = parse_json(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise LightLLMError(f"the answer is not that of a server with the OpenAI API: {data[:60]!r}")
    return value


def _delta(chunk: dict[str, Any]) -> str:
    """The text of one chunk of a stream. Raises LightLLMError for an error in mid-stream."""
    if error := chunk.get("error"):
        raise LightLLMError(str(error.get("message", error) if isinstance(error, dict) else error))
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return str(delta.get("reasoning_content") or "") + str(delta.get("content") or "")


def _fault(status: int, body: bytes) -> str:
    try:
        return f"the server answered {status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}: {body[:200].decode(errors='replace')}"


@contextmanager
def _noted_interrupt() -> Iterator[list[bool]]:
    """Collects Ctrl-C instead of raising it in the middle of an engine step; a second one raises."""
    noted: list[bool] = []

    def note(signum: int, frame: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
