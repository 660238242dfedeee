"""Messages between processes: shared-memory rings, an in-process twin, sockets across hosts.

Knows bytes, codecs handed in by the caller, and sleeping; it does not know what the messages say
(`protocol`) nor which processes there are (`launch`). `sockets` is imported by its own name: it needs pyzmq.
"""

from lightllm.ipc.channel import (
    LocalReceiver,
    LocalSender,
    RingReceiver,
    RingSender,
    Sender,
    local_channel,
)
from lightllm.ipc.ring import Ring, RingHandle, RingReader, RingWriter
from lightllm.ipc.waiting import Poller, Receiver, drain, wait_any

__all__ = [
    "LocalReceiver",
    "LocalSender",
    "Poller",
    "Receiver",
    "Ring",
    "RingHandle",
    "RingReader",
    "RingReceiver",
    "RingSender",
    "RingWriter",
    "Sender",
    "drain",
    "local_channel",
    "wait_any",
]
