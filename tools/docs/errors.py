"""docs/errors.md: every error with its status, code and meaning, from the tree in lightllm/errors.py."""

from __future__ import annotations

import re

from markdown import GENERATED, code, table

import lightllm.errors
from lightllm.errors import LightLLMError, error_tree

INTRODUCTION = """\
# Errors

Every error that lightllm raises on purpose belongs to one tree. The same error has the same shape as a JSON body,
inside a stream and as a metric label; in Python it is an exception of `lightllm.errors`, on the command line one line
`error: ...` and exit code 1.

    {"error": {"message": "...", "type": "BadRequestError", "param": "temperature", "code": "invalid_request"}}

`message` names the limit and the value given, `param` the field or setting at fault if there is one, `code` is for
programs. An answer with *retry after* carries that many seconds in its `Retry-After` header.

"""


def page() -> str:
    """The whole page. Raises KeyError for a class that the drawing in the module's head lacks."""
    meanings = _meanings()
    own = [cls for cls in error_tree() if cls.__module__ == LightLLMError.__module__]
    rows = [
        [
            "&emsp;" * (len(cls.__mro__) - len(LightLLMError.__mro__)) + code(cls.__name__),
            str(cls.status),
            code(cls.code),
            code(cls.kind),
            f"{cls.retry_after} s" if cls.retry_after else "",
            meanings[cls.__name__],
        ]
        for cls in own
    ]
    return GENERATED + INTRODUCTION + table(("class", "status", "code", "type", "retry after", "meaning"), rows)


def _meanings() -> dict[str, str]:
    """Class name -> what the drawing at the module's head says it means."""
    lines = re.findall(r"^[\s│├└─]*(\w+) +\d{3}  \w+ *(.*)$", lightllm.errors.__doc__ or "", re.MULTILINE)
    return {name: meaning.strip() for name, meaning in lines}
