"""Recipes: every setting of a run as data, with its unit and source beneath it."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import get_type_hints

from rlhf_lib.runtime import UsageError


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685), read by every stage whose `method` is "lora" or "qlora"."""

    r: int = 8
    """rank of the update; Hu et al. find that very small ranks are enough (section 7.2)"""
    alpha: float = 32.0
    """the update is scaled by alpha / r; 32 as for GPT-2 in Hu et al. (table 11)"""
    dropout: float = 0.0
    """on the input of the update alone, off in PPO. Hu et al. take 0.1 over several epochs; one epoch needs none"""
    target_modules: str = "all-linear"
    """"all-linear", every linear layer but the heads, which it takes to match full training (QLoRA, arXiv 2305.14314,
    section 4); or names divided by commas, such as c_attn,c_proj"""
    lr_factor: float = 2.0
    """adapters learn at this many times the stage's lr. On the embedded world 2 and 5 end at the same loss and 10 above it;
    ten is best for large models (Schulman et al. 2025, "LoRA Without Regret"), whose rate for full training is lower"""


@dataclass(frozen=True)
class SFTConfig:
    method: str = "full"
    """"full" (every weight), "lora" (frozen weights and an adapter) or "qlora" (the same on 4-bit weights)"""
    examples: int = 6000
    """demonstrations to train on"""
    validation_examples: int = 320
    epochs: int = 1
    batch_size: int = 32
    """demonstrations an optimizer step"""
    micro_batch_size: int = 16
    """demonstrations a forward pass; smaller saves memory and changes no result"""
    lr: float = 1e-3
    """peak learning rate; warmed up over `warmup` of the steps, then cosine to 0"""
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 25
    """steps between validation losses"""
    save_every: int = 50
    """steps between resume points"""


@dataclass(frozen=True)
class RewardConfig:
    method: str = "full"
    """as in SFT; the head is trained in full"""
    init: str = "base"
    """the body it starts from: "base" or "sft". SFT forgets much of what the base model knows about telling true claims
    from false ones, and the reward model needs just that; Stiennon et al. 2020 start from SFT."""
    prompts: int = 1200
    """posts for which the SFT policy is sampled"""
    samples_per_prompt: int = 6
    """summaries a post; all pairs among them are compared, as in InstructGPT (arXiv 2203.02155, section 3.5)"""
    edited_prompts: int = 2000
    """further posts, each with an honest summary and edits of it that get one thing wrong"""
    demonstration_prompts: int = 500
    """further posts, each with a pair of demonstrations"""
    validation_prompts: int = 100
    annotator_scale: float = 0.125
    """gold points: P(annotator prefers a) = sigmoid((gold_a - gold_b) / annotator_scale)"""
    epochs: int = 1
    batch_prompts: int = 8
    """posts an optimizer step, each with all of its pairs"""
    micro_batch_prompts: int = 4
    """posts a forward pass; smaller saves memory and changes no result"""
    lr: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    eval_every: int = 100
    save_every: int = 100


@dataclass(frozen=True)
class PPOConfig:
    method: str = "full"
    """as in SFT, for policy and critic; with an adapter the reference is the policy without it, which costs no memory"""
    updates: int = 80
    """rollout batches"""
    batch_size: int = 64
    """responses an update"""
    prompts: int = 8000
    """posts to draw prompts from"""
    epochs: int = 1
    """passes over each rollout batch"""
    minibatches: int = 4
    """optimizer steps an epoch"""
    micro_batch_size: int = 16
    """responses a forward pass; smaller saves memory and changes no result"""
    lr: float = 4e-4
    """peak learning rate; warmed up over `warmup` of the steps, then it falls linearly to 0"""
    warmup: float = 0.2
    critic_updates: int = 6
    """first updates in which only the critic learns. It starts from the reward model and has never valued half a summary;
    a policy that trusts it at once can unlearn for good what is risky and still worth its while, such as giving a name"""
    kl_coef: float = 0.05
    """beta: the price of one nat of KL in units of reward-model score (Huang et al. 2024: 0.05)"""
    kl_estimator: str = "k1"
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: float = 1.0
    """subtracted from the score of a response that never ends (units of reward-model score)"""
    temperature: float = 1.0
    max_grad_norm: float = 1.0
    exact_kl_every: int = 20
    """updates between comparisons of the sampled KL with the exact one over the whole vocabulary"""
    eval_every: int = 10
    """updates between evaluations on validation prompts"""
    eval_prompts: int = 128
    save_every: int = 5
    """updates between resume points"""


