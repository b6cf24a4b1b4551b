"""LoRA by hand: a frozen linear layer plus a trained low-rank update, put into a model and merged back."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lib.runtime import UsageError


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / r) B A x, with `base` frozen (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    `base` is nn.Linear or GPT-2's Conv1D, whose weight is stored transposed. A is (r, in), B is (out, r) and starts at
    0, so that the layer starts as `base`. `dropout` acts on x before A. Raises UsageError for r < 1 or another layer.
    """

    def __init__(self, base: nn.Module, r: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        if not isinstance(base, nn.Linear | Conv1D):
            raise UsageError(
                f"LoRA adapts nn.Linear and Conv1D layers, not {type(base).__name__}: choose other targets"
            )
        if r < 1:
            raise UsageError(f"the rank of LoRA is {r}: it must be at least 1")
        self.base = base.requires_grad_(False)
        n_in, n_out = base.weight.shape if isinstance(base, Conv1D) else base.weight.shape[::-1]
        self.A = nn.Parameter(base.weight.new_empty(r, n_in))
        self.B = nn.Parameter(base.weight.new_zeros(n_out, r))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as in peft; the paper's text has a Gaussian
        self.scale, self.dropout = alpha / r, dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        x_dropped = F.dropout(x, self.dropout, self.training)
        return self.base(x) + self.scale * (x_dropped @ self.A.T @ self.B.T)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer, its weight moved by scale B A: the same function at no extra cost."""
        delta = self.scale * self.B @ self.A  # (out, in)
        self.base.weight += delta.T if isinstance(self.base, Conv1D) else delta
        return self.base


def inject_lora(model: nn.Module, r: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> nn.Module:
    """Freeze `model` and wrap every layer whose name ends in one of `target_modules`, in place; returns the model.

    Raises UsageError if a target matches no layer.
    """
    names = [name for name, _ in model.named_modules()]
    for target in target_modules:
        if not any(_matches(name, target) for name in names):
            raise UsageError(f"no layer of the model is called {target!r}: print(model) shows the names")
    model.requires_grad_(False)
    for name in names:
        if any(_matches(name, target) for target in target_modules):
            _replace(model, name, LoRALinear(model.get_submodule(name), r, alpha, dropout))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Put every LoRALinear's update into its base layer and the base layer in its place; returns the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            _replace(model, name, module.merged())
    return model


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
