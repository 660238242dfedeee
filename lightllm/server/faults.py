"""Every failure as the same JSON object: {"error": {"message", "type", "param", "code"}}.

A mistake of the caller says what and where; a fault of ours says nothing of its inside and is logged with the
request's id. `Edge` stands around all routes: it gives each request its id, counts it, and lets no exception through.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightllm.errors import (
    BodyTooLarge,
    Draining,
    InvalidRequest,
    LightLLMError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
    UnsupportedMediaType,
)
from lightllm.metrics import MetricSet, names
from lightllm.server.body import readable

_HTTP_ERRORS: dict[int, type[LightLLMError]] = {
    401: Unauthorized,
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

logger = logging.getLogger(__name__)


def error_body(error: LightLLMError) -> bytes:
    """The JSON object of an error."""
    details = error.to_dict()
    text = str(details["message"]).encode(errors="replace").decode()
    return msgspec.json.encode({"error": {**details, "message": text}})


def fault_response(error: LightLLMError, headers: dict[str, str] | None = None) -> Response:
    """The error as a response. Clients are told when to try again, and that a fault of ours will not go away."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 500:
        headers["X-Should-Retry"] = "false"
    if error.status == 408:
        headers["Connection"] = "close"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_body(error), error.status, headers, "application/json")


def as_error(error: BaseException) -> LightLLMError:
    """Any exception as one of the tree; what was not raised on purpose keeps its words to itself."""
    if isinstance(error, LightLLMError):
        return error
    if isinstance(error, msgspec.ValidationError):
        return readable(error)
    if isinstance(error, HTTPException):
        kind = _HTTP_ERRORS.get(error.status_code, InvalidRequest if error.status_code < 500 else LightLLMError)
        return kind(str(error.detail))
    return LightLLMError("the server failed on this request; its log says why")


async def handle_fault(request: Request, error: Exception) -> Response:
    """Starlette's handler for errors raised by routes and by routing itself."""
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 404:
            error = NotFound(f"there is no route {request.url.path[:200]}")
        elif error.status_code == 405:
            allowed = headers.get("Allow", "another method")
            error = MethodNotAllowed(f"{request.url.path[:200]} takes {allowed}, not {request.method[:20]}")
    return fault_response(as_error(error), headers)


class Edge:
    """ASGI middleware around everything: request ids, counting, and the last catch."""

    def __init__(self, app: ASGIApp, metrics: MetricSet | None = None) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # the server waited long enough before its end
            if status:
                raise
            error = Draining("the server shuts down and does not wait for the rest of the request")
            await fault_response(error)(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("request %s to %s failed", request_id, scope["path"])
            if status:
                raise
            await fault_response(as_error(error))(scope, receive, send_with_id)
        finally:
            self._count(route_path(scope), status)

    def _count(self, path: str, status: int) -> None:
        if self._metrics is not None:
            self._metrics.counter(names.HTTP_REQUESTS, route=path, status=str(status)).inc()


def route_path(scope: dict[str, Any] | Scope) -> str:
    """The path without the prefix of a reverse proxy."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def _request_id(given: str | None) -> str:
    """The caller's id if it is harmless, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
