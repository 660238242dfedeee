"""The entry point `lightllm`: finds the command, runs it, and turns every error into one clear line.

Each command is a module of this package, imported only when it is called, so that
`lightllm serve` never loads torch and `lightllm --version` loads next to nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import lightllm
from lightllm.errors import LightLLMError

Command = Callable[[Sequence[str]], int]


def _module(name: str) -> Command:
    """The `run` of a module of this package."""

    def run(argv: Sequence[str]) -> int:
        code: int = import_module(f"lightllm.cli.{name}").run(argv)
        return code

    return run


def _simulate(argv: Sequence[str]) -> int:
    from lightllm.cli.flags import parse
    from lightllm.cli.simulate import SimulateCommand

    return parse(SimulateCommand, "simulate", argv, append=False).run()


COMMANDS: dict[str, tuple[Command, str]] = {
    "serve": (_module("serve"), "serve a model over HTTP"),
    "chat": (_module("chat"), "talk to a model in the terminal"),
    "generate": (_module("generate"), "complete prompts, without a server"),
    "check": (_module("check"), "compare a model's logits and tokens with a reference"),
    "env": (_module("env"), "show versions, devices and the chosen kernels"),
    "bench offline": (_module("bench_offline"), "measure an engine's speed beside the hardware's bound"),
    "bench kernels": (_module("bench_kernels"), "time the GPU kernels beside their bounds, or tune them"),
    "bench serve": (_module("bench_serve"), "load a running server: latencies and goodput"),
    "simulate": (_simulate, "try scheduling policies on simulated traffic, without a model"),
}
"""Command -> what runs it and what it does."""

FAILED = 1
MISUSED = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    _open_standard_streams()
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


def _open_standard_streams() -> None:
    """Lead standard streams that are closed, as in `lightllm serve <&- >&-`, nowhere. Their numbers would go to what
    is opened next: a worker would get a standard stream in place of a ring, and logs be written into one."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: `fd`
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - kept


def _run(name: str, arguments: list[str]) -> int:
    try:
        run, _ = COMMANDS[name]
        code = run(arguments)
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
