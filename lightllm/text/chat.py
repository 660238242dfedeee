"""Chat templates: from messages to the prompt text a model was trained on.

The rendering is that of Transformers 5 `apply_chat_template`, in a sandbox with limits, on messages that were
first normalised. A template that does not compile is the checkpoint's fault and fails at load; one that
refuses or fails on messages is an InvalidRequest with the template's own words. jinja2 is imported when the
first template is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightllm.errors import InvalidRequest
from lightllm.text.messages import TemplateTraits, normalise_messages, plain_data

if TYPE_CHECKING:
    import jinja2

__all__ = ["ChatTemplate", "TemplateTraits", "check_template_kwargs", "normalise_messages", "read_traits"]

RESERVED = ("self", "messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # the trailing space shows whether the template trims, as in Transformers
MISSING = (
    "this model has no chat template, so it cannot answer chat messages; start the server with a template "
    "file, add chat_template.jinja to the model directory, or use text completions"
)


class ChatTemplate:
    """A compiled chat template, or several by name (`default`, `tool_use`).

    source: template text, a mapping of names to texts, or None for a model without one
    special_tokens: names and texts that the template may print (`bos_token`, ...)

    Raises CheckpointError if a template does not compile. Immutable; safe to share between threads.
    """

    def __init__(self, source: str | Mapping[str, str] | None, special_tokens: Mapping[str, str]) -> None:
        named = {"default": source} if isinstance(source, str) else dict(source or {})
        self.special_tokens = dict(special_tokens)
        self._compiled = {name: _Compiled(text) for name, text in named.items()}

    @property
    def source(self) -> str | None:
        """Text of the default template."""
        default = self._compiled.get("default")
        return None if default is None else default.source

    @property
    def tool_source(self) -> str | None:
        """Text of the template for conversations with tools."""
        tool_use = self._compiled.get("tool_use")
        return self.source if tool_use is None else tool_use.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_kwargs: Any,
    ) -> str:
        """The prompt text of a conversation.

        With `continue_final_message` the prompt ends inside the last message, for the model to go on with it;
        it excludes `add_generation_prompt`. `template_kwargs` reach the template as variables
        (`enable_thinking=False`).

        Raises InvalidRequest: no template, malformed messages, a template that refuses or fails, or output
        past the limit of `sandbox.MAX_OUTPUT`.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other; set one to false",
                param="continue_final_message",
            )
        compiled = self._choose(tools)
        chat = normalise_messages(messages, compiled.traits)
        final = _mark_final(chat, messages[-1], compiled.source) if continue_final_message else None
        variables = {
            **self.special_tokens,
            **plain_data(template_kwargs, "chat_template_kwargs"),
            "messages": chat,
            "tools": _objects(tools, "tools"),
            "documents": _objects(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        text = compiled.render(variables)
        return text if final is None else _cut_after_final(text, final)

    def _choose(self, tools: object) -> _Compiled:
        """`tool_use` for a conversation with tools, else `default`, as Transformers chooses."""
        if not self._compiled:
            raise InvalidRequest(MISSING, param="messages")
        name = "tool_use" if tools is not None and "tool_use" in self._compiled else "default"
        if name not in self._compiled:
            names = ", ".join(sorted(self._compiled))
            raise InvalidRequest(f"this model has chat templates named {names}, but no default", param="messages")
        return self._compiled[name]


class _Compiled:
    """One template: its text, its code and what its text tells about messages."""

    __slots__ = ("source", "template", "traits")

    def __init__(self, source: str) -> None:
        from lightllm.text.sandbox import compile_template

        self.source = source
        self.template: jinja2.Template = compile_template(source)
        self.traits = read_traits(source)

    def render(self, variables: Mapping[str, Any]) -> str:
        from lightllm.text.sandbox import render_template

        return render_template(self.template, variables)


def check_template_kwargs(template_kwargs: Mapping[str, Any]) -> None:
    """Refuse a request's template variables that would replace arguments of `render`."""
    for name in template_kwargs:
        if not isinstance(name, str) or name in RESERVED:
            message = f"chat_template_kwargs cannot set {name!r}; reserved are {', '.join(RESERVED)}"
            raise InvalidRequest(message, param="chat_template_kwargs")


def read_traits(source: str) -> TemplateTraits:
    """Read from a template's text what messages it can take; heuristic, like that of other servers."""
    # `content` reached by dot or key, or a variable named content, directly after `in` of a for tag
    loops = re.search(r"{%-?\s*for\s+\w+\s+in\s+(?:[\w.\[\]'\"-]*[.\['\"])?content['\"\]]*[\s|%-]", source)
    printed = re.search(r"[.'\"]arguments['\"\]]*\s*(?:[+~]|-?}})", source)  # not through a filter, and never tested
    shaped = re.search(r"arguments['\"\]]*\s*(?:\||\.items|is\s+(?:not\s+)?(?:string|mapping))", source)
    tested = r"(?<!reasoning_)content['\"\]]*\s+is\s+(?:not\s+)?"
    return TemplateTraits(
        roles=frozenset(re.findall(r"['\"]([A-Za-z][\w-]*)['\"]", source)),
        knows_developer=re.search(r"['\"]developer['\"]", source) is not None,
        iterates_parts=loops is not None,
        takes_string_content=re.search(tested + "string", source) is not None or not loops,
        takes_string_arguments=re.search(r"arguments['\"\]]*\s+is\s+(?:not\s+)?string", source) is not None,
        prints_arguments=printed is not None and shaped is None,
        tests_none_content=re.search(tested + "none", source) is not None,
    )


def _objects(values: Sequence[Mapping[str, Any]] | None, name: str) -> list[Any] | None:
    if values is None:
        return None
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, Mapping) for value in values):
        raise InvalidRequest(f"{name} must be a list of objects", param=name)
    plain: list[Any] = plain_data(list(values), name)
    return plain


def _mark_final(chat: list[dict[str, Any]], given: Mapping[str, Any], source: str) -> str:
    """Append the mark to the last message's text, in place; return that text without the mark. given: that message as
    the client sent it."""
    place = f"messages[{len(chat) - 1}].content"
    content = chat[-1]["content"]
    if given.get("content") is None or content == [] or not re.search(r"\bcontent\b", source):
        raise InvalidRequest(f"continue_final_message needs text in {place} to continue", param=place)
    if isinstance(content, str):
        chat[-1]["content"] = content + CONTINUE_MARK
        return content
    final = str(content[-1]["text"])
    content[-1]["text"] = final + CONTINUE_MARK
    return final


def _cut_after_final(text: str, final: str) -> str:
    """Cut the rendering where the last message ends; drop its trailing space if the template trims."""
    bare_mark = CONTINUE_MARK.strip()
    if final.strip() not in text or bare_mark not in text:
        raise InvalidRequest(
            "continue_final_message: the chat template does not print the last message as it is, so it "
            "cannot be continued",
            param="continue_final_message",
        )
    end = text.rindex(bare_mark)
    trimmed = not text.startswith(CONTINUE_MARK, end)
    return text[:end].rstrip() if trimmed else text[:end]
