"""Memory readings of a host."""

from __future__ import annotations

from pathlib import Path

from lightllm.device.device import _cgroup_room


def test_what_a_container_may_still_take(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("7000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\nfile 6000\ninactive_file 4000\nactive_file 1500\n")
    (tmp_path / "memory.max").write_text("10000\n")
    assert _cgroup_room(tmp_path) == 10000 - 7000 + 5500
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_room(tmp_path) == 1 << 62
    assert _cgroup_room(tmp_path / "none") == 1 << 62
