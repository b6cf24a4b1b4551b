"""Publish a recipe's checkpoints on the Hugging Face Hub: model cards from the evaluation files, then the folders.

Nothing leaves this machine but weights, configs, tokenizer, adapter, card and the settings that made them, with paths of
this machine reduced to the names of their folders.
"""

import contextlib
import json
import shutil
from pathlib import Path

from rlhf_lib import models, reporting
from rlhf_lib.demo import write_space
from rlhf_lib.recipes import Recipe
from rlhf_lib.runtime import Paths, UsageError, atomic_folder

STAGES = ("sft", "reward", "ppo")
FILES = ("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab.json",
         "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")  # fmt: skip
WHAT = {
    "sft": "the policy after supervised fine-tuning",
    "reward": "the Bradley-Terry reward model",
    "ppo": "the policy after PPO on the learned reward model",
}


def push(recipe: Recipe, paths: Paths, repo: str, stages: list[str] | None = None, private: bool = False,
         dry_run: bool = False, space: str | None = None) -> list[str]:  # fmt: skip
    """Write each stage's folder to `outputs/publish/RECIPE/STAGE` and push it to the repository `repo`-STAGE.

    Returns a line for each repository. With `dry_run` nothing is pushed. `space` names a Space for the demo.
    Raises UsageError for a name that is no USER/NAME, a missing checkpoint, or a Hub that says no.
    """
    for name in (repo, space or "user/name"):
        if name.count("/") != 1 or not all(name.split("/")):
            raise UsageError(f"{name!r} is no repository of the Hub: write it like USER/NAME")
    stages = list(dict.fromkeys(stages or STAGES))
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise UsageError(f"--stages {unknown[0]} cannot be pushed: choose among {', '.join(STAGES)}")
    found = {stage: own_checkpoint(recipe, paths, stage) for stage in stages}  # all are there before any is pushed
    folders = [(f"{repo}-{stage}", write_folder(recipe, paths, stage, found[stage], repo), "model") for stage in stages]
    if space:
        folders.append((space, write_space_folder(recipe, paths, repo, stages), "space"))
    if dry_run:
        return [f"would push {_listing(folder)} to {name}, see {folder}" for name, folder, _ in folders]
    return [f"pushed {_listing(folder)} to {upload(name, folder, kind, private)}" for name, folder, kind in folders]


def own_checkpoint(recipe: Recipe, paths: Paths, stage: str) -> Path:
    """The folder of a stage's own checkpoint. A shipped snapshot is not the user's to publish: UsageError."""
    folder, source = models.find_checkpoint(recipe, paths, stage)
    if not Path(folder).is_relative_to(paths.checkpoints):
        raise UsageError(
            f"there is no {stage} checkpoint of your own to push ({source}): first run `python -m rlhf_lib {stage} "
            f"--recipe {recipe.name}` with the same settings"
        )
    return Path(folder)


def write_folder(recipe: Recipe, paths: Paths, stage: str, checkpoint: Path, repo: str) -> Path:
    """What is pushed for a stage: the files of its checkpoint that belong to a model, its adapter, settings and card."""
    folder = paths.root / "publish" / recipe.name / stage
    with atomic_folder(folder) as fresh:
        for source, target in ((checkpoint, fresh), (checkpoint / "adapter", fresh / "adapter")):
            for file in (f for pattern in (*FILES, "adapter_config.json") for f in source.glob(pattern)):
                target.mkdir(exist_ok=True)
                shutil.copyfile(file, target / file.name)
                if file.suffix == ".json" and not file.name.startswith(("tokenizer", "vocab")):
                    text = json.dumps(without_paths(json.loads(file.read_text()), recipe), indent=2)
                    (target / file.name).write_text(text + "\n")
        settings = without_paths(json.loads((checkpoint / "settings.json").read_text()), recipe)
        (fresh / "settings.json").write_text(json.dumps(settings, indent=1) + "\n")
        (fresh / "README.md").write_text(card(recipe, paths, stage, repo, (fresh / "adapter").exists()))
    return folder


def without_paths(value, recipe: Recipe):
    """Settings or a config with every absolute path cut to the name of its folder."""
    if isinstance(value, dict):
        return {key: without_paths(x, recipe) for key, x in value.items() if key != "_name_or_path"}
    if isinstance(value, list):
        return [without_paths(x, recipe) for x in value]
    if isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "."))):
        return Path(value).name
    return value


# --------------------------------------------------------------------------------------------------------- the card


def card(recipe: Recipe, paths: Paths, stage: str, repo: str, adapter: bool = False) -> str:
    """README.md of a repository: YAML header, what it is, how to load it, results, settings, limits."""
    embedded = recipe.policy.startswith("tiny:")
    base = without_paths(recipe.policy, recipe)
    tags = ["rlhf", {"sft": "sft", "reward": "reward-model", "ppo": "ppo"}[stage], *(["lora"] if adapter else [])]
    header = [
        "---",
        *(["license: mit"] if embedded else []),  # of another base the owner chooses, within its license
        *([] if embedded or base != recipe.policy else [f"base_model: {base}"]),
        "library_name: transformers",
        f"pipeline_tag: {'text-classification' if stage == 'reward' else 'text-generation'}",
        "tags:",
        *(f"- {tag}" for tag in tags),
        "---",
    ]
    origin = "the base model that the course ships" if embedded else f"`{base}`"
    body = [
        f"# {repo.split('/')[1]}-{stage}",
        f"This is {WHAT[stage]}, of recipe `{recipe.name}` (scale {recipe.scale}, seed {recipe.seed}), made from {origin} "
        "by the course *RLHF by doing*.",
        "## Use",
        snippet(stage, f"{repo}-{stage}", recipe, adapter),
        "## Results",
        results(recipe, paths, stage),
        "## Settings",
        "```json\n" + json.dumps(without_paths(_settings(recipe, stage), recipe), indent=1) + "\n```",
        "## Limits",
        limits(recipe, stage),
    ]
    return "\n".join(header) + "\n\n" + "\n\n".join(body) + "\n"


