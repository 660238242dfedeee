"""The description says what the server does: every route, and schemas that real answers satisfy."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from lightllm.server.app import ROUTES
from lightllm.server.openapi import OPERATIONS

HELLO = [{"role": "user", "content": "Hello"}]


def test_every_route_is_described() -> None:
    routes = set()
    for route in ROUTES:
        assert isinstance(route, Route)
        path = re.sub(r":\w+}", "}", route.path)
        routes |= {(path, method.lower()) for method in route.methods or () if method != "HEAD"}
    assert {(operation.path, operation.method) for operation in OPERATIONS} == routes


def test_references_lead_somewhere(http: httpx.Client) -> None:
    text = http.get("/openapi.json").text
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names <= schemas.keys() and {"ErrorResponse", "GenerateParameters", "ToolSpec"} <= names
    assert "securitySchemes" not in text


def test_prompts_and_messages_say_what_they_take(http: httpx.Client) -> None:
    schemas = http.get("/openapi.json").json()["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]["properties"]["messages"]
    tokenize = schemas["TokenizeRequest"]["properties"]["messages"]
    assert chat["items"]["required"] == ["role"] and chat in tokenize["anyOf"]
    forms = schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
    items = [form.get("items", form) for form in forms]
    assert [item["type"] for item in items] == ["string", "string", "integer", "array"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1}, 200),
        ("/v1/completions", {"prompt": "one", "echo": True, "logprobs": 1}, 200),
        ("/v1/completions", {"prompt": "one", "n": 0}, 400),
        ("/generate", {"inputs": "one", "parameters": {"return_details": True}}, 200),
        ("/tokenize", {"prompt": "one"}, 200),
        ("/v1/chat/completions", {"messages": HELLO, "model": "no"}, 404),
        ("/v1/models", None, 200),
        ("/ready", None, 200),
    ],
)
def test_answers_satisfy_their_schema(http: httpx.Client, path: str, body: Any, status: int) -> None:
    document = http.get("/openapi.json").json()
    method = "get" if body is None else "post"
    response = http.request(method, path, json=body)
    assert response.status_code == status
    described = document["paths"][path][method]["responses"][str(status)]
    schema = described["content"]["application/json"]["schema"]
    assert list(_problems(response.json(), schema, document, "$")) == []


def _problems(value: Any, schema: Any, document: Any, place: str) -> Any:
    """A small JSON schema check: enough for the keywords that msgspec writes."""
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        if all(list(_problems(value, option, document, place)) for option in schema["anyOf"]):
            yield f"{place}: {value!r} is none of {schema['anyOf']}"
        return
    kinds: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
        "boolean": bool,
    }  # fmt: skip
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        yield f"{place}: {value!r} is no {schema['type']}"
    elif isinstance(value, dict):
        properties = schema.get("properties")
        if properties is None:
            rest = schema.get("additionalProperties")
            for name, item in value.items() if isinstance(rest, dict) else ():
                yield from _problems(item, rest, document, f"{place}.{name}")
            return
        yield from (f"{place}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        yield from (f"{place}.{name} is not described" for name in value if name not in properties)
        for name in value.keys() & properties.keys():
            yield from _problems(value[name], properties[name], document, f"{place}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(item, schema.get("items", {}), document, f"{place}[{index}]")
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is not in {schema['enum']}"
