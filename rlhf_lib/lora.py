"""LoRA by hand, put into a model and merged back; then the same through peft, on fp32 or on 4-bit weights (QLoRA).

Hu et al. 2021 (arXiv 2106.09685); Dettmers et al. 2023 (arXiv 2305.14314). Left out: adapters on embeddings and heads,
paged optimizers. peft and bitsandbytes are imported where they are used: both are slow to import.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lib.recipes import LoRAConfig
from rlhf_lib.runtime import UsageError

# ----------------------------------------------------------------------------------------------------- by hand


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

    def merged(self) -> nn.Module:
        """The base layer, its weight moved in place by scale B A: the same function. Do not use this layer afterwards."""
        return _add_update(self.base, self.A, self.B, self.scale)


def inject_lora(model: nn.Module, r: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> nn.Module:
    """Freeze `model` and wrap every layer whose name ends in one of `target_modules`, in place; returns the model.

    Raises UsageError if a target matches no layer.
    """
    _check_targets(model, target_modules)
    model.requires_grad_(False)
    for name in [name for name, _ in model.named_modules()]:
        if any(_matches(name, target) for target in target_modules):
            _replace(model, name, LoRALinear(model.get_submodule(name), r, alpha, dropout))
    return model


def merge_lora(model: nn.Module) -> nn.Module:
    """Put every LoRALinear's update into its base layer and the base layer in its place; returns the model, still frozen."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            _replace(model, name, module.merged())
    return model


@torch.no_grad()
def _add_update(layer: nn.Module, A: torch.Tensor, B: torch.Tensor, scale: float) -> nn.Module:
    delta = scale * B @ A  # (out, in)
    layer.weight += delta.T if isinstance(layer, Conv1D) else delta
    return layer


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    names = list(_linear_layers(getattr(model, "base_model", model)))
    for target in targets:
        if not any(_matches(name, target) for name in names):
            raise UsageError(
                f"no linear layer of the model's body is called {target!r}: choose among "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in names}))}"
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


# --------------------------------------------------------------------------------------- peft and bitsandbytes


def adapt(model: nn.Module, config: LoRAConfig, method: str) -> nn.Module:
    """Prepare a transformers model for a stage's `method`, in place; returns the model.

    "full" leaves it as it is. "lora" freezes it and lets peft add an adapter that starts at 0; "qlora" first turns the
    linear layers of its body to 4 bits. The head of a reward model (`score`) goes on learning. Draws from torch's random
    state. Raises UsageError for another method, a target that is no layer, or qlora without bitsandbytes.
    """
    if method not in ("full", "lora", "qlora"):
        raise UsageError(f"unknown method {method!r}: choose full, lora or qlora")
    if method == "full":
        return model
    targets = target_names(model, config.target_modules)
    if method == "qlora":
        quantize(model)
    from peft import LoraConfig, inject_adapter_in_model

    transposed = any(isinstance(m, Conv1D) for m in model.modules())  # not on 4-bit layers, whatever they were before
    adapter = LoraConfig(r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=targets,
                         fan_in_fan_out=transposed)  # fmt: skip
    inject_adapter_in_model(adapter, model)
    if hasattr(model, "score"):
        model.score.requires_grad_(True)
    return model.train(model.training)  # the adapter's dropout, too


def target_names(model: nn.Module, target_modules: str) -> list[str]:
    """Last names of the layers to adapt: those given, divided by commas, or of every linear layer for "all-linear"."""
    if target_modules == "all-linear":
        layers = _linear_layers(model.base_model)
        return sorted({name.rpartition(".")[2] for name in layers})
    targets = [name.strip() for name in target_modules.split(",")]
    _check_targets(model, targets)
    return targets


BLOCK = 64
"""weights that share a scale in NF4"""


def quantize(model: nn.Module) -> nn.Module:
    """Turn the linear layers of a transformers model's body to NF4 with double quantisation, in place; returns the model.

    Blocks of `BLOCK` weights share a scale; the scales are 8-bit in blocks of 256 (Dettmers et al. 2023, section 3). Layers
    compute in fp32, or bf16 under autocast. Embeddings, biases, norms and heads stay. Raises UsageError without bitsandbytes,
    or for a layer whose inputs are no whole number of blocks.
    """
    bnb = _bitsandbytes()
    layers = _linear_layers(model.base_model)
    for name, layer in layers.items():
        n_in = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
        if n_in % BLOCK:  # where a block spans two rows, bitsandbytes 0.50 restores wrong weights on a CPU
            raise UsageError(
                f"layer {name} has {n_in} inputs, which blocks of {BLOCK} do not divide: choose method lora"
            )
    for name, layer in layers.items():
        transposed = isinstance(layer, Conv1D)
        weight = (layer.weight.T if transposed else layer.weight).detach().contiguous()  # (out, in)
        packed = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], layer.bias is not None, torch.float32,
                                   quant_type="nf4", device="meta")  # fmt: skip
        packed.weight = bnb.nn.Params4bit(weight, quant_type="nf4", blocksize=BLOCK).to(weight.device)
        packed.bias, packed.transposed = layer.bias, transposed
        # On processors with AVX512-BF16 an evaluation would repack the weights in place, round their scales to bf16 and
        # leave a layer through which no gradient flows.
        packed.support_avx512bf16_for_cpu = False
        _replace(model.base_model, name, packed.train(layer.training))
    model.is_loaded_in_4bit = True  # where peft looks
    return model


