"""What a request says about tools, checked. Forcing a call needs constrained decoding and is refused for now."""

from __future__ import annotations

from typing import Any

from lightllm.errors import InvalidRequest
from lightllm.server.body import convert
from lightllm.server.openai.schemas import ToolSpec

MAX_TOOLS = 1024


def choose_tools(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None, tool_parser: str | None
) -> list[dict[str, Any]] | None:
    """The tools to show to the model, or None: there are none, or the choice is "none".

    tool_parser: name of the parser that reads this model's calls, if there is one

    Raises InvalidRequest for malformed tools, a choice without tools, and what cannot be honoured.
    """
    if tools is None:
        if choice is not None and choice != "none":
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        return None
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise InvalidRequest(f"tools must have 1 to {MAX_TOOLS} entries, got {len(tools)}", param="tools")
    names = [convert(tool, ToolSpec, f"tools[{index}]").function.name for index, tool in enumerate(tools)]
    _check_names(names)
    _check_choice(choice, names)
    if choice == "none":
        return None
    if tool_parser is None:
        message = "tools are not supported: this model's chat template has no format for tool calls that is known here"
        raise InvalidRequest(message, param="tools")
    return tools


def _check_names(names: list[str]) -> None:
    for index, name in enumerate(names):
        if not name:
            raise InvalidRequest(f"tools[{index}].function.name is empty", param=f"tools[{index}].function.name")
        if name in names[:index]:
            raise InvalidRequest(f"tools has two functions named {name[:80]!r}", param=f"tools[{index}].function.name")


def _check_choice(choice: str | dict[str, Any] | None, names: list[str]) -> None:
    if choice in (None, "auto", "none"):
        return
    if isinstance(choice, dict):
        if (kind := choice.get("type", "function")) != "function":
            message = f"tool_choice.type {str(kind)[:80]!r} is not supported; send the tools alone that may be called"
            raise InvalidRequest(message, param="tool_choice")
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest("tool_choice.function.name must be a string", param="tool_choice")
        if name not in names:
            raise InvalidRequest(f"tool_choice names {name[:80]!r}, which is not among the tools", param="tool_choice")
    elif choice != "required":
        known = "auto, none, required or a function"
        raise InvalidRequest(f"tool_choice must be {known}, got {str(choice)[:80]!r}", param="tool_choice")
    message = "tool_choice that forces a call is not supported: constrained decoding is not available yet"
    raise InvalidRequest(message, param="tool_choice")
