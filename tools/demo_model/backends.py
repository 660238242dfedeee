"""Who answers the evaluator's prompts: lightllm's offline API, Transformers, or the compact model of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .decode import STOP


@dataclass(frozen=True, slots=True)
class Answer:
    """The ids made, without the stop token, and whether the model ended by itself."""

    token_ids: list[int]
    stopped: bool


class Backend(Protocol):
    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[Answer]: ...


def _answer(ids: list[int]) -> Answer:
    stopped = bool(ids) and ids[-1] in STOP
    return Answer(ids[:-1] if stopped else ids, stopped)


class LightllmBackend:
    def __init__(self, path: Path) -> None:
        from lightllm import LLM

        self.llm = LLM(str(path))

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[Answer]:
        from lightllm import SamplingParams

        params = [SamplingParams(temperature=0.0, max_tokens=limit) for limit in max_tokens]
        outputs = [result.outputs[0] for result in self.llm.generate(prompts, params)]
        found = []
        for output in outputs:
            ids = [token for token in output.token_ids if token not in STOP]
            found.append(Answer(ids, output.finish_reason == "stop"))
        return found


class TransformersBackend:
    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[Answer]:
        found = []
        for prompt, limit in zip(prompts, max_tokens, strict=True):
            ids = self.torch.tensor([prompt])
            mask = self.torch.ones_like(ids)
            made = self.model.generate(ids, attention_mask=mask, max_new_tokens=limit, do_sample=False)
            found.append(_answer(made[0, len(prompt) :].tolist()))
        return found


class CompactBackend:
    def __init__(self, path: Path) -> None:
        import torch

        from .model import load

        torch.set_float32_matmul_precision("highest")
        self.model = load(path, "cuda" if torch.cuda.is_available() else "cpu")

    def generate(self, prompts: list[list[int]], max_tokens: list[int]) -> list[Answer]:
        from .decode import greedy

        return [_answer(ids) for ids in greedy(self.model, prompts, max_tokens)]


BACKENDS: dict[str, Callable[[Path], Backend]] = {
    "lightllm": LightllmBackend,
    "transformers": TransformersBackend,
    "compact": CompactBackend,
}
