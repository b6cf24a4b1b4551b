"""Load and save policies, reference, reward model and value model as Hugging Face folders."""

import copy
import functools
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from rlhf_lib import corpora, processes
from rlhf_lib.data import (
    by_length,
    check_context,
    context_length,
    encode_completions,
    encode_prompts,
    pad,
    position_ids,
)
from rlhf_lib.lora import has_adapter, merge_adapter, save_adapter
from rlhf_lib.recipes import Recipe
from rlhf_lib.runtime import Paths, UsageError, atomic_folder, autocast, mixed_precision, recover_folder

transformers_logging.set_verbosity_error()  # "newly initialized score.weight" is what we mean to do
transformers_logging.disable_progress_bar()

ASSETS = Path(__file__).parent / "tiny" / "assets"
STAGES = ("sft", "reward", "ppo")
SHIPPED = ("sft", "reward")


def locate(name: str) -> str:
    """Where a model is: "tiny:small" and "tiny:medium" are shipped, any other name is a folder or hub name."""
    if name.startswith("tiny:"):
        folder = ASSETS / f"base-{name.removeprefix('tiny:')}"
        if not folder.exists():
            raise UsageError(f"there is no embedded model {name!r}: choose tiny:small or tiny:medium")
        return str(folder)
    return name


def _open(auto_class, name: str, **settings):
    """`from_pretrained`, whose failures become one sentence."""
    try:
        return auto_class.from_pretrained(name, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "gated repo" in str(error) or "401 Client Error" in str(error):
            raise UsageError(
                f"cannot load {name!r} ({reason}): ask for access on https://huggingface.co/{name} and log in with `hf auth "
                "login`, or give another model, such as a folder with a copy"
            ) from error
        raise UsageError(
            f"cannot load {name!r} ({reason}): expected a Hugging Face folder or hub name, so check its spelling, its "
            "files and the network"
        ) from error


UNUSED = ("<|padding|>", "<|finetune_right_pad_id|>")
"""tokens that Pythia's and Llama 3's vocabularies hold for the purpose, and that their pretraining never used"""


def load_tokenizer(name: str):
    """Tokenizer that pads on the left with a PAD token that is not EOS.

    Where there is none, as in GPT-2, Pythia and Llama, it is a token that the vocabulary has for it, else a new one.
    Raises UsageError without an EOS.
    """
    folder = ASSETS / "tokenizer" if str(name).startswith("tiny:") else name
    tokenizer = _open(AutoTokenizer, str(folder))
    tokenizer.padding_side = "left"
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {str(name)!r} has no EOS token, by which a response ends: choose a model that has one"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        known = [token for token in UNUSED if token in tokenizer.get_vocab()]
        tokenizer.add_special_tokens({"pad_token": (known or ["<|pad|>"])[0]})
    return tokenizer


def _attention() -> str | None:
    """eager trains faster on CPUs; None: what transformers takes, sdpa where the architecture has it."""
    return None if torch.cuda.is_available() else "eager"


def load_policy(name: str, tokenizer=None):
    """A causal language model in fp32, in evaluation mode, with room for the tokenizer's PAD.

    Raises UsageError if `name` cannot be loaded.
    """
    model = _open(AutoModelForCausalLM, locate(str(name)), dtype=torch.float32, attn_implementation=_attention())
    if tokenizer is not None:
        _make_room(model, tokenizer)
    return model.eval()


def _make_room(model, tokenizer) -> None:
    """Embeddings for every token, a PAD added by `load_tokenizer` among them."""
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:  # the mean of the others, not a random row: every load gives the same model
                with torch.no_grad():
                    module.weight[known:] = module.weight[:known].mean(0)
    model.config.pad_token_id = tokenizer.pad_token_id


def freeze_embeddings(model: nn.Module) -> None:
    """Token embeddings, and the output weights tied to them or not, take no gradient from here on."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            module.requires_grad_(False)


def checkpoint_gradients(body: nn.Module) -> None:
    """Compute the activations inside each block of a transformer body again in the backward pass, in place.

    Wherever gradients are on, in training and evaluation mode alike: PPO learns in evaluation mode, and transformers asks
    each block for its mode. Raises UsageError for a body that cannot.
    """
    blocks = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UsageError(f"{type(body).__name__} cannot checkpoint gradients: set gradient_checkpointing=false")
    for block in blocks:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    def follow_the_gradient(*_):
        for block in blocks:
            block.training = torch.is_grad_enabled()  # of the block alone: its dropout keeps its own mode

    body.register_forward_pre_hook(follow_the_gradient)


def new_reward_model(name: str, tokenizer=None):
    """A reward model on a language model's body, with room for the tokenizer's PAD.

    Scalar head, std 1/sqrt(d+1), zero bias (Huang et al. 2024, detail 14).
    """
    model = _open(
        AutoModelForSequenceClassification, locate(str(name)), num_labels=1, dtype=torch.float32,
        attn_implementation=_attention(),
    )  # fmt: skip
    width = model.score.in_features
    nn.init.normal_(model.score.weight, std=1 / (width + 1) ** 0.5)
    if tokenizer is not None:
        _make_room(model, tokenizer)
    model.config.reward_mean = 0.0
    return model.eval()


def load_reward_model(name: str):
    """A saved reward model in fp32, in evaluation mode; its `config.reward_mean` is the mean score of SFT references."""
    model = _open(
        AutoModelForSequenceClassification, locate(str(name)), dtype=torch.float32, attn_implementation=_attention()
    )
    if model.config.num_labels != 1:
        raise UsageError(f"{name} has {model.config.num_labels} labels: a reward model has exactly one")
    return model.eval()


def load_ready_made(name: str):
    """A reward model trained elsewhere, or its copy in `checkpoints/reward`, and its own tokenizer."""
    model = load_reward_model(name)
    if not reads_at_eos(model):
        return model, _open(AutoTokenizer, name)
    tokenizer = load_tokenizer(name)
    _make_room(model, tokenizer)
    return model, tokenizer


def reads_at_eos(reward_model) -> bool:
    """Whether a reward model is causal, with the head `score` that reads the last token. Others (DeBERTa) read a whole
    text; they are scored, never trained, and no critic can start from them."""
    return hasattr(reward_model, "score")


def reward_scores(reward_model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Score of each sequence, read at its last real token, less `reward_mean`: (B,)."""
    logits = reward_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids(attention_mask), use_cache=False
    ).logits
    return logits[:, 0].float() - getattr(reward_model.config, "reward_mean", 0.0)


