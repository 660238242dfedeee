"""Stop strings: the result is that of a character-by-character search, however the text is cut."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightllm.errors import InvalidRequest
from lightllm.text.stops import StopMatcher


def reference(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The first moment at which the text ends with a stop string."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            hit = max(hits, key=len)
            return text[: end if include else end - len(hit)], hit
    return text, None


@given(
    st.lists(st.text("ab.", max_size=4), max_size=20),
    st.lists(st.text("ab.", min_size=1, max_size=5), max_size=4),
    st.booleans(),
)
def test_any_cut_of_the_text_gives_the_same(chunks: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(stops, include)
    shown, hit = "", None
    for chunk in chunks:
        piece, hit = matcher.push(chunk)
        shown += piece
    assert (shown + matcher.flush(), hit) == reference("".join(chunks), stops, include)


@given(st.lists(st.text("ab.", max_size=4), max_size=20), st.lists(st.text("ab.", min_size=1), max_size=3))
def test_no_more_is_held_back_than_needed(chunks: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for chunk in chunks:
        piece, hit = matcher.push(chunk)
        seen, shown = seen + chunk, shown + piece
        if hit is not None:
            return
        held = seen[len(shown) :]
        prefixes = {stop[:length] for stop in stops for length in range(len(stop))}
        longest = max((length for length in range(len(seen) + 1) if seen[len(seen) - length :] in prefixes), default=0)
        assert len(held) == longest


def test_a_stop_string_over_token_borders() -> None:
    matcher = StopMatcher(["</end>"])
    assert [matcher.push(piece) for piece in ("text <", "/e", "n", "d> more")] == [
        ("text ", None),
        ("", None),
        ("", None),
        ("", "</end>"),
    ]
    assert matcher.push("after") == ("", "</end>")
    assert (matcher.flush(), matcher.hit) == ("", "</end>")


def test_without_stops_text_passes() -> None:
    assert StopMatcher([]).push("anything") == ("anything", None)


@pytest.mark.parametrize(
    ("stops", "match"), [([""], r"stop\[0\] is empty"), (["a", 3], r"stop\[1\].*int"), ("ab", "list")]
)
def test_wrong_stops_are_refused(stops: Any, match: str) -> None:
    with pytest.raises(InvalidRequest, match=match):
        StopMatcher(stops)
