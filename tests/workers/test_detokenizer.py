"""What frontends and the engine hear of the detokenizer, message by message."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from lightllm.errors import Backpressure, ProtocolError
from lightllm.ipc import local_channel
from lightllm.protocol.codec import Codec
from lightllm.protocol.messages import (
    Abort,
    AbortFrontend,
    DetokenizerInbox,
    Die,
    EngineInbox,
    EngineStarted,
    FinishReason,
    FrontendInbox,
    Open,
    TextBatch,
    TextOutput,
    TokenBatch,
    TokenOutput,
    TopLogprobs,
    make_request_id,
    pack_ids,
)
from lightllm.text.tokenizer import Tokenizer
from lightllm.workers.detokenizer import DetokenizerLoop

A = make_request_id(0, 1)
B = make_request_id(0, 2)
C = make_request_id(1, 1)
TEXT = "The quick brown fox jumps over the lazy dog. Größe 🎉!"


class Harness:
    """A loop whose frontends and engine are lists. Messages pass their codecs, as between processes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.batches: list[tuple[int, TextBatch]] = []
        to_engine, self._engine = local_channel(
            Codec[EngineInbox](EngineInbox).encode, Codec[EngineInbox](EngineInbox).decode, strict=True
        )
        self._inbox: Codec[DetokenizerInbox] = Codec(DetokenizerInbox)
        self._outbox: Codec[FrontendInbox] = Codec(FrontendInbox)
        self.loop = DetokenizerLoop(tokenizer, self.to_frontend, to_engine)

    def to_frontend(self, frontend: int, batch: TextBatch) -> None:
        decoded = self._outbox.decode(self._outbox.encode(batch))
        assert isinstance(decoded, TextBatch)
        self.batches.append((frontend, decoded))

    def handle(self, *messages: DetokenizerInbox) -> None:
        for message in messages:
            self.loop.handle(self._inbox.decode(self._inbox.encode(message)))

    def outputs(self, *messages: DetokenizerInbox) -> list[TextOutput]:
        """What is said after one wake-up with these messages."""
        self.handle(*messages)
        self.batches.clear()
        self.loop.flush()
        return [output for _, batch in self.batches for output in batch.outputs]

    def aborts(self) -> list[Abort]:
        return [message for message in self._engine.receive() if isinstance(message, Abort)]

    def aborted(self) -> list[int]:
        return [request_id for abort in self.aborts() for request_id in abort.request_ids]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


