"""`lightllm chat`: a conversation in the terminal, or one question per line from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from rich.console import Console

from lightllm.cli.answers import Answerer, LocalAnswerer, RemoteAnswerer
from lightllm.cli.conversation import Conversation
from lightllm.cli.flags import ModelFlags, SamplingFlags, parse, settings_of
from lightllm.cli.precheck import check_model
from lightllm.config.settings import EngineSettings
from lightllm.errors import ConfigError, LightLLMError


@dataclass(frozen=True, slots=True)
class ChatFlags:
    """Talk to a model in the terminal. Without --url the model runs in this process."""

    model: ModelFlags = field(default_factory=ModelFlags)
    url: str | None = None
    """A server with the OpenAI API, e.g. http://127.0.0.1:8000; MODEL is then a name it serves."""
    api_key: str | None = None
    """Key for that server; the environment's OPENAI_API_KEY when omitted."""
    system: str | None = None
    """System message."""
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    engine: EngineSettings = field(default_factory=EngineSettings)


def run(argv: Sequence[str]) -> int:
    """Converse until the input ends or /exit."""
    flags = parse(ChatFlags, "chat", argv)
    answerer = make_answerer(flags)
    try:
        conversation = Conversation(flags.system)
        if sys.stdin.isatty():
            _converse(answerer, conversation, Console(highlight=False))
        else:
            _answer_lines(answerer, conversation)
    finally:
        answerer.close()
    return 0


def make_answerer(flags: ChatFlags) -> Answerer:
    """The server at --url, or a model loaded here. Raises ConfigError, also for a flag that is of no use then, and what
    loading raises."""
    if flags.url is not None:
        for section in (flags.model, flags.engine):
            for setting in fields(section):
                if setting.name != "model" and getattr(section, setting.name) != setting.default:
                    message = f"{setting.name} is for a model in this process, --url names a server; give one of them"
                    raise ConfigError(message, param=setting.name)
        key = flags.api_key or os.environ.get("OPENAI_API_KEY")
        return RemoteAnswerer(flags.url, flags.model.model, key, flags.sampling)
    if flags.api_key is not None:
        raise ConfigError("api_key is for a server; name it with --url", param="api_key")
    directory = check_model(flags.model)
    return LocalAnswerer(settings_of(flags.model, flags.engine), directory, flags.sampling)


def _converse(answerer: Answerer, conversation: Conversation, console: Console) -> None:
    import readline  # noqa: F401  gives input() line editing and a history

    console.print(f"[bold]{answerer.name}[/bold]  [dim]/help for commands, Ctrl-D to leave[/dim]")
    for line in _typed_lines(console):
        if line.startswith("/"):
            said = conversation.command(line)
            if said is None:
                return
            console.print(said, style="dim", markup=False)
            continue
        conversation.ask(line)
        try:
            _show_answer(answerer, conversation, console)
        except LightLLMError as error:
            conversation.take_back()
            console.print(f"error: {error.message}", style="red", markup=False)


def _typed_lines(console: Console) -> Iterator[str]:
    """Lines that hold something; Ctrl-C empties a line, Ctrl-D ends."""
    while True:
        try:
            line = console.input("[bold cyan]> [/bold cyan]")
        except KeyboardInterrupt:
            console.print()
            continue
        except EOFError:
            console.print()
            return
        if line.strip():
            yield line


def _show_answer(answerer: Answerer, conversation: Conversation, console: Console) -> None:
    said: list[str] = []
    try:
        for piece in answerer.answer(conversation.messages):
            said.append(piece)
            console.print(piece, end="", markup=False, soft_wrap=True)
        console.print()
    except KeyboardInterrupt:
        console.print(" [dim](stopped)[/dim]")
    conversation.answered("".join(said))


def _answer_lines(answerer: Answerer, conversation: Conversation) -> None:
    """One question per line; commands work too. The first error ends it."""
    for line in sys.stdin:
        if not line.strip():
            continue
        if line.startswith("/"):
            said = conversation.command(line)
            if said is None:
                return
            print(said, file=sys.stderr)
            continue
        conversation.ask(line.rstrip("\n"))
        answer: list[str] = []
        for piece in answerer.answer(conversation.messages):
            answer.append(piece)
            print(piece, end="", flush=True)
        print(flush=True)
        conversation.answered("".join(answer))
