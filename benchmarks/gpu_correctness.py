"""How far the GPU engine's bfloat16 is from the CPU engine's float32, beside Transformers' own bfloat16 on that GPU.

    python benchmarks/gpu_correctness.py [MODEL] [--json FILE]

Prints the mean and largest error of log-probabilities over every position and the whole vocabulary, the share of
positions with the same likeliest token, and how many greedy continuations are the same, for several ways to run.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch

from lightllm import LLM, SamplingParams
from lightllm.config.locate import find_model

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks of 7": {"chunk_size": 7},
    "no prefix cache": {"prefix_cache": False},
    "preempted": {"max_total_tokens": 320, "max_model_len": 300, "estimator": "fixed", "fixed_output_len": 1},
}
NUM_PROMPTS = 24
NEW_TOKENS = 24


def make_prompts(vocab_size: int) -> list[list[int]]:
    """Ragged prompts; a third share a prefix."""
    rng = random.Random(5)
    shared = [rng.randrange(vocab_size) for _ in range(33)]
    prompts = []
    for index in range(NUM_PROMPTS):
        tail = [rng.randrange(vocab_size) for _ in range(rng.choice([1, 2, 17, 64, 130, 200]))]
        prompts.append(shared + tail if index % 3 == 0 else [*tail, 1])
    return prompts


def run(model: str, prompts: list[list[int]], **settings: Any) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Log-probabilities of every prompt position [L - 1, vocab], and greedy continuations."""
    with LLM(model, **settings) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
        ids = [o.outputs[0].token_ids for o in llm.generate(prompts, greedy, progress=False)]
        score = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=-1, detokenize=False)
        scored = [llm.generate([prompt], score, progress=False)[0].prompt_logprobs or [] for prompt in prompts]
    return [torch.stack([by_id(entry.top) for entry in entries if entry]) for entries in scored], ids


def by_id(top: list[tuple[int, float]]) -> torch.Tensor:
    values = torch.empty(len(top))
    ids, logprobs = zip(*top, strict=True)
    values[list(ids)] = torch.tensor(logprobs)
    return values


def run_transformers(directory: Path, prompts: list[list[int]]) -> tuple[list[torch.Tensor], list[list[int]]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).cuda().eval()
    logprobs, ids = [], []
    for prompt in prompts:
        tokens = torch.tensor([prompt], device="cuda")
        with torch.no_grad():
            logprobs.append(model(tokens).logits[0, :-1].float().log_softmax(-1).cpu())
        out = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        ids.append(out[0, len(prompt) :].tolist())
    return logprobs, ids


def compare(
    name: str,
    mine: tuple[list[torch.Tensor], list[list[int]]],
    truth: tuple[list[torch.Tensor], list[list[int]]],
) -> dict[str, Any]:
    errors = torch.cat([(a - b).abs().flatten() for a, b in zip(mine[0], truth[0], strict=True)])
    same_top = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(mine[0], truth[0], strict=True)])
    same_ids = [a == b for a, b in zip(mine[1], truth[1], strict=True)]
    result = {
        "run": name,
        "mean_error": float(errors.mean()),
        "max_error": float(errors.max()),
        "same_likeliest": float(same_top.float().mean()),
        "same_greedy": f"{sum(same_ids)}/{len(same_ids)}",
    }
    print(
        f"{name:28} mean {result['mean_error']:.2e}  max {result['max_error']:.2e}  "
        f"same likeliest {result['same_likeliest']:.4f}  same greedy {result['same_greedy']}"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    directory = find_model(arguments.model)
    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]
    prompts = make_prompts(vocab_size)
    truth = run(str(directory), prompts, device="cpu", dtype="float32")
    results = []
    for name, settings in WAYS.items():
        mine = run(str(directory), prompts, device="cuda", dtype="bfloat16", **settings)
        results.append(compare(f"lightllm bf16, {name}", mine, truth))
    results.append(compare("Transformers bf16", run_transformers(directory, prompts), truth))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
