"""Measures how many drafted tokens the demo model accepts: `python -m tools.demo_model.acceptance`.

Everything is greedy. The demo model answers a held-out prompt alone; then its answer (end token included) is walked
through in verifications. One verification drafts `k` tokens after the known ones, accepts those equal to the demo
model's answer up to the first that differs, and adds one token of the demo model itself:

    known  | d1 d2 d3 d4     d1 d2 right, d3 wrong: accepted 2, the walk goes on 3 tokens later

The number is accepted tokens over verifications. A draft after a right draft sees the same text as the demo model's
answer, so one pass over the answer gives every draft that can be accepted.
Medusa differs in where it starts: its heads speak at the position whose next token the demo model names itself.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from . import companions, decode, mixture
from .evaluate import ASSETS, encode_prompt
from .model import Llama, load

DRAFTED = 4


def hidden_states(model: Llama, ids: list[int]) -> Tensor:
    """States after the last norm, [tokens, hidden], of one sequence alone."""
    tensor = torch.tensor([ids], device=model.norm.weight.device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        return F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), is_causal=True
        )

    hidden: Tensor = model(tensor, torch.arange(len(ids), device=tensor.device)[None], attend)[0]
    return hidden


def walk(right: list[list[bool]], length: int) -> tuple[int, int]:
    """(accepted, verifications) over an answer of `length` tokens, its first token known.

    right[j][t]: whether draft j of a verification that knows tokens 0..t is the answer's token t + 1 + j.
    """
    accepted = verifications = 0
    known = 0
    while known < length - 1:
        run = 0
        while run < len(right) and known + 1 + run < length and right[run][known]:
            run += 1
        accepted, verifications = accepted + run, verifications + 1
        known += run + 1
    return accepted, verifications


def draft_right(draft: Llama, prompt: list[int], answer: list[int]) -> list[list[bool]]:
    guesses = draft.logits(hidden_states(draft, prompt + answer)).argmax(-1).tolist()[len(prompt) :]
    matches = [guess == wanted for guess, wanted in zip(guesses, answer[1:], strict=False)]
    return [matches[j:] + [False] * (j + 1) for j in range(DRAFTED)]


def medusa_right(medusa: companions.Medusa, demo: Llama, prompt: list[int], answer: list[int]) -> list[list[bool]]:
    """Head i, at the position before the newest known token t, guesses token t + 1 + i."""
    hidden = hidden_states(demo, prompt + answer)[len(prompt) - 1 :]
    found = []
    for head, logits in enumerate(medusa(hidden)):
        guesses = logits.argmax(-1).tolist()
        found.append([t + 1 + head < len(answer) and guesses[t] == answer[t + 1 + head] for t in range(len(answer))])
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("assets", type=Path, nargs="?", default=ASSETS.parent)
    parser.add_argument("--tokenizer", type=Path, default=ASSETS)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    demo, draft = load(options.assets / "demo", device), load(options.assets / "demo_draft", device)
    medusa = companions.load(options.assets / "demo_medusa").to(device)
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    cases = mixture.cases(
        options.seed, options.count, lambda text: len(tokenizer.encode(text).ids), max(1, options.count // 30)
    )
    prompts = [encode_prompt(tokenizer, case) for case in cases]
    answers = decode.greedy(demo, prompts, [case.max_tokens for case in cases])
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])
    for case, prompt, answer in zip(cases, prompts, answers, strict=True):
        numbers = (*walk(draft_right(draft, prompt, answer), len(answer)),
                   *walk(medusa_right(medusa, demo, prompt, answer), len(answer)), 1)  # fmt: skip
        for name in (case.task, "all"):
            sums[name] = [a + b for a, b in zip(sums[name], numbers, strict=True)]
    print(f"| task | prompts | draft model, {DRAFTED} drafted | Medusa, {companions.HEADS} heads |\n|---|---|---|---|")
    for name, (accepted, verified, heads_accepted, heads_verified, count) in sorted(sums.items()):
        print(
            f"| {name} | {count} | {accepted / max(verified, 1):.2f} | {heads_accepted / max(heads_verified, 1):.2f} |"
        )


if __name__ == "__main__":
    main()
