"""One choice of a chat answer, from text pieces to the deltas of a stream or to a whole message.

The same deltas serve both forms: a message is what its deltas join to. Reasoning goes out under two names, since
clients read one or the other.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator

from msgspec import UNSET

from lightllm.protocol.messages import FinishReason, TextOutput
from lightllm.server.openai.logprobs import TokenNames, chat_logprobs
from lightllm.server.openai.objects import (
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    FinishName,
    FunctionCall,
    ToolCall,
    ToolCallDelta,
)
from lightllm.text.parsers import (
    OutputParser,
    ParserEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
    merge_events,
)

_ID_CHARS = string.ascii_letters + string.digits


class ChatChoiceWriter:
    """State of one choice while it is generated.

    num_top: alternatives per token in the log-probabilities; None leaves them out
    parallel: without it only the first tool call is passed on
    """

    def __init__(
        self, index: int, parser: OutputParser, names: TokenNames, num_top: int | None, *, parallel: bool
    ) -> None:
        self.index = index
        self.reasoning_tokens = 0
        self._parser = parser
        self._names = names
        self._num_top = num_top
        self._parallel = parallel
        self._answering = False
        self._undecided_tokens = 0
        self._num_calls = 0
        self._unshown: list[TextOutput] = []
        self._finish: FinishName | None = None
        self._stop_reason: str | int | None = None

    def push(self, output: TextOutput) -> list[ChatChunkChoice]:
        """The chunks that this output gives: none while a tag or a stop string may still be coming.

        Log-probabilities of tokens whose text is held back go out with the next chunk.
        """
        events = self._parser.push(output.text)
        if output.finish is not None:
            events += self._parser.finish()
        events = merge_events(events)
        self._count_reasoning(events, len(output.token_ids))
        if self._num_top is not None:
            self._unshown.append(output)
        chunks = [ChatChunkChoice(index=self.index, delta=delta) for delta in self._deltas(events)]
        if output.finish is not None:
            chunks.append(self._last(output))
        if chunks:
            chunks[0].logprobs = self._take_logprobs()
        return chunks

    def _last(self, output: TextOutput) -> ChatChunkChoice:
        """The chunk that ends the choice; a call cut off by the length limit ends with `length`."""
        if output.finish is FinishReason.LENGTH:
            self._finish = "length"
        else:
            self._finish = "tool_calls" if self._num_calls else "stop"
        self._stop_reason = output.stop_reason
        return ChatChunkChoice(
            index=self.index,
            delta=ChatDelta(),
            finish_reason=self._finish,
            stop_reason=UNSET if output.stop_reason is None else output.stop_reason,
        )

    def _deltas(self, events: list[ParserEvent]) -> Iterator[ChatDelta]:
        for event in events:
            match event:
                case TextDelta():
                    yield ChatDelta(content=event.text)
                case ReasoningDelta():
                    yield ChatDelta(reasoning=event.text, reasoning_content=event.text)
                case ToolCallStart() if self._parallel or event.index == 0:
                    self._num_calls += 1
                    function = FunctionCall(name=event.name, arguments="")
                    call = ToolCallDelta(index=event.index, id=_call_id(), type="function", function=function)
                    yield ChatDelta(tool_calls=[call])
                case ToolCallArguments() if self._parallel or event.index == 0:
                    piece = ToolCallDelta(index=event.index, function=FunctionCall(arguments=event.text))
                    yield ChatDelta(tool_calls=[piece])

    def _count_reasoning(self, events: list[ParserEvent], num_tokens: int) -> None:
        """Tokens up to the first piece of the answer are reasoning, its tags among them, once there is some reasoning:
        before, they may turn out to be an answer that is held back, or nothing."""
        reasons = self.reasoning_tokens > 0 or any(isinstance(event, ReasoningDelta) for event in events)
        if reasons:
            self.reasoning_tokens += self._undecided_tokens
            self._undecided_tokens = 0
        self._answering |= any(isinstance(event, TextDelta | ToolCallStart) for event in events)
        if not self._answering and reasons:
            self.reasoning_tokens += num_tokens
        elif not self._answering:
            self._undecided_tokens += num_tokens

    def _take_logprobs(self) -> ChatLogprobs | None:
        if self._num_top is None:
            return None
        outputs, self._unshown = self._unshown, []
        return chat_logprobs(outputs, self._num_top, self._names)


class ChatMessageBuilder:
    """Joins the chunks of one choice to its message."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: ChatLogprobs | None = None
        self._last: ChatChunkChoice | None = None

    def add(self, chunk: ChatChunkChoice) -> None:
        delta = chunk.delta
        if isinstance(delta.content, str):
            self._content.append(delta.content)
        if isinstance(delta.reasoning, str):
            self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls or ():
            self._add_call(call)
        if chunk.logprobs is not None:
            self._logprobs = self._logprobs or ChatLogprobs(content=[])
            self._logprobs.content += chunk.logprobs.content
        if chunk.finish_reason is not None:
            self._last = chunk

    def build(self) -> ChatChoice:
        """The choice; every chunk up to the last must have been added."""
        assert self._last is not None and self._last.finish_reason is not None
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        message = ChatMessage(
            content=content if content or not (self._calls or reasoning) else None,
            reasoning=reasoning or UNSET,
            reasoning_content=reasoning or UNSET,
            tool_calls=self._calls or UNSET,
        )
        return ChatChoice(
            index=self._index,
            message=message,
            logprobs=self._logprobs,
            finish_reason=self._last.finish_reason,
            stop_reason=None if self._last.stop_reason is UNSET else self._last.stop_reason,
        )

    def _add_call(self, call: ToolCallDelta) -> None:
        if isinstance(call.id, str):
            self._calls.append(ToolCall(id=call.id, function=FunctionCall(name=call.function.name, arguments="")))
        self._calls[call.index].function.arguments += call.function.arguments


def _call_id() -> str:
    return "call_" + "".join(secrets.choice(_ID_CHARS) for _ in range(24))
