"""The memory estimate against runs: `python tests/memory.py [STAGE ...]` trains small models for a few steps, counts, and writes
`outputs/evaluation/tiny/memory.json`.

On a CPU the count is the allocator's own, every block that torch asked for, as its profiler records it; on a GPU it is
torch.cuda.max_memory_allocated. `python tests/memory.py readme` makes the README's table of estimates. Batches are as long as the recipe allows, which is what the estimate assumes.
"""

import gc
import itertools
import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lib import estimate, lora, models, ppo, reporting, reward, sft
from rlhf_lib.recipes import RECIPES, Recipe, get_recipe
from rlhf_lib.rollout import sample_texts
from rlhf_lib.runtime import ROOT, make_accelerator, set_seed, write_json

GPT2 = dict(model_type="gpt2", n_head=4, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
SHORT = {"max_new_tokens": 8}  # in PPO: a profiler records every step of sampling
LLAMA = dict(model_type="llama", num_attention_heads=8, num_key_value_heads=2, vocab_size=32000)
NEOX = dict(model_type="gpt_neox", num_attention_heads=4, vocab_size=8000)
SMALL = {  # a few steps of every stage
    "max_prompt_tokens": 96, "max_new_tokens": 32, "eval.prompts": 8,
    "sft.examples": 24, "sft.batch_size": 8, "sft.micro_batch_size": 4, "sft.validation_examples": 4, "sft.eval_every": 2,
    "reward.prompts": 8, "reward.edited_prompts": 0, "reward.demonstration_prompts": 0, "reward.validation_prompts": 2,
    "reward.samples_per_prompt": 3, "reward.batch_prompts": 4, "reward.micro_batch_prompts": 2,
    "ppo.updates": 2, "ppo.batch_size": 16, "ppo.minibatches": 2, "ppo.micro_batch_size": 4, "ppo.critic_updates": 0,
    "ppo.prompts": 16, "ppo.eval_prompts": 4, "ppo.exact_kl_every": 2,
}  # fmt: skip
CASES = [  # stage, method, precision, model, changes
    ("sft", "full", "no", dict(n_embd=256, n_layer=4, vocab_size=8000), {}),
    ("sft", "full", "bf16", dict(n_embd=384, n_layer=3, vocab_size=8000), {}),
    ("sft", "full", "no", dict(n_embd=768, n_layer=2, n_head=12, vocab_size=50258), {}),
    ("sft", "full", "no", dict(n_embd=256, n_layer=4, vocab_size=8000), {"sft.validation_examples": 48}),
    ("sft", "lora", "bf16", dict(n_embd=384, n_layer=3, vocab_size=8000), {}),
    ("sft", "qlora", "no", dict(n_embd=384, n_layer=3, vocab_size=8000), {}),
    ("reward", "full", "no", dict(n_embd=256, n_layer=4, vocab_size=8000), {"sft.examples": 8}),
    ("reward", "full", "bf16", dict(n_embd=384, n_layer=3, vocab_size=8000), {"sft.examples": 8}),
    ("reward", "lora", "no", dict(n_embd=768, n_layer=2, n_head=12, vocab_size=8000), {}),
    ("ppo", "full", "no", dict(n_embd=256, n_layer=4, vocab_size=8000), {}),
    ("ppo", "full", "bf16", dict(n_embd=256, n_layer=2, vocab_size=8000), {}),
    ("ppo", "lora", "no", dict(n_embd=384, n_layer=3, vocab_size=8000), {}),
    ("ppo", "full", "no", dict(n_embd=256, n_layer=2, vocab_size=8000), {"ppo.eval_prompts": 96}),
    ("sft", "lora", "no", LLAMA | dict(hidden_size=384, intermediate_size=1024, num_hidden_layers=4), {}),
    ("ppo", "full", "no", NEOX | dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2), {}),
]  # fmt: skip


def recipe_for(
    folder: Path, stage: str, method: str, precision: str, model: dict, changes: dict | None = None
) -> Recipe:
    """A recipe whose policy is a folder with this config and the embedded tokenizer, and no weights."""
    tokenizer = models.load_tokenizer("tiny:small")
    shape = GPT2 | model if model.get("model_type", "gpt2") == "gpt2" else dict(model)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    config.bos_token_id, config.eos_token_id = None, tokenizer.eos_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {"policy": str(folder), f"{stage}.method": method, "precision": precision}
    return get_recipe("tiny", overrides=SMALL | own | (changes or {}))


