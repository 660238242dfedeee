"""What a frontend counts about requests. Knows which metric an event belongs to, not how metrics are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightllm.errors import LightLLMError
from lightllm.metrics import MetricSet, names
from lightllm.protocol.messages import FinishReason


class Tally:
    """The request metrics of one frontend process; without a metric set every call does nothing.

    Times are seconds. Each request here is one choice, as the engine sees it.
    """

    def __init__(self, metrics: MetricSet | None) -> None:
        self._metrics = metrics
        if metrics is None:
            return
        self._prompt_tokens = metrics.counter(names.PROMPT_TOKENS)
        self._generation_tokens = metrics.counter(names.GENERATION_TOKENS)
        self._disconnects = metrics.counter(names.CLIENT_DISCONNECTS)
        self._first_token = metrics.histogram(names.TIME_TO_FIRST_TOKEN)
        self._between_tokens = metrics.histogram(names.INTER_TOKEN_LATENCY)
        self._per_token = metrics.histogram(names.TIME_PER_OUTPUT_TOKEN)
        self._latency = metrics.histogram(names.REQUEST_LATENCY)
        self._prompt_len = metrics.histogram(names.REQUEST_PROMPT_TOKENS)
        self._generated_len = metrics.histogram(names.REQUEST_GENERATION_TOKENS)
        self._finished = {
            reason: metrics.counter(names.REQUESTS_FINISHED, finish_reason=reason.value) for reason in FinishReason
        }

    def accepted(self, prompt_len: int) -> None:
        if self._metrics is not None:
            self._prompt_tokens.inc(prompt_len)
            self._prompt_len.observe(prompt_len)

    @contextmanager
    def refusals(self, tenant: str) -> Iterator[None]:
        """An error raised within is the refusal of a request of that tenant."""
        try:
            yield
        except LightLLMError as error:
            if self._metrics is not None:
                self._metrics.counter(names.REQUESTS_REFUSED, reason=error.code).inc()
                self._metrics.counter(names.TENANT_REFUSED, tenant=tenant).inc()
            raise

    def tokens(self, count: int, since: float, *, first: bool) -> None:
        """`count` tokens arrived together, `since` seconds after the arrival (first) or the tokens before."""
        if self._metrics is None:
            return
        self._generation_tokens.inc(count)
        if first:
            self._first_token.observe(since)
            since, count = 0.0, count - 1
        if count:
            self._between_tokens.observe(since / count, count)

    def finished(self, reason: FinishReason, generated: int, latency: float, decode: float) -> None:
        """A choice ended `latency` seconds after it arrived and `decode` seconds after its first token."""
        if self._metrics is None:
            return
        self._finished[reason].inc()
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._latency.observe(latency)
            self._generated_len.observe(generated)
            if generated > 1:
                self._per_token.observe(decode / (generated - 1))

    def disconnected(self, choices: int) -> None:
        if self._metrics is not None:
            self._disconnects.inc(choices)
