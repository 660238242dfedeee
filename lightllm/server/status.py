"""Routes that say how the server is: health, readiness, metrics, version.

/live    the process answers
/health  the workers behind it are up
/ready   a token can be generated now and new requests are taken
"""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

import lightllm
from lightllm.errors import NotFound, NotReady
from lightllm.server.context import context_of
from lightllm.server.streaming import json_response


class StatusResponse(Struct, kw_only=True):
    status: str = "ok"


class VersionResponse(Struct, kw_only=True):
    version: str


async def live(request: Request) -> Response:
    return json_response(StatusResponse())


async def health(request: Request) -> Response:
    frontend = context_of(request).frontend
    if not frontend.ready:
        frontend.check_available()
        raise NotReady("a worker is not running")
    return json_response(StatusResponse())


async def ready(request: Request) -> Response:
    frontend = context_of(request).frontend
    frontend.check_available()
    if not await frontend.can_generate():
        raise NotReady("the workers are up, but no token was generated in time")
    return json_response(StatusResponse())


async def metrics(request: Request) -> Response:
    exposition = context_of(request).exposition
    if exposition is None:
        raise NotFound("this server keeps no metrics")
    content, kind = exposition.render(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": kind})


async def version(request: Request) -> Response:
    return json_response(VersionResponse(version=lightllm.__version__))
