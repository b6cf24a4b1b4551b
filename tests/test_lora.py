"""LoRA by hand equals peft; adapters switch off, merge and resume bit by bit; 4-bit weights are NF4 and never change."""

import copy
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from scipy.stats import norm
from test_stages import assert_same_weights, death_at_the_first_resume_point, logged, weights
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from conftest import random_policy
from rlhf_lib import doctor, lora, models, stages
from rlhf_lib.lora import AdapterOff, LoRALinear, adapt, inject_lora, merge_adapter, merge_lora, quantize
from rlhf_lib.recipes import LoRAConfig, get_recipe
from rlhf_lib.runtime import Paths, UsageError


@pytest.fixture
def policy(tokenizer):
    """Twice as wide as elsewhere: blocks of 64 weights must divide the inputs of a 4-bit layer."""
    return random_policy(tokenizer, n_embd=64)


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 8, 9, 7, 9]])


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
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


def randomise_adapter(model):
    """The same for peft's adapter; returns the model."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model


def learning(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


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
    model.double()  # fp32 rounds by about a hundred-thousandth, more or less by the number of threads
    kinds = [type(m) for m in model.modules()]
    before = model(IDS).logits
    inject_lora(model, 4, 8, 0.0, targets)
    randomise(model)
    adapted = model(IDS).logits
    merged = merge_lora(model)
    assert (adapted - before).abs().max() > 1e-2
    assert (merged(IDS).logits - adapted).abs().max() < 1e-10
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


# ------------------------------------------------------------------------------------------ adapters, through peft


METHODS = ("lora", "qlora")
CONFIG = LoRAConfig(r=4, alpha=6.0)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_sits_on_every_linear_layer_of_the_body_and_learns_alone(policy, llama, method):
    for model in (policy, llama):
        layers = {name for name, m in model.base_model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
        adapt(model, CONFIG, method)
        names = learning(model)
        assert all(".lora_A." in name or ".lora_B." in name for name in names)
        assert {name.split(".lora_")[0].split(".", 1)[1] for name in names} == layers and len(names) == 2 * len(layers)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_as_the_model_without_it(policy, method):
    plain = quantize(copy.deepcopy(policy)) if method == "qlora" else copy.deepcopy(policy)
    adapted = adapt(policy, CONFIG, method)
    assert torch.equal(adapted(IDS).logits, plain(IDS).logits)


def test_peft_and_the_layers_by_hand_are_one_function(model_and_targets):
    model, targets = model_and_targets
    config = dataclasses.replace(CONFIG, target_modules=", ".join(targets))
    theirs = randomise_adapter(adapt(copy.deepcopy(model), config, "lora"))
    ours = inject_lora(model, config.r, config.alpha, 0.0, targets)
    modules, copied = dict(theirs.named_modules()), 0
    for name, layer in ours.named_modules():
        if isinstance(layer, LoRALinear):
            layer.A.data.copy_(modules[name].lora_A["default"].weight)
            layer.B.data.copy_(modules[name].lora_B["default"].weight)
            copied += 1
    assert copied == 2 * len(targets) == len([m for m in modules.values() if hasattr(m, "lora_A")])
    torch.testing.assert_close(theirs(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merge_adapter(theirs)(IDS).logits, merge_lora(ours)(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", ["all-linear", "c_attn"])
def test_merging_an_adapter_keeps_the_function_and_leaves_the_layers_of_the_base(policy, method, targets):
    kinds = [type(m) for m in policy.modules()]
    before = policy(IDS).logits
    adapted = randomise_adapter(adapt(policy, dataclasses.replace(CONFIG, target_modules=targets), method))
    logits = adapted(IDS).logits
    merged = merge_adapter(copy.deepcopy(adapted))
    torch.testing.assert_close(merged(IDS).logits, logits, atol=1e-4, rtol=1e-4)
    assert (logits - before).abs().max() > 1e-2
    assert [type(m) for m in merged.modules()] == kinds and not lora.has_adapter(merged)
    assert torch.equal(adapted(IDS).logits, logits)  # the copy was merged, not the model
    adapt(merged, CONFIG, method)  # and takes the next adapter


@pytest.mark.parametrize("method", METHODS)
def test_the_adapter_switched_off_is_the_reference_bit_for_bit(policy, method):
    reference = quantize(copy.deepcopy(policy)) if method == "qlora" else copy.deepcopy(policy)
    adapted = randomise_adapter(adapt(policy, CONFIG, method))
    off, names, logits = AdapterOff(adapted), learning(adapted), adapted(IDS).logits
    assert torch.equal(off(IDS).logits, reference(IDS).logits)
    assert not torch.equal(logits, reference(IDS).logits)
    assert torch.equal(adapted(IDS).logits, logits) and learning(adapted) == names  # it is on again
    assert not off(IDS).logits.requires_grad and adapted(IDS).logits.requires_grad
    with pytest.raises(IndexError):
        off(torch.tensor([[10**6]]))
    assert torch.equal(adapted(IDS).logits, logits)


def test_an_adapter_follows_the_mode_of_its_model(policy):
    adapted = randomise_adapter(adapt(policy, dataclasses.replace(CONFIG, dropout=0.5), "lora"))
    assert torch.equal(adapted(IDS).logits, adapted(IDS).logits)
    adapted.train()
    assert not torch.equal(adapted(IDS).logits, adapted(IDS).logits)


@pytest.mark.parametrize("method", METHODS)
def test_the_head_of_a_reward_model_learns_with_the_adapter(policy, tokenizer, tmp_path, method):
    policy.save_pretrained(tmp_path)
    names = learning(adapt(models.new_reward_model(tmp_path, tokenizer), CONFIG, method))
    assert {name for name in names if "lora_" not in name} == {"score.weight"} and len(names) == 1 + 2 * 2 * 4


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_opens_merged_with_transformers_and_alone_with_peft(policy, tokenizer, tmp_path, method):
    policy.save_pretrained(tmp_path / "base")
    for kind, load, auto_class in (
        ("sft", models.load_policy, AutoModelForCausalLM),
        ("reward", models.new_reward_model, AutoModelForSequenceClassification),
    ):
        base = load(tmp_path / "base", tokenizer)
        adapted = randomise_adapter(adapt(copy.deepcopy(base), CONFIG, method))
        if kind == "reward":
            adapted.score.weight.data.normal_()
        models.save_checkpoint(tmp_path / kind, adapted, tokenizer, {})
        merged = auto_class.from_pretrained(tmp_path / kind).eval()
        torch.testing.assert_close(merged(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)
        base = quantize(base) if method == "qlora" else base
        alone = PeftModel.from_pretrained(base, tmp_path / kind / "adapter").eval()
        torch.testing.assert_close(alone(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)


def test_bytes_are_those_of_the_tensors(policy):
    """A by hand: two layers, each (64 -> 192), (64 -> 64), (64 -> 256), (256 -> 64), rank 4, 4 bytes a number."""
    adapt(policy, CONFIG, "lora")
    numbers = 2 * 4 * ((64 + 192) + (64 + 64) + (64 + 256) + (256 + 64))
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad])
    policy(IDS, labels=IDS).loss.backward()
    optimizer.step()
    used = lora.training_bytes(policy, optimizer)
    frozen = sum(p.numel() for p in policy.parameters() if not p.requires_grad)
    steps = 4 * len(learning(policy))  # Adam counts its steps for each tensor
    assert used == {"weights": 4 * (frozen + numbers), "gradients": 4 * numbers, "optimizer": 8 * numbers + steps}


# --------------------------------------------------------------------------------------------------- 4-bit weights


def nf4_levels() -> np.ndarray:
    """Dettmers et al. 2023, section 3 and appendix E: quantiles of the normal, 7 below and 8 above an exact 0."""
    tail = 1 - (1 / 30 + 1 / 32) / 2
    above, below = (norm.ppf(np.linspace(0.5, tail, n)) for n in (9, 8))
    return np.unique(np.concatenate([-below / below[-1], above / above[-1]]))


def nearest(weight: torch.Tensor, levels) -> torch.Tensor:
    """Blocks of 64 divided by their largest magnitude, each number moved to the nearest level."""
    levels = torch.tensor(levels, dtype=torch.float64)
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    index = (blocks / scale).unsqueeze(-1).sub(levels).abs().argmin(-1)
    return (levels[index] * scale).reshape(weight.shape).float()


def test_the_levels_are_sixteen_with_an_exact_zero():
    levels = nf4_levels()
    assert len(levels) == 16 and 0.0 in levels and (levels[0], levels[-1]) == (-1.0, 1.0)


def test_inputs_that_blocks_do_not_divide_are_refused_where_bitsandbytes_would_restore_wrong_weights(tokenizer):
    narrow = random_policy(tokenizer, n_embd=32)
    with pytest.raises(UsageError, match="32 inputs, which blocks of 64 do not divide"):
        quantize(narrow)


def test_quantised_weights_are_the_nearest_nf4_levels_the_right_way_round(policy):
    plain = copy.deepcopy(policy)
    quantize(policy)
    restored, checked = merge_adapter(policy), 0
    for name, layer in plain.transformer.named_modules():
        if isinstance(layer, Conv1D):
            expected = nearest(layer.weight.data.T.contiguous(), nf4_levels()).T
            found = restored.transformer.get_submodule(name).weight
            scale = layer.weight.abs().max()
            assert (found - expected).abs().max() < 0.01 * scale  # the scales are rounded to 8 bits
            assert (found - layer.weight).abs().max() < 0.2 * scale
            checked += 1
    assert checked == 2 * 4
    rest = {name for name, p in plain.named_parameters() if not torch.equal(p, restored.get_parameter(name))}
    assert len(rest) == checked and all(name.endswith("weight") for name in rest)


def test_quantised_layers_are_those_that_transformers_loads(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    theirs = dict(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings).named_modules())
    ours = {name: layer for name, layer in quantize(policy).named_modules() if lora.is_4bit(layer)}
    assert ours.keys() == {name for name, layer in theirs.items() if lora.is_4bit(layer)}
    for name, layer in ours.items():
        assert torch.equal(layer.weight.data, theirs[name].weight.data)
        for mine, their in zip(lora.scale_tensors(layer.weight), lora.scale_tensors(theirs[name].weight), strict=True):
            assert torch.equal(mine, their)


def kept(model) -> dict[str, torch.Tensor]:
    """Everything that an adapter must leave alone: packed weights, their scales, biases, norms, embeddings."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    scales = {f"{name} {i}": x for name, p in frozen.items() for i, x in enumerate(lora.scale_tensors(p))}
    return {name: x.detach().clone() for name, x in (frozen | scales).items()}


