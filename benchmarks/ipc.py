"""Messages between two processes: rings against multiprocessing.Queue.

Measures, for small messages of fixed size, the rate of a writer that never pauses, and the one-way latency of
a writer that sends one message a millisecond, so that the reader has gone to sleep each time. Both processes
read the same monotonic clock.

    python benchmarks/ipc.py [--messages 200000] [--bytes 64] [--json]
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from typing import Any

from lightllm.errors import Backpressure
from lightllm.ipc import Ring, RingReader, RingWriter, wait_any

_STAMP_BYTES = 8
_PACE_SECONDS = 0.001
_LATENCY_MESSAGES = 2000
Send = Callable[[bytes], None]


def _ring_ends() -> tuple[Callable[[], Send], Callable[[], list[bytes]], Callable[[], None]]:
    ring = Ring.create()
    reader = RingReader(ring)

    def open_writer() -> Send:
        writer = RingWriter(ring)

        def send(data: bytes) -> None:
            while True:
                try:
                    return writer.send(data)
                except Backpressure:
                    writer.flush()

        def finish() -> None:
            while not writer.flush():
                time.sleep(0.0001)

        send.finish = finish  # type: ignore[attr-defined]
        return send

    def receive() -> list[bytes]:
        if not reader.ready():
            wait_any([reader], 5.0)
        return reader.receive()

    return open_writer, receive, ring.close


def _queue_ends() -> tuple[Callable[[], Send], Callable[[], list[bytes]], Callable[[], None]]:
    queue: Any = multiprocessing.get_context("fork").Queue()
    return lambda: queue.put, lambda: [queue.get()], queue.close


def _write(open_writer: Callable[[], Send], count: int, size: int, pace: float) -> None:
    send = open_writer()
    padding = bytes(size - _STAMP_BYTES)
    for _ in range(count):
        if pace:
            time.sleep(pace)
        send(time.monotonic_ns().to_bytes(_STAMP_BYTES, "little") + padding)
    getattr(send, "finish", lambda: None)()


def _measure(make_ends: Any, count: int, size: int, pace: float) -> tuple[float, list[float]]:
    """Messages a second, and the sorted one-way latencies in microseconds."""
    open_writer, receive, close = make_ends()
    process = multiprocessing.get_context("fork").Process(target=_write, args=(open_writer, count, size, pace))
    process.start()
    stamps: list[tuple[int, bytes]] = []
    while len(stamps) < count:
        batch = receive()
        now = time.monotonic_ns()
        stamps += [(now, data[:_STAMP_BYTES]) for data in batch]
    process.join()
    close()
    sent = [int.from_bytes(stamp, "little") for _, stamp in stamps]
    latencies = sorted((now - at) / 1000 for (now, _), at in zip(stamps, sent, strict=True))
    return count / (stamps[-1][0] - sent[0]) * 1e9, latencies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, default=64, help="of each message, 8 or more")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for name, make_ends in (("ring", _ring_ends), ("multiprocessing.Queue", _queue_ends)):
        rate, _ = _measure(make_ends, options.messages, options.bytes, 0.0)
        _, latencies = _measure(make_ends, _LATENCY_MESSAGES, options.bytes, _PACE_SECONDS)
        p50, p99 = (latencies[int(len(latencies) * share)] for share in (0.5, 0.99))
        rows.append({"transport": name, "messages_per_second": rate, "p50_us": p50, "p99_us": p99})
    if options.json:
        print(json.dumps({"bytes": options.bytes, "machine": platform.machine(), "rows": rows}))
        return
    print(f"{'transport':24}{'messages/s':>12}{'p50 us':>10}{'p99 us':>10}   ({options.bytes} bytes)")
    for row in rows:
        print("{transport:24}{messages_per_second:12,.0f}{p50_us:10.1f}{p99_us:10.1f}".format(**row))


if __name__ == "__main__":
    main()
