"""A server whose engine loses its device in a step of many tokens: `python faulty_engine.py MODEL cpu|cuda`.

On a GPU the fault is a real one, an index out of range in a kernel; on a CPU it is torch's word for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightllm import logs
from lightllm.config.settings import EngineSettings, ModelSettings, ServerSettings, Settings
from lightllm.launch import serve, serving_topology
from lightllm.workers.process import Worker

FAULT_TOKENS = 60
"""A step of so many tokens is the last."""


def engine(worker: Worker) -> None:
    """The engine's worker, but for the fault."""
    import torch

    from lightllm.models.decoder import Decoder
    from lightllm.workers import entries

    forward = Decoder.forward

    def faulty(self: Decoder, batch: Any, pool: Any) -> torch.Tensor:
        if len(batch.token_ids) >= FAULT_TOKENS and worker.is_ready:
            if not batch.token_ids.is_cuda:
                raise RuntimeError("CUDA error: device-side assert triggered")
            torch.zeros(4, device="cuda")[batch.token_ids.long() + 1_000_000]
        return forward(self, batch, pool)

    Decoder.forward = faulty  # type: ignore[method-assign]
    entries.engine(worker)


if __name__ == "__main__":
    model, device = sys.argv[1:]
    logs.configure("info")
    settings = Settings(
        ModelSettings(model=model, served_model_name=("demo",)),
        EngineSettings(device=device, max_total_tokens=2000),  # type: ignore[arg-type]
        server=ServerSettings(port=0),
    )
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(serve(settings, serving_topology(engine_entry="faulty_engine:engine")))
