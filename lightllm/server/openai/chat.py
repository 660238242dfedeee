"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from lightllm.errors import InvalidRequest
from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.sampling_params import MAX_LOGPROBS, WHOLE_VOCABULARY, SamplingParams
from lightllm.server.body import convert, in_terms_of, read_object, refuse
from lightllm.server.context import Context, context_of
from lightllm.server.openai import refusals
from lightllm.server.openai.chat_choice import ChatChoiceWriter, ChatMessageBuilder
from lightllm.server.openai.logprobs import TokenNames, prompt_logprobs
from lightllm.server.openai.objects import (
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    PromptLogprobs,
    Usage,
)
from lightllm.server.openai.prompts import ChatPrompt, render_chat
from lightllm.server.openai.sampling import (
    check_model,
    check_stream,
    count_prompt_entries,
    sampling_params,
    terms_of,
)
from lightllm.server.openai.schemas import ChatCompletionRequest
from lightllm.server.openai.tools import choose_tools
from lightllm.server.openai.usage import usage_of, wants_usage
from lightllm.server.streaming import EventStream, client_gone, event, json_response, watch
from lightllm.workers.generation import Generation


async def chat_completions(request: Request) -> Response | EventStream:
    context = context_of(request)
    body = await read_object(request)
    refuse(body, refusals.CHAT)
    chat = convert(body, ChatCompletionRequest)
    if chat.skip_special_tokens is None:
        chat.skip_special_tokens = not context.tags_are_special
    terms = terms_of(chat)
    with context.frontend.tally.refusals(terms.tenant), in_terms_of(_names(chat)):
        model = check_model(context.frontend, chat.model)
        check_stream(chat)
        params = _params(context, chat)
        tools = choose_tools(chat.tools, chat.tool_choice, context.tool_parser)
        context.frontend.check_available()
        prompt = await render_chat(
            context,
            chat.messages,
            chat,
            tools=tools,
            documents=chat.documents,
            reasoning_effort=chat.reasoning_effort,
            add_special_tokens=bool(chat.add_special_tokens),
        )
        num_entries = count_prompt_entries(params, [len(prompt.token_ids)], context.frontend.vocab_size)
        generation = context.frontend.generate([prompt.token_ids], params, terms=terms)
    answer = _Answer.begin(context, chat, model, prompt, generation, uses_tools=tools is not None)
    if chat.stream:
        return EventStream(answer.events(), generation)
    with generation:
        async with watch(request.receive, generation):
            builders, found = await answer.collect()
        if generation.closed:
            return client_gone()
        return await context.frontend.offload(num_entries, answer.respond, builders, found)


def _names(chat: ChatCompletionRequest) -> dict[str, str]:
    """What this request calls fields that have other names within."""
    newer = {} if chat.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
    return {"prompt": "messages", **newer}


def _params(context: Context, chat: ChatCompletionRequest) -> SamplingParams:
    max_tokens = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(f"max_tokens must be at least 1, got {max_tokens}", param="max_tokens")
    return sampling_params(
        chat,
        context.frontend.generation_defaults,
        max_tokens=max_tokens,
        logprobs=_num_top(chat),
        prompt_logprobs=chat.prompt_logprobs,
    )


def _num_top(chat: ChatCompletionRequest) -> int | None:
    """Alternatives per token, or None for no log-probabilities."""
    if chat.top_logprobs and not chat.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    if chat.top_logprobs is not None and not 0 <= chat.top_logprobs <= MAX_LOGPROBS:
        message = f"top_logprobs must be between 0 and {MAX_LOGPROBS}, got {chat.top_logprobs}"
        raise InvalidRequest(message, param="top_logprobs")
    return (chat.top_logprobs or 0) if chat.logprobs else None


@dataclass(slots=True)
class _Answer:
    """An answer in the making: the choices being written, and what every chunk says."""

    generation: Generation
    writers: list[ChatChoiceWriter]
    request: ChatCompletionRequest
    names: TokenNames
    prompt: ChatPrompt
    id: str
    created: int
    model: str
    counts_reasoning: bool

    @classmethod
    def begin(
        cls,
        context: Context,
        chat: ChatCompletionRequest,
        model: str,
        prompt: ChatPrompt,
        generation: Generation,
        *,
        uses_tools: bool,
    ) -> _Answer:
        names = TokenNames(context.frontend.tokenizer, bool(chat.return_tokens_as_token_ids))
        writers = [
            ChatChoiceWriter(
                index,
                context.create_parser(tools=uses_tools, reasoning_opened=prompt.reasoning_opened),
                names,
                _num_top(chat),
                parallel=chat.parallel_tool_calls is not False,
            )
            for index in range(generation.n)
        ]
        return cls(
            generation=generation,
            writers=writers,
            request=chat,
            names=names,
            prompt=prompt,
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=model,
            counts_reasoning=context.reasoning_parser is not None,
        )

    async def collect(self) -> tuple[list[ChatMessageBuilder], list[TopLogprobs | None]]:
        """The message of each choice, and what was found at the prompt's positions."""
        builders = [ChatMessageBuilder(writer.index) for writer in self.writers]
        found: list[TopLogprobs | None] = []
        async for index, output in self.generation:
            if index == 0:
                found += output.prompt_logprobs
            for chunk in self.writers[index].push(output):
                builders[index].add(chunk)
        return builders, found

    def respond(self, builders: list[ChatMessageBuilder], found: list[TopLogprobs | None]) -> Response:
        """The answer as one object, from what was collected."""
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[builder.build() for builder in builders],
            usage=self._usage(),
            prompt_logprobs=self._prompt_logprobs(found),
        )
        return json_response(completion)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as a stream: a role for each choice, deltas, and the usage if it is wanted."""
        include, continuous = wants_usage(self.request.stream_options)
        for writer in self.writers:
            first = ChatDelta(role="assistant", content="")
            yield self._event([ChatChunkChoice(index=writer.index, delta=first)], include, continuous)
        async for index, output in self.generation:
            for chunk in self.writers[index].push(output):
                yield self._event([chunk], include, continuous)
        if include and not self.generation.closed:
            yield self._event([], True, True)

    def _event(self, choices: list[ChatChunkChoice], include: bool, filled: bool) -> bytes:
        usage: Usage | UnsetType | None = UNSET
        if include:
            usage = self._usage() if filled else None
        return event(
            ChatCompletionChunk(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)
        )

    def _usage(self) -> Usage:
        reasoning = sum(writer.reasoning_tokens for writer in self.writers)
        return usage_of(self.generation, reasoning if self.counts_reasoning else None)

    def _prompt_logprobs(self, found: list[TopLogprobs | None]) -> PromptLogprobs | UnsetType:
        wanted = self.request.prompt_logprobs
        if wanted is None:
            return UNSET
        num_top = None if wanted == WHOLE_VOCABULARY else wanted
        return prompt_logprobs(self.prompt.token_ids, found, num_top, self.names)
