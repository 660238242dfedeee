"""What is read of a GPU while it works."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from lightllm.bench.power import PowerMeter, PowerUse, find_power_meter, metered
from lightllm.device.device import Device


class FakeMeter(PowerMeter):
    """A GPU that draws 100 joules between two looks, at clocks that fall."""

    def __init__(self) -> None:
        self._joules = 0.0
        self._clock = self.highest_clock = 1980.0
        self.limit_watts = 700.0

    def joules(self) -> float:
        self._joules += 100.0
        return self._joules

    def clock(self) -> float:
        self._clock -= 1.0
        return self._clock


def test_a_run_is_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr("lightllm.bench.power.time", SimpleNamespace(perf_counter=lambda: next(times)))
    with metered(FakeMeter()) as power:
        assert power.use is None
    assert power.use is not None
    assert (power.use.watts, power.use.limit_watts, power.use.highest_clock) == (50.0, 700.0, 1980.0)
    assert 1900.0 < power.use.clock < 1980.0
    assert str(power.use) == "50 of 700 W"
    with metered(FakeMeter()) as power:
        pass
    assert power.use is None  # half a second is too short


def test_without_a_meter_nothing_is_told() -> None:
    with metered(None) as power:
        pass
    assert power.use is None
    assert find_power_meter(Device(torch.device("cpu"), "a processor")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_works_draws_more_than_one_that_rests() -> None:
    meter = find_power_meter(Device(torch.device("cuda", 0), "a GPU"))
    if meter is None:
        pytest.skip("no NVML here")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    with metered(meter) as power:
        give_up_at = time.perf_counter() + 1.5
        while time.perf_counter() < give_up_at:
            a = (a @ a).clamp(-1, 1)
            torch.cuda.synchronize()
    assert isinstance(power.use, PowerUse)
    assert 100 < power.use.watts < 1.2 * power.use.limit_watts
    assert 200 < power.use.clock <= power.use.highest_clock
