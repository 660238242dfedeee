"""Asks the demo model held-out questions and prints the share of right answers for every task.

`python -m tools.demo_model.evaluate` takes 200 cases per task through lightllm's offline API, greedy and in float32;
`--count 5` is a quick look, `--backend transformers` the same prompts through Transformers.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from . import mixture, template
from .backends import BACKENDS, Backend
from .conversation import Case

ASSETS = Path("lightllm/assets/demo")
GOALS = {
    "arithmetic": 0.97, "copy": 0.97, "reverse": 0.97, "sort": 0.97, "count": 0.97, "lookup": 0.95, "json": 0.97,
    "tools": 0.95,
    "facts": 0.90, "chat ends": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    case: Case
    text: str
    stopped: bool
    right: bool


def is_right(case: Case, text: str, stopped: bool) -> bool:
    """Whether the answer is right; except for `ends`, an answer that did not end by itself is wrong."""
    if case.check == "ends" or not stopped:
        return stopped
    if case.thinking:
        text = text.rpartition("</think>")[2]
    text = text.strip()
    if case.check == "number":
        numbers = re.findall(r"-?\d+", text)
        return bool(numbers) and numbers[-1] == re.findall(r"-?\d+", case.expected)[-1]
    if case.check == "json":
        return _same_json(text, case.expected)
    if case.check == "tool":
        found = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text, re.DOTALL)
        return found is not None and _same_json(found[1], case.expected)
    return text == case.expected


def _same_json(text: str, expected: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(expected))
    except ValueError:
        return False


def encode_prompt(tokenizer: Tokenizer, case: Case) -> list[int]:
    ids: list[int] = tokenizer.encode(
        template.prompt(case.messages, case.tools, case.thinking), add_special_tokens=False
    ).ids
    return ids


def ask(backend: Backend, tokenizer: Tokenizer, cases: list[Case]) -> list[Outcome]:
    prompts = [encode_prompt(tokenizer, case) for case in cases]
    answers = backend.generate(prompts, [case.max_tokens for case in cases])
    outcomes = []
    for case, answer in zip(cases, answers, strict=True):
        text = tokenizer.decode(answer.token_ids, skip_special_tokens=False)
        outcomes.append(Outcome(case, text, answer.stopped, is_right(case, text, answer.stopped)))
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """A Markdown table: task, prompts, right, share, goal; lookup also by its weakest length and depth."""
    by_task: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.case.task].append(outcome)
    lines = ["| task | prompts | right | share | goal |", "|---|---|---|---|---|"]
    for task, found in by_task.items():
        right = sum(outcome.right for outcome in found)
        goal = f"{GOALS[task]:.0%}" if task in GOALS else ""
        lines.append(f"| {task} | {len(found)} | {right} | {right / len(found):.1%} | {goal} |")
    ended = sum(outcome.stopped for outcome in outcomes)
    lines.append(f"| all answers end by themselves | {len(outcomes)} | {ended} | {ended / len(outcomes):.1%} | |")
    return "\n".join(lines)


def lookup_table(outcomes: list[Outcome]) -> str:
    """Right answers by prompt length (rows) and depth of the asked pair (columns)."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.case.task == "lookup":
            groups[outcome.case.group].append(outcome.right)
    depths = [f"{depth:g}" for depth in mixture.DEPTHS]
    lines = ["| tokens | " + " | ".join(f"depth {d}" for d in depths) + " |", "|---" * (len(depths) + 1) + "|"]
    for length in mixture.LOOKUP_LENGTHS:
        found = [groups[f"{length}@{depth}"] for depth in depths]
        lines.append(f"| {length} | " + " | ".join(f"{sum(f)}/{len(f)}" for f in found) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ASSETS)
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer, if not the model's")
    parser.add_argument("--backend", choices=sorted(BACKENDS), default="lightllm")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--task", action="append", help="only these tasks")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers per task")
    parser.add_argument("--json", type=Path, help="write all outcomes to this file")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str((options.tokenizer or options.model) / "tokenizer.json"))
    cases = mixture.cases(options.seed, options.count, lambda text: len(tokenizer.encode(text).ids))
    cases = [case for case in cases if not options.task or case.task in options.task]
    started = time.monotonic()
    outcomes = ask(BACKENDS[options.backend](options.model), tokenizer, cases)
    print(table(outcomes))
    print(f"\nlookup by length in tokens and depth\n{lookup_table(outcomes)}")
    print(f"{len(cases)} prompts through {options.backend} in {time.monotonic() - started:.0f} s")
    show_wrong(outcomes, options.wrong)
    if options.json:
        rows = [{"task": o.case.task, "group": o.case.group, "asked": o.case.messages[-1]["content"][-300:],
                 "expected": o.case.expected, "text": o.text, "right": o.right} for o in outcomes]  # fmt: skip
        options.json.write_text(json.dumps(rows, indent=1))


def show_wrong(outcomes: list[Outcome], limit: int) -> None:
    shown: dict[str, int] = defaultdict(int)
    for outcome in outcomes:
        shown[outcome.case.task] += not outcome.right
        if not outcome.right and shown[outcome.case.task] <= limit:
            asked = outcome.case.messages[-1]["content"][-120:]
            print(f"[{outcome.case.task}] {asked!r} -> {outcome.text!r}, expected {outcome.case.expected!r}")


if __name__ == "__main__":
    main()
