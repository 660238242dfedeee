"""POST /v1/completions: texts or token ids, one or several, with echo and log-probabilities of the prompt."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from lightllm.errors import InvalidRequest
from lightllm.protocol.messages import FinishReason, TextOutput, TopLogprobs
from lightllm.protocol.sampling_params import WHOLE_VOCABULARY, SamplingParams
from lightllm.server.body import convert, read_object, refuse
from lightllm.server.context import Context, context_of
from lightllm.server.openai import refusals
from lightllm.server.openai.logprobs import CompletionLogprobsWriter, TokenNames, prompt_logprobs
from lightllm.server.openai.objects import Completion, CompletionChoice, PromptLogprobs, Usage
from lightllm.server.openai.prompts import count_prompts, read_prompts
from lightllm.server.openai.sampling import (
    check_model,
    check_stream,
    count_prompt_entries,
    sampling_params,
    terms_of,
)
from lightllm.server.openai.schemas import CompletionRequest
from lightllm.server.openai.usage import usage_of, wants_usage
from lightllm.server.streaming import EventStream, client_gone, event, json_response, watch
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.frontend import Frontend
from lightllm.workers.generation import Generation

DEFAULT_MAX_TOKENS = 16


async def completions(request: Request) -> Response | EventStream:
    context = context_of(request)
    body = await read_object(request)
    refuse(body, refusals.COMPLETIONS)
    completion = convert(body, CompletionRequest)
    terms = terms_of(completion)
    with context.frontend.tally.refusals(terms.tenant):
        model = check_model(context.frontend, completion.model)
        check_stream(completion)
        params = _params(context, completion)
        context.frontend.check_available()
        context.frontend.check_room(count_prompts(completion.prompt) * params.n)
        prompts = await read_prompts(context.frontend, completion.prompt, completion.add_special_tokens is not False)
        num_entries = count_prompt_entries(params, [len(ids) for ids, _ in prompts], context.frontend.vocab_size)
        generation = context.frontend.generate([ids for ids, _ in prompts], params, terms=terms)
    answer = _Answer.begin(context, completion, model, prompts, generation)
    if completion.stream:
        return EventStream(answer.events(), generation)
    with generation:
        async with watch(request.receive, generation):
            parts = await answer.collect()
        if generation.closed:
            return client_gone()
        return await context.frontend.offload(num_entries, answer.respond, parts)


def _params(context: Context, completion: CompletionRequest) -> SamplingParams:
    max_tokens = DEFAULT_MAX_TOKENS if completion.max_tokens is None else completion.max_tokens
    if max_tokens < 1 and not (max_tokens == 0 and completion.echo):
        raise InvalidRequest(f"max_tokens must be at least 1, or 0 with echo, got {max_tokens}", param="max_tokens")
    return sampling_params(
        completion,
        context.frontend.generation_defaults,
        max_tokens=max_tokens,
        logprobs=completion.logprobs,
        prompt_logprobs=_prompt_top(completion),
    )


def _prompt_top(completion: CompletionRequest) -> int | None:
    """Alternatives to find for each prompt token: for prompt_logprobs, and for an echo with log-probabilities."""
    echoed = completion.logprobs if completion.echo else None
    asked = completion.prompt_logprobs
    if asked is None or echoed is None or asked < 0:  # the whole vocabulary, or a mistake
        return echoed if asked is None else asked
    return max(asked, echoed)


class _ChoiceWriter:
    """One choice: the prompt's echo first, then the text, with log-probabilities beside both."""

    def __init__(self, index: int, prompt: list[int], echo: str | None, logprobs: CompletionLogprobsWriter | None):
        self.index = index
        self.prompt = prompt
        self.prompt_found: list[TopLogprobs | None] = []
        self._echo = echo
        self._logprobs = logprobs

    @property
    def num_echoed(self) -> int:
        """Log-probabilities that the echo brings along when it goes out."""
        return 0 if self._echo is None or self._logprobs is None else len(self.prompt) * (1 + self._logprobs.num_top)

    def push(self, output: TextOutput) -> CompletionChoice | None:
        """The chunk that this output gives, if there is anything to show."""
        self.prompt_found += output.prompt_logprobs
        if not output.token_ids and not output.text and output.finish is None:
            return None
        text = output.text
        if self._echo is not None:
            if self._logprobs is not None:
                self._logprobs.add(self.prompt, self.prompt_found, self._echo)
            text, self._echo = self._echo + text, None
        if self._logprobs is not None:
            self._logprobs.add(output.token_ids, output.logprobs)
        if not text and output.finish is None:
            return None
        finish = output.finish
        return CompletionChoice(
            index=self.index,
            text=text,
            logprobs=None if self._logprobs is None else self._logprobs.take(),
            finish_reason=None if finish is None else "length" if finish is FinishReason.LENGTH else "stop",
            stop_reason=output.stop_reason,
        )


