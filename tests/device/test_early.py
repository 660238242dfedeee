"""The head start of the GPU: it never raises, whatever is missing."""

from __future__ import annotations

import ctypes

import pytest

from lightllm.device.early import open_early


class FakeDriver:
    """A driver whose calls are noted; cuInit gives `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*_: object) -> int:
            self.calls.append(name)
            return self.status

        return call


def test_a_cpu_needs_no_head_start() -> None:
    assert open_early("cpu") is None


def test_without_a_driver_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    thread = open_early("auto")
    assert thread is not None
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("status", "calls"), [(0, 3), (999, 1)])
def test_the_first_device_is_opened_unless_the_driver_fails(
    status: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(status)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    thread = open_early("cuda")
    assert thread is not None
    thread.join(10)
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"][:calls]
