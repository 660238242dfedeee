"""The shared memory of a server: every ring and metric board, made once and kept while workers come and go.

All of it is nameless (see `lightllm.ipc.memory`): the kernel frees it with the last process that has it.
"""

from __future__ import annotations

import os

from lightllm.ipc import Ring, RingReader, RingReceiver, RingSender, RingWriter
from lightllm.ipc.layout import HEAD, TAIL
from lightllm.launch.topology import Topology, WorkerSpec
from lightllm.metrics import Board
from lightllm.metrics.names import Metric
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import SupervisorInbox
from lightllm.workers.process import SUPERVISOR


class Wiring:
    """The rings of a topology and one board of `metrics` for each process. `lifeline` is a descriptor that ends with
    us."""

    def __init__(self, topology: Topology, metrics: tuple[Metric, ...]) -> None:
        self._rings = {(link.writer, link.reader): Ring.create(link.capacity_bytes) for link in topology.all_links}
        processes = (SUPERVISOR, *(spec.name for spec in topology.workers))
        self.boards = {name: Board.create(metrics) for name in processes}
        self.lifeline, self._held = os.pipe()

    def inbound(self, name: str) -> dict[str, Ring]:
        """The rings that `name` reads, by writer."""
        return {writer: ring for (writer, reader), ring in self._rings.items() if reader == name}

    def outbound(self, name: str) -> dict[str, Ring]:
        """The rings that `name` writes, by reader."""
        return {reader: ring for (writer, reader), ring in self._rings.items() if writer == name}

    def boards_of(self, spec: WorkerSpec) -> dict[str, Board]:
        """The boards that a worker has: its own, and those of the others if it shows them."""
        return self.boards if spec.sees_all_boards else {spec.name: self.boards[spec.name]}

    def sender_to(self, name: str) -> RingSender[object]:
        """The supervisor's channel to a worker."""
        return RingSender(RingWriter(self._rings[SUPERVISOR, name]), Codec[object](object).encode)

    def receiver_from(self, name: str) -> RingReceiver[SupervisorInbox]:
        """The channel from a worker to the supervisor."""
        codec: Codec[SupervisorInbox] = Codec(SupervisorInbox)
        return RingReceiver(RingReader(self._rings[name, SUPERVISOR]), codec.decode)

    def drop_unread(self, name: str) -> None:
        """Forget what a dead worker has not read, so that its successor starts with nothing of it."""
        for ring in self.inbound(name).values():
            RingReader(ring).skip_all()

    def has_unread(self, name: str) -> bool:
        """Whether messages wait for a worker."""
        return any(ring_has_unread(ring) for ring in self.inbound(name).values())

    def close(self) -> None:
        """Give everything back. Workers that still live end, as the lifeline does."""
        os.close(self._held)
        os.close(self.lifeline)
        for ring in self._rings.values():
            ring.close()
        for board in self.boards.values():
            board.close()


def ring_has_unread(ring: Ring) -> bool:
    """Whether the reader has something left to read. Only looks, so it may be called beside a live reader."""
    words = ring.segment.words
    return bool(words[TAIL] != words[HEAD])
