"""The example of docs/scheduling.md runs as it is printed, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent.parent / "docs" / "scheduling.md"


def test_the_printed_policy_and_estimator_run_in_the_simulator() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "example"}
    code = "\n".join(blocks).replace("past(30.0)", "past(20.0)")
    assert code.count("\n") < 100
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["calm"] < 0.5 * names["busy"], "who asks little waits little"
    assert names["simulation"].scheduler.num_waiting > 0