@torch.no_grad()
def score_responses(
    reward_model, tokenizer, prompts: list[str], responses: list[str], finished=None, max_prompt_tokens: int = 10**6,
    batch_size: int = 32,
) -> torch.Tensor:  # fmt: skip
    """Reward-model scores of texts, re-encoded with the reward model's own tokenizer: (B,), in order, always in fp32.

    `finished[i]` False means that response i never reached EOS, and none is added. A model that is not causal gets prompt
    and response as a pair of texts, as OpenAssistant's reward models were trained.
    """
    if not reads_at_eos(reward_model):
        return _score_text_pairs(reward_model, tokenizer, prompts, responses, batch_size)
    encoded_responses = encode_completions(tokenizer, responses, finished)
    both = list(zip(encode_prompts(tokenizer, prompts, max_prompt_tokens), encoded_responses, strict=True))
    check_context(*max(((len(p), len(r)) for p, r in both), key=sum), context_length(reward_model))
    encoded = [p + r for p, r in both]
    device = next(reward_model.parameters()).device
    scores = torch.zeros(len(encoded))
    for rows in by_length(processes.share(range(len(encoded))), batch_size, lambda i: len(encoded[i])):
        ids, mask = pad([encoded[i] for i in rows], tokenizer.pad_token_id)
        with autocast(device, "no"):
            scores[rows] = reward_scores(reward_model, ids.to(device), mask.to(device)).cpu()
    return processes.summed(scores)


def _score_text_pairs(reward_model, tokenizer, prompts: list[str], responses: list[str], batch_size: int):
    """Scores of (prompt, response) pairs by a model that reads both at once: (B,). A long prompt loses its beginning."""
    if not prompts:
        raise UsageError("there are no prompts: the data set is empty, so check its path, split and limit")
    encoding = dict(truncation="only_first", max_length=context_length(reward_model), padding_side="right")
    tokenizer.truncation_side = "left"
    device, scores = next(reward_model.parameters()).device, torch.zeros(len(prompts))
    for rows in by_length(
        processes.share(range(len(prompts))), batch_size, lambda i: len(prompts[i]) + len(responses[i])
    ):
        texts = [[each[i] for i in rows] for each in (prompts, responses)]
        batch = tokenizer(*texts, padding=True, return_tensors="pt", **encoding).to(device)
        with autocast(device, "no"):
            logits = reward_model(**batch).logits  # (b, 1)
        scores[rows] = logits[:, 0].float().cpu()
    return processes.summed(scores) - getattr(reward_model.config, "reward_mean", 0.0)


