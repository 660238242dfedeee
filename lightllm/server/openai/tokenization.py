"""POST /tokenize, POST /detokenize and GET /tokenizer_info, in the shapes of vLLM. They do not need the engine."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from lightllm.errors import InvalidRequest
from lightllm.server.body import convert, in_terms_of, read_object
from lightllm.server.context import context_of
from lightllm.server.openai.objects import DetokenizeResponse, TokenizeResponse
from lightllm.server.openai.prompts import check_ids, render_chat
from lightllm.server.openai.sampling import check_model
from lightllm.server.openai.schemas import DetokenizeRequest, TokenizeRequest
from lightllm.server.openai.tools import choose_tools
from lightllm.server.streaming import json_response


async def tokenize(request: Request) -> Response:
    """A prompt gets the tokenizer's special tokens unless told otherwise; a conversation has those of its template."""
    context = context_of(request)
    fields = convert(await read_object(request), TokenizeRequest)
    frontend = context.frontend
    check_model(frontend, fields.model)
    if (fields.prompt is None) == (fields.messages is None):
        raise InvalidRequest("either prompt or messages is required, and not both", param="prompt")
    if fields.prompt is not None:
        ids = await frontend.encode(fields.prompt, fields.add_special_tokens is not False)
    else:
        tools = choose_tools(fields.tools, None, context.tool_parser)
        adds = bool(fields.add_special_tokens)
        with in_terms_of({"prompt": "messages"}):
            chat = await render_chat(context, fields.messages or [], fields, tools=tools, add_special_tokens=adds)
        ids = chat.token_ids
    contents = frontend.tokenizer.vocabulary.contents
    strings = [contents[token_id] or "" for token_id in ids] if fields.return_token_strs else None
    return json_response(
        TokenizeResponse(tokens=ids, count=len(ids), max_model_len=frontend.max_model_len, token_strs=strings)
    )


async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    frontend = context_of(request).frontend
    fields = convert(await read_object(request), DetokenizeRequest)
    check_model(frontend, fields.model)
    ids = check_ids(fields.tokens, "tokens")
    text = await frontend.offload(4 * len(ids), frontend.tokenizer.decode, ids, skip_special_tokens=False)
    return json_response(DetokenizeResponse(prompt=text))


async def tokenizer_info(request: Request) -> Response:
    return json_response(context_of(request).frontend.tokenizer.info())
