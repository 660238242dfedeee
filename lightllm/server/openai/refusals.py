"""Fields that clients of this dialect may send and that this server does not serve.

Ignoring them would answer another question than the one asked, so they are refused by name. Each has the values that
ask for nothing (null always does) and a reason.
"""

from __future__ import annotations

from typing import Any

Refusals = dict[str, tuple[tuple[Any, ...], str]]

_STRUCTURED = "structured output is not available yet"
_REMOVED = "it is a name that vLLM removed; " + _STRUCTURED
_BEAM = "beam search is not available; use n and temperature"
_MEDIA = "this server reads and writes text only"

COMMON: Refusals = {
    "best_of": ((1,), "ask for n choices instead"),
    "use_beam_search": ((False,), _BEAM),
    "length_penalty": ((1, 1.0), _BEAM),
    "early_stopping": ((False,), _BEAM),
    "response_format": (({"type": "text"},), _STRUCTURED + "; only {'type': 'text'} is"),
    "structured_outputs": ((), _STRUCTURED),
    "guided_json": ((), _REMOVED),
    "guided_regex": ((), _REMOVED),
    "guided_choice": ((), _REMOVED),
    "guided_grammar": ((), _REMOVED),
    "guided_decoding_backend": ((), _REMOVED),
    "guided_whitespace_pattern": ((), _REMOVED),
    "structural_tag": ((), _STRUCTURED),
    "logits_processors": ((), "code from a request is never run"),
    "truncate_prompt_tokens": ((), "shorten the prompt before sending it"),
    "return_token_ids": ((False,), "ask for logprobs with return_tokens_as_token_ids instead"),
    "kv_transfer_params": ((), "this server computes prompts itself"),
    "repetition_detection": ((), "use repetition_penalty or frequency_penalty"),
    "vllm_xargs": ((), "there are no custom sampling arguments"),
    "prompt_embeds": ((), "send text or token ids"),
    "lora_path": ((), "adapters are not available yet"),
}

CHAT: Refusals = COMMON | {
    "functions": (([],), "use tools"),
    "function_call": (("none", "auto"), "use tool_choice"),
    "chat_template": ((), "templates from requests are not run; start the server with one"),
    "echo": ((False,), "echo belongs to /v1/completions"),
    "include_reasoning": ((True,), "reasoning is always returned apart from the content"),
    "thinking_token_budget": ((), "the length of reasoning cannot be limited yet"),
    "modalities": ((["text"], []), _MEDIA),
    "audio": ((), _MEDIA),
    "mm_processor_kwargs": ((), _MEDIA),
    "web_search_options": ((), "this server searches nothing"),
}

COMPLETIONS: Refusals = COMMON | {
    "suffix": (("",), "fill-in-the-middle prompts must be written out"),
}
