"""The description of the API, made from the schemas that decode and encode. A test holds it to the routes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

import lightllm
from lightllm.server import native, status
from lightllm.server.context import context_of
from lightllm.server.openai import objects, schemas

JSON = "application/json"
EVENTS = "text/event-stream"
_REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Operation:
    """A path and method with its schemas. `streams` is the schema of one event, `text` the type of a text answer."""

    path: str
    method: str
    summary: str
    request: Any = None
    response: Any = None
    streams: Any = None
    text: str | None = None
    errors: tuple[int, ...] = ()
    open: bool = False


_GENERATES = (400, 401, 404, 408, 413, 415, 429, 500, 503)
_READS = (400, 401, 404, 408, 413, 415, 500)
_ASKS = (401, 500)

OPERATIONS = (
    Operation(
        "/v1/chat/completions",
        "post",
        "Answer a conversation",
        schemas.ChatCompletionRequest,
        objects.ChatCompletion,
        objects.ChatCompletionChunk,
        errors=_GENERATES,
    ),
    Operation(
        "/v1/completions",
        "post",
        "Continue texts",
        schemas.CompletionRequest,
        objects.Completion,
        objects.Completion,
        errors=_GENERATES,
    ),
    Operation("/v1/models", "get", "The served models", response=objects.ModelList, errors=_ASKS),
    Operation("/v1/models/{model}", "get", "One served model", response=objects.Model, errors=(401, 404, 500)),
    Operation(
        "/tokenize",
        "post",
        "Text or a conversation to token ids",
        schemas.TokenizeRequest,
        objects.TokenizeResponse,
        errors=_READS,
    ),
    Operation(
        "/detokenize",
        "post",
        "Token ids to text",
        schemas.DetokenizeRequest,
        objects.DetokenizeResponse,
        errors=_READS,
    ),
    Operation("/tokenizer_info", "get", "Special tokens and chat template", response=dict[str, Any], errors=_ASKS),
    Operation(
        "/generate",
        "post",
        "Generate, upstream's dialect",
        native.GenerateRequest,
        native.GenerateResponse,
        errors=_GENERATES,
    ),
    Operation(
        "/generate_stream",
        "post",
        "Generate as a stream, upstream's dialect",
        native.GenerateRequest,
        streams=native.GenerateEvent,
        errors=_GENERATES,
    ),
    *(
        Operation(path, method, summary, response=status.StatusResponse, errors=errors, open=True)
        for paths, methods, summary, errors in (
            (("/live",), ("get",), "The process answers", ()),
            (("/liveness",), ("get", "post"), "The process answers", ()),
            (("/health", "/healthz"), ("get",), "The workers are up", (503,)),
            (("/ready",), ("get",), "A token can be generated now", (503,)),
            (("/readiness",), ("get", "post"), "A token can be generated now", (503,)),
        )
        for path in paths
        for method in methods
    ),
    Operation("/metrics", "get", "Metrics for Prometheus", text="text/plain", errors=(401, 404, 500)),
    Operation("/version", "get", "The server's version", response=status.VersionResponse, errors=_ASKS),
    Operation("/openapi.json", "get", "This description", response=dict[str, Any], errors=_ASKS),
    Operation("/docs", "get", "This description for people", text="text/html", errors=_ASKS),
)


async def document(request: Request) -> Response:
    guarded = bool(context_of(request).frontend.settings.server.api_key)
    return Response(describe(guarded), media_type=JSON)


async def page(request: Request) -> Response:
    return HTMLResponse(_page())


@cache
def describe(guarded: bool = False) -> bytes:
    """The OpenAPI 3.1 document as JSON; `guarded`: API keys are required."""
    types = [objects.ErrorResponse, native.GenerateParameters, schemas.ToolSpec]
    types += [part for op in OPERATIONS for part in (op.request, op.response, op.streams) if part is not None]
    unique = list(dict.fromkeys(types))
    found, components = msgspec.json.schema_components(unique, ref_template=_REF)
    by_type = dict(zip(unique, found, strict=True))
    _link_details(components)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, by_type, guarded)
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "lightllm", "version": lightllm.__version__},
            "paths": paths,
            "components": {"schemas": components, **({"securitySchemes": schemes} if guarded else {})},
        }
    )


def _link_details(components: dict[str, Any]) -> None:
    """Fields that are decoded in two steps refer to the schema of the second; those checked by hand say what is
    checked."""
    parameters = components["GenerateRequest"]["properties"]["parameters"]
    parameters["anyOf"] = [{"$ref": _REF.format(name="GenerateParameters")}, {"type": "null"}]
    tools = {"type": "array", "items": {"$ref": _REF.format(name="ToolSpec")}, "minItems": 1}
    for name in ("ChatCompletionRequest", "TokenizeRequest"):
        components[name]["properties"]["tools"]["anyOf"] = [tools, {"type": "null"}]
    components["ChatCompletionRequest"]["properties"]["messages"] = schemas.MESSAGES_SCHEMA
    components["TokenizeRequest"]["properties"]["messages"]["anyOf"] = [schemas.MESSAGES_SCHEMA, {"type": "null"}]
    components["CompletionRequest"]["properties"]["prompt"] = schemas.PROMPT_SCHEMA


def _operation(operation: Operation, by_type: dict[Any, Any], guarded: bool) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.response is not None:
        content[JSON] = {"schema": by_type[operation.response]}
    if operation.streams is not None:
        ends = operation.path.startswith("/v1/")
        content[EVENTS] = {"schema": _event_schema(by_type[operation.streams], ends_with_done=ends)}
    if operation.text is not None:
        content[operation.text] = {"schema": {"type": "string"}}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method} {operation.path}",
        "responses": {"200": {"description": "Success", "content": content}, **_errors(operation, guarded)},
    }
    if operation.request is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": by_type[operation.request]}}}
    if "{model}" in operation.path:
        parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        described["parameters"] = [parameter]
    if guarded and not operation.open:
        described["security"] = [{"bearer": []}, {"key": []}]
    return described


def _event_schema(schema: Any, *, ends_with_done: bool) -> dict[str, Any]:
    """One server-sent event: JSON text, of which the last may be an error; then the end mark of the OpenAI routes."""
    either = {"anyOf": [schema, {"$ref": _REF.format(name="ErrorResponse")}]}
    data: dict[str, Any] = {"type": "string", "contentMediaType": JSON, "contentSchema": either}
    if ends_with_done:
        data = {"anyOf": [data, {"const": "[DONE]"}]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _errors(operation: Operation, guarded: bool) -> dict[str, Any]:
    schema = {JSON: {"schema": {"$ref": _REF.format(name="ErrorResponse")}}}
    statuses = [status for status in operation.errors if guarded or status != 401]
    return {str(status): {"description": _MEANINGS[status], "content": schema} for status in statuses}


_MEANINGS = {
    400: "The request is malformed or out of range",
    401: "An API key is missing or wrong",
    404: "There is no such model or object",
    408: "The request took too long to arrive",
    413: "The body is too large",
    415: "The body is not JSON",
    429: "Too many requests wait; see Retry-After",
    500: "The server failed",
    503: "The server starts, restarts or shuts down; see Retry-After",
}


@cache
def _page() -> str:
    """A plain list of the routes; the document itself is one click away."""
    rows = "".join(
        f"<tr><td>{operation.method.upper()}</td><td><code>{operation.path}</code></td><td>{operation.summary}</td></tr>"
        for operation in OPERATIONS
    )
    style = "body{font:16px system-ui;margin:3em auto;max-width:50em}td{padding:.3em 1em .3em 0}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>lightllm</title><style>{style}</style>"
        f"<h1>lightllm {lightllm.__version__}</h1><p>Described in full by <a href=openapi.json>openapi.json</a>.</p>"
        f"<table>{rows}</table></html>"
    )
