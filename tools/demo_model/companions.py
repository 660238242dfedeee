"""The demo model's companions: a one-layer draft model and Medusa heads, and how each learns from the demo model.

Medusa: T. Cai et al., "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads" (2024). From
the last hidden state at a position, the model's own head names the next token and head i (from 0) the token i + 1
places after that one. A head is a residual block and an output matrix, in the tensor names of the paper's code.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HEADS = 3
PULL = 0.03  # share of the heads' gradient that reaches the demo model


class Medusa(nn.Module):
    """`forward` maps hidden states [positions, hidden] to logits [positions, vocabulary], one for each head."""

    def __init__(self, hidden_size: int, vocab_size: int, heads: int = HEADS) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(heads))
        self.lm_heads = nn.ModuleList(nn.Linear(hidden_size, vocab_size, bias=False) for _ in range(heads))
        for parameter in self.lm_heads.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, hidden: Tensor) -> list[Tensor]:
        return [head(hidden + F.silu(block(hidden))) for block, head in zip(self.blocks, self.lm_heads, strict=True)]


def medusa_loss(medusa: Medusa, hidden: Tensor, ids: Tensor, marks: Tensor, index: Tensor, pull: float) -> Tensor:
    """The mean loss of the heads. hidden: states at `index`, the flat positions that predict a target; only `pull` of
    the gradient goes on into the model. A head learns where all tokens up to its own belong to the same turn."""
    inputs = hidden * pull + hidden.detach() * (1 - pull)
    flat_ids, flat_marks = F.pad(ids.flatten(), (0, HEADS + 1)), F.pad(marks.flatten(), (0, HEADS + 1), value=False)
    inside = torch.ones_like(index, dtype=torch.bool)
    total = torch.zeros((), device=ids.device)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
        logits = medusa(inputs)
    for head, found in enumerate(logits):
        place = index + head + 2
        inside = inside & flat_marks[place]
        wanted = torch.where(inside, flat_ids[place], -100)
        total = total + F.cross_entropy(found.float(), wanted)
    return total / len(logits)


def draft_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Distillation: the teacher's distribution, with some weight on its first choice (what greedy decoding takes)."""
    target = teacher.softmax(-1)
    return F.cross_entropy(logits, 0.6 * target + 0.4 * F.one_hot(teacher.argmax(-1), teacher.shape[-1]))


def save(medusa: Medusa, folder: Path) -> None:
    """Tensors `i.0.linear.weight`, `i.0.linear.bias` (residual block) and `i.1.weight` (output matrix)."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    state = medusa.state_dict()
    for i in range(len(medusa.blocks)):
        tensors |= {
            f"{i}.0.linear.weight": state[f"blocks.{i}.weight"],
            f"{i}.0.linear.bias": state[f"blocks.{i}.bias"],
            f"{i}.1.weight": state[f"lm_heads.{i}.weight"],
        }
    stored = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in tensors.items()}
    save_file(stored, str(folder / "medusa_lm_head.safetensors"), metadata={"format": "pt"})
    config = {
        "model_type": "medusa",
        "medusa_num_heads": len(medusa.blocks),
        "medusa_num_layers": 1,
        "hidden_size": medusa.blocks[0].in_features,
        "vocab_size": medusa.lm_heads[0].out_features,
        "base_model_name_or_path": "../demo",
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> Medusa:
    config = json.loads((folder / "config.json").read_text())
    medusa = Medusa(config["hidden_size"], config["vocab_size"], config["medusa_num_heads"])
    tensors = load_file(str(folder / "medusa_lm_head.safetensors"))
    names = {"0.linear.weight": "blocks.{}.weight", "0.linear.bias": "blocks.{}.bias", "1.weight": "lm_heads.{}.weight"}
    state = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        state[names[rest].format(head)] = tensor.float()
    medusa.load_state_dict(state)
    return medusa
