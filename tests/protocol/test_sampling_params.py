"""What the offline API may be given: HTTP requests are typed before they come here, arguments in Python are not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lightllm.errors import InvalidRequest
from lightllm.protocol.sampling_params import SamplingParams


def test_none_is_what_leaving_out_is() -> None:
    nothing: dict[str, Any] = dict.fromkeys(("stop", "stop_token_ids", "bad_words", "logit_bias", "allowed_token_ids"))
    assert SamplingParams(**nothing) == SamplingParams()


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("logit_bias", [5], "got list"),
        ("logit_bias", "5", "got str"),
        ("logit_bias", {"5": 1.0}, "'5'"),
        ("logit_bias", {5: math.nan}, "nan"),
        ("logit_bias", {1 << 31: 1.0}, "key must be between 0 and 2147483647"),
        ("stop_token_ids", [-1], "entry must be between 0 and 2147483647"),
        ("skip_special_tokens", "no", "True or False, got 'no'"),
        ("detokenize", None, "True or False, got None"),
        ("ignore_eos", 1, "True or False, got 1"),
        ("temperature", 10**400, r"\[0, 100\], got 1000"),
        ("temperature", math.nan, "got nan"),
        ("top_p", math.inf, "got inf"),
        ("min_p", -math.inf, "got -inf"),
        ("stop", 5, "got int"),
    ],
)
def test_a_wrong_type_is_named(name: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} .*{said}") as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name


def test_a_whole_vocabulary_is_checked_at_once(count_calls: Callable[[Callable[[], object]], int]) -> None:
    """The engine's loop reads the parameters, too: a call for each id would hold up what runs."""

    def calls(ids: range) -> int:
        return count_calls(lambda: SamplingParams(allowed_token_ids=tuple(ids)))

    assert calls(range(1000)) == calls(range(10))
    for wrong in ([*range(1000), -1], [*range(1000), True], [*range(1000), 1 << 31], [*range(1000), 1.0]):
        with pytest.raises(InvalidRequest, match=f"allowed_token_ids entry .* got {wrong[-1]}"):
            SamplingParams(allowed_token_ids=wrong)  # type: ignore[arg-type]
