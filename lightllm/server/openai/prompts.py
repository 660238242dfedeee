"""From a request to prompt tokens: conversations through the chat template, completions in their four forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightllm.errors import ContextLengthExceeded, InvalidRequest
from lightllm.server.context import Context
from lightllm.text.chat import check_template_kwargs
from lightllm.text.parsers import prompt_opens_reasoning
from lightllm.workers.frontend import Frontend
from lightllm.workers.intake import check_text_len

LEAST_MESSAGES_READ = 1024
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


class Conversation(Protocol):
    """The request fields that rendering reads."""

    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation, and whether it ends inside the model's reasoning."""

    token_ids: list[int]
    reasoning_opened: bool


async def render_chat(
    context: Context,
    messages: list[dict[str, Any]],
    fields: Conversation,
    *,
    tools: list[dict[str, Any]] | None = None,
    documents: list[dict[str, Any]] | None = None,
    reasoning_effort: str | None = None,
    add_special_tokens: bool = False,
) -> ChatPrompt:
    """Render and tokenize a conversation; long ones in a thread.

    Raises InvalidRequest that names the message or option at fault, or gives the template's own words.
    """
    most = max(LEAST_MESSAGES_READ, context.frontend.max_model_len or 0)
    if len(messages) > most:  # each takes a token at least
        message = f"messages has {len(messages)} entries, at most {most} can fit the context"
        raise ContextLengthExceeded(message, param="messages")
    template_kwargs = _effort_kwargs(reasoning_effort) | (fields.chat_template_kwargs or {})
    check_template_kwargs(template_kwargs)
    continues = bool(fields.continue_final_message)
    adds = fields.add_generation_prompt
    text = await context.frontend.offload(
        _size(messages, tools, documents),
        context.template.render,
        messages,
        tools,
        documents,
        not continues if adds is None else adds,
        continues,
        **template_kwargs,
    )
    token_ids = await context.frontend.encode(text, add_special_tokens)
    continued = _first_text(messages[-1].get("content")) if continues else ""
    return ChatPrompt(token_ids, prompt_opens_reasoning(text, context.reasoning_parser, continued))


def count_prompts(prompt: str | Sequence[Any]) -> int:
    """How many prompts a request has, known before any of them is read."""
    return len(prompt) if prompt and isinstance(prompt[0], str | list) and not isinstance(prompt, str) else 1


async def read_prompts(
    frontend: Frontend, prompt: str | Sequence[Any], add_special_tokens: bool
) -> list[tuple[list[int], str | None]]:
    """Token ids of each prompt, with its text where the request gave text.

    prompt: a text, token ids, a list of texts, or a list of token id lists. Raises InvalidRequest that names the place.
    """
    if isinstance(prompt, str):
        return [(await frontend.encode(prompt, add_special_tokens), prompt)]
    if not prompt:
        raise InvalidRequest("prompt is an empty list; it needs at least 1 entry", param="prompt")
    if isinstance(prompt[0], str):
        texts = [_text(item, index) for index, item in enumerate(prompt)]
        for text in texts:
            check_text_len(text, frontend.tokenizer, frontend.max_model_len)
        size = sum(map(len, texts))
        encoded = await frontend.offload(size, frontend.tokenizer.encode_batch, texts, add_special_tokens)
        return list(zip(encoded, texts, strict=True))
    if isinstance(prompt[0], list):
        return [(check_ids(item, f"prompt[{index}]"), None) for index, item in enumerate(prompt)]
    return [(check_ids(prompt, "prompt"), None)]


def check_ids(value: Any, place: str) -> list[int]:
    """A list of integers that fit a token id; their range in the vocabulary is checked later."""
    if not isinstance(value, list):
        raise InvalidRequest(f"{place} must be a list of token ids, as the entries before it", param=place)
    for index, item in enumerate(value):
        if type(item) is not int or not 0 <= item < 1 << 31:
            shown = str(item)[:40] if type(item) is int else f"a {type(item).__name__}"
            raise InvalidRequest(f"{place}[{index}] must be a token id, got {shown}", param=f"{place}[{index}]")
    return value


def _text(item: Any, index: int) -> str:
    if not isinstance(item, str):
        raise InvalidRequest(f"prompt[{index}] must be a string, as the entries before it", param=f"prompt[{index}]")
    return item


def _first_text(content: Any) -> str:
    """The text that a message's content begins with, whose form was checked."""
    first = content[0] if isinstance(content, list) and content else content
    return str(first["text"] if isinstance(first, dict) else first)


def _effort_kwargs(effort: str | None) -> dict[str, Any]:
    """What templates know about effort: its name, and for "none" the switch that Qwen3 and others read."""
    if effort is None:
        return {}
    if effort not in EFFORTS:
        known = ", ".join(EFFORTS)
        raise InvalidRequest(f"reasoning_effort must be one of {known}, got {effort[:40]!r}", param="reasoning_effort")
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def _size(*values: Sequence[Mapping[str, Any]] | None) -> int:
    """About how many characters there are, counted only at the top level; enough to choose a thread."""
    total = 0
    for value in values:
        for item in value or ():
            content = item.get("content") if isinstance(item, dict) else None
            total += len(content) if isinstance(content, str) else 200
    return total
