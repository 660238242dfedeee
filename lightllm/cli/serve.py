"""`lightllm serve`: checks the model directory and hands over to the supervisor. It never loads torch itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightllm import envs, logs
from lightllm.cli.flags import ModelFlags, parse, settings_of
from lightllm.cli.precheck import check_model
from lightllm.config.settings import EngineSettings, SchedulerSettings, ServerSettings


@dataclass(frozen=True, slots=True)
class ServeFlags:
    """Serve a model over HTTP, with the OpenAI API."""

    model: ModelFlags = field(default_factory=ModelFlags)
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    server: ServerSettings = field(default_factory=ServerSettings)


def run(argv: Sequence[str]) -> int:
    """Serve until told to stop; the exit code is the supervisor's."""
    flags = parse(ServeFlags, "serve", argv)
    settings = settings_of(flags.model, flags.engine, flags.scheduler, flags.server)
    check_model(settings.model)

    from lightllm.launch import serve

    level = envs.log_level()
    logs.configure(level)
    return serve(settings, log_level=level)
