"""Opening the GPU while torch is still being imported: both take a second or more, and neither needs the other."""

from __future__ import annotations

import ctypes
import threading

from lightllm.config.settings import DeviceName


def open_early(wanted: DeviceName) -> threading.Thread | None:
    """Begin to make the first GPU's primary context, which torch will use, in a thread; None for "cpu".

    Only a head start: what fails here, as where there is no driver, is left for torch to find and report.
    """
    if wanted == "cpu":
        return None
    thread = threading.Thread(target=_retain_context, name="open the GPU", daemon=True)
    thread.start()
    return thread


def _retain_context() -> None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
