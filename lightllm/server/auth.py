"""Who may call: API keys, as a bearer token or in x-api-key, compared in constant time.

Everything is guarded but the health routes, which say nothing but up or down. Without keys the server is open.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lightllm.errors import Unauthorized
from lightllm.server.faults import fault_response, route_path

OPEN_PATHS = frozenset(("/health", "/healthz", "/live", "/liveness", "/ready", "/readiness"))


class Auth:
    """ASGI middleware that answers 401 to a request without a valid key. Keeps only hashes of the keys."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in OPEN_PATHS or self._allows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        given = "the API key is not valid" if _given(Headers(scope=scope)) else "an API key is required"
        message = f"{given}; send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'"
        await fault_response(Unauthorized(message))(scope, receive, send)

    def _allows(self, headers: Headers) -> bool:
        given = sha256(_given(headers).encode("latin-1", "replace")).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, always
        return any(matches)


def _given(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
