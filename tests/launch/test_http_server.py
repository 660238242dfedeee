"""The supervisor with the real frontend and detokenizer, over HTTP; only the engine is a fake."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess, until

TOYS = Path(__file__).parents[1] / "text" / "toy_tokenizers.py"
REAL = {
    "frontend_entry": "lightllm.server.entry:frontend",
    "detokenizer_entry": "lightllm.workers.entries:detokenizer",
    "engine_entry": "actors:slow_engine",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model directory that has a tokenizer and no weights."""
    spec = importlib.util.spec_from_file_location("toy_tokenizers", TOYS)
    assert spec is not None and spec.loader is not None
    toys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    directory = toys.save(toys.BUILDERS["byte_level"](), tmp_path / "model", **toys.NAMED["byte_level"])
    (directory / "config.json").write_text("{}")
    return str(directory)


def test_health_follows_the_engine_and_text_comes_back(tmp_path: Path, model: str) -> None:
    with ServerProcess(tmp_path, entries=REAL, model=model, first_seconds=0.05) as server:
        server.wait_for("starting at")
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=10) as client:
            assert client.get("/live").status_code == 200
            assert client.get("/health").json()["error"]["code"] == "not_ready"
            server.wait_ready()
            until(lambda: client.get("/health").status_code == 200, "health stays red")
            body = {"prompt": "hello", "max_tokens": 4, "temperature": 0}
            answer = client.post("/v1/completions", json=body).raise_for_status().json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["completion_tokens"] == 4

            with client.stream("POST", "/v1/completions", json=body | {"max_tokens": 90000, "stream": True}) as stream:
                lines = stream.iter_lines()
                next(lines)
                server.kill("engine")
                assert any('"worker_died"' in line for line in lines), "the stream ends with the reason"
            refused = client.post("/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert "retry-after" in refused.headers

            until(lambda: client.get("/health").status_code == 200, "health does not recover")
            assert client.post("/v1/completions", json=body).status_code == 200
            metrics = client.get("/metrics").text
            assert 'lightllm_worker_restarts_total{worker="engine"} 1.0' in metrics
            assert "lightllm_engine_steps_total" in metrics
        assert server.stop() == 0
