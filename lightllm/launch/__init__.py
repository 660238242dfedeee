"""The process tree of a server: start, readiness, death watch, drain, shutdown.

lightllm serve = supervisor ─┬─ engine         loads torch
                             ├─ detokenizer
                             └─ frontend-0 ...  HTTP, on one listening socket

topology    which workers there are and who talks to whom        listening   the socket
wiring      the rings and boards between them                    signals     something to sleep on
child       one worker's process                                 backoff     when to start it again
crew        all workers, and what each hears of the others       stall       an engine that takes no step
supervisor  the loop and the phases of the server
"""

from __future__ import annotations

from dataclasses import replace

from lightllm.config.locate import find_model, model_name
from lightllm.config.settings import Settings
from lightllm.launch.listening import allow_many_connections, listen
from lightllm.launch.supervisor import Supervisor
from lightllm.launch.topology import Link, Topology, WorkerSpec, serving_topology

__all__ = ["Link", "Supervisor", "Topology", "WorkerSpec", "serve", "serving_topology"]


def serve(settings: Settings, topology: Topology | None = None, *, log_level: str = "info") -> int:
    """Serve until told to stop; the exit code of the process. Call it in the main thread, with logs configured.

    Raises ConfigError, before anything is started, for an address that cannot be listened on or a model that cannot be
    found. What goes wrong later is logged, and the exit code is 1.
    """
    allow_many_connections()
    listener = listen(settings.server.host, settings.server.port)
    try:
        settings = with_model_directory(settings)
        topology = topology or serving_topology(settings.server.frontends)
        supervisor = Supervisor(settings, topology, listener, log_level=log_level)
    except BaseException:
        listener.close()
        raise
    return supervisor.run()


def with_model_directory(settings: Settings) -> Settings:
    """Settings whose model is a directory, fetched if it has to be, so that the workers agree on it; its name stays."""
    model = settings.model
    served = model.served_model_name or (model_name(model.model),)
    return replace(settings, model=replace(model, model=str(find_model(model.model)), served_model_name=served))