class Texts:
    """Texts of exactly so many tokens."""

    def __init__(self, tokenizer):
        self.words = [
            word for token in range(len(tokenizer)) if (word := tokenizer.decode([token]).strip()).isalpha()
            and tokenizer(f" {word}", add_special_tokens=False)["input_ids"] == [token]
        ]  # fmt: skip
        self.numbers = itertools.count()

    def __call__(self, tokens: int) -> str:
        """`tokens` tokens after a space, another text at each call."""
        number, n = next(self.numbers), len(self.words)
        return " ".join([self.words[number % n], self.words[number // n % n], *self.words * tokens][:tokens])


def run(recipe: Recipe, stage: str, folder: Path) -> None:
    """The stage's own loop on fresh weights, from loading the models to the last step."""
    tokenizer = models.load_tokenizer(recipe.policy)
    accelerator = make_accelerator(recipe.precision)
    text, P, T = Texts(tokenizer), recipe.max_prompt_tokens, recipe.max_new_tokens
    config = getattr(recipe, stage)

    def load(opener):
        model = opener(folder / "base", tokenizer)
        for parameter in model.parameters():  # weights that lie in the pages of their file are nobody's allocation
            parameter.data = parameter.data.clone()
        return model

    if stage == "sft":
        policy = lora.adapt(load(models.load_policy), recipe.lora, config.method)
        examples, validation = (
            [{"prompt": text(P + 4), "completion": text(T - 1)} for _ in range(n)]
            for n in (config.examples, config.validation_examples)
        )
        sft.train_sft(recipe, policy, tokenizer, examples, validation, folder, accelerator,
                      {})  # fmt: skip
    elif stage == "reward":
        reward_model = lora.adapt(load(models.new_reward_model), recipe.lora, config.method)
        pairs = [
            [{"prompt": prompt, "chosen": a, "rejected": b}
             for a, b in itertools.combinations([text(T - 1) for _ in range(config.samples_per_prompt)], 2)]
            for prompt in (text(P + 4) for _ in range(config.prompts))
        ]  # fmt: skip
        references = [{"prompt": text(P + 4), "completion": text(T - 1)} for _ in range(min(32, recipe.sft.examples))]
        reward.train_reward(recipe, reward_model, tokenizer, sum(pairs, []), sum(pairs[: config.validation_prompts], []),
                            references, folder, accelerator, {})  # fmt: skip
    else:
        policy, reward_model = load(models.load_policy), load(models.new_reward_model)
        value_model = models.value_model_from(reward_model)
        for model in (policy, value_model.body):
            lora.adapt(model, recipe.lora, config.method)
        ref_policy = lora.AdapterOff(policy) if lora.has_adapter(policy) else load(models.load_policy)
        prompts = [text(P + 4) for _ in range(config.prompts)]

        def evaluate(policy) -> dict:
            sample_texts(policy, tokenizer, [text(P + 4) for _ in range(config.eval_prompts)], T, max_prompt_tokens=P)
            return {}

        ppo.train_ppo(recipe, policy, ref_policy, reward_model, value_model, tokenizer, tokenizer, prompts, folder,
                      accelerator, {}, evaluate=evaluate)  # fmt: skip


def allocated(function) -> int:
    """Bytes at the peak of `function()`, as the allocator counts them."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(changes)


def metered(function) -> int:
    """The same by the estimate's own meter, which is quicker and sees all but what a kernel allocates for itself."""
    with estimate.Meter() as meter:
        function()
    return sum(meter.peak.values())


def compare(case, count=allocated) -> dict:
    stage, method, precision, model, changes = case
    changes = (SHORT if stage == "ppo" else {}) | changes
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(Path(folder) / "policy", stage, method, precision, model, changes)
        expected = estimate.estimate(recipe, stage, gpu=torch.cuda.is_available())
        set_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(recipe.policy)).save_pretrained(
            Path(folder) / "base"
        )
        gc.collect()
        phases = {name: phase["total"] for name, phase in expected["phases"].items() if name in RUN}
        measured = count(lambda: run(recipe, stage, Path(folder)))
    parameters = next(iter(expected["models"].values()))["parameters"]
    return {"stage": stage, "method": method, "precision": precision, "model": model, "changes": changes,
            "parameters": parameters, "peak_phase": max(phases, key=phases.get), "estimated": max(phases.values()),
            "measured": measured, "ratio": round(max(phases.values()) / measured, 4)}  # fmt: skip


RUN = (
    "validate",
    "train",
    "score references",
    "generate",
    "score",
    "collect",
    "exact KL",
    "evaluate",
)  # not: doctor, sample, save


def main(stages: list[str]) -> None:
    """Measure the cases of these stages, of all by default; the rows of the others stay."""
    file = ROOT / "outputs" / "evaluation" / "tiny" / "memory.json"
    kept = {row["stage"]: [] for row in json.loads(file.read_text())["rows"]} if stages and file.exists() else {}
    for row in json.loads(file.read_text())["rows"] if kept else []:
        kept[row["stage"]].append(row)
    for stage in stages or estimate.STAGES:
        kept[stage] = []
        for case in (c for c in CASES if c[0] == stage):
            kept[stage].append(compare(case))
            print({k: v for k, v in kept[stage][-1].items() if k not in ("model", "changes")}, flush=True)
    rows = [row for stage in estimate.STAGES for row in kept.get(stage, [])]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    write_json(file, {"device": device, "recipe": SMALL, "rows": rows})


def write_readme() -> None:
    """The README's table of every recipe's estimate."""
    rows = []
    for name in RECIPES:
        recipe = get_recipe(name)
        rows.append({"name": name, "policy": recipe.policy,
                     "estimates": [estimate.estimate(recipe, stage, gpu=True) for stage in estimate.STAGES]})  # fmt: skip
    readme = ROOT / "README.md"
    readme.write_text(reporting.readme_with(readme.read_text(), "memory", reporting.memory_table(rows)))


if __name__ == "__main__":
    write_readme() if sys.argv[1:] == ["readme"] else main(sys.argv[1:])
