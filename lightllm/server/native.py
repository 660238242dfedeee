"""The dialect of upstream LightLLM: POST /generate and POST /generate_stream.

    {"inputs": text or token ids, "parameters": {...}}

Differences on purpose: `parameters` may be missing, an unknown or unsupported parameter is refused by name, mistakes
are answered with 400 instead of 417, and a failure in a stream is an event instead of a broken connection. Without
`max_new_tokens` the output may fill the context.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from lightllm.errors import InvalidRequest
from lightllm.protocol.messages import Terms, TextOutput
from lightllm.protocol.sampling_params import SamplingParams
from lightllm.server.body import convert, in_terms_of, read_object, refuse
from lightllm.server.context import context_of
from lightllm.server.openai.logprobs import finite
from lightllm.server.openai.prompts import check_ids
from lightllm.server.openai.refusals import Refusals
from lightllm.server.openai.sampling import INHERITED
from lightllm.server.streaming import EventStream, client_gone, event, json_response, watch
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.frontend import Frontend
from lightllm.workers.generation import Generation

_CONSTRAINT = "constrained output is not available yet"
REFUSED: Refusals = {
    "regular_constraint": (("",), _CONSTRAINT),
    "guided_grammar": (("",), _CONSTRAINT),
    "guided_json": (("",), _CONSTRAINT),
    "exponential_decay_length_penalty": (([1, 1.0], [1, 1]), "use min_new_tokens and max_new_tokens"),
    "input_penalty": ((False,), "repetition_penalty always counts the prompt, the other penalties never do"),
    "print_eos_token": ((False,), "set skip_special_tokens to false to see special tokens"),
    "image_max_patch_num": ((-1,), "this server reads text only"),
    "suggested_dp_index": ((-1,), "there is one engine"),
    "group_request_id": ((-1,), "request ids are given by the server"),
    "move_kv_to_decode_node": ((), "this server computes prompts itself"),
    "invalid_token_ids": (([],), "use logit_bias with -100 over the OpenAI routes"),
}

_NO_MEDIA: tuple[dict[str, list[str]], ...] = ({}, {"images": []}, {"audios": []}, {"images": [], "audios": []})
REFUSED_BESIDE: Refusals = {
    "multimodal_params": (_NO_MEDIA, "this server reads text only"),
    "stream": ((False,), "use /generate_stream"),
}
"""As REFUSED, for what stands beside `inputs` and `parameters`."""

NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop": "stop_sequences",
    "stop_token_ids": "stop_sequences",
}
"""What this dialect calls fields of SamplingParams."""


class GenerateParameters(Struct, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters; what is left out takes the model's generation defaults. Greedy unless `do_sample`
    is true, or left out and the model's authors recommend a temperature."""

    best_of: int | None = None
    n: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop_sequences: str | list[Any] | None = None
    allowed_token_ids: list[int] | None = None
    seed: int | None = None
    skip_special_tokens: bool | None = None
    disable_prompt_cache: bool | None = None
    add_special_tokens: bool | None = None
    add_spaces_between_special_tokens: bool | None = None
    return_details: bool | None = None


class GenerateRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /generate and POST /generate_stream."""

    inputs: str | list[int]
    parameters: dict[str, Any] | None = None


class GeneratedToken(Struct, kw_only=True):
    """A token of the output; `count_output_tokens` counts from 1."""

    id: int
    text: str
    logprob: float | None
    special: bool
    count_output_tokens: int
    prompt_tokens: int | UnsetType = UNSET


_TOKEN_LIST = {"type": "array", "items": {"$ref": "#/components/schemas/GeneratedToken"}}
TOKENS_SCHEMA = Meta(extra_json_schema={"items": {"anyOf": [_TOKEN_LIST["items"], _TOKEN_LIST]}})


class GenerateResponse(Struct, kw_only=True):
    """One entry of `generated_text` per choice; `finish_reason` and `tokens` are lists of them if n > 1."""

    generated_text: list[str]
    count_output_tokens: int
    finish_reason: str | list[str]
    prompt_tokens: int
    tokens: Annotated[list[Any], TOKENS_SCHEMA] | UnsetType = UNSET


class GenerateEvent(Struct, kw_only=True):
    """One token of a stream; the last has `finished` and the reason."""

    token: GeneratedToken
    finished: bool
    finish_reason: str | None
    generated_text: None = None
    details: None = None


async def generate(request: Request) -> Response:
    frontend = context_of(request).frontend
    generation, parameters = await _start(request, frontend, streams=False)
    with generation:
        texts = [""] * generation.n
        tokens: list[list[GeneratedToken]] = [[] for _ in texts]
        reasons = [""] * generation.n
        async with watch(request.receive, generation):
            async for index, output in generation:
                texts[index] += output.text
                tokens[index] += _tokens(frontend.tokenizer, output, len(tokens[index]))
                reasons[index] = output.finish.value if output.finish else ""
        if generation.closed:
            return client_gone()
    single = generation.n == 1
    details: list[Any] = tokens[0] if single else tokens
    return json_response(
        GenerateResponse(
            generated_text=texts,
            count_output_tokens=generation.completion_tokens,
            finish_reason=reasons[0] if single else reasons,
            prompt_tokens=generation.prompt_tokens,
            tokens=details if parameters.return_details else UNSET,
        )
    )


async def generate_stream(request: Request) -> EventStream:
    frontend = context_of(request).frontend
    generation, _ = await _start(request, frontend, streams=True)
    return EventStream(_events(frontend.tokenizer, generation), generation, done=b"")


async def _events(tokenizer: Tokenizer, generation: Generation) -> AsyncIterator[bytes]:
    """One event per token. Text that arrives with several tokens goes with the last of them."""
    count = 0
    last = GeneratedToken(id=-1, text="", logprob=None, special=False, count_output_tokens=0)
    async for _, output in generation:
        found = _tokens(tokenizer, output, count)
        count += len(found)
        if not found and not output.text and output.finish is None:
            continue
        for token in found:
            token.text = ""
        shown = found or [last]
        last = shown[-1]
        for token in shown:
            token.prompt_tokens = generation.prompt_tokens
            ends = token is last and output.finish is not None
            token.text = output.text if token is last else ""
            reason = output.finish.value if ends and output.finish else None
            yield event(GenerateEvent(token=token, finished=ends, finish_reason=reason))


async def _start(request: Request, frontend: Frontend, *, streams: bool) -> tuple[Generation, GenerateParameters]:
    fields = convert(_served(await read_object(request), REFUSED_BESIDE), GenerateRequest)
    parameters = convert(_served(fields.parameters or {}, REFUSED), GenerateParameters, "parameters")
    terms = Terms(share_prefix=not parameters.disable_prompt_cache)
    with frontend.tally.refusals(terms.tenant), in_terms_of({**_names(parameters), "prompt": "inputs"}):
        params = _params(parameters, frontend.generation_defaults, wants_logprobs=streams or parameters.return_details)
        if streams and params.n > 1:
            raise InvalidRequest(f"a stream has 1 choice, but n is {params.n}", param="n")
        if isinstance(fields.inputs, str):
            ids = await frontend.encode(fields.inputs, parameters.add_special_tokens is not False)
        else:
            ids = check_ids(fields.inputs, "inputs")
        return frontend.generate([ids], params, terms=terms), parameters


def _served(given: Mapping[str, Any], refusals: Refusals) -> dict[str, Any]:
    """What is given, less what is refused and asks for nothing. Raises InvalidRequest if it does ask."""
    refuse(given, refusals)
    return {name: value for name, value in given.items() if name not in refusals}


def _params(
    parameters: GenerateParameters, defaults: Mapping[str, Any], *, wants_logprobs: bool | None
) -> SamplingParams:
    n = parameters.n if parameters.best_of is None else parameters.best_of
    if parameters.n is not None and parameters.n != n:
        raise InvalidRequest(f"best_of ({n}) must equal n ({parameters.n})", param="best_of")
    recommended = float(defaults.get("temperature", 0.0)) > 0.0
    samples = recommended if parameters.do_sample is None else parameters.do_sample
    values: dict[str, Any] = {name: defaults[name] for name in INHERITED if defaults.get(name) is not None}
    if samples and not recommended:
        values.pop("temperature", None)  # who asks for samples does not want a model's default of 0
    direct = (*INHERITED, "presence_penalty", "frequency_penalty", "ignore_eos", "seed", "skip_special_tokens")
    values |= {name: value for name in direct if (value := getattr(parameters, name)) is not None}
    if parameters.allowed_token_ids:
        values["allowed_token_ids"] = tuple(parameters.allowed_token_ids)
    stop, stop_ids = _stops(parameters.stop_sequences)
    try:
        if not samples:
            SamplingParams(temperature=values.get("temperature", 0.0))  # a mistake even where it does not count
            values["temperature"] = 0.0
        return SamplingParams(
            n=1 if n is None else n,
            max_tokens=parameters.max_new_tokens,
            min_tokens=parameters.min_new_tokens or 0,
            stop=stop,
            stop_token_ids=stop_ids,
            spaces_between_special_tokens=parameters.add_spaces_between_special_tokens is not False,
            logprobs=0 if wants_logprobs else None,
            **values,
        )
    except InvalidRequest as error:
        raise _in_this_dialect(error, parameters) from None


def _in_this_dialect(error: InvalidRequest, parameters: GenerateParameters) -> InvalidRequest:
    """The error with the names that this dialect has for the fields of SamplingParams."""
    names = _names(parameters)
    field, _, rest = error.message.partition(" ")
    rest = rest.replace("max_tokens (", "max_new_tokens (")
    return InvalidRequest(f"{names.get(field, field)} {rest}", param=names.get(error.param or "", error.param))


def _names(parameters: GenerateParameters) -> dict[str, str]:
    """What this request calls fields of SamplingParams."""
    return NAMES if parameters.best_of is None else NAMES | {"n": "best_of"}


def _stops(sequences: str | list[Any] | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop texts, and the ids of stop sequences that are one token long."""
    if sequences is None or isinstance(sequences, str):
        return ((sequences,) if sequences else ()), ()
    texts, ids = [], []
    for index, sequence in enumerate(sequences):
        place = f"parameters.stop_sequences[{index}]"
        if isinstance(sequence, str):
            texts.append(sequence)
        elif len(found := check_ids(sequence, place)) == 1:
            ids.append(found[0])
        else:
            raise InvalidRequest(f"{place} has {len(found)} token ids; give 1, or the text", param=place)
    return tuple(texts), tuple(ids)


def _tokens(tokenizer: Tokenizer, output: TextOutput, before: int) -> list[GeneratedToken]:
    return [
        GeneratedToken(
            id=token_id,
            text=tokenizer.token_text(token_id),
            logprob=finite(output.logprobs[place].logprob) if place < len(output.logprobs) else None,
            special=token_id in tokenizer.special_ids,
            count_output_tokens=before + place + 1,
        )
        for place, token_id in enumerate(output.token_ids)
    ]
