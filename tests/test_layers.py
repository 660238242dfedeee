"""Imports go down: every import in the package, wherever it stands, follows layers.txt."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lightllm"
FLOORS = {
    name: level
    for level, line in enumerate(
        line for line in (ROOT / "layers.txt").read_text().splitlines() if line and not line.startswith("#")
    )
    for name in line.split()
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and first name below `lightllm` of each import."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the floor"
            names = [node.module or ""]
            if node.module == "lightllm":
                names = [f"lightllm.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "lightllm" and len(parts) > 1 and not parts[1].startswith("__"):
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = floor_of(path)
    assert own in FLOORS, f"layers.txt has no floor for {own}"
    for line, name in imports_of(path):
        assert name == own or FLOORS[name] < FLOORS[own], f"{path.name}:{line}: {own} must not import {name}"


def test_every_floor_is_checked() -> None:
    assert len(MODULES) > 50
