"""Requests of the OpenAI dialect. Unknown fields are ignored; fields that are known but not served are in `refusals`.

Every optional field may be null, which is the same as leaving it out. Ranges are checked by SamplingParams.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Prompt = str | list[Any]
PROMPT_SCHEMA: dict[str, Any] = {
    "description": "A text, token ids, or a list of either.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "minItems": 1,
        },
    ],
}
Messages = list[dict[str, Any]]
MESSAGES_SCHEMA: dict[str, Any] = {
    "description": "Role and content of each turn; content is a text or a list of text parts.",
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "description": "system, developer, user, assistant or tool"},
            "content": {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}, {"type": "null"}]
            },
        },
    },
}
"""What the two mean in the description of the API: they are checked by hand, so their types say less."""

Salt = Annotated[str, Meta(max_length=256)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Priority = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]


class StreamOptions(Struct, kw_only=True):
    """What a stream carries beside the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Struct, kw_only=True):
    """Fields that chat and completions share. Those left out take the model's generation defaults, then OpenAI's."""

    model: str | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    include_stop_str_in_output: bool | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    cache_salt: Salt | None = None
    priority: Priority | None = None
    tenant: Salt | None = None
    ttft_target: Seconds | None = None
    tpot_target: Seconds | None = None
    refuse_late: bool | None = None
    share_prefix: bool | None = None


class FunctionSpec(Struct, kw_only=True):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Struct, kw_only=True):
    function: FunctionSpec
    type: Literal["function"] = "function"


class ChatCompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions. `max_completion_tokens` wins over `max_tokens`; neither: the rest of the context."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    documents: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions. `max_tokens` is 16 unless given; 0 is allowed with `echo`."""

    prompt: Prompt
    logprobs: int | None = None
    echo: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages that are rendered with the chat template first."""

    prompt: str | None = None
    messages: Messages | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None
