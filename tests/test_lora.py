"""LoRA by hand: equal to peft on the same weights, only A and B learn, merging changes nothing, and mistakes are named."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lib.lora import LoRALinear, inject_lora, merge_lora
from rlhf_lib.runtime import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 8, 9, 7, 9]])


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["gpt2", "llama"])
def model_and_targets(request, policy, llama):
    if request.param == "gpt2":
        return policy, ["c_attn", "c_fc"]
    return llama, ["q_proj", "v_proj", "down_proj"]


def randomise(model):
    """B off its zero start, the same in every model of the same shape."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            for matrix in (module.A, module.B):
                matrix.data.normal_(std=0.1, generator=generator)


def with_peft(model, targets, r, alpha):
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM",
                        fan_in_fan_out="c_attn" in targets)  # fmt: skip
    return get_peft_model(model, config)


def copy_into_peft(ours, peft_model):
    theirs = dict(peft_model.base_model.model.named_modules())
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            theirs[name].lora_A["default"].weight.data.copy_(module.A)
            theirs[name].lora_B["default"].weight.data.copy_(module.B)


def test_it_starts_as_the_base_model(model_and_targets):
    model, targets = model_and_targets
    before = model(IDS).logits
    assert torch.equal(inject_lora(model, 4, 8, 0.0, targets)(IDS).logits, before)


def test_logits_and_gradients_equal_those_of_peft(model_and_targets):
    model, targets = model_and_targets
    theirs = with_peft(copy.deepcopy(model), targets, r=4, alpha=6)
    ours = inject_lora(model, 4, 6, 0.0, targets)
    randomise(ours)
    copy_into_peft(ours, theirs)
    assert (ours(IDS).logits - theirs(IDS).logits).abs().max() < 1e-5
    ours(IDS, labels=IDS).loss.backward()
    theirs(IDS, labels=IDS).loss.backward()
    modules = dict(theirs.base_model.model.named_modules())
    compared = 0
    for name, module in ours.named_modules():
        if isinstance(module, LoRALinear):
            assert torch.allclose(module.A.grad, modules[name].lora_A["default"].weight.grad, atol=1e-6)
            assert torch.allclose(module.B.grad, modules[name].lora_B["default"].weight.grad, atol=1e-6)
            compared += 1
    assert compared == len(targets) * 2  # two layers


def test_only_the_low_rank_matrices_learn(model_and_targets):
    model, targets = model_and_targets
    inject_lora(model, 4, 8, 0.0, targets)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names and all(name.endswith((".A", ".B")) for name in names)
    model(IDS, labels=IDS).loss.backward()
    assert all((p.grad is not None) == (name in names) for name, p in model.named_parameters())


def test_merging_keeps_the_function_and_removes_the_layers(model_and_targets):
    model, targets = model_and_targets
    kinds = [type(m) for m in model.modules()]
    before = model(IDS).logits
    inject_lora(model, 4, 8, 0.0, targets)
    randomise(model)
    adapted = model(IDS).logits
    merged = merge_lora(model)
    assert (adapted - before).abs().max() > 1e-2
    assert (merged(IDS).logits - adapted).abs().max() < 1e-5
    assert [type(m) for m in merged.modules()] == kinds


def test_a_two_by_two_example_by_hand():
    base = nn.Linear(2, 2, bias=False)
    base.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer = LoRALinear(base, r=1, alpha=3)
    layer.A.data, layer.B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [-1.0]])
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["A", "B"]
    # A x = 1 + 2 * 2 = 5, B A x = (5, -5), times alpha / r = 3, plus x
    assert layer(torch.tensor([1.0, 2.0])).tolist() == [16.0, -13.0]
    assert layer.merged().weight.tolist() == [[4.0, 6.0], [-3.0, -5.0]]


def test_dropout_acts_on_the_update_alone_and_only_in_training():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(64, 8), r=2, alpha=2, dropout=0.5)
    layer.B.data.normal_()
    x = torch.randn(1, 64)
    assert torch.equal(layer.eval()(x), layer(x))
    layer.train()
    mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
    assert not torch.equal(layer(x), layer(x))
    assert (mean - layer.eval()(x)).abs().max() < 0.1
    layer.B.data.zero_()
    assert torch.equal(layer.train()(x), layer.base(x))


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda: LoRALinear(nn.Conv2d(1, 1, 1), 2, 2), "nn.Linear and Conv1D"),
        (lambda: LoRALinear(nn.Linear(2, 2), 0, 2), "at least 1"),
        (lambda: inject_lora(nn.Sequential(nn.Linear(2, 2)), 1, 1, 0.0, ["q_proj"]), "'q_proj'"),
    ],
)
def test_mistakes_are_named(broken, message):
    with pytest.raises(UsageError, match=message):
        broken()
