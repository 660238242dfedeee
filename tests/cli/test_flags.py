"""Flags are the settings, in both spellings; sampling flags win over what the model recommends."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from lightllm.cli.conversation import Conversation
from lightllm.cli.flags import SamplingFlags, field_docs, parse, settings_of
from lightllm.cli.main import main, split_command
from lightllm.cli.sampling import sampling_params
from lightllm.cli.serve import ServeFlags
from lightllm.config.settings import EngineSettings, ModelSettings, SchedulerSettings, ServerSettings
from lightllm.errors import InvalidRequest


def test_flags_reach_the_settings_in_both_spellings() -> None:
    arguments = ["model", "--max-model-len", "64", "--max_total_tokens", "128", "--no-prefix-cache", "--port", "0"]
    flags = parse(ServeFlags, "serve", [*arguments, "--api-key", "a", "--api-key", "b"])
    settings = settings_of(flags.model, flags.engine, flags.scheduler, flags.server)
    assert type(settings.model) is ModelSettings
    assert (settings.model.model, settings.model.max_model_len) == ("model", 64)
    assert (settings.engine.max_total_tokens, settings.scheduler.prefix_cache) == (128, False)
    assert (settings.server.port, settings.server.api_key) == (0, ("a", "b"))


def test_defaults_are_those_of_the_settings() -> None:
    flags = parse(ServeFlags, "serve", [])
    assert settings_of(flags.model) == settings_of(ModelSettings())
    assert (flags.engine, flags.scheduler, flags.server) == (EngineSettings(), SchedulerSettings(), ServerSettings())


@pytest.mark.parametrize("section", [ModelSettings, EngineSettings, SchedulerSettings, ServerSettings])
def test_every_setting_has_help(section: type) -> None:
    assert list(field_docs(section)) == [field.name for field in fields(section)]


def test_flags_win_over_the_recommended_sampling(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 20, "eos_token_id": 1}))
    params = sampling_params(SamplingFlags(temperature=0.0, stop=("x",)), tmp_path)
    assert (params.temperature, params.top_k, params.stop, params.max_tokens) == (0.0, 20, ("x",), None)
    with pytest.raises(InvalidRequest, match="top_p"):
        sampling_params(SamplingFlags(top_p=2.0), tmp_path)


def test_commands_have_one_word_or_two() -> None:
    assert split_command(["bench", "serve", "--rate", "1"]) == ("bench serve", ["--rate", "1"])
    assert split_command(["serve", "x"]) == ("serve", ["x"])
    assert split_command(["bench"])[0] is None


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lightllm ")


def test_conversation_keeps_pairs_of_turns() -> None:
    chat = Conversation("be kind")
    chat.ask("one")
    chat.answered("1")
    chat.ask("two")
    chat.answered("")
    assert [turn["content"] for turn in chat.messages] == ["be kind", "one", "1"]
    assert chat.command("/reset") and chat.turns == []
    assert chat.command("/system") and chat.messages == []
    assert chat.command("/exit") is None
    assert "/reset" in (chat.command("/unknown") or "")
