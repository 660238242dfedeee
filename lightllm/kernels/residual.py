"""The residual stream of a step, by ops of any backend: a product, then an addition and a norm in one."""

from __future__ import annotations

from torch import Tensor

from lightllm.kernels.ops.contracts import Activation, AddRmsNorm, LinearOp, RmsNorm


class PlainResidual:
    """`Residual` that keeps what was added last apart until it is read."""

    def __init__(self, states: Tensor, eps: float, rms_norm: RmsNorm, add_rms_norm: AddRmsNorm) -> None:
        self._states = states
        self._eps = eps
        self._rms_norm, self._add_rms_norm = rms_norm, add_rms_norm
        self._added: Tensor | None = None

    def normed(self, weight: Tensor) -> Tensor:
        added, self._added = self._added, None
        if added is None:
            return self._rms_norm(self._states, weight, self._eps)
        return self._add_rms_norm(added, self._states, weight, self._eps)

    def project(self, op: LinearOp, weight: Tensor) -> Tensor:
        return op(self.normed(weight))

    def gated(self, op: LinearOp, weight: Tensor, kind: Activation) -> Tensor:
        return op.gated(self.normed(weight), kind)

    def add(self, op: LinearOp, x: Tensor) -> None:
        assert self._added is None
        self._added = op(x)

    def keep(self, wanted: Tensor) -> None:
        assert self._added is None
        self._states = self._states.index_select(0, wanted)
