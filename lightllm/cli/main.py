"""The entry point `lightllm`: finds the command, runs it, and turns every error into one clear line.

Each command is a module of this package with `run(argv) -> int`, imported only when it is called, so that
`lightllm serve` never loads torch and `lightllm --version` loads next to nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import lightllm
from lightllm.errors import LightLLMError

COMMANDS = {
    "serve": ("lightllm.cli.serve", "serve a model over HTTP"),
    "chat": ("lightllm.cli.chat", "talk to a model in the terminal"),
    "generate": ("lightllm.cli.generate", "complete prompts, without a server"),
    "check": ("lightllm.cli.check", "compare a model's logits and tokens with a reference"),
    "env": ("lightllm.cli.env", "show versions, devices and the chosen kernels"),
    "bench offline": ("lightllm.cli.bench_offline", "measure an engine's speed beside the hardware's bound"),
    "bench serve": ("lightllm.cli.bench_serve", "load a running server and measure latencies and goodput"),
    "simulate": ("lightllm.cli.simulate", "try a scheduling policy on a trace, without a model"),
}
"""Command -> module and what it does."""

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else MISUSED
    if arguments[0] in ("-V", "--version"):
        print(f"lightllm {lightllm.__version__}")
        return 0
    name, rest = split_command(arguments)
    if name is None:
        given = " ".join(arguments[:2]) if arguments[0] == "bench" else arguments[0]
        print(f"error: no command {given!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return MISUSED
    return _run(name, rest)


def split_command(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command that `arguments` begin with, of one word or two, and what follows it."""
    for num_words in (2, 1):
        name = " ".join(arguments[:num_words])
        if name in COMMANDS:
            return name, list(arguments[num_words:])
    return None, list(arguments)


def overview() -> str:
    """What `lightllm --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    head = f"lightllm {lightllm.__version__}: serves large language models"
    return "\n".join(
        [head, "", "usage: lightllm COMMAND [options]", "", *lines, "", "lightllm COMMAND --help tells more."]
    )


def _run(name: str, arguments: list[str]) -> int:
    try:
        code: int = import_module(COMMANDS[name][0]).run(arguments)
        sys.stdout.flush()
        return code
    except LightLLMError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has left; give Python something to flush into at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
