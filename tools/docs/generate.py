"""Writes the pages of docs/ that come from the code and from the committed results: see PAGES.

python tools/docs/generate.py            write them
python tools/docs/generate.py --check    exit with 1 and name the pages that are out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import configuration
import errors
import metrics
import speed

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "benchmarks.md": speed.page,
    "configuration.md": configuration.page,
    "errors.md": errors.page,
    "metrics.md": metrics.page,
}


def stale_pages() -> list[str]:
    """Names of the pages whose file is not what the code gives."""
    return [name for name, page in PAGES.items() if not _is_current(DOCS / name, page())]


def write_pages() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="Write the pages of docs/ that come from the code.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    if not parser.parse_args().check:
        write_pages()
        return 0
    stale = stale_pages()
    for name in stale:
        print(f"docs/{name} is out of date; run: python tools/docs/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
