"""`lightllm check`: a model's log-probabilities and greedy tokens beside those of a reference.

Both come out of the serving pipeline itself: scored prompts give the log-probabilities of every position over the
whole vocabulary (but the last, whose likeliest token is the first greedy one), and the same requests go on greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightllm.cli.flags import ModelFlags, parse, settings_of
from lightllm.cli.precheck import check_config
from lightllm.cli.references import Case, Float32, ask_transformers, read_golden
from lightllm.config.checks import check_not_negative
from lightllm.config.locate import find_model, find_tokenizer
from lightllm.config.settings import EngineSettings, SchedulerSettings
from lightllm.errors import ConfigError

COLUMNS = ("prompt", "tokens", "max abs", "mean abs", "argmax equal", "greedy equal", "")
RANDOM_PROMPT_LENS = (2, 5, 17, 40)


@dataclass(frozen=True, slots=True)
class CheckFlags:
    """Compare a model's log-probabilities and greedy tokens with a reference; exit code 1 if they differ."""

    model: ModelFlags = field(default_factory=ModelFlags)
    golden: str | None = None
    """Safetensors file with prompt_{i}.ids, prompt_{i}.logits and, optionally, prompt_{i}.greedy."""
    against: Literal["transformers"] = "transformers"
    """The reference when there is no golden file."""
    prompt: tuple[str, ...] = ()
    """Text to compare on, may be repeated; prompts of random token ids when omitted."""
    num_greedy: int = 12
    """Greedy tokens to compare."""
    tolerance: float = 1e-3
    """Largest difference of log-probabilities allowed. Greedy tokens must be equal in float32 only."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt. The differences are those of log-probabilities (natural log)."""

    name: str
    num_tokens: int
    max_abs: float
    mean_abs: float
    argmax_equal: float
    greedy_equal: int
    num_greedy: int

    def passes(self, tolerance: float, *, exact: bool) -> bool:
        """Whether the prompt is within `tolerance`, with equal greedy tokens if `exact`."""
        return self.max_abs <= tolerance and (self.greedy_equal == self.num_greedy or not exact)

    def row(self, verdict: str) -> list[str]:
        greedy = f"{self.greedy_equal}/{self.num_greedy}" if self.num_greedy else "-"
        figures = [f"{self.max_abs:.2e}", f"{self.mean_abs:.2e}", f"{self.argmax_equal:.1%}", greedy]
        return [self.name, str(self.num_tokens), *figures, verdict]


def run(argv: Sequence[str]) -> int:
    """Print a table of differences; 1 if a prompt is beyond the tolerance."""
    flags = parse(CheckFlags, "check", argv)
    check_not_negative(flags, "num_greedy", "tolerance")
    directory = find_model(flags.model.model)
    check_config(directory)
    cases = _cases(flags, directory)

    from lightllm.bench.tables import format_table

    answers, dtype = answer_cases(flags, directory, cases)
    results = [compare(case, *answer) for case, answer in zip(cases, answers, strict=True)]
    exact = dtype == "float32"
    passed = [result.passes(flags.tolerance, exact=exact) for result in results]
    rows = [result.row("ok" if ok else "DIFFERS") for result, ok in zip(results, passed, strict=True)]
    print(format_table(COLUMNS, rows))
    reference = flags.golden or "Transformers, float32"
    print(f"\n{directory.name} in {dtype} against {reference}: {sum(passed)} of {len(passed)} prompts agree")
    return 0 if all(passed) else 1


def compare(case: Case, logprobs: Float32, greedy: Sequence[int]) -> Comparison:
    """`logprobs` [L - 1, vocab] are ours; the reference may have a narrower or padded vocabulary."""
    width = min(logprobs.shape[1], case.logprobs.shape[1])
    ours, theirs = logprobs[:, :width], case.logprobs[: len(logprobs), :width]
    difference = np.abs(ours - theirs) if ours.size else np.zeros((1, 1))
    equal = float((ours.argmax(-1) == theirs.argmax(-1)).mean()) if ours.size else 1.0
    leading = next((i for i, (a, b) in enumerate(zip(greedy, case.greedy, strict=True)) if a != b), len(case.greedy))
    return Comparison(
        case.name,
        len(case.ids),
        # a NaN must not pass for a small difference
        float(np.nan_to_num(difference, nan=np.inf).max()),
        float(difference.mean()),
        equal,
        leading,
        len(case.greedy),
    )


def answer_cases(
    flags: CheckFlags, directory: Path, cases: Sequence[Case]
) -> tuple[list[tuple[Float32, list[int]]], str]:
    """For each case our log-probabilities [L - 1, vocab] and greedy tokens; and the dtype they were computed in."""
    from lightllm.bench.pipeline import TokenPipeline
    from lightllm.bench.workloads import TokenRequest

    pipeline = TokenPipeline(settings_of(flags.model, flags.engine, flags.scheduler), directory)
    try:
        vocab_size = pipeline.facts["vocab_size"]
        for case in cases:
            _check_case(case, vocab_size, pipeline.facts["max_model_len"])
        requests = [TokenRequest(np.array(case.ids, np.int32), max(1, len(case.greedy)), scored=True) for case in cases]
        generated = pipeline.run(requests).generated
        answers = [
            (_to_array(g.scores, vocab_size), g.token_ids[: len(case.greedy)])
            for g, case in zip(generated, cases, strict=True)
        ]
        return answers, pipeline.facts["dtype"]
    finally:
        pipeline.close()


def _check_case(case: Case, vocab_size: int, max_model_len: int) -> None:
    if not case.ids or not 0 <= min(case.ids) <= max(case.ids) < vocab_size:
        raise ConfigError(f"{case.name} must hold token ids from 0 to {vocab_size - 1}")
    needed = len(case.ids) + max(1, len(case.greedy))
    if needed > max_model_len:
        raise ConfigError(f"{case.name} needs {needed} tokens, the engine takes {max_model_len}")


def _to_array(scores: Sequence[Any], vocab_size: int) -> Float32:
    """Scored positions [L - 1, vocab] by token id."""
    table = np.full((max(0, len(scores) - 1), vocab_size), -np.inf, np.float32)
    for row, entry in zip(table, scores[1:], strict=True):
        row[np.frombuffer(entry.top_ids, np.int32)] = np.frombuffer(entry.top_values, np.float32)
    return table


def _cases(flags: CheckFlags, directory: Path) -> list[Case]:
    if flags.golden is not None:
        return read_golden(Path(flags.golden).expanduser())
    if flags.prompt:
        from lightllm.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(find_tokenizer(flags.model.tokenizer, directory))
        prompts = tokenizer.encode_batch(list(flags.prompt))
        if [] in prompts:
            raise ConfigError("a prompt has no tokens; it needs at least 1", param="prompt")
    else:
        from lightllm.models.config_reader import ConfigReader

        vocab_size = ConfigReader.load(directory).integer("vocab_size")
        rng = np.random.default_rng(0)
        prompts = [rng.integers(0, vocab_size, length).tolist() for length in RANDOM_PROMPT_LENS]
    return ask_transformers(directory, prompts, flags.num_greedy)
