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
class DataConfig:
    """Where a recipe's text comes from, for recipes other than those of the embedded world; see `rlhf_lib.corpora`."""

    sft: str
    """data set of demonstrations; its prompts are those of PPO and of the evaluation, and its template is that of every
    stage"""
    preferences: str = ""
    """data set of preference pairs; none where the recipe has a ready-made `reward_model`"""
    dir: str = ""
    """folder with local copies (JSONL or Parquet); empty: the Hugging Face Hub"""
    limit: int = 0
    """rows to read of each split of each data set; 0 for all"""
    validation_share: float = 0.02
    """share of the prompts held out for validation where a data set has no such split of its own"""
    test_share: float = 0.05
    """the same for testing"""
    min_score_ratio: float = 2.0
    """SHP: pairs whose votes differ by less are left out (its authors' advice for reward models, huggingface.co/datasets/
    stanfordnlp/SHP)"""
    pairs_per_prompt: int = 5
    """SHP: pairs kept of each post, so that a few famous posts do not rule (5 in the same advice)"""


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
    data: DataConfig | None = None
    """None: the embedded world writes its own"""
    reward_model: str = ""
    """folder or hub name of a ready-made reward model, which is not trained; empty: train one"""

    def resolved(self) -> dict:
        """Every setting; those of `NEWER` only where they differ from their default."""
        settings = dataclasses.asdict(self)
        for key, default in NEWER.items():
            if settings[key] == default:
                del settings[key]
        return settings


NEWER = {"gradient_checkpointing": False, "data": None, "reward_model": ""}
"""settings that came after results were stored, with the value that changes nothing: they must not disown those results"""

RECIPES = {"tiny": Recipe(name="tiny", policy="tiny:small")}

# ------------------------------------------------------------------------------------- real models, real data
# Sources, named in the comments: Huang = Huang et al. 2024 (arXiv 2403.17031) and its released code; Stiennon = Stiennon et
# al. 2020 (arXiv 2009.01325), appendix B; InstructGPT = Ouyang et al. 2022 (arXiv 2203.02155), appendix C; Alpaca = the
# training command of tatsu-lab/stanford_alpaca; Alpaca-LoRA = the defaults of tloen/alpaca-lora; SHP = the cards of
# stanfordnlp/SHP and of SteamSHP. "here" marks what no source fixes, chosen by this project and not tuned on these models.
# All differ from their source in these points: Adam's eps is 1e-8 in SFT and reward model (Huang: 1e-5), and a response
# that never ends loses `missing_eos_penalty` (Huang sets its score to -1).

HUANG_SFT = SFTConfig(
    examples=116_722,  # Huang: the filtered TL;DR data, once
    validation_examples=1000,  # here
    batch_size=128,  # Huang, Stiennon
    micro_batch_size=8,  # here; changes no result
    lr=3e-6,  # Huang
    warmup=0.0,  # Huang
    eval_every=100, save_every=200,  # here
)  # fmt: skip
HUANG_REWARD = RewardConfig(
    init="sft",  # Huang, Stiennon
    prompts=92_858,  # Huang: all comparisons, once
    validation_prompts=1000,  # here
    batch_prompts=16,  # Huang: 64 comparisons; here all comparisons of a post stand in one batch (InstructGPT, 3.5)
    micro_batch_prompts=2,  # here; changes no result
    lr=3e-6,  # Huang
    warmup=0.0,  # Huang
    eval_every=100, save_every=200,  # here
)  # fmt: skip
HUANG_PPO = PPOConfig(
    updates=1953,  # Huang: one million episodes
    batch_size=512,  # Huang, Stiennon
    prompts=116_722,  # Huang
    epochs=4,  # Huang, Stiennon
    minibatches=1,  # Huang
    micro_batch_size=8,  # here; changes no result
    lr=3e-6,  # Huang
    warmup=0.0,  # Huang
    critic_updates=0,  # Huang: the critic learns with the policy from the start
    kl_coef=0.05,  # Huang, Stiennon
    temperature=0.7,  # Huang
    missing_eos_penalty=1.0,  # Huang, see above
    whiten_rewards=False,  # Huang's released runs
    exact_kl_every=50, eval_every=50, eval_prompts=256, save_every=25,  # here
)  # fmt: skip
TLDR_EVAL = EvalConfig(
    prompts=1000,  # here
    temperature=0.1,  # Huang: all but greedy, as 0.01 is there
)
TLDR_LENGTHS = dict(
    max_prompt_tokens=512,  # Huang, Stiennon
    max_new_tokens=53,  # Huang
    freeze_embeddings=False,  # every source trains them
)

