"""GET /v1/models and GET /v1/models/{model}."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from lightllm.server.context import context_of
from lightllm.server.openai.objects import Model, ModelList
from lightllm.server.openai.sampling import check_model
from lightllm.server.streaming import json_response
from lightllm.workers.frontend import Frontend


async def list_models(request: Request) -> Response:
    frontend = context_of(request).frontend
    return json_response(ModelList(data=[_model(frontend, name) for name in frontend.model_names]))


async def show_model(request: Request) -> Response:
    frontend = context_of(request).frontend
    return json_response(_model(frontend, check_model(frontend, request.path_params["model"])))


def _model(frontend: Frontend, name: str) -> Model:
    root = frontend.settings.model.model or frontend.model_names[0]
    return Model(id=name, created=frontend.created, root=root, max_model_len=frontend.max_model_len)
