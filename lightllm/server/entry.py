"""What a frontend process runs: the application put together, then HTTP until it is told to leave.

The supervisor names it as "lightllm.server.entry:frontend". It answers from the first moment: until the engine is up,
health routes say so and generation is refused with 503.
"""

from __future__ import annotations

import gc

import lightllm
from lightllm.config.locate import model_name
from lightllm.metrics import MetricSet
from lightllm.metrics.exposition import Exposition
from lightllm.protocol.messages import EngineInbox, FrontendInbox
from lightllm.server.app import create_app
from lightllm.server.process import run_frontend
from lightllm.workers.entries import load_tokenizer
from lightllm.workers.frontend import Frontend
from lightllm.workers.process import Worker


def frontend(worker: Worker) -> None:
    """Serve HTTP on the inherited socket."""
    settings = worker.settings
    assert worker.listening_socket is not None, "the supervisor gave no listening socket"
    front = Frontend(
        worker.index,
        load_tokenizer(settings.model),
        settings,
        worker.sender("engine", EngineInbox),
        MetricSet(worker.board),
        model_name(settings.model.model),
        worker.started,
    )
    info = {"model_name": front.model_names[0], "version": lightllm.__version__}
    app = create_app(front, Exposition(list(worker.boards.values()), info=info))
    gc.freeze()
    worker.ready()
    run_frontend(front, app, worker.listening_socket, worker.inbox(FrontendInbox))