GPT2_SFT = SFTConfig(
    examples=30_000, validation_examples=500,  # here
    batch_size=128,  # Stiennon
    micro_batch_size=8,  # here; changes no result
    lr=5e-5,  # here: the default of transformers' Trainer, near the 6.4e-5 of Stiennon's smallest model
    warmup=0.03,  # Alpaca
    eval_every=50, save_every=100,  # here
)  # fmt: skip
GPT2_REWARD = RewardConfig(
    init="sft",  # Stiennon
    prompts=30_000, validation_prompts=500,  # here
    batch_prompts=64,  # Stiennon, InstructGPT
    micro_batch_prompts=4,  # here; changes no result
    lr=1.5e-5,  # Stiennon, 1.3B
    warmup=0.03,  # as in SFT
    eval_every=50, save_every=100,  # here
)  # fmt: skip
GPT2_PPO = PPOConfig(
    updates=200, prompts=30_000,  # here: 25,600 episodes; InstructGPT 256,000
    batch_size=128,  # here: a quarter of Huang's, for one small GPU
    epochs=4,  # Huang, Stiennon
    minibatches=1,  # Huang
    micro_batch_size=8,  # here; changes no result
    lr=1.5e-5,  # Stiennon, 1.3B
    warmup=0.05,  # here
    critic_updates=5,  # here: see PPOConfig
    kl_coef=0.05,  # Huang, Stiennon
    temperature=1.0,  # Stiennon
    exact_kl_every=20, eval_every=10, eval_prompts=128, save_every=10,  # here
)  # fmt: skip
GPT2_EVAL = EvalConfig(prompts=500)  # here
ALPACA_LORA = LoRAConfig(
    r=8, alpha=16.0, dropout=0.05,  # Alpaca-LoRA
    lr_factor=6.0,  # 3e-4 in SFT, the rate of Alpaca-LoRA
)  # fmt: skip


def _with(config, **changes):
    return dataclasses.replace(config, **changes)


_SHP = Recipe(
    name="shp-gpt2",
    policy="openai-community/gpt2",
    data=DataConfig(sft="stanfordnlp/SHP", preferences="stanfordnlp/SHP"),
    max_prompt_tokens=384, max_new_tokens=128,  # here: GPT-2 has 1024 positions; longer answers are left out
    freeze_embeddings=False,
    sft=GPT2_SFT,
    reward=_with(GPT2_REWARD, batch_prompts=16, micro_batch_prompts=2),  # up to 5 pairs a post: about 64 comparisons
    ppo=GPT2_PPO,
    eval=GPT2_EVAL,
)  # fmt: skip
_HUANG = Recipe(
    name="tldr-pythia-1b",
    policy="EleutherAI/pythia-1b-deduped",  # Huang
    data=DataConfig(sft="vwxyzjn/summarize_from_feedback_tldr_3_filtered", preferences="trl-lib/tldr-preference"),
    **TLDR_LENGTHS, sft=HUANG_SFT, reward=HUANG_REWARD, ppo=HUANG_PPO, eval=TLDR_EVAL,
)  # fmt: skip

REAL = (
    Recipe(
        name="instruct-gpt2",
        policy="openai-community/gpt2",
        data=DataConfig(sft="Dahoas/synthetic-instruct-gptj-pairwise", preferences="Dahoas/synthetic-instruct-gptj-pairwise"),
        max_prompt_tokens=256, max_new_tokens=128, freeze_embeddings=False,  # here
        lora=LoRAConfig(lr_factor=10.0),  # Schulman et al. 2025
        sft=_with(GPT2_SFT, epochs=3),  # Alpaca, whose data are of the same kind
        reward=_with(GPT2_REWARD, method="lora"),
        ppo=GPT2_PPO,
        eval=GPT2_EVAL,
    ),
    _SHP,
    # equal data, equal settings but the rate: Stiennon and Huang lower it as models grow
    _with(_SHP, name="shp-gpt2-medium", policy="openai-community/gpt2-medium", sft=_with(GPT2_SFT, lr=3e-5),
          reward=_with(_SHP.reward, lr=1e-5), ppo=_with(GPT2_PPO, lr=1e-5)),
    Recipe(
        name="tldr-gpt2",
        policy="openai-community/gpt2",
        data=DataConfig(sft="trl-lib/tldr"),
        reward_model="OpenAssistant/reward-model-deberta-v3-large-v2",
        **TLDR_LENGTHS,
        sft=_with(GPT2_SFT, examples=116_722),
        ppo=_with(GPT2_PPO, prompts=116_722, temperature=0.7),  # temperature: Huang
        eval=_with(TLDR_EVAL, prompts=500),
    ),
    Recipe(
        name="alpaca-gpt2-lora",
        policy="openai-community/gpt2",
        data=DataConfig(sft="tatsu-lab/alpaca", preferences="Dahoas/rm-static"),
        max_prompt_tokens=256, max_new_tokens=192, freeze_embeddings=False,  # here; Alpaca-LoRA: 256 in all
        lora=ALPACA_LORA,
        sft=_with(GPT2_SFT, method="lora", examples=52_002, epochs=3),  # Alpaca: all of it, three times, batches of 128
        reward=_with(GPT2_REWARD, method="lora"),
        ppo=_with(GPT2_PPO, method="lora"),
        eval=GPT2_EVAL,
    ),
    _HUANG,
    _with(_HUANG, name="tldr-llama-1b", policy="meta-llama/Llama-3.2-1B"),
)  # fmt: skip
RECIPES |= {recipe.name: recipe for recipe in REAL}

