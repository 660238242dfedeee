"""What a host and a container give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightllm.device import device
from lightllm.device.device import Device, _cgroup_cores, _cgroup_room, _own_groups, free_memory, usable_cores


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
    monkeypatch.setattr(device, "_cgroup_cores", lambda group: 1)
    assert usable_cores() == 1


def test_limits_of_a_service_and_of_what_it_is_part_of_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    membership, job = tmp_path / "membership", tmp_path / "root" / "system.slice" / "job"
    job.mkdir(parents=True)
    membership.write_text("4:memory:/elsewhere\n0::/system.slice/job\n")
    groups = _own_groups(tmp_path / "root", membership)
    assert groups == [job, job.parent, tmp_path / "root"]
    assert _own_groups(tmp_path / "root", tmp_path / "none") == [tmp_path / "root"]
    membership.write_text("0::/\n")  # as a container sees itself
    assert _own_groups(tmp_path / "root", membership) == [tmp_path / "root"]

    (job / "cpu.max").write_text("100000 100000\n")
    for name, text in (("current", "7000"), ("max", "10000"), ("stat", "inactive_file 0\nactive_file 0")):
        (job.parent / f"memory.{name}").write_text(text + "\n")
    monkeypatch.setattr(device, "_own_groups", lambda: groups)
    assert usable_cores() == 1
    assert free_memory(Device(torch.device("cpu"), "CPU")) == 3000