@dataclass(frozen=True)
class EvalConfig:
    split: str = "test"
    prompts: int = 600
    temperature: float = 1.0
    n_boot: int = 1000


@dataclass(frozen=True)
class Recipe:
    name: str
    policy: str
    """folder or hub name of the base language model; "tiny:small" and "tiny:medium" are shipped"""
    max_prompt_tokens: int = 192
    max_new_tokens: int = 48
    freeze_embeddings: bool = True
    """SFT, reward model and PPO leave the token embeddings as the base model has them. Otherwise every step lowers the
    words that its data lack, and a name that no demonstration holds is hardly ever written again."""
    precision: str = "auto"
    """"auto", "bf16", "fp16" (GPUs only) or "no" (fp32)"""
    gradient_checkpointing: bool = False
    """forget the activations inside each block and compute them again in the backward pass (Chen et al. 2016, arXiv
    1604.06174): less memory, a third more time, the same gradients"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    scale: str = "full"
    seed: int = 1

    def resolved(self) -> dict:
        """Every setting; those of `NEWER` only where they differ from their default."""
        settings = dataclasses.asdict(self)
        for key, default in NEWER.items():
            if settings[key] == default:
                del settings[key]
        return settings


NEWER = {"gradient_checkpointing": False}
"""settings that came after results were stored, with the value that changes nothing: they must not disown those results"""

RECIPES = {
    "tiny": Recipe(name="tiny", policy="tiny:small"),
}

SMOKE = {  # what `--scale smoke` changes: the same code on a handful of examples
    "sft.examples": 64, "sft.validation_examples": 32, "sft.batch_size": 16, "sft.eval_every": 2, "sft.save_every": 2,
    "reward.prompts": 24, "reward.edited_prompts": 16,
    "reward.demonstration_prompts": 8, "reward.validation_prompts": 16, "reward.batch_prompts": 8,
    "reward.eval_every": 2, "reward.save_every": 2,
    "ppo.updates": 2, "ppo.critic_updates": 0, "ppo.batch_size": 8, "ppo.prompts": 32, "ppo.micro_batch_size": 4,
    "ppo.eval_every": 1, "ppo.eval_prompts": 8, "ppo.exact_kl_every": 1, "ppo.save_every": 1, "eval.prompts": 16, "eval.n_boot": 100,
}  # fmt: skip


CLINIC = {  # the short runs of `rlhf_lib.clinic`: long enough to fall ill, short enough to watch a dozen
    "ppo.updates": 12, "ppo.critic_updates": 2, "ppo.batch_size": 32, "ppo.prompts": 384, "ppo.warmup": 0.1,
    "ppo.kl_coef": 0.5,  # ten times the default: what is wrong with the anchor must show within a few updates
    "ppo.exact_kl_every": 4, "ppo.save_every": 10**6,
}  # fmt: skip


def clinic_recipe(name: str, scale: str = "full", seed: int | None = None, overrides: dict | None = None) -> Recipe:
    """`get_recipe` with the settings of `CLINIC` beneath `overrides`; at smoke scale SMOKE keeps the sizes."""
    short = {key: value for key, value in CLINIC.items() if scale == "full" or key not in SMOKE}
    return get_recipe(name, scale, seed, short | (overrides or {}))


SCALING_SMOKE = {  # what the scaling study changes further at smoke scale: it makes two dozen runs
    "max_prompt_tokens": 32, "max_new_tokens": 10, "sft.examples": 32, "sft.validation_examples": 8, "sft.eval_every": 10,
    "reward.prompts": 4, "reward.samples_per_prompt": 3, "reward.edited_prompts": 2, "reward.demonstration_prompts": 2,
    "reward.validation_prompts": 4, "reward.eval_every": 10, "ppo.batch_size": 4, "ppo.minibatches": 2, "ppo.eval_every": 2,
    "ppo.eval_prompts": 4, "ppo.exact_kl_every": 3, "eval.prompts": 8,
}  # fmt: skip


def scaling_recipe(name: str, scale: str = "full", seed: int | None = None, overrides: dict | None = None) -> Recipe:
    """`get_recipe`, at smoke scale with the settings of `SCALING_SMOKE` beneath `overrides`."""
    return get_recipe(name, scale, seed, (SCALING_SMOKE if scale == "smoke" else {}) | (overrides or {}))


def get_recipe(name: str, scale: str = "full", seed: int | None = None, overrides: dict | None = None) -> Recipe:
    """The recipe `name` at `scale` with `overrides` such as {"ppo.kl_coef": "0.1"} (text or values).

    Raises UsageError for an unknown recipe, scale, key or a value of the wrong type.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    if scale not in ("full", "smoke"):
        raise UsageError(f"unknown scale {scale!r}: choose full or smoke")
    recipe = dataclasses.replace(RECIPES[name], scale=scale)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    for key in overrides or {}:
        if key in ("name", "scale"):
            raise UsageError(f"setting {key!r} cannot be overridden: choose it with --recipe or --scale")
    for key, value in ((SMOKE if scale == "smoke" else {}) | (overrides or {})).items():
        recipe = _replace(recipe, key, key.split("."), value)
    _check(recipe.resolved())
    return recipe


