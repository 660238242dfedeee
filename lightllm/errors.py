"""Every error lightllm raises on purpose, in one tree.

    LightLLMError                        500  internal_error
    ├── ConfigError                      500  config_error            a flag, a default or a combination is wrong
    │   └── CheckpointError              500  checkpoint_error        a model directory cannot be served
    ├── RequestError                     400  invalid_request         the caller's mistake
    │   ├── InvalidRequest               400  invalid_request         a field is malformed or out of range
    │   ├── ContextLengthExceeded        400  context_length_exceeded the prompt does not fit
    │   ├── Unauthorized                 401  invalid_api_key         missing or wrong key
    │   ├── NotFound                     404  not_found               no such route or object
    │   │   └── ModelNotFound            404  model_not_found         no model of that name is served
    │   ├── MethodNotAllowed             405  method_not_allowed      the route exists, the verb does not
    │   ├── RequestTimeout               408  request_timeout         the client takes too long to send a request
    │   ├── BodyTooLarge                 413  body_too_large          the request body passes the limit
    │   ├── UnsupportedMediaType         415  unsupported_media_type  the body is not JSON
    │   └── HeadersTooLarge              431  headers_too_large       the request headers pass the limit
    ├── Unavailable                      503  unavailable             try again later
    │   ├── Overloaded                   429  overloaded              a queue limit is reached
    │   ├── Draining                     503  draining                the server is shutting down
    │   ├── NotReady                     503  not_ready               the engine is starting or restarting
    │   └── WorkerDied                   503  worker_died             a process died while serving the request
    ├── EngineError                      500  engine_error            a step failed on the device
    │   └── OutOfMemory                  500  out_of_memory           the device has no room left
    ├── ProtocolError                    500  protocol_error          a message between processes cannot be read
    └── Backpressure                     503  backpressure            a queue between processes is full

Each class carries its HTTP status and code. The same error has the same shape as a JSON body, inside a stream and
as a metric label. This module knows nothing of HTTP frameworks.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LightLLMError(Exception):
    """Root of the tree: a message for people, a status and a code for programs.

    `param` names the request field or configuration key at fault, when there is one.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "InternalServerError"
    retry_after: ClassVar[int | None] = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def to_dict(self) -> dict[str, Any]:
        """The OpenAI error object: message, type, param, code."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


class ConfigError(LightLLMError):
    code = "config_error"
    kind = "ConfigError"


class CheckpointError(ConfigError):
    code = "checkpoint_error"
    kind = "CheckpointError"


class RequestError(LightLLMError):
    status = 400
    code = "invalid_request"
    kind = "BadRequestError"


class InvalidRequest(RequestError):
    code = "invalid_request"


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"
    kind = "AuthenticationError"


class NotFound(RequestError):
    status = 404
    code = "not_found"
    kind = "NotFoundError"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class RequestTimeout(RequestError):
    status = 408
    code = "request_timeout"
    kind = "RequestTimeoutError"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"
    kind = "RequestTooLargeError"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    status = 431
    code = "headers_too_large"
    kind = "RequestTooLargeError"


class Unavailable(LightLLMError):
    status = 503
    code = "unavailable"
    kind = "ServiceUnavailableError"
    retry_after = 5


class Overloaded(Unavailable):
    status = 429
    code = "overloaded"
    kind = "RateLimitError"
    retry_after = 1


class Draining(Unavailable):
    code = "draining"


class NotReady(Unavailable):
    code = "not_ready"
    retry_after = 2


class WorkerDied(Unavailable):
    code = "worker_died"
    retry_after = 2


class EngineError(LightLLMError):
    code = "engine_error"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class ProtocolError(LightLLMError):
    code = "protocol_error"


class Backpressure(Unavailable):
    code = "backpressure"


def error_tree() -> list[type[LightLLMError]]:
    """Every error class, parents before children, in the order they are written above."""

    def walk(cls: type[LightLLMError]) -> list[type[LightLLMError]]:
        return [cls, *(found for child in cls.__subclasses__() for found in walk(child))]

    return walk(LightLLMError)


def error_from_code(code: str, message: str, param: str | None = None) -> LightLLMError:
    """Rebuild an error that crossed a process as its code and message; an unknown code becomes the root class."""
    for cls in error_tree():
        if cls.code == code:
            return cls(message, param=param)
    return LightLLMError(message, param=param)
