"""The residual stream on a GPU: for a few tokens, additions and norms happen within the products around them.

two kernels, where both products are vectors           three otherwise
    stream += op(x), the next norm half done               op(x)
    norm finished, product                                 addition and norm
                                                           product
"""

from __future__ import annotations

from torch import Tensor

from lightllm.kernels.ops.contracts import Activation, LinearOp
from lightllm.kernels.residual import PlainResidual
from lightllm.kernels.triton.linear_op import Addition, DeferredNorm, TritonLinear, new_squares
from lightllm.kernels.triton.norm import add_rms_norm, rms_norm


class TritonResidual:
    """`Residual` whose last addition waits for the next reading, to be computed with it."""

    def __init__(self, states: Tensor, eps: float) -> None:
        self._states = states
        self._eps = eps
        self._plain = PlainResidual(states, eps, rms_norm, add_rms_norm)
        self._waiting: tuple[LinearOp, Tensor] | None = None
        self._squares: Tensor | None = None
        self._turn = 0

    def normed(self, weight: Tensor) -> Tensor:
        if self._waiting is not None:
            self._plain.add(*self._waiting)
            self._waiting = None
        return self._plain.normed(weight)

    def project(self, op: LinearOp, weight: Tensor) -> Tensor:
        together = self._together(op, weight, None)
        return op(self.normed(weight)) if together is None else together

    def gated(self, op: LinearOp, weight: Tensor, kind: Activation) -> Tensor:
        together = self._together(op, weight, kind)
        return op.gated(self.normed(weight), kind) if together is None else together

    def add(self, op: LinearOp, x: Tensor) -> None:
        assert self._waiting is None
        self._waiting = op, x

    def keep(self, wanted: Tensor) -> None:
        assert self._waiting is None
        self._states = self._states.index_select(0, wanted)
        self._plain = PlainResidual(self._states, self._eps, rms_norm, add_rms_norm)

    def _together(self, op: LinearOp, weight: Tensor, kind: Activation | None) -> Tensor | None:
        """The addition that waits and the product after it, without a norm between; None where that cannot be."""
        if self._waiting is None:
            return None
        adder, x = self._waiting
        if not isinstance(adder, TritonLinear) or not isinstance(op, TritonLinear):
            return None
        if adder.vector(len(x)) is None or op.vector(len(x)) is None:
            return None
        self._waiting = None
        if self._squares is None:
            self._squares = new_squares(len(x), x.device)
        # Whoever reads the other squares is done when this addition begins, so it may clear them for the next.
        own, other = self._squares[self._turn], self._squares[1 - self._turn]
        self._turn = 1 - self._turn
        scaled = adder.add_to(Addition(self._states, weight, own, other), x)
        return op.after(DeferredNorm(scaled, own, self._eps), kind)