@pytest.mark.parametrize("native", [False, True])
def test_training_leaves_4_bit_weights_unchanged_whatever_the_processor(policy, monkeypatch, native):
    """Evaluations between the steps, too, where bitsandbytes would repack the weights in place (`native`)."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: native)
    adapt(policy, CONFIG, "qlora")
    packed = [p for p in policy.parameters() if p.dtype == torch.uint8]
    numbers = sum(p.numel() for p in packed)
    assert len(packed) == 2 * 4 and numbers == 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256) / 2  # two in a byte
    assert all(lora.scale_tensors(p)[0].dtype == torch.uint8 for p in packed)  # double quantisation
    before = kept(policy)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        with torch.no_grad():
            losses.append(policy.eval()(IDS, labels=IDS).loss.item())
        loss = policy.train()(IDS, labels=IDS).loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in policy.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
    after = kept(policy)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_through_4_bit_weights_are_those_of_the_dequantised_model(policy):
    adapted = randomise_adapter(adapt(policy, CONFIG, "qlora"))
    plain = copy.deepcopy(adapted)
    for layer in plain.modules():
        if hasattr(layer, "lora_A"):
            layer.base_layer = lora._dequantized(layer.base_layer)
    for model in (adapted, plain):
        model(IDS, labels=IDS).loss.backward()
    gradients = [{name: p.grad for name, p in m.named_parameters() if "lora_" in name} for m in (adapted, plain)]
    assert len(gradients[0]) == 2 * 2 * 4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------------------------------------------------- stages


def recipe_with(method: str, **overrides):
    methods = {f"{stage}.method": method for stage in ("sft", "reward", "ppo")}
    return get_recipe("tiny", "smoke", overrides=methods | {"precision": "no"} | overrides)


STAGES = {"sft": stages.train_sft, "reward": stages.train_reward, "ppo": stages.train_ppo}
HEALTHY = doctor.Report([])


@pytest.fixture(scope="module", params=METHODS)
def finished(request, tmp_path_factory):
    """SFT, reward model and PPO with adapters, the doctor included."""
    recipe, paths = recipe_with(request.param), Paths("tiny", "smoke", tmp_path_factory.mktemp(request.param))
    return recipe, paths, {name: stage(recipe, paths) for name, stage in STAGES.items()}


def test_every_checkpoint_opens_with_transformers_and_keeps_its_adapter_beside_it(finished):
    recipe, paths, results = finished
    for stage, (model, _, _) in results.items():
        folder = paths.checkpoints / models.folder_of(recipe, stage)
        auto_class = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
        opened = auto_class.from_pretrained(folder)
        torch.testing.assert_close(opened(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
        assert (folder / "adapter" / "adapter_model.safetensors").exists()
        assert models.find_checkpoint(recipe, paths, stage) == (str(folder), f"your own {folder.name} checkpoint")
    assert {p.name for p in paths.checkpoints.iterdir() if p.is_dir()} == {
        "base", f"sft_{recipe.sft.method}", "reward", "ppo",
    }  # fmt: skip
    assert (paths.evaluation / f"sft_{recipe.sft.method}_metrics.csv").exists()


def test_only_the_weights_of_linear_layers_differ_from_those_of_the_stage_before(finished):
    recipe, paths, _ = finished
    folders = [paths.checkpoints / name for name in ("base", f"sft_{recipe.sft.method}", "ppo")]
    for before, after in zip(folders, folders[1:]):
        first, second = weights(before), weights(after)
        moved = {name for name in first if not torch.equal(first[name], second[name])}
        assert moved == {name for name in first if ".c_" in name and name.endswith("weight")}


def test_ppo_starts_at_its_reference_and_leaves_it(finished):
    recipe, paths, results = finished
    policy, _, rows = results["ppo"]
    assert abs(rows[0]["objective/kl"]) < 1e-4 and rows[0]["policy/first_approxkl"] < 1e-8
    sft = models.load_policy(str(paths.checkpoints / f"sft_{recipe.sft.method}"))
    expected = (quantize(sft) if recipe.ppo.method == "qlora" else sft)(IDS).logits
    assert torch.equal(AdapterOff(policy)(IDS).logits, expected) and not torch.equal(policy(IDS).logits, expected)


def test_an_adapter_learns_at_a_multiple_of_the_rate(finished):
    recipe, paths, results = finished
    peak = max(row["lr"] for row in results["sft"][2][1:])
    assert peak == pytest.approx(recipe.sft.lr * recipe.lora.lr_factor, rel=0.5) and peak > recipe.sft.lr
    assert stages.with_rate(get_recipe("tiny"), "sft") == get_recipe("tiny")


def test_two_runs_with_an_adapter_are_equal(finished, tmp_path):
    recipe, reference, _ = finished
    paths = Paths("tiny", "smoke", tmp_path)
    torch.manual_seed(99)
    stages.train_sft(recipe, paths)
    folder = models.folder_of(recipe, "sft")
    assert_same_weights(reference.checkpoints / folder, paths.checkpoints / folder)


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_with_an_adapter_resumes_to_the_same_weights_and_metrics(finished, tmp_path, stage):
    recipe, reference, _ = finished
    paths = Paths("tiny", "smoke", tmp_path)
    shutil.copytree(reference.checkpoints, paths.checkpoints, dirs_exist_ok=True)
    folder = models.folder_of(recipe, stage)
    shutil.rmtree(paths.checkpoints / folder)
    more = {"report": HEALTHY} if stage == "ppo" else {}
    with death_at_the_first_resume_point():
        STAGES[stage](recipe, paths, **more)
    state = torch.load(paths.checkpoints / f"{stage}_state.pt", weights_only=False)["parts"]
    learnt = state["actor_critic" if stage == "ppo" else "model"]
    assert learnt and all("lora_" in name or "score" in name or "head" in name for name in learnt)
    STAGES[stage](recipe, paths, resume=True, **more)
    assert_same_weights(reference.checkpoints / folder, paths.checkpoints / folder)
    assert logged(reference, folder) == logged(paths, folder)


def test_the_settings_of_lora_matter_to_the_stages_that_use_it_alone(paths):
    full, other = (get_recipe("tiny", "smoke", overrides={"lora.r": r}) for r in (8, 4))
    for stage in STAGES:
        settings = models.stage_settings(full, paths, stage)
        assert settings == models.stage_settings(other, paths, stage)
        assert "lora" not in json.dumps(settings) and '"method"' not in json.dumps(settings)
    first, second = (recipe_with("lora", **{"lora.r": r}) for r in (8, 4))
    assert models.stage_settings(first, paths, "sft") != models.stage_settings(second, paths, "sft")
    assert models.stage_settings(first, paths, "sft") != models.stage_settings(recipe_with("qlora"), paths, "sft")


def test_models_trained_in_full_do_not_stand_in_for_adapted_ones(paths):
    for stage in ("sft", "reward"):
        assert "shipped" in models.find_checkpoint(get_recipe("tiny", "smoke"), paths, stage)[1]
        recipe = get_recipe("tiny", "smoke", overrides={f"{stage}.method": "lora"})
        with pytest.raises(UsageError, match=f"the {stage} checkpoint is missing"):
            models.find_checkpoint(recipe, paths, stage)
    models.save_checkpoint(paths.checkpoints / "sft", models.load_policy("tiny:small"), models.load_tokenizer("tiny:small"),
                           models.stage_settings(get_recipe("tiny", "smoke"), paths, "sft"))  # fmt: skip
    with pytest.raises(UsageError, match="is missing"):
        models.find_checkpoint(recipe_with("lora"), paths, "sft")


def test_without_bitsandbytes_qlora_ends_in_one_sentence_and_lora_works(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="needs the package bitsandbytes, .*pip install bitsandbytes") as error:
        adapt(policy, CONFIG, "qlora")
    assert "\n" not in str(error.value)
    assert not any(lora.is_4bit(m) for m in policy.modules())
    assert learning(adapt(policy, CONFIG, "lora"))


@pytest.mark.parametrize(
    "config, method, message",
    [(CONFIG, "dora", "unknown method 'dora': choose full, lora or qlora"),
     (dataclasses.replace(CONFIG, target_modules="q_proj"), "lora", "no linear layer of the model's body is called 'q_proj'"),
     (dataclasses.replace(CONFIG, target_modules="c_attn,"), "qlora", "no linear layer of the model's body is called ''"),
     (dataclasses.replace(CONFIG, target_modules="lm_head"), "lora", "is called 'lm_head'"),
     (dataclasses.replace(CONFIG, target_modules="mlp"), "qlora", "is called 'mlp'")],
)  # fmt: skip
def test_mistakes_of_an_adapter_are_named_before_the_model_changes(policy, config, method, message):
    before = [type(m) for m in policy.modules()]
    with pytest.raises(UsageError, match=message):
        adapt(policy, config, method)
    assert [type(m) for m in policy.modules()] == before
    assert adapt(policy, CONFIG, "full") is policy and [type(m) for m in policy.modules()] == before
