"""The answer to one call, while it is being generated: an asynchronous stream of text pieces per choice.

It knows the order of events of its choices and that each ends exactly once. It does not know processes or HTTP: what
leaving early means is a callback of its owner.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

from lightllm.errors import LightLLMError
from lightllm.protocol.messages import TextOutput
from lightllm.workers.tally import Tally


class Choice:
    """One request as the engine sees it: tokens `generated`, and of these `read` by iteration. `first_at` and `last_at`
    are the times of its tokens, None before."""

    __slots__ = ("cached", "first_at", "generated", "generation", "index", "last_at", "read", "request_id")

    def __init__(self, generation: Generation, index: int, request_id: int) -> None:
        self.generation = generation
        self.index = index
        self.request_id = request_id
        self.generated = 0
        self.read = 0
        self.cached = 0
        self.first_at: float | None = None
        self.last_at: float | None = None


class Generation:
    """`n` choices for each of several prompts; choice i of prompt p has the index p * n + i.

    Use it as a context manager and iterate inside, so that leaving early stops the work:

        with frontend.generate([ids], params) as generation:
            async for index, output in generation: ...

    Iteration ends when every choice has finished or after `close`; it raises the LightLLMError of the first choice that
    fails, and then no other choice goes on. Only one task iterates.
    """

    def __init__(
        self,
        prompt_lens: Sequence[int],
        n: int,
        arrival: float,
        tally: Tally,
        on_leave: Callable[[list[Choice], bool], None],
    ) -> None:
        self.prompt_lens = tuple(prompt_lens)
        self.n = n
        self.arrival = arrival
        self.tally = tally
        self.closed = False
        """Left before its end, by its user or because the client went away."""
        self.choices: list[Choice] = []
        self.live: set[Choice] = set()
        self._events: deque[tuple[int, TextOutput] | LightLLMError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_leave = on_leave

    def add(self, request_id: int) -> Choice:
        """A further choice, live from now on."""
        choice = Choice(self, len(self.choices), request_id)
        self.choices.append(choice)
        self.live.add(choice)
        return choice

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(self.prompt_lens)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all choices that iteration gave so far."""
        return sum(choice.read for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was reused, as the first choice of each prompt found it."""
        return sum(choice.cached for choice in self.choices[:: self.n])

    def deliver(self, choice: Choice, output: TextOutput) -> None:
        """The owner hands over the next output of a live choice."""
        choice.generated += len(output.token_ids)
        choice.cached = max(choice.cached, output.cached_tokens)
        if output.finish is not None:
            self.live.discard(choice)
        self._events.append((choice.index, output))
        self._wake()

    def fail(self, error: LightLLMError) -> None:
        """The owner ends all choices with an error, after what was delivered before it."""
        self.live.clear()
        self._events.append(error)
        self._wake()

    def close(self, *, disconnected: bool = False) -> None:
        """Stop everything that still runs; iteration ends without an error. Calling it again does nothing."""
        if self.closed:
            return
        self.closed = True
        live = sorted(self.live, key=lambda choice: choice.index)
        self.live.clear()
        self._events.clear()
        if live:
            self._on_leave(live, disconnected)
        self._wake()

    async def begin(self, seconds: float) -> None:
        """Wait for the first event, but not longer than that. Raises it if it is an error, as iterating would."""
        if not self._events and self.live:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait([self._waiter], timeout=seconds)
            except asyncio.CancelledError:
                self.close(disconnected=True)
                raise
            finally:
                self._waiter = None
        if self._events and isinstance(self._events[0], LightLLMError):
            raise self._events.popleft()  # type: ignore[misc]  # it is one

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> tuple[int, TextOutput]:
        while not self._events:
            if self.closed or not self.live:
                raise StopAsyncIteration
            await self._sleep()
        event = self._events.popleft()
        if isinstance(event, LightLLMError):
            raise event
        index, output = event
        self.choices[index].read += len(output.token_ids)
        return event

    async def _sleep(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close(disconnected=True)
            raise
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
