"""What the engine process and the detokenizer process run: the pieces put together, then the loop.

Functions that the supervisor names as "lightllm.workers.entries:engine"; each gets a Worker. Heavy imports are local,
so that the detokenizer never loads torch and the engine no tokenizer.
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

from lightllm.config.locate import find_model, find_tokenizer
from lightllm.config.settings import ModelSettings
from lightllm.device.early import open_early
from lightllm.metrics import MetricSet
from lightllm.protocol.messages import DetokenizerInbox, EngineInbox, FrontendInbox, TextBatch
from lightllm.workers.process import Worker

if TYPE_CHECKING:
    from lightllm.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def engine(worker: Worker) -> None:
    """Load the model, report what it is, run the engine loop."""
    gc.disable()  # what is imported and built stays: looking through it again and again takes a fifth of the imports
    open_early(worker.settings.engine.device)
    from lightllm.workers.engine import EngineLoop, build_parts
    from lightllm.workers.meters import EngineMeters

    gc.freeze()
    parts = build_parts(worker.settings, find_model(worker.settings.model.model))
    for resolved in parts.resolved:
        reason = f"{resolved.value} ({resolved.reason})" if resolved.value else resolved.reason
        logger.info("%s: %s", resolved.name, reason)
    outbox = worker.sender("detokenizer", DetokenizerInbox)
    meters = EngineMeters(MetricSet(worker.board), parts.scheduler)
    loop = EngineLoop(
        parts,
        worker.receivers(EngineInbox),
        outbox,
        generation=worker.generation,
        meters=meters,
        most_requests=worker.settings.scheduler.max_waiting + parts.facts["max_running"],
    )
    gc.collect()
    gc.freeze()  # what was loaded stays: later collections need not look at it
    gc.enable()
    worker.ready(parts.facts)
    loop.run()


def detokenizer(worker: Worker) -> None:
    """Load the tokenizer, run the detokenizer loop."""
    from lightllm.workers.detokenizer import DetokenizerLoop

    tokenizer = load_tokenizer(worker.settings.model)
    MetricSet(worker.board)
    count = worker.settings.server.frontends
    frontends = [worker.sender(frontend_name(index), FrontendInbox) for index in range(count)]
    to_engine = worker.sender("engine", EngineInbox)

    def to_frontend(index: int, batch: TextBatch) -> None:
        frontends[index].send(batch)

    loop = DetokenizerLoop(tokenizer, to_frontend, to_engine)
    gc.freeze()
    worker.ready()
    loop.run(worker.receivers(DetokenizerInbox), [*frontends, to_engine])


def load_tokenizer(model: ModelSettings) -> Tokenizer:
    """The tokenizer that goes with a model. Raises ConfigError or CheckpointError."""
    from lightllm.text.tokenizer import Tokenizer

    return Tokenizer.load(find_tokenizer(model.tokenizer, find_model(model.model)))


def frontend_name(index: int) -> str:
    """The name of a frontend among the workers."""
    return f"frontend-{index}"
