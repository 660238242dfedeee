"""A chat's history and its slash commands. It knows no model and no terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HELP = """/reset          forget the conversation
/system TEXT    set the system message (without TEXT: remove it) and forget the conversation
/history        show the conversation
/exit           leave (or Ctrl-D)
Ctrl-C stops the answer."""


@dataclass(slots=True)
class Conversation:
    """The messages so far, in the form of the OpenAI API."""

    system: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + self.turns

    def ask(self, text: str) -> None:
        self.turns.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """Keep an answer, an interrupted one too; without any text the question is forgotten instead."""
        if text.strip():
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.take_back()

    def take_back(self) -> None:
        """Forget the last question: it could not be answered."""
        if self.turns and self.turns[-1]["role"] == "user":
            self.turns.pop()

    def command(self, line: str) -> str | None:
        """Carry out a line that begins with a slash. Returns what to print, or None to leave."""
        name, _, rest = line.strip().partition(" ")
        match name:
            case "/exit" | "/quit":
                return None
            case "/reset":
                self.turns.clear()
                return "The conversation is forgotten."
            case "/system":
                self.system = rest.strip() or None
                self.turns.clear()
                return "The system message is set." if self.system else "There is no system message."
            case "/history":
                return "\n".join(f"{turn['role']}: {turn['content']}" for turn in self.messages) or "Nothing yet."
            case "/help":
                return HELP
        return f"There is no {name}.\n{HELP}"
