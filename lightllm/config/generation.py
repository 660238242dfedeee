"""generation_config.json: the ids that end a text, and the sampling defaults the model's makers recommend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lightllm.config.json_text import is_finite_number, read_object_if_there
from lightllm.errors import CheckpointError

_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """`eos_ids` end a request; `sampling` holds recommended values by the names of SamplingParams."""

    eos_ids: tuple[int, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """From generation_config.json; without one the end ids of config.json and no recommendations.

    `do_sample` false recommends greedy decoding, whatever temperature stands beside it; a repetition penalty stays.

    Raises CheckpointError for a file that is no JSON object, end ids that are no integers, values that are no numbers.
    """
    values = read_object_if_there(directory / "generation_config.json")
    eos = values.get("eos_token_id")
    if eos is None:
        eos = read_object_if_there(directory / "config.json").get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CheckpointError(f"{directory}: eos_token_id must hold token ids, got {eos!r}", param="eos_token_id")
    sampling = {name: values[name] for name in _DEFAULTS if values.get(name) is not None}
    for name, value in sampling.items():
        if not is_finite_number(value):
            where = directory / "generation_config.json"
            raise CheckpointError(f"{where}: {name} must be a finite number, got {value!r}", param=name)
    if values.get("do_sample") is False:
        sampling = {"temperature": 0.0} | {k: v for k, v in sampling.items() if k == "repetition_penalty"}
    return GenerationDefaults(tuple(ids), sampling)
