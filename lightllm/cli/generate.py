"""`lightllm generate`: complete prompts in this process, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightllm.cli.flags import ModelFlags, SamplingFlags, parse, settings_of
from lightllm.cli.precheck import check_model
from lightllm.cli.sampling import sampling_params
from lightllm.config.checks import read_text
from lightllm.config.json_text import parse_json
from lightllm.config.settings import EngineSettings, SchedulerSettings
from lightllm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class GenerateFlags:
    """Complete prompts and print the results."""

    model: ModelFlags = field(default_factory=ModelFlags)
    prompt: tuple[str, ...] = ()
    """A prompt; may be repeated. Standard input is read, a prompt per line, when neither this nor a file is given."""
    prompts_file: str | None = None
    """File with a prompt per line; a line of JSON may hold {"prompt": text} or {"messages": [...]}."""
    chat: bool = False
    """Each prompt is a user's message, put through the chat template."""
    json: bool = False
    """Print a JSON object per prompt: text, token ids, finish reason, counts."""
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)


def run(argv: Sequence[str]) -> int:
    """Generate for every prompt, print in order."""
    flags = parse(GenerateFlags, "generate", argv)
    prompts = read_prompts(flags)
    directory = check_model(flags.model)
    params = sampling_params(flags.sampling, directory)

    from lightllm.llm import LLM

    with LLM(settings=settings_of(flags.model, flags.engine, flags.scheduler), model=str(directory)) as llm:
        texts = [_render(llm, prompt, flags.chat) for prompt in prompts]
        for output in llm.generate(texts, params):
            print(_as_json(output) if flags.json else output.outputs[0].text)
    return 0


def read_prompts(flags: GenerateFlags) -> list[Any]:
    """Prompts from flags, a file or standard input: texts, or lists of chat messages. Raises ConfigError for none."""
    prompts: list[Any] = list(flags.prompt)
    if flags.prompts_file is not None:
        prompts += [_parse_line(line) for line in _lines(read_text(flags.prompts_file, "prompts file", "prompts_file"))]
    elif not prompts and not sys.stdin.isatty():
        prompts = [_parse_line(line) for line in _lines(sys.stdin.read())]
    if not prompts:
        raise ConfigError("no prompt: give --prompt TEXT, --prompts-file FILE, or lines on standard input")
    return prompts


def _lines(text: str) -> list[str]:
    """Lines with something in them. Only line feeds end one: a prompt may hold any other separator of Unicode."""
    return [line for line in text.split("\n") if line.strip()]


def _parse_line(line: str) -> Any:
    """A line of text is a prompt as it is, unless it is a JSON object with a prompt or messages. Raises ConfigError for
    one that holds something else."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        value = parse_json(line)
    except ValueError:
        return line
    if not isinstance(value, dict):
        return line
    for key, kind, name in (("messages", list, "a list"), ("prompt", str, "text")):
        if key in value:
            if not isinstance(value[key], kind):
                raise ConfigError(f"{key} of a line must be {name}, got {json.dumps(value[key])[:60]}", param=key)
            return value[key]
    return line


def _render(llm: Any, prompt: Any, chat: bool) -> Any:
    """Chat messages become token ids by the chat template; plain text stays."""
    if not chat and isinstance(prompt, str):
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return llm.tokenizer.encode(llm.template.render(messages), add_special_tokens=False)


def _as_json(output: Any) -> str:
    choice = output.outputs[0]
    return json.dumps(
        {
            "prompt": output.prompt,
            "text": choice.text,
            "token_ids": choice.token_ids,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "prompt_tokens": len(output.prompt_token_ids),
            "completion_tokens": len(choice.token_ids),
        },
        ensure_ascii=False,
    )
