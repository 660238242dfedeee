"""Muon for the matrices and AdamW for the rest, with one learning-rate factor over both.

Muon: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024): momentum whose matrices are
made orthogonal by five Newton-Schulz iterations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(updates: Tensor) -> Tensor:
    """Each matrix of [count, rows, columns] with its singular values brought near 1."""
    a, b, c = COEFFICIENTS
    x = updates.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon:
    """Matrices of one shape are stacked and stepped together."""

    def __init__(self, parameters: Sequence[Tensor], rate: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        self.rate, self.momentum, self.decay = rate, momentum, decay
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in parameters:
            self.groups.setdefault(tuple(parameter.shape), []).append(parameter)
        self.buffers = {shape: torch.zeros(len(g), *shape, device=g[0].device) for shape, g in self.groups.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            buffer = self.buffers[shape]
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(buffer, self.momentum)).float()
            rate = self.rate * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            for index, parameter in enumerate(group):
                parameter.mul_(1 - self.rate * factor * self.decay)
                parameter.add_(update[index], alpha=-rate)


class Optimizer:
    """The two optimizers of one model; `step(factor)` scales both rates."""

    def __init__(self, model: nn.Module, matrix_rate: float = 0.02, other_rate: float = 0.003) -> None:
        named = list(model.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
        others = [p for name, p in named if not (p.ndim == 2 and "embed" not in name and "lm_head" not in name)]
        self.other_rate = other_rate
        self.muon = Muon(matrices, matrix_rate)
        fused = bool(others) and others[0].is_cuda
        self.adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)
        self.parameters = [p for _, p in named]

    def step(self, factor: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step(factor)
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for parameter in self.parameters:
            parameter.grad = None


def factor(progress: float, decay_from: float = 0.55, warm: float = 0.01) -> float:
    """Warm up, hold, then decay linearly to nearly zero; `progress` in [0, 1]."""
    if progress < warm:
        return max(progress / warm, 0.02)
    if progress < decay_from:
        return 1.0
    return max((1.0 - progress) / (1.0 - decay_from), 0.01)
