"""Matrix products by a named algorithm of cuBLASLt, through ctypes: cuBLAS's own choice is not always the fastest.

An algorithm is nine numbers (`cublasLtMatmulAlgoConfigAttributes_t`) that only one version of the library gives their
meaning, so a measured one is used with the version it was measured with. torch loads the library; nothing is linked.
Source: cuBLAS 13 documentation, "cuBLASLt API".
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightllm.errors import EngineError

Sizes = tuple[int, int, int]
"""Tokens T, rows N of the weight, and their size K."""

_COMPUTE_32F, _REAL_32F = 68, 0
_TYPES = {torch.float16: 2, torch.bfloat16: 14}
_TRANSPOSE_A = 3
_MOST_WORKSPACE = 1
_MOST_SUGGESTIONS = 64


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The library's numbers for an algorithm, in the order of its attributes 0 to 8."""

    number: int
    tile: int
    split: int
    reduction: int
    swizzle: int
    custom: int
    stages: int
    inner_shape: int
    cluster: int


class _Suggestion(ctypes.Structure):
    """`cublasLtMatmulHeuristicResult_t`."""

    _fields_ = (
        ("algorithm", c_uint64 * 8),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class _Layouts:
    """What describes x [T, K] @ weight [N, K].T to the library, which thinks in columns: [N, T] = weight.T' x'."""

    def __init__(self, lib: Any, sizes: Sizes, dtype: torch.dtype) -> None:
        num_tokens, num_rows, size = sizes
        self.operation = c_void_p()
        _check(lib.cublasLtMatmulDescCreate(byref(self.operation), _COMPUTE_32F, _REAL_32F))
        yes = c_int32(1)
        _check(lib.cublasLtMatmulDescSetAttribute(self.operation, _TRANSPOSE_A, byref(yes), c_size_t(sizeof(yes))))
        self.weight, self.x, self.out = c_void_p(), c_void_p(), c_void_p()
        for layout, (rows, columns) in {
            "weight": (size, num_rows),
            "x": (size, num_tokens),
            "out": (num_rows, num_tokens),
        }.items():
            to = byref(getattr(self, layout))
            kind = _TYPES[dtype]
            _check(lib.cublasLtMatrixLayoutCreate(to, kind, c_uint64(rows), c_uint64(columns), c_int64(rows)))


class Product:
    """One algorithm for one size. Made by `CublasLt.product`; like cuBLAS, it needs its workspace to itself."""

    def __init__(self, lib: Any, handle: c_void_p, layouts: _Layouts, algorithm: Any, workspace_bytes: int) -> None:
        self._lib, self._handle, self._layouts, self._algorithm = lib, handle, layouts, algorithm
        self._one, self._zero = c_float(1.0), c_float(0.0)
        self.workspace_bytes = workspace_bytes

    def __call__(self, x: Tensor, weight: Tensor, out: Tensor, workspace: Tensor, *, add: bool = False) -> Tensor:
        """Write x [T, K] @ weight [N, K].T into out [T, N], or add it to what is there; all contiguous, on torch's
        stream. Raises EngineError."""
        layouts = self._layouts
        to = c_void_p(out.data_ptr())
        status = self._lib.cublasLtMatmul(
            self._handle,
            layouts.operation,
            byref(self._one),
            c_void_p(weight.data_ptr()),
            layouts.weight,
            c_void_p(x.data_ptr()),
            layouts.x,
            byref(self._one if add else self._zero),
            to,
            layouts.out,
            to,
            layouts.out,
            byref(self._algorithm),
            c_void_p(workspace.data_ptr()),
            c_size_t(self.workspace_bytes),
            c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
        )
        _check(status)
        return out


class CublasLt:
    """The library that torch has loaded. Products are kept, since a size comes again and again."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._handle = c_void_p()
        _check(lib.cublasLtCreate(byref(self._handle)))
        self._layouts: dict[tuple[Sizes, torch.dtype], _Layouts] = {}
        self._products: dict[tuple[Sizes, torch.dtype, Algorithm], Product | None] = {}

    def product(self, sizes: Sizes, dtype: torch.dtype, algorithm: Algorithm, room: int) -> Product | None:
        """The product of these sizes by this algorithm; None if it cannot, or not with `room` bytes of workspace."""
        key = (sizes, dtype, algorithm)
        if key not in self._products:
            self._products[key] = self._make(sizes, dtype, algorithm)
        product = self._products[key]
        return product if product is not None and product.workspace_bytes <= room else None

    def suggestions(self, sizes: Sizes, dtype: torch.dtype, room: int) -> list[Algorithm]:
        """What the library itself would try first."""
        lib, layouts = self._lib, self._layouts_for(sizes, dtype)
        preference, most, count = c_void_p(), c_size_t(room), c_int()
        found = (_Suggestion * _MOST_SUGGESTIONS)()
        _check(lib.cublasLtMatmulPreferenceCreate(byref(preference)))
        width = c_size_t(sizeof(most))
        _check(lib.cublasLtMatmulPreferenceSetAttribute(preference, _MOST_WORKSPACE, byref(most), width))
        status = lib.cublasLtMatmulAlgoGetHeuristic(
            self._handle,
            layouts.operation,
            layouts.weight,
            layouts.x,
            layouts.out,
            layouts.out,
            preference,
            _MOST_SUGGESTIONS,
            found,
            byref(count),
        )
        lib.cublasLtMatmulPreferenceDestroy(preference)
        _check(status)
        return [self._read(found[index].algorithm) for index in range(count.value) if found[index].state == 0]

    def _make(self, sizes: Sizes, dtype: torch.dtype, algorithm: Algorithm) -> Product | None:
        lib, layouts, made = self._lib, self._layouts_for(sizes, dtype), (c_uint64 * 8)()
        kinds = [_TYPES[dtype]] * 4
        if lib.cublasLtMatmulAlgoInit(self._handle, _COMPUTE_32F, _REAL_32F, *kinds, algorithm.number, byref(made)):
            return None
        for attribute, value in enumerate(astuple(algorithm)):
            number = _number(attribute, value)
            width = c_size_t(sizeof(number))
            if attribute and lib.cublasLtMatmulAlgoConfigSetAttribute(byref(made), attribute, byref(number), width):
                return None
        told = _Suggestion()
        status = lib.cublasLtMatmulAlgoCheck(
            self._handle,
            layouts.operation,
            layouts.weight,
            layouts.x,
            layouts.out,
            layouts.out,
            byref(made),
            byref(told),
        )
        if status or told.state:
            return None
        return Product(lib, self._handle, layouts, made, told.workspace_bytes)

    def _read(self, algorithm: Any) -> Algorithm:
        numbers = []
        for attribute in range(9):
            number, written = _number(attribute, 0), c_size_t()
            _check(
                self._lib.cublasLtMatmulAlgoConfigGetAttribute(
                    byref(algorithm), attribute, byref(number), c_size_t(sizeof(number)), byref(written)
                )
            )
            numbers.append(number.value)
        return Algorithm(*numbers)

    def _layouts_for(self, sizes: Sizes, dtype: torch.dtype) -> _Layouts:
        key = (sizes, dtype)
        if key not in self._layouts:
            self._layouts[key] = _Layouts(self._lib, sizes, dtype)
        return self._layouts[key]


def _number(attribute: int, value: int) -> ctypes.c_int32 | ctypes.c_uint16:
    """A value in the width of an algorithm's attribute: the two shapes have 16 bits."""
    return ctypes.c_uint16(value) if attribute >= 7 else c_int32(value)


def _check(status: int) -> None:
    if status:
        raise EngineError(f"cuBLASLt failed with status {status}")


@cache
def _library() -> Any:
    major = (torch.version.cuda or "0").split(".")[0]
    try:
        lib = ctypes.CDLL(f"libcublasLt.so.{major}")
    except OSError:
        return None
    lib.cublasLtGetVersion.restype = c_size_t
    return lib


def version() -> int:
    """The version of the library that torch uses, such as 130100; 0 where there is none."""
    lib = _library() if torch.version.cuda else None
    return 0 if lib is None else int(lib.cublasLtGetVersion())


@cache
def cublaslt() -> CublasLt:
    """The library; ask only where `version()` is not 0. Raises EngineError when it cannot be used."""
    return CublasLt(_library())