@dataclass(slots=True)
class _Answer:
    """An answer in the making: the choices being written, and what every chunk says."""

    frontend: Frontend
    generation: Generation
    writers: list[_ChoiceWriter]
    request: CompletionRequest
    names: TokenNames
    id: str
    created: int
    model: str

    @classmethod
    def begin(
        cls,
        context: Context,
        request: CompletionRequest,
        model: str,
        prompts: list[tuple[list[int], str | None]],
        generation: Generation,
    ) -> _Answer:
        tokenizer = context.frontend.tokenizer
        names = TokenNames(tokenizer, bool(request.return_tokens_as_token_ids))
        hides = request.skip_special_tokens is not False
        writers: list[_ChoiceWriter] = []
        for ids, text in prompts:
            echo = (_decode(tokenizer, ids, hides) if text is None else text) if request.echo else None
            before = ids if echo is None else ()
            for _ in range(generation.n):
                top = request.logprobs
                logprobs = None if top is None else CompletionLogprobsWriter(names, top, hides, before)
                writers.append(_ChoiceWriter(len(writers), ids, echo, logprobs))
        completion_id, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        return cls(context.frontend, generation, writers, request, names, completion_id, created, model)

    async def collect(self) -> list[list[CompletionChoice]]:
        """The chunks of each choice."""
        parts: list[list[CompletionChoice]] = [[] for _ in self.writers]
        async for index, output in self.generation:
            chunk = await self._push(index, output)
            if chunk is not None:
                parts[index].append(chunk)
        return parts

    def respond(self, parts: list[list[CompletionChoice]]) -> Response:
        """The answer as one object, from the chunks of each choice."""
        choices = [_join(part) for part in parts]
        for choice, writer in zip(choices, self.writers, strict=True):
            choice.prompt_logprobs = self._prompt_logprobs(writer)
        return json_response(self._completion(choices, usage_of(self.generation)))

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream; choices interleave."""
        include, continuous = wants_usage(self.request.stream_options)
        async for index, output in self.generation:
            chunk = await self._push(index, output)
            if chunk is not None:
                usage = usage_of(self.generation) if continuous else None if include else UNSET
                yield event(self._completion([chunk], usage))
        if include and not self.generation.closed:
            yield event(self._completion([], usage_of(self.generation)))

    async def _push(self, index: int, output: TextOutput) -> CompletionChoice | None:
        """The chunk that an output gives; in a thread when it echoes a long prompt's log-probabilities."""
        writer = self.writers[index]
        return await self.frontend.offload(writer.num_echoed, writer.push, output)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def _prompt_logprobs(self, writer: _ChoiceWriter) -> PromptLogprobs | UnsetType:
        wanted = self.request.prompt_logprobs
        if wanted is None:
            return UNSET
        num_top = None if wanted == WHOLE_VOCABULARY else wanted
        return prompt_logprobs(writer.prompt, writer.prompt_found, num_top, self.names)


def _decode(tokenizer: Tokenizer, ids: list[int], hides_special: bool) -> str:
    """The text of a prompt; ids that no token has (a model's padding rows) give none, as in an output."""
    return tokenizer.decode([token_id for token_id in ids if token_id in tokenizer.vocabulary], hides_special)


def _join(parts: list[CompletionChoice]) -> CompletionChoice:
    """The chunks of one choice as one."""
    joined = parts[-1]
    joined.text = "".join(part.text for part in parts)
    if joined.logprobs is not None:
        every = [part.logprobs for part in parts if part.logprobs is not None]
        joined.logprobs = type(joined.logprobs)(
            tokens=[item for found in every for item in found.tokens],
            token_logprobs=[item for found in every for item in found.token_logprobs],
            top_logprobs=[item for found in every for item in found.top_logprobs],
            text_offset=[item for found in every for item in found.text_offset],
        )
    return joined
