"""The application: which path goes to which handler, and what stands around all of them.

Edge (ids, counts, last catch) ▶ CORS ▶ Auth ▶ routes ▶ handlers
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from lightllm.errors import LightLLMError
from lightllm.server import native, openapi, status
from lightllm.server.auth import Auth
from lightllm.server.context import Context, Exposition
from lightllm.server.faults import Edge, handle_fault
from lightllm.server.openai.chat import chat_completions
from lightllm.server.openai.completions import completions
from lightllm.server.openai.models import list_models, show_model
from lightllm.server.openai.tokenization import detokenize, tokenize, tokenizer_info
from lightllm.workers.frontend import Frontend

EITHER = ["GET", "POST"]

ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", list_models),
    Route("/v1/models/{model:path}", show_model),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
    Route("/tokenizer_info", tokenizer_info),
    Route("/generate", native.generate, methods=["POST"]),
    Route("/generate_stream", native.generate_stream, methods=["POST"]),
    Route("/live", status.live),
    Route("/liveness", status.live, methods=EITHER),
    Route("/health", status.health),
    Route("/healthz", status.health),
    Route("/ready", status.ready),
    Route("/readiness", status.ready, methods=EITHER),
    Route("/metrics", status.metrics),
    Route("/version", status.version),
    Route("/openapi.json", openapi.document),
    Route("/docs", openapi.page),
]


def create_app(frontend: Frontend, exposition: Exposition | None = None) -> Starlette:
    """The ASGI application of one frontend.

    exposition: what `/metrics` shows; by default this process's own metrics, if it has any

    Raises ConfigError or CheckpointError for a chat template that cannot be used.
    """
    server = frontend.settings.server
    middleware = [Middleware(Edge, metrics=frontend.metrics)]
    if server.cors_origins:
        origins = list(server.cors_origins)
        expose = ["X-Request-Id", "Retry-After"]
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=EITHER,
                allow_headers=["*"],
                expose_headers=expose,
            )
        )
    if server.api_key:
        middleware.append(Middleware(Auth, keys=server.api_key))
    app = Starlette(
        routes=ROUTES,
        middleware=middleware,
        exception_handlers={LightLLMError: handle_fault, HTTPException: handle_fault},
    )
    app.router.redirect_slashes = False
    app.state.context = Context.create(frontend, exposition)
    return app
