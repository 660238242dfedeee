"""lightllm: a pure-Python framework that serves large language models.

Public names are resolved on first use, so that `import lightllm` costs milliseconds and never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightllm.errors import LightLLMError
    from lightllm.llm import LLM, RequestOutput
    from lightllm.protocol.sampling_params import SamplingParams

_HOMES = {
    "LLM": "lightllm.llm",
    "RequestOutput": "lightllm.llm",
    "SamplingParams": "lightllm.protocol.sampling_params",
    "LightLLMError": "lightllm.errors",
}

__all__ = ["LLM", "LightLLMError", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lightllm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
