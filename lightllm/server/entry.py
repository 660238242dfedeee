"""What a frontend process runs, as the supervisor names it: the pieces put together, then HTTP until told to leave."""

from __future__ import annotations

import gc

import lightllm
from lightllm.config.locate import model_name
from lightllm.ipc import Sender
from lightllm.metrics import MetricSet
from lightllm.metrics.exposition import Exposition
from lightllm.protocol.messages import EngineInbox, FrontendInbox
from lightllm.server.app import create_app
from lightllm.server.process import run_frontend
from lightllm.workers.entries import load_tokenizer
from lightllm.workers.frontend import Frontend
from lightllm.workers.process import Worker


def frontend(worker: Worker) -> None:
    """Load the tokenizer, listen, serve. Raises ConfigError or CheckpointError for what cannot be served."""
    settings = worker.settings
    sender: Sender[EngineInbox] = worker.sender("engine", EngineInbox)
    served = Frontend(
        worker.index,
        load_tokenizer(settings.model),
        settings,
        sender,
        MetricSet(worker.board),
        model_name(settings.model.model),
        worker.started,
        worker.generation,
    )
    info = {"model_name": served.model_names[0], "version": lightllm.__version__}
    app = create_app(served, Exposition(list(worker.boards.values()), info=info))
    assert worker.listening_socket is not None, "the supervisor gives every frontend the listening socket"
    gc.freeze()
    worker.ready()
    run_frontend(served, app, worker.listening_socket, worker.inbox(FrontendInbox))