CHOICES = {"method": ("full", "lora", "qlora"), "kl_estimator": ("k1", "k2", "k3"), "precision": ("auto", "bf16", "fp16", "no"),
           "split": ("validation", "test"), "init": ("base", "sft")}  # fmt: skip
MAY_BE_ZERO = {
    "seed", "lora.dropout", "sft.warmup", "sft.weight_decay", "reward.warmup", "reward.weight_decay",
    "reward.edited_prompts", "reward.demonstration_prompts", "ppo.missing_eos_penalty", "ppo.kl_coef", "ppo.vf_coef", "ppo.gamma", "ppo.lam",
    "ppo.warmup", "ppo.critic_updates", "eval.temperature",
}  # fmt: skip
AT_MOST = {"seed": 2**32 - 1, "lora.dropout": 0.9, "sft.warmup": 1, "reward.warmup": 1, "ppo.warmup": 1, "ppo.gamma": 1,
           "ppo.lam": 1, "reward.samples_per_prompt": 10}  # fmt: skip
AT_LEAST = {"reward.samples_per_prompt": 2, "ppo.batch_size": 2}


def _check(settings: dict, prefix: str = "") -> None:
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            _check(value, f"{key}.")
        elif name in CHOICES and value not in CHOICES[name]:
            raise UsageError(f"setting {key}={value} is unknown: choose {' or '.join(CHOICES[name])}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            rule = "0 or more" if key in MAY_BE_ZERO else f"at least {AT_LEAST[key]}" if key in AT_LEAST else "above 0"
            rule += f" and at most {AT_MOST[key]}" if key in AT_MOST else ""
            low = 0 if key in MAY_BE_ZERO else AT_LEAST.get(key, math.ulp(0.0))
            if not (math.isfinite(value) and low <= value <= AT_MOST.get(key, math.inf)):
                raise UsageError(f"setting {key}={value} cannot work: it must be finite, {rule}")
    if settings.get("batch_size", 1) % settings.get("minibatches", 1):
        raise UsageError(
            f"{prefix}batch_size={settings['batch_size']} does not split into {prefix}minibatches="
            f"{settings['minibatches']}: choose a multiple"
        )


def _replace(config, key: str, path: list[str], value):
    names = {f.name for f in dataclasses.fields(config)}
    if path[0] not in names:
        raise UsageError(f"unknown setting {key!r}: expected one of {', '.join(sorted(names))} at {path[0]!r}")
    inner = getattr(config, path[0])
    if len(path) > 1 and dataclasses.is_dataclass(inner):
        return dataclasses.replace(config, **{path[0]: _replace(inner, key, path[1:], value)})
    if len(path) > 1 or dataclasses.is_dataclass(inner):
        raise UsageError(f"setting {key!r} does not name a single value: write it like ppo.kl_coef=0.1")
    return dataclasses.replace(config, **{path[0]: _parse(key, value, get_type_hints(type(config))[path[0]])})


def _parse(key: str, value, kind: type):
    if isinstance(value, str) and kind is not str:
        try:
            value = json.loads(value.lower())
        except json.JSONDecodeError:
            raise UsageError(
                f"setting {key}={value} is not a {kind.__name__}: write it like {key}={_example(kind)}"
            ) from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not kind:
        raise UsageError(f"setting {key}={value} is not a {kind.__name__}: write it like {key}={_example(kind)}")
    return value


def _example(kind: type) -> str:
    return {int: "8", float: "0.1", bool: "true", str: "text"}[kind]
