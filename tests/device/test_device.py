"""What a host and a container give."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightllm.device import device
from lightllm.device.device import _cgroup_cores, _cgroup_room, usable_cores


def test_what_a_container_may_still_take(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 6000\ninactive_file 4000\nactive_file 1500\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert _cgroup_room(tmp_path) == 10000 - 7000 + 5500
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_room(tmp_path) == 1 << 62
    assert _cgroup_room(tmp_path / "none") == 1 << 62


def test_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, cores in (("250000 100000\n", 3), ("100000 100000\n", 1), ("50000 100000\n", 1)):
        (tmp_path / "cpu.max").write_text(text)
        assert _cgroup_cores(tmp_path) == cores
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_cores(tmp_path) == _cgroup_cores(tmp_path / "none") == 1 << 30
    assert usable_cores() >= 1
    monkeypatch.setattr(device, "_cgroup_cores", lambda: 1)
    assert usable_cores() == 1
