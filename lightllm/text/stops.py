"""Stop strings in a stream of text, found across any borders between tokens.

The matcher sees the text as it arrives and behaves as if it came one character at a time: the stop string
that is complete first wins, the longest if several end together. So the result does not depend on how the
text was cut.

    text  ... t h e   E N D . m o r e      stop "END."
              ^ may leave  ^ held back ^ hit: dropped, and all after it

This module knows no tokens and no requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightllm.errors import InvalidRequest

__all__ = ["StopMatcher"]


class StopMatcher:
    """Finds the first stop string of one request's text.

    include_stop: the text given ends with the stop string instead of before it.

    Raises InvalidRequest for a stop that is empty or no string. State: held text, shorter than the longest
    stop string.
    """

    __slots__ = ("_held", "_include", "_stops", "hit")

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = _checked(stops)
        self._include = include_stop
        self._held = ""
        self.hit: str | None = None
        """The stop string that ended the text, once there is one."""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take new text; return the text that is safe to show and the stop string that was hit, if any.

        After a hit no text is given any more and the hit is returned again.
        """
        if self.hit is not None:
            return "", self.hit
        if not self._stops:
            return text, None
        window = self._held + text
        found = self._find(window)
        if found is not None:
            end, self.hit = found
            self._held = ""
            return window[: end if self._include else end - len(self.hit)], self.hit
        held = self._held_length(window)
        self._held = window[len(window) - held :]
        return window[: len(window) - held], None

    def flush(self) -> str:
        """The text ended without a hit: give what was held back."""
        held, self._held = self._held, ""
        return held

    def _find(self, window: str) -> tuple[int, str] | None:
        """End and stop string of the match that is complete first."""
        best: tuple[int, str] | None = None
        for stop in self._stops:  # longest first, so that an equal end does not replace a longer one
            start = window.find(stop)
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = (start + len(stop), stop)
        return best

    def _held_length(self, window: str) -> int:
        """Length of the longest end of `window` that begins some stop string."""
        longest = 0
        for stop in self._stops:
            start = window.find(stop[0], max(0, len(window) - len(stop) + 1))
            while start >= 0 and len(window) - start > longest:
                if stop.startswith(window[start:]):
                    longest = len(window) - start
                    break
                start = window.find(stop[0], start + 1)
        return longest


def _checked(stops: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stops, str):
        raise InvalidRequest("stop strings must come as a list, not as one string", param="stop")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str):
            raise InvalidRequest(f"stop[{index}] must be a string, not {type(stop).__name__}", param="stop")
        if not stop:
            raise InvalidRequest(f"stop[{index}] is empty; a stop string needs at least 1 character", param="stop")
    return tuple(sorted(dict.fromkeys(stops), key=len, reverse=True))
