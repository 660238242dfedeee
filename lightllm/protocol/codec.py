"""Encoding of messages: msgpack with a schema. A message that cannot be decoded raises ProtocolError, nothing else."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from lightllm.errors import LightLLMError, ProtocolError

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes and decodes one union of message types, e.g. `Codec(EngineInbox)`.

    Raises ProtocolError for bytes that are no message of the union, with the field at fault.
    """

    def __init__(self, message_type: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(message_type)

    def encode(self, message: T) -> bytes:
        return self._encoder.encode(message)

    def decode(self, data: bytes) -> T:
        try:
            return self._decoder.decode(data)
        except (msgspec.DecodeError, LightLLMError, RecursionError) as error:
            raise ProtocolError(f"a message of {len(data)} bytes cannot be decoded: {error}") from error
