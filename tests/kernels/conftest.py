"""Where the kernels run: compiled on the GPU if there is one, else on the CPU under Triton's interpreter.

Triton decides when a kernel is defined, so the variable is set while this module imports them, and put back.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

HAS_GPU = torch.cuda.is_available()
"""Then the kernels are compiled, and run on the GPU."""


def _import_kernels() -> None:
    """Import the kernels anew as this machine runs them: something else may have imported them compiled before."""
    if not HAS_GPU:
        for name in [n for n in sys.modules if n.split(".")[0] == "triton" or n.startswith("lightllm.kernels.triton")]:
            if not name.startswith("triton._C"):
                del sys.modules[name]
    before = os.environ.get("TRITON_INTERPRET")
    if not HAS_GPU:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton.experimental.gluon  # noqa: F401  (the interpreter does at the first launch, too late)

        import lightllm.kernels.triton.backend
        import lightllm.kernels.triton.sampling_op  # noqa: F401
    finally:
        os.environ.pop("TRITON_INTERPRET", None)
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


_import_kernels()


def _repair_interpreter() -> None:
    """Triton 3.6 makes loop bounds of its interpreter with int(array of one), which numpy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: type, scope: interpreter._LangPatchScope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_repair


if not HAS_GPU:
    _repair_interpreter()


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(HAS_GPU, reason="kernels are compiled here, not interpreted")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.manual_seed(0)
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
def dtype(request: pytest.FixtureRequest, device: torch.device) -> torch.dtype:
    if request.param == torch.bfloat16 and device.type == "cpu":
        pytest.skip("numpy, and so the interpreter, has no bfloat16")
    return request.param