@pytest.fixture(params=["byte_level", "sentence_piece"])
def harness(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Harness:
    return Harness(tokenizers[request.param])


@pytest.fixture
def bytes_harness(tokenizers: dict[str, Tokenizer]) -> Harness:
    return Harness(tokenizers["byte_level"])


def opened(
    request_id: int = A,
    stop: Sequence[str] = (),
    *,
    include: bool = False,
    min_tokens: int = 0,
    skip: bool = True,
    detokenize: bool = True,
) -> Open:
    return Open(request_id, b"", tuple(stop), include, min_tokens, skip, True, detokenize)


def tokens(request_id: int, *ids: int, finish: FinishReason | None = None, **rest: object) -> TokenBatch:
    return TokenBatch((TokenOutput(request_id, ids, finish=finish, **rest),))  # type: ignore[arg-type]


def scores(count: int, start: int = 0) -> tuple[TopLogprobs, ...]:
    """Log-probabilities whose rank numbers their position."""
    values = np.array([-0.5], np.float32).tobytes()
    return tuple(TopLogprobs(-0.5, rank, pack_ids([7]), values) for rank in range(start, start + count))


def test_text_of_single_tokens_joins_to_the_text_of_all(harness: Harness) -> None:
    ids = harness.ids(TEXT)
    said = harness.outputs(opened())
    for token_id in ids[:-1]:
        said += harness.outputs(tokens(A, token_id))
    said += harness.outputs(tokens(A, ids[-1], finish=FinishReason.LENGTH))
    assert "".join(output.text for output in said) == harness.tokenizer.decode(ids)
    assert [token_id for output in said for token_id in output.token_ids] == ids
    assert [output.finish for output in said if output.finish] == [FinishReason.LENGTH]
    assert harness.loop.num_open == 0


def test_steps_of_one_wake_up_become_one_output_and_one_batch_per_frontend(harness: Harness) -> None:
    first, second, *_ = harness.ids(TEXT)
    outputs = harness.outputs(
        opened(A), opened(B), opened(C), tokens(A, first), tokens(B, first), tokens(C, first), tokens(A, second)
    )
    assert {output.request_id: output.token_ids for output in outputs} == {A: (first, second), B: (first,), C: (first,)}
    assert sorted((frontend, len(batch.outputs)) for frontend, batch in harness.batches) == [(0, 2), (1, 1)]
    assert harness.outputs() == [], "nothing is said twice"


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_text_ids_and_scores_where_it_is_complete(
    bytes_harness: Harness, size: int, include: bool
) -> None:
    harness, stop = bytes_harness, "fox jumps"
    ids = harness.ids(TEXT)
    needed = next(count for count in range(len(ids)) if stop in harness.tokenizer.decode(ids[:count]))
    said = harness.outputs(opened(A, [stop, "lazy"], include=include))
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        said += harness.outputs(tokens(A, *part, logprobs=scores(len(part), start)))
    assert "".join(output.text for output in said) == "The quick brown " + (stop if include else "")
    assert [token_id for output in said for token_id in output.token_ids] == ids[:needed]
    assert [entry.rank for output in said for entry in output.logprobs] == list(range(needed))
    assert said[-1].finish is FinishReason.STOP
    assert said[-1].stop_reason == stop
    assert sum(output.finish is not None for output in said) == 1
    assert harness.aborted() == [A]
    assert harness.outputs(tokens(A, finish=FinishReason.ABORT)) == [], "the engine's answer to the abort is no news"


def test_text_that_may_become_a_stop_string_waits_and_its_ids_do_not(bytes_harness: Harness) -> None:
    harness = bytes_harness
    ids = harness.ids("hello wor")
    (held,) = harness.outputs(opened(A, ["hello world"]), tokens(A, *ids))
    assert (held.text, held.token_ids) == ("", tuple(ids))
    (last,) = harness.outputs(tokens(A, *harness.ids("k"), finish=FinishReason.LENGTH))
    assert (last.text, last.finish, last.stop_reason) == ("hello work", FinishReason.LENGTH, None)


def test_the_engine_hears_whether_a_stop_string_ended_a_request(bytes_harness: Harness) -> None:
    harness = bytes_harness
    damaged = Open(B, b"odd", (), False, 0, True, True)
    harness.outputs(opened(A, ["fox"]), damaged, tokens(A, *harness.ids(TEXT)))
    assert harness.aborts() == [Abort((B,)), Abort((A,), complete=True)]


def test_a_stop_string_in_the_last_step_needs_no_abort(bytes_harness: Harness) -> None:
    harness = bytes_harness
    finish = FinishReason.LENGTH
    (last,) = harness.outputs(opened(A, ["END"]), tokens(A, *harness.ids("the END of it"), finish=finish))
    assert (last.text, last.finish, last.stop_reason) == ("the ", FinishReason.STOP, "END")
    assert harness.aborted() == []


def test_stop_strings_wait_for_min_tokens(bytes_harness: Harness) -> None:
    harness = bytes_harness
    ids = harness.ids("a b c a b c")
    said = harness.outputs(opened(A, ["c"], min_tokens=len(harness.ids("a b c"))))
    said += harness.outputs(*(tokens(A, token_id) for token_id in ids))
    assert "".join(output.text for output in said) == "a b c a b "
    assert said[-1].token_ids == tuple(ids)


def test_a_stop_string_may_not_begin_within_min_tokens(bytes_harness: Harness) -> None:
    harness = bytes_harness
    ids = harness.ids("a b c d")
    finish = FinishReason.LENGTH
    unmatched = len(harness.ids("a b"))
    (last,) = harness.outputs(opened(A, ["b c"], min_tokens=unmatched), tokens(A, *ids, finish=finish))
    assert (last.text, last.finish) == ("a b c d", finish)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_the_end_token_is_an_id_and_no_text(bytes_harness: Harness, skip: bool, include: bool) -> None:
    harness = bytes_harness
    end = harness.tokenizer.token_to_id("<|im_end|>")
    assert end is not None
    ids = [*harness.ids("bye"), end]
    (last,) = harness.outputs(opened(A, skip=skip, include=include), tokens(A, *ids, finish=FinishReason.STOP))
    assert last.text == ("bye<|im_end|>" if include and not skip else "bye")
    assert (last.token_ids, last.stop_reason) == (tuple(ids), None)


def test_a_stop_token_of_the_caller_is_the_reason(bytes_harness: Harness) -> None:
    harness = bytes_harness
    ids = harness.ids("hello world")
    stop = FinishReason.STOP
    (last,) = harness.outputs(opened(A), tokens(A, *ids, finish=stop, stop_token=ids[-1]))
    assert (last.text, last.stop_reason) == (harness.tokenizer.decode(ids[:-1]), ids[-1])


def test_ids_alone_are_given_when_no_text_is_wanted(harness: Harness) -> None:
    ids = harness.ids(TEXT)
    (last,) = harness.outputs(opened(A, detokenize=False), tokens(A, *ids, finish=FinishReason.STOP))
    assert (last.text, last.token_ids) == ("", tuple(ids))


def test_a_broken_character_at_the_end_is_shown_as_replacement(bytes_harness: Harness) -> None:
    harness = bytes_harness
    ids = harness.ids("🎉")
    assert len(ids) > 1
    (early,) = harness.outputs(opened(A), tokens(A, *ids[:-1]))
    assert early.text == ""
    (last,) = harness.outputs(tokens(A, finish=FinishReason.LENGTH))
    assert last.text == "\ufffd"


def test_what_the_engine_adds_passes_through(harness: Harness) -> None:
    ids = harness.ids("one two")
    prompt = (None, *scores(2))
    (said,) = harness.outputs(
        opened(A),
        tokens(A, prompt_logprobs=prompt[:2], cached_tokens=5),
        tokens(A, *ids, prompt_logprobs=prompt[2:], logprobs=scores(len(ids))),
    )
    assert (said.prompt_logprobs, said.cached_tokens, len(said.logprobs)) == (prompt, 5, len(ids))
    (failed,) = harness.outputs(tokens(A, finish=FinishReason.ERROR, error=("engine_error", "broke")))
    assert (failed.error, failed.finish) == (("engine_error", "broke"), FinishReason.ERROR)
    assert harness.loop.num_open == 0


def test_an_error_is_terminal_even_without_a_finish(harness: Harness) -> None:
    (failed,) = harness.outputs(opened(A), tokens(A, error=("engine_error", "broke")))
    assert failed.finish is FinishReason.ERROR
    assert harness.loop.num_open == 0


def test_one_bad_request_does_not_harm_the_others(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    good = harness.ids("fine")
    damaged = Open(B, b"odd", (), False, 0, True, True)
    with caplog.at_level(logging.CRITICAL):
        said = harness.outputs(damaged, opened(A), tokens(A, *good), tokens(B, *good))
    by_id = {output.request_id: output for output in said}
    assert by_id[A].token_ids == tuple(good)
    assert by_id[B].error is not None
    assert by_id[B].finish is FinishReason.ERROR
    assert harness.aborted() == [B]


def test_a_new_engine_fails_what_the_old_one_had_open(harness: Harness) -> None:
    first, *_ = harness.ids(TEXT)
    said = harness.outputs(opened(A), opened(C), tokens(A, first), EngineStarted(1), tokens(A, first))
    assert {output.request_id for output in said} == {A, C}
    assert all(output.error is not None and output.error[0] == "worker_died" for output in said)
    assert harness.aborted() == []
    assert harness.loop.num_open == 0


def test_a_dead_frontend_is_forgotten_with_what_was_to_be_said_to_it(harness: Harness) -> None:
    first, *_ = harness.ids(TEXT)
    said = harness.outputs(opened(A), opened(C), tokens(A, first), tokens(C, first), AbortFrontend(0))
    assert [output.request_id for output in said] == [C]
    assert harness.loop.num_open == 1


def test_the_successor_of_a_dead_frontend_keeps_its_requests(harness: Harness) -> None:
    """Its requests may come before the news of the death, when the detokenizer was busy."""
    later, (first, *_) = make_request_id(0, 1, generation=1), harness.ids(TEXT)
    said = harness.outputs(opened(A), opened(later), tokens(A, first), tokens(later, first), AbortFrontend(0))
    assert [output.request_id for output in said] == [later]
    assert harness.loop.num_open == 1
    assert harness.outputs(tokens(later, first), AbortFrontend(0, 1)) == []
    assert harness.loop.num_open == 0


def test_a_frontend_that_does_not_read_loses_its_requests_only(
    tokenizers: dict[str, Tokenizer], caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(Harness):
        def to_frontend(self, frontend: int, batch: TextBatch) -> None:
            if frontend == 1:
                raise Backpressure("full")
            super().to_frontend(frontend, batch)

    harness = Deaf(tokenizers["byte_level"])
    with caplog.at_level(logging.CRITICAL):
        said = harness.outputs(opened(A), opened(C), tokens(A, 9), tokens(C, 9))
    assert [output.request_id for output in said] == [A]
    assert harness.aborted() == [C]
    assert harness.loop.num_open == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_a_frontend_that_reads_again_hears_of_what_was_given_up(
    tokenizers: dict[str, Tokenizer], caplog: pytest.LogCaptureFixture, restarted: bool
) -> None:
    """Once of each request, whether it would have gone on or was at its end; one that was restarted knows of none."""

    class Busy(Harness):
        room = 0

        def to_frontend(self, frontend: int, batch: TextBatch) -> None:
            if not self.room:
                raise Backpressure("full")
            super().to_frontend(frontend, batch)

    harness = Busy(tokenizers["byte_level"])
    with caplog.at_level(logging.CRITICAL):
        assert harness.outputs(opened(A), opened(B), tokens(A, 9), tokens(B, 9, finish=FinishReason.STOP)) == []
        assert harness.outputs(tokens(A, 9)) == []
    harness.room = 1
    said = harness.outputs(AbortFrontend(0)) if restarted else harness.outputs()
    error = FinishReason.ERROR, ("backpressure", "full")
    assert [(o.request_id, o.finish, o.error) for o in said] == ([] if restarted else [(A, *error), (B, *error)])
    assert harness.aborted() == [A]
    assert harness.outputs() == [] and harness.loop.num_open == 0


def test_an_output_too_large_for_a_message_fails_alone(tokenizers: dict[str, Tokenizer]) -> None:
    class Narrow(Harness):
        def to_frontend(self, frontend: int, batch: TextBatch) -> None:
            if sum(len(output.prompt_logprobs) for output in batch.outputs) > 2:
                raise ProtocolError("too large")
            super().to_frontend(frontend, batch)

    harness = Narrow(tokenizers["byte_level"])
    said = harness.outputs(opened(A), opened(B), tokens(A, 9, prompt_logprobs=scores(3)), tokens(B, 9))
    by_id = {output.request_id: output for output in said}
    assert by_id[A].error == ("protocol_error", "too large")
    assert by_id[B].token_ids == (9,)
    assert harness.aborted() == [A]


def test_the_loop_reads_its_inboxes_until_it_is_told_to_leave(harness: Harness) -> None:
    sender, inbox = local_channel()
    ids = harness.ids("hello")
    for message in (opened(A), tokens(A, *ids, finish=FinishReason.STOP), Die()):
        sender.send(message)
    harness.loop.run([inbox])
    inbox.close()
    assert [output.token_ids for _, batch in harness.batches for output in batch.outputs] == [tuple(ids)]
