"""Settings that could not work are refused before anything starts, with the limit and the value."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightllm.config.settings import EngineSettings, ModelSettings, ServerSettings
from lightllm.errors import ConfigError

WRONG: list[tuple[type, dict[str, Any], str]] = [
    (ModelSettings, {"max_model_len": 0}, "max_model_len must be at least 2, .* got 0"),
    (ModelSettings, {"max_model_len": 1}, "max_model_len must be at least 2, .* got 1"),
    (EngineSettings, {"max_total_tokens": 0}, "max_total_tokens must be at least 1, got 0"),
    (EngineSettings, {"max_total_tokens": 1}, "max_total_tokens must be at least 2"),
    (EngineSettings, {"cpu_threads": 100000}, "cpu_threads must be at most 1024, got 100000"),
    (EngineSettings, {"memory_fraction": math.nan}, r"memory_fraction must lie in \(0, 1\], got nan"),
    (ServerSettings, {"port": 65536}, "port must be between 0 and 65535, got 65536"),
    (ServerSettings, {"drain_seconds": math.nan}, "drain_seconds must be a number of at least 0, got nan"),
    (ServerSettings, {"start_seconds": math.inf}, "start_seconds must be a number of at least 0, got inf"),
    (ServerSettings, {"drain_seconds": -1}, "drain_seconds must be a number of at least 0, got -1"),
    (ServerSettings, {"upload_seconds": 0}, "upload_seconds must be a positive number, got 0"),
    (ServerSettings, {"upload_seconds": math.nan}, "upload_seconds must be a positive number, got nan"),
    (ServerSettings, {"api_key": ("secret", "")}, "api_key is empty"),
    (ServerSettings, {"root_path": "/api/"}, "root_path must begin with a slash and not end with one"),
    (ServerSettings, {"root_path": "api"}, "root_path must begin with a slash .* got 'api'"),
    (ModelSettings, {"served_model_name": ("a", "")}, "served_model_name is empty"),
]


@pytest.mark.parametrize(("section", "fields", "words"), WRONG)
def test_settings_that_cannot_work(section: type, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        section(**fields)