def snippet(stage: str, repo: str, recipe: Recipe, adapter: bool = False) -> str:
    """Python that loads the model from the Hub and uses it."""
    if stage == "reward":
        lines = [
            "import torch",
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            f'reward_model = AutoModelForSequenceClassification.from_pretrained("{repo}").eval()',
            'text = prompt + " " + response + tokenizer.eos_token  # the score is read at EOS',
            'inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)',
            "with torch.no_grad():",
            "    score = reward_model(**inputs).logits[0, 0] - reward_model.config.reward_mean  # 0: as good as the references",
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
            f'policy = AutoModelForCausalLM.from_pretrained("{repo}").eval()',
            'inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)',
            f"output = policy.generate(**inputs, max_new_tokens={recipe.max_new_tokens}, do_sample=True, top_k=0, top_p=1.0)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    if adapter:
        config = getattr(recipe, stage)
        start = {"reward": "the body it started from", "ppo": "the SFT policy"}.get(stage, "the base model")
        lines += [
            "",
            f"# the weights above hold the adapter merged; alone it goes onto {start}"
            + (", quantised first" if config.method == "qlora" else ""),
            "from peft import PeftModel",
            "",
            f'model = PeftModel.from_pretrained(base_model, "{repo}", subfolder="adapter")',
        ]
    return "```python\n" + "\n".join(lines) + "\n```"


def results(recipe: Recipe, paths: Paths, stage: str) -> str:
    """What the evaluation files of this run say, as they say it; a run without them says that."""
    name = "reward.json" if stage == "reward" else "evaluation.json"
    file = paths.evaluation / name
    report = json.loads(file.read_text()) if file.exists() else None
    if stage == "reward" and report is not None:
        rows = [
            ("agreement with gold on held-out pairs", f"{report['gold_agreement']:.3f} [{report['gold_agreement_low']:.3f}, "
             f"{report['gold_agreement_high']:.3f}]"),
            ("agreement with the labels", f"{report['label_accuracy']:.3f}"),
            ("the best that any model can reach on those labels", f"{report['label_noise_ceiling']:.3f}"),
            ("agreement of the longer response with the labels", f"{report['length_only_label_accuracy']:.3f}"),
            ("calibration error", f"{report['calibration_error']:.3f}"),
        ]  # fmt: skip
        table = "\n".join(["| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])
        return f"{report['pairs']} held-out pairs, seed {recipe.seed}; brackets are a 95 % interval over prompts.\n\n{table}"
    if stage != "reward" and report is not None and (report["seed"], report["scale"]) == (recipe.seed, recipe.scale):
        return reporting.comparison_table(report) + "\n\nBrackets are a 95 % interval over posts, for this one seed."
    return f"Not evaluated: run `python -m rlhf_lib evaluate --recipe {recipe.name}` and push again."


def limits(recipe: Recipe, stage: str) -> str:
    if recipe.policy.startswith("tiny:"):
        return (
            "A model for learning. It was trained and judged in a small invented world of English posts, whose judge is a "
            "program; outside of it the numbers mean nothing, and it writes nonsense."
        )
    text = "A result of a course, not a product: it repeats the errors and prejudices of its base model and its data. "
    if stage == "reward":
        return text + "A reward model measures what its annotators liked; optimised against, it is soon exploited."
    return text + "It can state falsehoods with confidence, and was not tested for safety."


def _settings(recipe: Recipe, stage: str) -> dict:
    resolved = recipe.resolved()
    keys = ("policy", "max_prompt_tokens", "max_new_tokens", "freeze_embeddings", "precision", "seed", "scale")
    chosen = {key: resolved[key] for key in keys} | {stage: resolved[stage]}
    return chosen if resolved[stage]["method"] == "full" else chosen | {"lora": resolved["lora"]}


# ---------------------------------------------------------------------------------------------------------- the Hub


def upload(repo: str, folder: Path, kind: str = "model", private: bool = False) -> str:
    """Create the repository if it is not there and commit the folder to it; returns its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_token

    if get_token() is None:
        raise UsageError("pushing needs a token of the Hugging Face Hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, repo_type=kind, exist_ok=True,
                              **({"space_sdk": "gradio"} if kind == "space" else {}))  # fmt: skip
        api.upload_folder(repo_id=repo, folder_path=folder, repo_type=kind, commit_message="Push from the course")
    except Exception as error:  # whatever the Hub, the network or the client says
        raise UsageError(
            f"cannot push to {repo} ({' '.join(str(error).split())}): check the name, that your token may write there, and "
            "the network"
        ) from error
    return str(url)


def write_space_folder(recipe: Recipe, paths: Paths, repo: str, pushed: list[str]) -> Path:
    """The folder of a Space that shows the pushed models; of the others it holds copies, if it has them."""
    names = {"base": recipe.policy} | {stage: f"{repo}-{stage}" for stage in pushed}
    for stage in STAGES:
        if stage not in names:
            with contextlib.suppress(UsageError):  # write_space says what it cannot do without
                names[stage] = models.find_checkpoint(recipe, paths, stage)[0]
    folder = paths.root / "publish" / recipe.name / "space"
    with atomic_folder(folder) as fresh:
        write_space(fresh, recipe, names)
    return folder


def _listing(folder: Path) -> str:
    files = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    return f"{len(files)} files ({', '.join(files)})"
