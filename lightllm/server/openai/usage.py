"""The usage object: counted from what the engine computed and generated, never estimated."""

from __future__ import annotations

from msgspec import UNSET

from lightllm.server.openai.objects import CompletionTokensDetails, PromptTokensDetails, Usage
from lightllm.server.openai.schemas import StreamOptions
from lightllm.workers.generation import Generation


def usage_of(generation: Generation, reasoning_tokens: int | None = None) -> Usage:
    """Usage up to now; `reasoning_tokens` is None where the model's format has no reasoning."""
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
        completion_tokens_details=(
            UNSET if reasoning_tokens is None else CompletionTokensDetails(reasoning_tokens=reasoning_tokens)
        ),
    )


def wants_usage(options: StreamOptions | None) -> tuple[bool, bool]:
    """Whether a stream ends with a usage chunk, and whether every chunk carries the usage so far."""
    include = bool(options and options.include_usage)
    return include, include and bool(options and options.continuous_usage_stats)
