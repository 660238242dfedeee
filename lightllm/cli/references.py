"""What `lightllm check` compares with: a golden file, or Transformers' own model.

A golden file is a safetensors file with, for i = 0, 1, ...:

    prompt_{i}.ids      int64 [L]             the prompt, as it is
    prompt_{i}.logits   float32 [L, vocab]    logits at every position of one forward pass
    prompt_{i}.greedy   int64 [N]             optional: N greedy tokens that follow, not ended by an end of sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightllm.errors import ConfigError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, its log-probabilities [L, vocab], and the greedy tokens that follow if known."""

    name: str
    ids: list[int]
    logprobs: Float32
    greedy: list[int]


def read_golden(path: Path) -> list[Case]:
    """The cases of a golden file. Raises ConfigError when it is not one."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, TypeError) as error:  # the last for a type that numpy has not
        raise ConfigError(f"golden file {path} cannot be read: {error}", param="golden") from error
    cases: list[Case] = []
    while f"prompt_{len(cases)}.ids" in tensors:
        name = f"prompt_{len(cases)}"
        ids, logits = tensors[f"{name}.ids"], tensors.get(f"{name}.logits")
        greedy = tensors.get(f"{name}.greedy", np.empty(0, np.int64))
        for kind, values in (("ids", ids), ("greedy", greedy)):
            if values.ndim != 1 or values.dtype.kind not in "iu":
                given = f"{values.dtype} {list(values.shape)}"
                raise ConfigError(f"golden file {path}: {name}.{kind} must be int64 [L], got {given}", param="golden")
        if logits is None or logits.ndim != 2 or logits.shape[0] != ids.size:
            raise ConfigError(f"golden file {path}: {name}.logits must be [{ids.size}, vocab]", param="golden")
        cases.append(Case(name, ids.tolist(), log_softmax(logits), greedy.tolist()))
    if not cases:
        raise ConfigError(f"golden file {path} has no prompt_0.ids", param="golden")
    return cases


def ask_transformers(directory: Path, prompts: Sequence[Sequence[int]], num_greedy: int) -> list[Case]:
    """Transformers' own float32 model on the CPU. Raises ConfigError without Transformers or for an unknown model."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"the comparison needs Transformers ({error}); install it with: pip install transformers"
        ) from error
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"Transformers cannot load {directory}: {str(error).splitlines()[0]}") from error
    model.eval()
    return [_ask(model, index, prompt, num_greedy) for index, prompt in enumerate(prompts)]


def log_softmax(logits: NDArray[Any]) -> Float32:
    """Over the last axis, computed in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    normalised: Float32 = (wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))).astype(np.float32)
    return normalised


def _ask(model: Any, index: int, prompt: Sequence[int], num_greedy: int) -> Case:
    import torch

    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        logits = model(ids).logits[0].float().numpy()
        greedy: list[int] = []
        if num_greedy:
            limits = {"max_new_tokens": num_greedy, "min_new_tokens": num_greedy, "do_sample": False}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0, **limits)
            greedy = out[0, len(prompt) :].tolist()
    return Case(f"prompt_{index}", list(prompt), log_softmax(logits), greedy)