@torch.no_grad()
def merge_adapter(model: nn.Module) -> nn.Module:
    """Put an adapter into the weights, in place, and leave plain layers, still frozen; returns the model.

    4-bit weights are dequantised first, so the result is the function that was trained, in full precision; rounding it
    to 4 bits again would be another one.
    """
    for name, module in _adapter_layers(model).items():
        layer = _dequantized(module.base_layer)
        A, B = module.lora_A["default"].weight, module.lora_B["default"].weight
        _replace(model, name, _add_update(layer, A, B, module.scaling["default"]))
    for name, module in list(model.named_modules()):
        if is_4bit(module):  # of no target
            _replace(model, name, _dequantized(module))
    for mark in ("peft_config", "is_loaded_in_4bit"):
        if hasattr(model, mark):
            delattr(model, mark)
    return model


def is_4bit(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Linear4bit" and isinstance(layer, nn.Linear)


def has_adapter(model: nn.Module) -> bool:
    """Whether `adapt` gave the model an adapter that is not merged yet."""
    return hasattr(model, "peft_config")


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Save the adapter alone, a trained head with it, as `PeftModel.from_pretrained(base model, folder)` reads it.

    An adapter trained on 4-bit weights needs `quantize(base model)` there; peft does not notice if it is not.
    """
    from peft import TaskType

    state = {
        f"{name}.{matrix}.weight": getattr(layer, matrix)["default"].weight
        for name, layer in _adapter_layers(model).items()
        for matrix in ("lora_A", "lora_B")
    }
    config = copy.deepcopy(model.peft_config["default"])
    config.task_type = TaskType.CAUSAL_LM
    if hasattr(model, "score"):
        config.task_type, config.modules_to_save = TaskType.SEQ_CLS, ["score"]
        state["score.weight"] = model.score.weight
    config.save_pretrained(folder)
    state = {f"base_model.model.{name}": x.detach().cpu().contiguous() for name, x in state.items()}
    save_file(state, Path(folder) / "adapter_model.safetensors")


class AdapterOff(nn.Module):
    """A policy with its adapter switched off: PPO's reference, without memory of its own.

    Called like the policy, which has its adapter again, and trainable, when the call returns. It shares the policy's modules,
    so mode, device and requires_grad are the policy's.
    """

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        layers = _adapter_layers(self.policy).values()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            return self.policy(*args, **kwargs)
        finally:
            for layer in layers:
                layer.enable_adapters(True)


def training_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of the tensors that training holds between two steps: {"weights", "gradients", "optimizer"}.

    Call it after a backward pass and a step, before the gradients are dropped. 4-bit weights count with their scales
    and tables. Activations, which come and go with each batch, are not counted.
    """
    weights, gradients = list(model.parameters()), [p.grad for p in model.parameters() if p.grad is not None]
    for parameter in model.parameters():
        weights += scale_tensors(parameter)
    moments = [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]
    return {name: sum(x.numel() * x.element_size() for x in tensors)
            for name, tensors in (("weights", weights), ("gradients", gradients), ("optimizer", moments))}  # fmt: skip


def scale_tensors(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What bitsandbytes keeps beside a 4-bit weight: 8-bit scales, the scales of these scales, their mean, two tables."""
    state = getattr(parameter, "quant_state", None)
    return [] if state is None else [state.absmax, state.state2.absmax, state.offset, state.code, state.state2.code]


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}


def _adapter_layers(model: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _dequantized(layer: nn.Module) -> nn.Module:
    """A 4-bit layer as the plain layer that it was made from, any other layer as it is."""
    if not is_4bit(layer):
        return layer
    weight = _bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)  # (out, in)
    with torch.device("meta"):
        bias = layer.bias is not None
        plain = Conv1D(*weight.shape) if layer.transposed else nn.Linear(*weight.shape[::-1], bias=bias)
    plain.weight = nn.Parameter(weight.T.contiguous() if layer.transposed else weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)


def _bitsandbytes():
    try:
        import bitsandbytes
    except ImportError as error:
        raise UsageError(
            "method qlora needs the package bitsandbytes, which is not installed: run `pip install bitsandbytes`, or "
            "choose method lora"
        ) from error
    return bitsandbytes