SMOKE = {  # what `--scale smoke` changes: the same code on a handful of examples
    "sft.examples": 64, "sft.validation_examples": 32, "sft.batch_size": 16, "sft.eval_every": 2, "sft.save_every": 2,
    "reward.prompts": 24, "reward.edited_prompts": 16,
    "reward.demonstration_prompts": 8, "reward.validation_prompts": 16, "reward.batch_prompts": 8,
    "reward.eval_every": 2, "reward.save_every": 2,
    "ppo.updates": 2, "ppo.critic_updates": 0, "ppo.batch_size": 8, "ppo.prompts": 32, "ppo.micro_batch_size": 4,
    "ppo.eval_every": 1, "ppo.eval_prompts": 8, "ppo.exact_kl_every": 1, "ppo.save_every": 1, "eval.prompts": 16, "eval.n_boot": 100,
}  # fmt: skip

SMOKE_REAL = SMOKE | {  # long texts on a CPU: smaller still, and enough held out of a handful of rows
    "sft.examples": 24, "sft.validation_examples": 8, "sft.batch_size": 8, "sft.micro_batch_size": 4, "sft.epochs": 1,
    "reward.prompts": 16, "reward.validation_prompts": 8, "reward.batch_prompts": 4, "reward.micro_batch_prompts": 2,
    "ppo.batch_size": 4, "ppo.micro_batch_size": 2, "ppo.prompts": 16, "ppo.epochs": 2, "ppo.eval_prompts": 4,
    "eval.prompts": 6, "data.limit": 200, "data.validation_share": 0.2, "data.test_share": 0.2,
    "max_prompt_tokens": 96, "max_new_tokens": 40,
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
        if recipe.data is None and key.split(".")[0] == "data":
            raise UsageError(f"setting {key!r} does nothing for recipe {name}, which writes its own data: leave it out")
    smoke = {} if scale == "full" else SMOKE_REAL if recipe.data else SMOKE
    for key, value in (smoke | (overrides or {})).items():
        recipe = _replace(recipe, key, key.split("."), value)
    _check(recipe.resolved())
    return recipe


CHOICES = {"method": ("full", "lora", "qlora"), "kl_estimator": ("k1", "k2", "k3"), "precision": ("auto", "bf16", "fp16", "no"),
           "split": ("validation", "test"), "init": ("base", "sft")}  # fmt: skip
MAY_BE_ZERO = {
    "seed", "lora.dropout", "sft.warmup", "sft.weight_decay", "reward.warmup", "reward.weight_decay",
    "reward.edited_prompts", "reward.demonstration_prompts", "ppo.missing_eos_penalty", "ppo.kl_coef", "ppo.vf_coef", "ppo.gamma", "ppo.lam",
    "ppo.warmup", "ppo.critic_updates", "eval.temperature", "data.limit", "data.min_score_ratio",
}  # fmt: skip
AT_MOST = {"seed": 2**32 - 1, "lora.dropout": 0.9, "sft.warmup": 1, "reward.warmup": 1, "ppo.warmup": 1, "ppo.gamma": 1,
           "ppo.lam": 1, "data.validation_share": 0.4, "data.test_share": 0.4, "reward.samples_per_prompt": 10}  # fmt: skip
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
