"""Arrays that travel together, and the pinned ring they travel through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch

from lightllm.kernels.transfer import LARGEST, PinnedRing, Transfer

ARRAYS = [
    np.arange(5, dtype=np.int64),
    np.zeros((0, 3), np.int32),
    np.array([[1.5], [2.5], [3.5]], np.float32),
    np.array([True, False, True]),
    np.linspace(0, 1, 7)[:, None],
]


class FakeEvent:
    """An event of a device that does its work when it is waited for, and not before."""

    waited: ClassVar[list[FakeEvent]] = []

    def __init__(self) -> None:
        self.done = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True
        FakeEvent.waited.append(self)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> PinnedRing:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    FakeEvent.waited = []
    return PinnedRing(torch.device("cpu"), torch.zeros(256, dtype=torch.uint8))


def test_arrays_sent_in_one_buffer_arrive_as_they_were(ring: PinnedRing) -> None:
    for _ in range(5):  # around the ring
        transfer = Transfer(torch.device("cpu"))
        uploads = [transfer.add(array) for array in ARRAYS]
        transfer.send_through(ring)
        for upload, array in zip(uploads, ARRAYS, strict=True):
            assert np.array_equal(upload.tensor.numpy(), array) and upload.tensor.numpy().dtype == array.dtype


def nothing(_: object) -> None:
    """Writes no bytes."""


def test_what_the_device_has_not_read_is_not_overwritten(ring: PinnedRing) -> None:
    for size in (96, 96):
        ring.send(size, nothing)
    assert not FakeEvent.waited
    ring.send(64, nothing)  # fills the end
    assert not FakeEvent.waited
    ring.send(112, nothing)  # begins anew, over the first and a part of the second
    assert len(FakeEvent.waited) == 2
    ring.send(16, nothing)  # still within the second, which is free by now
    assert len(FakeEvent.waited) == 2
    ring.send(128, nothing)  # goes over the third's end, and waits for whatever was sent before it
    assert len(FakeEvent.waited) >= 3


def test_nobody_waits_when_the_device_keeps_up(ring: PinnedRing) -> None:
    for _ in range(20):
        ring.send(80, nothing)
        ring._sent[-1][2].done = True  # type: ignore[attr-defined]
    assert not FakeEvent.waited and len(ring._sent) <= 2


def test_threads_share_a_ring(ring: PinnedRing) -> None:
    """Each gets its own bytes, however they interleave."""

    def send(value: int) -> bool:
        def fill(host: np.ndarray) -> None:
            for index in range(len(host)):  # slowly
                host[index] = value

        return all(bool((ring.send(48, fill) == value).all()) for _ in range(50))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(send, range(1, 5)))


def test_arrays_arrive_while_kernels_are_compiled_and_not_run(
    ring: PinnedRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are indices of torch's own operations, which do run then."""
    from triton.runtime.jit import KernelInterface

    def launch(*_: object, **__: object) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(KernelInterface, "__getitem__", launch)
    transfer = Transfer(torch.device("cpu"))
    upload = transfer.add(ARRAYS[0])
    transfer.send_through(ring)
    assert torch.ones(9).index_select(0, upload.tensor).sum() == 5 and upload.tensor.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_nobody_waits_and_everything_arrives() -> None:
    device = torch.device("cuda")
    random = np.random.default_rng(0)
    slow = torch.randn(8192, 8192, device=device)
    sent = []
    torch.cuda.synchronize()
    for size in [3, 70_000, 1, 250_000] * 5:  # less than the ring holds
        arrays = [random.integers(0, 1 << 40, size), random.random(7)]
        transfer = Transfer(device)
        uploads = [transfer.add(array) for array in arrays]
        torch.cuda.set_sync_debug_mode("error")
        slow = slow @ slow * 1e-4
        transfer.send()
        torch.cuda.set_sync_debug_mode("default")
        sent.append((arrays, uploads))
    large = Transfer(device)
    beyond = large.add(random.integers(0, 9, LARGEST))
    large.send()
    assert np.array_equal(beyond.tensor.cpu().numpy(), beyond.array)
    for arrays, uploads in sent:
        for array, upload in zip(arrays, uploads, strict=True):
            assert np.array_equal(upload.tensor.cpu().numpy(), array)
