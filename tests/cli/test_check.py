"""`lightllm check` tells a right model from a wrong one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lightllm.cli.main import main
from lightllm.errors import ConfigError
from lightllm.text.tokenizer import Tokenizer

Checkpoint = tuple[Path, Any]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint("Llama", seed=3)


def write_golden(path: Path, model: Any, *, wrong_by: float = 0.0) -> str:
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    for i, length in enumerate((1, 3, 20)):
        ids = torch.randint(0, 512, (length,), generator=generator)
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
            greedy = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=4)[0, length:]
        logits[-2:, 7] += wrong_by
        tensors |= {f"prompt_{i}.ids": ids, f"prompt_{i}.logits": logits, f"prompt_{i}.greedy": greedy.clone()}
    save_file(tensors, path)
    return str(path)


def test_equal_logits_pass(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, model = checkpoint
    golden = write_golden(tmp_path / "golden.safetensors", model)
    assert main(["check", str(directory), "--golden", golden, "--chunk-size", "7"]) == 0
    assert "3 of 3 prompts agree" in capsys.readouterr().out


def test_other_logits_fail(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, model = checkpoint
    golden = write_golden(tmp_path / "golden.safetensors", model, wrong_by=0.5)
    assert main(["check", str(directory), "--golden", golden]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_transformers_is_the_other_reference(checkpoint: Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    directory, _ = checkpoint
    assert main(["check", str(directory), "--num-greedy", "3"]) == 0
    assert "4 of 4 prompts agree" in capsys.readouterr().out


def test_a_file_that_is_no_golden_file(tmp_path: Path) -> None:
    from lightllm.cli.references import read_golden

    path = tmp_path / "golden.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_golden(path)
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ConfigError, match="has no prompt_0"):
        read_golden(path)
    save_file({"prompt_0.ids": torch.zeros(3, dtype=torch.int64), "prompt_0.logits": torch.zeros(2, 8)}, path)
    with pytest.raises(ConfigError, match=r"must be \[3, vocab\]"):
        read_golden(path)
    save_file({"prompt_0.ids": torch.zeros(1, 3, dtype=torch.int64), "prompt_0.logits": torch.zeros(3, 8)}, path)
    with pytest.raises(ConfigError, match=r"prompt_0.ids must be int64 \[L\], got int64 \[1, 3\]"):
        read_golden(path)
    save_file({"prompt_0.ids": torch.zeros(3), "prompt_0.logits": torch.zeros(3, 8)}, path)
    with pytest.raises(ConfigError, match=r"prompt_0.ids must be int64 \[L\], got float32 \[3\]"):
        read_golden(path)
    save_file({"prompt_0.logits": torch.zeros(3, 8, dtype=torch.bfloat16)}, path)
    with pytest.raises(ConfigError, match="bfloat16"):
        read_golden(path)


def test_prompts_are_read_by_the_tokenizer_asked_for(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, _ = checkpoint
    other = tmp_path / "other"
    shutil.copytree(directory, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    command = ["check", str(directory), "--tokenizer", str(other), "--num-greedy", "0", "--prompt"]
    assert main([*command, "aaabaaa"]) == 0
    assert capsys.readouterr().out.splitlines()[-3].split()[1] == str(len(Tokenizer.load(directory).encode("b")))
    assert main([*command, "aaa"]) == 1
    assert "a prompt has no tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "value"), [("--num-greedy", "-1"), ("--tolerance", "nan")])
def test_numbers_that_no_comparison_can_have(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", flag, value]) == 1
    assert f"must be a number of at least 0, got {value}" in capsys.readouterr().err
