"""What every HTTP handler needs, made once per process and carried by the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from lightllm.config.locate import read_template
from lightllm.text.chat import ChatTemplate
from lightllm.text.parsers import FORMAT_TAGS, OutputParser, create_parser, detect
from lightllm.workers.frontend import Frontend


class Exposition(Protocol):
    """What answers `/metrics`; `lightllm.metrics.exposition.Exposition` is one."""

    def render(self, accept: str = "") -> tuple[bytes, str]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """The frontend, how it renders chats and reads outputs, and the metrics that it shows.

    tags_are_special: tags that the parsers look for are special tokens of this tokenizer, which outputs do not show
    """

    frontend: Frontend
    template: ChatTemplate
    tool_parser: str | None
    reasoning_parser: str | None
    tags_are_special: bool
    exposition: Exposition | None = None

    @classmethod
    def create(cls, frontend: Frontend, exposition: Exposition | None = None) -> Context:
        """Compile the chat template and choose the parsers that it calls for.

        Raises ConfigError for a template file that cannot be read, CheckpointError for one that does not compile.
        """
        tokenizer = frontend.tokenizer
        path = frontend.settings.model.chat_template
        source = tokenizer.chat_templates if path is None else read_template(path)
        template = ChatTemplate(source, tokenizer.special_tokens)
        tool, _ = detect(template.tool_source)
        _, reasoning = detect(template.source or template.tool_source)
        special = [tokenizer.vocabulary.contents[token_id] for token_id in tokenizer.special_ids]
        hidden = any(tag in special for name in (tool, reasoning) if name is not None for tag in FORMAT_TAGS[name])
        return cls(frontend, template, tool, reasoning, hidden, exposition or _own_exposition(frontend))

    def create_parser(self, *, tools: bool, reasoning_opened: bool) -> OutputParser:
        """A parser for one output; tool calls are looked for only if the request has tools."""
        return create_parser(self.tool_parser if tools else None, self.reasoning_parser, reasoning_opened)


def context_of(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _own_exposition(frontend: Frontend) -> Exposition | None:
    """This process's metrics alone, when nobody gave those of all processes."""
    if frontend.metrics is None:
        return None
    from lightllm.metrics.exposition import Exposition as BoardExposition

    return BoardExposition([frontend.metrics.board], info={"model_name": frontend.model_names[0]})
