"""The real server, whole: `lightllm serve` with the bundled demo model, driven by the official client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for worker processes in /proc"),
    pytest.mark.xdist_group("serve"),
]

SECONDS = 90
ENDS = ("stop", "length")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Server:
    """A server process, its address, and its workers."""

    def __init__(self, log: Path, total_tokens: int = 20000, *options: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "lightllm.cli.main", "serve", "--port", "0"]
        command += ["--max-total-tokens", str(total_tokens), *options]
        with log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        give_up = time.monotonic() + SECONDS
        while time.monotonic() < give_up and self.process.poll() is None:
            found = re.search(r"ready at (http://\S+)", self._log.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        raise AssertionError(f"the server did not become ready:\n{self._log.read_text()}")

    def metric(self, name: str) -> float:
        """The value of a series, e.g. `lightllm_requests_running` or `lightllm_kv_slots{state="held"}`."""
        text = httpx.get(f"{self.url}/metrics").text
        return next((float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

    def wait_until_idle(self) -> None:
        give_up = time.monotonic() + SECONDS
        while self.metric("lightllm_requests_running") or self.metric('lightllm_kv_slots{state="held"}'):
            assert time.monotonic() < give_up, "slots are still held"
            time.sleep(0.05)

    def worker(self, role: str) -> int:
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in pids:
            if role.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return int(pid)
        raise AssertionError(f"no worker {role} among {pids}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("serve") / "log")
    yield server
    server.process.terminate()
    assert server.process.wait(SECONDS) == 0, "a drain without requests is a clean end"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


def ask(client: openai.OpenAI, question: str, **options: object) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model="lightllm-demo",
        messages=[{"role": "user", "content": question}],
        temperature=0,
        **options,  # type: ignore[call-overload]
    )


def test_an_answer_that_can_be_checked(client: openai.OpenAI) -> None:
    answer = ask(client, "What is 347 + 285?")
    assert answer.choices[0].message.content == "347 + 285 = 632"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.prompt_tokens > 0


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, "What is TokenAttention?").choices[0].message.content
    stream = ask(client, "What is TokenAttention?", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens > 0


def test_a_tool_is_called_and_its_answer_used(client: openai.OpenAI) -> None:
    question = "What is the weather in Paris?"
    first = ask(client, question, tools=[WEATHER]).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.tool_calls
    call = first.message.tool_calls[0]
    assert (call.function.name, call.function.arguments.replace(" ", "")) == ("get_weather", '{"city":"Paris"}')
    messages = [
        {"role": "user", "content": question},
        first.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 21, "sky": "sunny"}'},
    ]
    second = client.chat.completions.create(
        model="lightllm-demo",
        messages=messages,
        tools=[WEATHER],
        temperature=0,  # type: ignore[arg-type]
    )
    assert "21" in (second.choices[0].message.content or "")


def test_completions_with_ids_echo_and_logprobs(client: openai.OpenAI) -> None:
    options = {"model": "lightllm-demo", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    answer = client.completions.create(prompt=[[5, 6, 7, 8]], **options)  # type: ignore[call-overload]
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == 5 and logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])


def test_seeds_and_choices(client: openai.OpenAI) -> None:
    options = {"model": "lightllm-demo", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.2}
    one, again = (client.completions.create(seed=7, n=2, **options) for _ in range(2))  # type: ignore[call-overload]
    assert [c.text for c in one.choices] == [c.text for c in again.choices]
    assert one.choices[0].text != one.choices[1].text


def test_stop_strings_across_tokens(client: openai.OpenAI) -> None:
    options = {"model": "lightllm-demo", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**options).choices[0].text  # type: ignore[call-overload]
    stop = whole[9:13]
    cut = client.completions.create(stop=stop, **options).choices[0]  # type: ignore[call-overload]
    assert cut.text == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_mistakes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="lightllm-demo"):
        client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="4096"):
        client.completions.create(model="lightllm-demo", prompt=[5] * 5000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="lightllm-demo", prompt="Hi", temperature=-1)


def test_what_clients_leave_behind_is_nothing(server: Server, client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="lightllm-demo", prompt="Tell me a story.", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    server.wait_until_idle()


@pytest.mark.parametrize("role", ["engine", "detokenizer"])
def test_a_killed_worker_is_replaced(server: Server, client: openai.OpenAI, role: str) -> None:
    stream = client.completions.create(
        model="lightllm-demo", prompt="Tell me a story.", max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    os.kill(server.worker(role), signal.SIGKILL)
    with pytest.raises(openai.APIError, match=role):
        for _ in stream:
            pass
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up and httpx.get(f"{server.url}/ready").status_code != 200:
        time.sleep(0.1)
    assert ask(client, "What is 347 + 285?").choices[0].message.content == "347 + 285 = 632"


def test_a_burst_of_three_times_the_memory(tmp_path: Path) -> None:
    """Nothing is lost, every request ends, the ledger adds up, and waiting and eviction can be seen."""
    pool, burst, tokens = 1000, 24, 60
    server = Server(tmp_path / "log", pool, "--tenant-weight", "acme=2")
    terms = {"min_tokens": tokens, "tenant": "acme"}
    options = {"model": "lightllm-demo", "max_tokens": 160, "temperature": 0, "extra_body": terms}
    try:
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=SECONDS) as client,
            ThreadPoolExecutor(burst) as threads,
        ):
            prompts = [f"Story number {number} begins in a small town. " * 2 for number in range(burst)]
            calls = [threads.submit(client.completions.create, prompt=prompt, **options) for prompt in prompts]
            most_waiting = 0.0
            while not all(call.done() for call in calls):
                most_waiting = max(most_waiting, server.metric("lightllm_requests_waiting"))
            answers = [call.result() for call in calls]
        used = sum(answer.usage.total_tokens for answer in answers)
        assert used > 3 * pool, f"the burst needs {used} tokens, the pool has {pool}"
        assert {answer.choices[0].finish_reason for answer in answers} <= {"stop", "length"}
        assert all(answer.usage.completion_tokens >= tokens for answer in answers)
        assert most_waiting > 0
        server.wait_until_idle()
        states = [server.metric(f'lightllm_kv_slots{{state="{state}"}}') for state in ("free", "cached", "held")]
        assert sum(states) == server.metric("lightllm_kv_slot_capacity") == pool
        finished = [server.metric(f'lightllm_requests_finished_total{{finish_reason="{r}"}}') for r in ENDS]
        assert sum(finished) == burst
        assert server.metric("lightllm_evicted_tokens_total") > 0
        queried = "prefix_cache_queried_tokens_total"
        assert server.metric(f'lightllm_tenant_{queried}{{tenant="acme"}}') > burst
        call = {"model": "lightllm-demo", "prompt": "Hello", "tpot_target": 1e-6}
        for stream in (False, True):
            refused = httpx.post(f"{server.url}/v1/completions", json={**call, "stream": stream})
            assert refused.status_code == 400 and "tpot_target of 1e-06 s cannot be met" in refused.text
            assert refused.json()["error"]["param"] == "tpot_target"
        assert server.metric('lightllm_requests_refused_total{reason="invalid_request"}') == 2
    finally:
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0