class ValueModel(nn.Module):
    """A transformer body with one scalar per token: `forward(input_ids, attention_mask) -> (B, T)`."""

    def __init__(self, body: nn.Module, head: nn.Linear, shift: float = 0.0):
        super().__init__()
        self.body, self.head, self.shift = body, head, shift

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.body(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state  # (B, T, d)
        return self.head(hidden)[..., 0].float() - self.shift  # (B, T)


def value_model_from(model) -> ValueModel:
    """The critic's start: a copy of the reward model, its head included, or of a policy under a zero head."""
    body = copy.deepcopy(model.base_model)
    if hasattr(model, "score"):
        return ValueModel(body, copy.deepcopy(model.score), getattr(model.config, "reward_mean", 0.0)).eval()
    head = nn.Linear(model.config.hidden_size, 1, bias=False)
    nn.init.zeros_(head.weight)
    return ValueModel(body, head).eval()


# ------------------------------------------------------------------------------------------------- checkpoints


def inputs(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The checkpoints that a stage starts from."""
    if stage == "reward" and recipe.data and (recipe.reward_model or recipe.reward.init == "base"):
        return ()  # ready pairs: the SFT policy writes none
    return {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward")}[stage]


def stage_settings(recipe: Recipe, paths: Paths, stage: str) -> dict:
    """What a stage's result depends on: its settings and those before it, scale, seed, its data or the embedded world that
    wrote them, and the weights it starts from."""
    resolved = recipe.resolved()
    common = ["name", "policy", "max_prompt_tokens", "max_new_tokens", "freeze_embeddings", "scale", "seed"]
    settings = {key: resolved[key] for key in common}
    for each in STAGES[: STAGES.index(stage) + 1]:
        settings[each] = resolved[each]
        if resolved[each]["method"] == "full":
            del settings[each]["method"]  # the settings of LoRA change nothing
        else:
            settings[each]["lora"] = resolved["lora"]
    settings["precision"] = mixed_precision() if recipe.precision == "auto" else recipe.precision
    if recipe.data:
        settings["data"] = corpora.fingerprint(recipe.data)
    else:
        settings["world"] = _digest(
            [ASSETS.parent / f"{name}.py" for name in ("phrases", "world", "judge", "annotator")]
        )
    settings["base"] = fingerprint(recipe.policy)
    if recipe.reward_model and stage != "sft":
        settings["reward model"] = fingerprint(recipe.reward_model)
    for earlier in inputs(recipe, stage):
        settings[f"{earlier} weights"] = fingerprint(find_checkpoint(recipe, paths, earlier)[0])
    return json.loads(json.dumps(settings))


def fingerprint(name: str) -> str:
    """A hash of a model's weights, config and tokenizer where they lie on this machine, else the name itself."""
    folder = Path(locate(name))
    tokenizer = ASSETS / "tokenizer" if name.startswith("tiny:") else folder
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return _digest([*weights, folder / "config.json", tokenizer / "tokenizer.json"]) if weights else name


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()[:16]


def folder_of(recipe: Recipe, stage: str) -> str:
    """The name of a stage's checkpoint folder; an SFT model with an adapter does not replace one trained in full."""
    return f"sft_{recipe.sft.method}" if stage == "sft" and recipe.sft.method != "full" else stage


def save_checkpoint(folder: Path, model, tokenizer, settings: dict) -> None:
    """Replace `folder` in one step by model, tokenizer and the settings that made them; only the main process does.

    A model with an adapter is saved with the adapter merged into its weights, which are dequantised first if they are
    4-bit; `FOLDER/adapter` holds the adapter alone. A checkpoint made with other settings is kept as `FOLDER.previous`.
    """
    if not processes.is_main():
        return
    stored = recover_folder(folder) / "settings.json"
    previous = folder.with_name(f"{folder.name}.previous")
    other = stored.exists() and _read_settings(stored) != settings
    with atomic_folder(folder, keep_as=previous if other else None) as fresh:
        if has_adapter(model):
            save_adapter(model, fresh / "adapter")
            model = merge_adapter(copy.deepcopy(model))
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        (fresh / "settings.json").write_text(json.dumps(settings, indent=1))


def find_checkpoint(recipe: Recipe, paths: Paths, stage: str) -> tuple[str, str]:
    """Folder of a stage's model and a sentence that says where it comes from.

    The learner's own checkpoint if its stored settings match, else the shipped snapshot of the default recipe.
    Raises UsageError if there is neither.
    """
    if stage == "base":
        return recipe.policy, f"base model {recipe.policy}"
    folder = recover_folder(paths.checkpoints / folder_of(recipe, stage))
    stored = folder / "settings.json"
    if stored.exists() and _read_settings(stored) == stage_settings(recipe, paths, stage):
        return str(folder), f"your own {folder.name} checkpoint"
    shipped = ASSETS / stage
    own_reward = stage == "reward" and recipe.reward_model
    if (
        recipe.policy == "tiny:small"
        and stage in SHIPPED
        and getattr(recipe, stage).method == "full"
        and not (recipe.data or own_reward)
    ):
        why = "whose settings match" if stored.exists() else "yet"
        return str(shipped), f"the shipped {stage} snapshot (no {stage} checkpoint of your own {why})"
    why = "was made with other settings" if stored.exists() else "is missing"
    raise UsageError(
        f"the {stage} checkpoint {why} in {paths.checkpoints}: first run `python -m rlhf_lib {stage} --recipe {recipe.name} "
        f"--scale {recipe.scale} --seed {recipe.seed} --output-dir {paths.output_dir}` with the same --set as here"
    )


def _read_settings(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError:
        return {}
