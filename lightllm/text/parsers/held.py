"""How much of a text must wait because it may become a tag."""

from __future__ import annotations

__all__ = ["held_length"]


def held_length(text: str, tag: str) -> int:
    """Length of the longest end of `text` that begins `tag` without completing it."""
    start = text.find(tag[0], max(0, len(text) - len(tag) + 1))
    while start >= 0:
        if tag.startswith(text[start:]):
            return len(text) - start
        start = text.find(tag[0], start + 1)
    return 0
