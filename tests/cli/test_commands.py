"""The commands as a person runs them: in processes of their own, on a tiny random checkpoint."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightllm.cli.generate import GenerateFlags, read_prompts
from lightllm.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "lightllm.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, timeout=120)


def test_generate_as_json(tiny_llama: Path) -> None:
    done = run(
        *("generate", str(tiny_llama), "--prompt", "the quick", "--prompt", "a server"),
        *("--max-tokens", "5", "--temperature", "0", "--ignore_eos", "--json"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["the quick", "a server"]
    assert all(line["completion_tokens"] == 5 and line["finish_reason"] == "length" for line in lines)


def test_only_line_feeds_separate_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paragraph separators and their like may stand in a prompt, and as they are in JSON."""
    prompts = ["one\u2028two", "three\x85 four"]
    text = "\n".join([json.dumps({"prompt": prompts[0]}, ensure_ascii=False), "", prompts[1], ""])
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, encoding="utf-8")
    assert read_prompts(GenerateFlags(prompts_file=str(file))) == prompts
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert read_prompts(GenerateFlags()) == prompts


@pytest.mark.parametrize(
    ("line", "words"),
    [('{"prompt": 5}', "prompt of a line must be text, got 5"), ('{"messages": "hi"}', 'must be a list, got "hi"')],
)
def test_lines_that_are_no_prompts_are_named(monkeypatch: pytest.MonkeyPatch, line: str, words: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    with pytest.raises(ConfigError, match=words):
        read_prompts(GenerateFlags())


def test_chat_answers_each_line_of_a_pipe(tiny_llama: Path) -> None:
    question = "hello\n/system be brief\nhello\n/exit\nnever asked\n"
    done = run("chat", str(tiny_llama), "--max-tokens", "3", "--stop", "\n", "--sampling-seed", "1", stdin=question)
    assert done.returncode == 0, done.stderr
    assert "The system message is set." in done.stderr
    assert done.stdout.count("\n") == 2


def test_bench_offline_writes_figures_and_a_cost_model(tiny_llama: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(tiny_llama / "config.json", bare)
    report, cost = tmp_path / "report.json", tmp_path / "cost.json"
    command = (
        *("bench", "offline", str(bare), "--dummy", "--workload", "ragged", "--requests", "4"),
        *("--input-len", "4-20", "--output-len", "8-12", "--max-total-tokens", "512", "--cost-model", str(cost)),
    )
    done = run(*command, "--json", str(report))
    assert done.returncode == 0, done.stderr
    assert "ragged (output)" in done.stdout and "step-cost model" in done.stdout
    (result,) = json.loads(report.read_text())["results"]
    assert result["tokens_per_second"] > 0
    assert result["ttft"]["count"] == 4
    assert json.loads(cost.read_text())["format"] == "lightllm-step-cost"
    done = run(*command, "--json", "-")
    assert "step-cost model" in done.stderr
    assert json.loads(done.stdout)["results"][0]["workload"] == "ragged"
    report.unlink()
    done = run(*command[:-1], str(tmp_path / "no" / "such" / "file"), "--json", str(report))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr
    assert json.loads(report.read_text())["results"]  # what took minutes is not lost with it


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["bogus"], 2, "no command 'bogus'"),
        (["serve", "/no/such/directory"], 1, "neither a directory nor a hub name"),
        (["serve", "--port", "70000"], 1, "port must be between 0 and 65535, got 70000"),
        (["serve", "--prot", "8000"], 2, "--prot"),
        (["bench", "serve", "--seed", "-1"], 1, "seed must be a number of at least 0, got -1"),
        (["bench", "serve", "--vocab-size", "99999999999"], 1, "vocab_size must be at most 2147483648"),
        (["bench", "serve", "--temperature", "nan"], 1, "temperature must be a number of at least 0, got nan"),
        (["bench", "serve", "--gap-limit", "-1"], 1, "gap_limit must be a positive number, got -1"),
        (["bench", "serve", "--url", "ftp://x"], 1, "url must look like http://host:port"),
        (["bench", "serve", "--url", "http://127.0.0.1:9"], 1, "no answer from 127.0.0.1:9"),
        (["chat", "--url", "http://127.0.0.1:9"], 1, "no answer from 127.0.0.1:9"),
        (["chat", "--url", "http://127.0.0.1:9", "--chat-template", "x"], 1, "chat_template is for a model in this"),
        (["chat", "--api-key", "secret"], 1, "api_key is for a server; name it with --url"),
        (["generate", "/no/such/directory", "--prompt", "x"], 1, "neither a directory"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], code: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_looks_at_the_model_before_it_starts(tiny_llama: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    done = run("serve", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "model_type 'no_such_model' is not supported" in done.stderr


def test_serve_does_not_load_torch() -> None:
    script = "import sys, lightllm.cli.serve, lightllm.launch; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["generate"], 1), (["bogus"], 2)])
def test_standard_streams_may_be_closed(arguments: list[str], code: int) -> None:
    """Nothing else comes to stand in their place, here or in a process that is started."""
    script = f"""
import os, subprocess, sys
from lightllm.cli.main import main
code = main({arguments})
child = [sys.executable, "-c", "import os; os.fstat(0), os.fstat(1), os.fstat(2)"]
os._exit(code if os.open(os.devnull, os.O_RDONLY) > 2 and subprocess.run(child).returncode == 0 else 99)
"""
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(closed, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120).returncode == code
