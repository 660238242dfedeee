"""Compiling the kernels of a step together, on all cores, instead of one after another at their first launches.

Which variants a step needs (dtypes, constants, divisibilities) is known only to the code that launches it. So that code
runs as it is, on tensors as they will be, and every launch within `compiled_together` compiles its kernel in place of
running it: what is compiled is what will be launched, and there is no list of variants that could go stale. Torch's own
operations do run, on whatever is in memory where a kernel would have written; so none of them may use that as an index.
Most of a compilation is LLVM, ptxas and the C compiler, which need no interpreter lock, so threads are enough. The
results go to Triton's cache on disk as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock, Thread, get_ident
from typing import Any

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

from lightllm.device.device import usable_cores

_one_at_a_time = Lock()
_compiling: int | None = None
"""The thread whose launches compile and do not run."""


@contextmanager
def compiled_together() -> Iterator[None]:
    """Within, a launch compiles and does not run: what kernels write stays as it was. At the end all are compiled.

    A kernel that does not compile is left alone, to fail where it is launched. Other threads launch as ever; if they
    come here, they wait.
    """
    global _compiling
    with _one_at_a_time:
        launch, _compiling = JITFunction.run, get_ident()

        def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            return launch(function, *args, grid=grid, warmup=warmup or only_compiling(), **options)

        JITFunction.run = compile_only
        try:
            with _Compilers(usable_cores()) as compilers, AsyncCompileMode(compilers, ignore_errors=True):
                yield
        finally:
            JITFunction.run, _compiling = launch, None


def only_compiling() -> bool:
    """Whether what this thread launches is compiled only: code that may choose another kernel the next time then
    launches all it may choose from."""
    return _compiling == get_ident()


def hash_triton_early() -> None:
    """Let Triton hash its own files now, in a thread: a third of a second that its first compilation would wait for."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:  # it is elsewhere in other versions
        return
    Thread(target=triton_key, name="hash Triton", daemon=True).start()


class _Compilers(ThreadPoolExecutor):
    """Threads that compile a kernel, and load it, for which Triton compiles a launcher in C."""

    def submit(self, compile_kernel: Callable[[], Any], /) -> Future[Any]:  # type: ignore[override]
        return super().submit(_compile_and_load, compile_kernel)


def _compile_and_load(compile_kernel: Callable[[], Any]) -> Any:
    kernel = compile_kernel()
    kernel.run  # noqa: B018  (a property that loads)
    return kernel
