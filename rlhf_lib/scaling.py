"""The scaling study: the small and the medium embedded base model through SFT, reward model and PPO.

Equal data: the same posts and demonstrations, preferences of the same prompts and numbers, each sampled from the size's
own SFT policy and labelled by the same annotator, the same noise. Equal tuning: for each size, the learning rate of each
stage is chosen from the same `FACTORS` times the recipe's rate, on `TUNING_SEED` alone and on validation data, never on
gold scores. Each policy is then trained against a reward model of either size; the critic starts from the reward model
and so has the reward model's size, not the policy's.
"""

import contextlib
import dataclasses
import io
import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from rlhf_lib import data, doctor, evaluation, models, ppo, reward, sft, stages
from rlhf_lib.recipes import Recipe
from rlhf_lib.rollout import sample_texts
from rlhf_lib.runtime import (
    Paths,
    TrainingFailure,
    UsageError,
    make_accelerator,
    progress,
    set_seed,
    write_json,
    write_lines,
)
from rlhf_lib.tiny import gold_score, reference_summary

SIZES = ("small", "medium")
SEEDS = (41, 42, 43)
SMOKE_SEEDS = (41,)
TUNING_SEED = 2
FACTORS = (0.5, 1.0, 2.0)
"""learning rates that are tried, times the recipe's"""
SMOKE_FACTORS = (1.0,)
CRITERIA = {"sft": "validation_loss", "reward": "validation_loss", "ppo": "objective"}
"""what chooses the rate of a stage: the lowest loss, or the highest objective, which is score - beta KL"""
CURVES = {
    "sft": ("step", "validation_loss"),
    "reward": ("step", "validation_loss"),
    "ppo": ("step", "objective/scores", "objective/kl", "objective/entropy", "policy/clipfrac", "val/explained_variance",
            "eval/gold", "eval/scores"),
}  # fmt: skip
REPORTED = ("pairs", "gold_agreement", "gold_agreement_low", "gold_agreement_high", "label_accuracy",
            "label_noise_ceiling", "annotator_agreement", "calibration_error")  # fmt: skip
NO_RESUME_POINTS = 10**9  # a killed run is run again

# ------------------------------------------------------------------------------------------------------------ runs


class Run(NamedTuple):
    """What one line of `scaling.json` is about."""

    stage: str
    """base, sft, preferences, reward or ppo"""
    seed: int
    policy: str
    """size of the policy, for a reward model of the one that wrote its preferences"""
    reward: str | None = None
    """size of the reward model"""
    factor: float | None = None
    """learning rate, times the recipe's"""


@dataclass(frozen=True)
class Study:
    recipe: Recipe
    folder: Path
    """of the checkpoints"""
    settings: dict
    """what all runs depend on"""
    runs: dict[Run, dict]
    """finished runs: their rows, in the order in which they were run"""


def chosen_rates(runs: list[dict]) -> dict[str, dict[str, float]]:
    """{size: {stage: factor}}: the best by `CRITERIA` of the tuning runs in `runs`; of equals, the first.

    A run that was stopped has no criterion and is never chosen. Sizes and stages without a finished run are left out.
    """
    rates = {}
    for size in SIZES:
        for stage, criterion in CRITERIA.items():
            tried = [r for r in runs if (r["stage"], r["seed"], r["policy"]) == (stage, TUNING_SEED, size)]
            tried = [r for r in tried if r.get(criterion) is not None]
            if tried:
                best = (max if criterion == "objective" else min)(tried, key=lambda r: r[criterion])
                rates.setdefault(size, {})[stage] = best["factor"]
    return rates


def planned(study: Study, seeds, factors) -> Iterator[Run]:
    """All runs in order, tuning first, then seed by seed, same sizes first: each needs only those before it.

    The rates are read off the runs of `study` when they are needed, so finish each run before you ask for the next.
    """
    for size in SIZES:
        for stage in ("sft", "preferences", "reward", "ppo"):
            if stage == "preferences":
                yield Run(stage, TUNING_SEED, size)
                continue
            for factor in factors:
                yield Run(stage, TUNING_SEED, size, None if stage == "sft" else size, factor)
            _rates(study, size, stage)
    for seed in seeds:
        for size in SIZES:
            yield Run("base", seed, size)
            yield _sft(study, seed, size)
            yield Run("preferences", seed, size)
            yield _reward(study, seed, size, size)
            yield _ppo(study, seed, size, size)
        for size, other in (SIZES, SIZES[::-1]):
            yield _reward(study, seed, size, other)
            yield _ppo(study, seed, size, other)


def _rates(study: Study, size: str, stage: str) -> float:
    rates = chosen_rates(list(study.runs.values()))
    if stage not in rates.get(size, {}):
        raise TrainingFailure(
            f"no learning rate of {stage} {size} worked: every tuning run was stopped, lower {stage}.lr"
        )
    return rates[size][stage]


def _sft(study: Study, seed: int, size: str) -> Run:
    return Run("sft", seed, size, None, _rates(study, size, "sft"))


def _reward(study: Study, seed: int, policy: str, size: str) -> Run:
    return Run("reward", seed, policy, size, _rates(study, size, "reward"))


def _ppo(study: Study, seed: int, policy: str, size: str) -> Run:
    return Run("ppo", seed, policy, size, _rates(study, policy, "ppo"))


def _inputs(study: Study, run: Run) -> list[Run]:
    """The runs whose product this one starts from."""
    sft_run = [_sft(study, run.seed, run.policy)] if run.stage in ("preferences", "reward", "ppo") else []
    if run.stage == "reward":
        return [*sft_run, Run("preferences", run.seed, run.policy)]
    if run.stage == "ppo":
        return [*sft_run, _reward(study, run.seed, run.policy, run.reward)]
    return sft_run


# ----------------------------------------------------------------------------------------------------- checkpoints


def _folder(study: Study, run: Run) -> Path:
    parts = [run.stage, run.policy, run.reward, run.factor]
    return study.folder / f"seed_{run.seed}" / "_".join(str(part) for part in parts if part is not None)


def _made_by(study: Study, run: Run) -> dict:
    """What a checkpoint depends on, kept beside it: the settings and all the runs before it."""
    runs = [run]
    for each in runs:
        runs += [before for before in _inputs(study, each) if before not in runs]
    return json.loads(json.dumps(study.settings | {"runs": runs}))


def _product(study: Study, run: Run) -> Path:
    """The folder of what a run made; if it is not there any more it is made again, to the same weights."""
    folder = _folder(study, run)
    file = folder / ("preferences.json" if run.stage == "preferences" else "settings.json")
    if file.exists():
        stored = json.loads(file.read_text())
        if stored.get("settings", stored) == _made_by(study, run):
            return folder
    TRAIN[run.stage](study, run)
    return folder


def _policy(study: Study, run: Run):
    """(policy, tokenizer) of a run of SFT or PPO."""
    tokenizer = models.load_tokenizer(f"tiny:{run.policy}")
    return models.load_policy(_product(study, run), tokenizer).to(_device(study)), tokenizer


def _device(study: Study):
    return make_accelerator(study.recipe.precision).device


# ------------------------------------------------------------------------------------------------------- the stages
# Each trains or samples one run, saves what it made and returns its row.


def _base(study: Study, run: Run) -> dict:
    recipe = _recipe(study, run)
    tokenizer = models.load_tokenizer(recipe.policy)
    return _evaluate(recipe, models.load_policy(recipe.policy, tokenizer).to(_device(study)), tokenizer)[0]


def _train_sft(study: Study, run: Run) -> dict:
    recipe = _recipe(study, run)
    tokenizer = models.load_tokenizer(recipe.policy)
    policy = models.load_policy(recipe.policy, tokenizer)
    examples = stages.demonstrations(recipe, tokenizer, "train", recipe.sft.examples)
    validation = stages.demonstrations(recipe, tokenizer, "validation", recipe.sft.validation_examples)
    with _loop("sft", tokenizer, policy) as loop:
        loop.rows = sft.train_sft(recipe, policy, tokenizer, examples, validation, loop.folder,
                                  make_accelerator(recipe.precision), {})  # fmt: skip
    row = {"lr": recipe.sft.lr} | loop.row(training_only=True)
    row |= {"loss_before": _short(loop.rows[0]["validation_loss"]), "validation_loss": loop.rows[-1]["validation_loss"]}
    models.save_checkpoint(_folder(study, run), policy, tokenizer, _made_by(study, run))
    if run.seed != TUNING_SEED:
        row |= _evaluate(recipe, policy, tokenizer)[0]
    return row


def _sample_preferences(study: Study, run: Run) -> dict:
    recipe = _recipe(study, run)
    policy, tokenizer = _policy(study, _sft(study, run.seed, run.policy))
    with _loop("preferences", tokenizer, policy) as loop:
        train, validation = stages.sample_preferences(recipe, policy, tokenizer)
    parts = {"settings": _made_by(study, run), "train": train, "validation": validation}
    write_json(_folder(study, run) / "preferences.json", parts)
    return loop.row() | {"pairs": len(train)}


def _train_reward(study: Study, run: Run) -> dict:
    recipe = _recipe(study, run)
    parts = json.loads((_product(study, Run("preferences", run.seed, run.policy)) / "preferences.json").read_text())
    tokenizer = models.load_tokenizer(recipe.policy)
    set_seed(recipe.seed)  # the head starts at random
    reward_model = models.new_reward_model(_reward_init(study, run), tokenizer)
    with _loop("reward", tokenizer, reward_model) as loop:
        loop.rows = reward.train_reward(
            recipe, reward_model, tokenizer, parts["train"], parts["validation"], stages.references(recipe, tokenizer),
            loop.folder, make_accelerator(recipe.precision), {},
        )  # fmt: skip
    report = stages.reward_report(recipe, reward_model, tokenizer, parts["validation"])
    row = {"lr": recipe.reward.lr} | loop.row(training_only=True)
    row |= {"validation_loss": loop.rows[-1]["validation_loss"]} | {key: _short(report[key]) for key in REPORTED}
    models.save_checkpoint(_folder(study, run), reward_model, tokenizer, _made_by(study, run))
    if run.seed != TUNING_SEED:
        policy, _ = _policy(study, _sft(study, run.seed, run.policy))
        scores = _evaluate(_recipe(study, run, run.policy), policy, tokenizer, reward_model)[1]
        row["sft_scores"] = _short(scores)
    return row


def _reward_init(study: Study, run: Run) -> str:
    """The reward model's body: the base model of its own size, or the SFT model if the recipe says so."""
    if study.recipe.reward.init == "sft":
        return str(_product(study, _sft(study, run.seed, run.reward)))
    return f"tiny:{run.reward}"


def _train_ppo(study: Study, run: Run) -> dict:
    recipe = _recipe(study, run)
    (policy, tokenizer), (ref_policy, _) = (_policy(study, _sft(study, run.seed, run.policy)) for _ in range(2))
    reward_run = _reward(study, run.seed, run.policy, run.reward)
    reward_model = models.load_reward_model(_product(study, reward_run))
    value_model = models.value_model_from(reward_model)
    if run.seed != TUNING_SEED and run.reward == run.policy:  # what it examines is the same for either reward model
        responses = doctor.RESPONSES if recipe.scale == "full" else 32
        stages.run_doctor(recipe, policy, ref_policy, tokenizer, responses).raise_if_sick()
    prompts = [post.prompt for post in data.training_posts("ppo", recipe.ppo.prompts, recipe.seed)]
    with _loop("ppo", tokenizer, policy, ref_policy, reward_model, value_model) as loop:
        loop.rows = ppo.train_ppo(
            recipe, policy, ref_policy, reward_model, value_model, tokenizer, tokenizer, prompts, loop.folder,
            make_accelerator(recipe.precision), {},
            evaluate=loop.uncounted(stages.on_validation(recipe, tokenizer, reward_model, tokenizer)),
        )  # fmt: skip
    row = {"lr": recipe.ppo.lr} | loop.row()
    if loop.stopped:
        return row
    models.save_checkpoint(_folder(study, run), policy, tokenizer, _made_by(study, run))
    if run.seed == TUNING_SEED:
        return row | _objective(recipe, policy, ref_policy, tokenizer, reward_model)
    measured, scores = _evaluate(recipe, policy, tokenizer, reward_model)
    gain = scores - study.runs[reward_run]["sft_scores"]
    kl = stages.policy_kl(recipe, policy, ref_policy, tokenizer, _prompts(recipe, "test")[:256])
    return row | measured | {"scores": _short(scores), "gain": _short(gain), **_kl(kl)}


TRAIN = {"base": _base, "sft": _train_sft, "preferences": _sample_preferences, "reward": _train_reward,
         "ppo": _train_ppo}  # fmt: skip


def _recipe(study: Study, run: Run, size: str | None = None) -> Recipe:
    """The recipe as the loop of a run reads it: its seed, the size of the model that learns, its learning rate."""
    size = size or (run.reward if run.stage == "reward" else run.policy)
    recipe = dataclasses.replace(study.recipe, seed=run.seed, policy=f"tiny:{size}")
    if run.factor is None:
        return recipe
    config = getattr(recipe, run.stage)
    config = dataclasses.replace(config, lr=config.lr * run.factor, save_every=NO_RESUME_POINTS)
    return dataclasses.replace(recipe, **{run.stage: config})


# ------------------------------------------------------------------------------------------------------ measurement


def _prompts(recipe: Recipe, split: str) -> list[str]:
    return [post.prompt for post in data.held_out_posts(split, recipe.eval.prompts)]


def _sampled(recipe: Recipe, policy, tokenizer, split: str):
    return sample_texts(policy, tokenizer, _prompts(recipe, split), recipe.max_new_tokens, recipe.eval.temperature,
                        seed=(recipe.seed, stages.NOISE), max_prompt_tokens=recipe.max_prompt_tokens)  # fmt: skip


def _evaluate(recipe: Recipe, policy, tokenizer, reward_model=None) -> tuple[dict, float | None]:
    """What the policy's samples on the test posts are like, and their mean score by the reward model if there is one."""
    posts = data.held_out_posts(recipe.eval.split, recipe.eval.prompts)
    texts, finished, lengths = _sampled(recipe, policy, tokenizer, recipe.eval.split)
    gold = np.array([gold_score(post, text) for post, text in zip(posts, texts, strict=True)])
    unseen = np.array([bool(post.unseen) for post in posts])
    measured = {
        "gold": _short(gold.mean()),
        "gold_seen": _short(gold[~unseen].mean()) if (~unseen).any() else None,
        "gold_unseen": _short(gold[unseen].mean()) if unseen.any() else None,
        "rougeL": _short(evaluation.rouge_l_each(texts, [reference_summary(post) for post in posts]).mean()),
        "length": _short(np.mean(lengths)),
        "eos_rate": _short(np.mean(finished)),
        "gold_each": [round(g, 4) for g in gold.tolist()],
    }
    return measured, None if reward_model is None else _scores(recipe, reward_model, tokenizer, texts, finished,
                                                               recipe.eval.split).mean().item()  # fmt: skip


def _scores(recipe: Recipe, reward_model, tokenizer, texts, finished, split: str):
    return models.score_responses(reward_model, tokenizer, _prompts(recipe, split), texts, finished,
                                  recipe.max_prompt_tokens)  # fmt: skip


def _objective(recipe: Recipe, policy, ref_policy, tokenizer, reward_model) -> dict:
    """What PPO maximises, on validation posts: score, less the penalty for no EOS, less beta times the exact KL."""
    texts, finished, _ = _sampled(recipe, policy, tokenizer, "validation")
    scores = _scores(recipe, reward_model, tokenizer, texts, finished, "validation").mean().item()
    kl = stages.policy_kl(recipe, policy, ref_policy, tokenizer, _prompts(recipe, "validation")[:256])
    penalty = recipe.ppo.missing_eos_penalty * (1 - np.mean(finished))
    objective = scores - penalty - recipe.ppo.kl_coef * kl["check/kl_exact"]
    return {"objective": float(objective), "scores": _short(scores), "eos_rate": _short(np.mean(finished)), **_kl(kl)}


def _kl(check: dict) -> dict:
    return {"kl": _short(check["check/kl_exact"]), "kl_sampled": _short(check["check/kl_sampled"])}


def _short(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None


def parameters(size: str) -> dict[str, int]:
    """Number of parameters of a base model: {"all", "without_embeddings"}."""
    model = models.load_policy(f"tiny:{size}")
    return {"all": sum(p.numel() for p in model.parameters()), "without_embeddings": _non_embedding(model.base_model)}


def _non_embedding(body) -> int:
    embeddings = sum(m.weight.numel() for m in body.modules() if isinstance(m, nn.Embedding))
    return sum(p.numel() for p in body.parameters()) - embeddings


class _Loop:
    """Counts the tokens that models read while a loop runs, times it, and keeps what it logged.

    `training_flops` are 6 N for each token of a forward that is followed by a backward, `forward_flops` 2 N for each of
    any other, such as in sampling and scoring: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1, with N the parameters
    of the model that reads the token, its embeddings left out. Padding is not counted, nor is a prompt that the cache
    holds.
    """

    def __init__(self, stage: str, tokenizer, bodies: list, folder: Path):
        self.stage, self.folder, self.rows, self.stopped = stage, folder, [], ""
        self.cost = {"training_tokens": 0, "training_flops": 0, "forward_tokens": 0, "forward_flops": 0}
        self.seconds = 0.0
        self.pad, self.handles = tokenizer.pad_token_id, []
        for body in bodies:
            self.handles.append(body.register_forward_pre_hook(self._count(_non_embedding(body)), with_kwargs=True))

    def _count(self, n: int):
        def hook(module, args, kwargs):
            ids = args[0] if args else kwargs["input_ids"]
            kind, each = ("training", 6) if torch.is_grad_enabled() else ("forward", 2)
            tokens = int((ids != self.pad).sum())
            self.cost[f"{kind}_tokens"] += tokens
            self.cost[f"{kind}_flops"] += each * n * tokens

        return hook

    def uncounted(self, function):
        """`function`, whose tokens and seconds count as measurement, not as training."""

        def wrapped(*args):
            cost, start = dict(self.cost), time.perf_counter()
            result = function(*args)
            self.cost = cost
            self.seconds -= time.perf_counter() - start
            return result

        return wrapped

    def row(self, training_only: bool = False) -> dict:
        """Seconds, cost and curves; with `training_only` forwards without a backward were measurement, and are left out."""
        cost = {k: v for k, v in self.cost.items() if not (training_only and k.startswith("forward"))}
        curves = {}
        for key in CURVES.get(self.stage, ()):
            logged = [row for row in self.rows if self.stage == "ppo" or "validation_loss" in row]
            curves[key] = [_short(row[key]) if key in row else None for row in logged]
        stopped = {"stopped": self.stopped} if self.stopped else {}
        return {"seconds": round(self.seconds, 1)} | cost | stopped | ({"curves": curves} if curves else {})


@contextlib.contextmanager
def _loop(stage: str, tokenizer, *members):
    """A `_Loop` around the models of a training loop; a TrainingFailure ends it and is told in `stopped`."""
    bodies = [model.body if isinstance(model, models.ValueModel) else model.base_model for model in members]
    with tempfile.TemporaryDirectory() as folder:
        loop = _Loop(stage, tokenizer, bodies, Path(folder))
        start = time.perf_counter()
        try:
            yield loop
        except TrainingFailure as failure:
            loop.stopped = str(failure)
            log = loop.folder / f"{stage}_metrics.jsonl"
            loop.rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        finally:
            loop.seconds += time.perf_counter() - start
            for handle in loop.handles:
                handle.remove()


# ------------------------------------------------------------------------------------------------------- the study


def run_scaling(recipe: Recipe, paths: Paths, seeds: list[int] | None = None) -> dict:
    """All runs of `planned` -> `scaling.json`. Finished runs of the same settings are kept and not repeated."""
    full = recipe.scale == "full"
    seeds, factors = list(dict.fromkeys(seeds or (SEEDS if full else SMOKE_SEEDS))), FACTORS if full else SMOKE_FACTORS
    if TUNING_SEED in seeds:
        raise UsageError(f"seed {TUNING_SEED} chose the learning rates: give other seeds, like --seeds 41 42 43")
    methods = {getattr(recipe, stage).method for stage in CRITERIA}
    if recipe.policy != "tiny:small" or methods != {"full"}:
        raise UsageError("the scaling study trains tiny:small and tiny:medium in full: leave policy and method")
    file = paths.evaluation / "scaling.json"
    settings, runs = _settings(recipe, paths), {}
    if file.exists():
        stored = json.loads(file.read_text())
        if stored["settings"] == settings:
            runs = {Run(*(row[key] for key in Run._fields)): row for row in stored["runs"]}
        else:
            file.replace(file.with_name("scaling.previous.json"))
    study = Study(recipe, Paths("scaling", recipe.scale, paths.output_dir).checkpoints, settings, runs)
    total = len(SIZES) * (len(CRITERIA) * len(factors) + 1) + len(seeds) * 14
    with progress(total=total, desc="Scaling", unit="run") as bar:
        for number, run in enumerate(planned(study, seeds, factors), 1):
            if run not in runs:
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    row = TRAIN[run.stage](study, run)
                runs[run] = run._asdict() | row
                write_lines(file, _file(study))
                names = " ".join(str(part) for part in run if part is not None)
                bar.write(f"{number} of {total}: {names}, {time.perf_counter() - start:.0f} s")
            bar.update()
    write_lines(file, _file(study))
    return _file(study)


def _file(study: Study) -> dict:
    """What `scaling.json` holds."""
    rows = list(study.runs.values())
    return {"settings": study.settings, "parameters": {size: parameters(size) for size in SIZES},
            "chosen": chosen_rates(rows), "runs": rows}  # fmt: skip


def _settings(recipe: Recipe, paths: Paths) -> dict:
    """What the runs depend on, their seeds aside."""
    resolved = {key: value for key, value in recipe.resolved().items() if key not in ("policy", "seed", "lora")}
    weights = {size: models.fingerprint(f"tiny:{size}") for size in SIZES}
    known = models.stage_settings(recipe, paths, "sft")
    return json.loads(json.dumps(resolved | {key: known[key] for key in ("precision", "world")} | {"weights": weights}))


# --------------------------------------------------------------------------------------------------------- summaries


def final_runs(runs: list[dict]) -> list[dict]:
    """The runs that count: those of other seeds than `TUNING_SEED`."""
    return [run for run in runs if run["seed"] != TUNING_SEED]


def contrasts(stage: str) -> dict[str, list[tuple[str, str | None]]]:
    """{name: [(policy, reward) of small, of medium]}: which two runs of a stage are compared."""
    if stage not in ("reward", "ppo"):
        return {"same size": [(size, None) for size in SIZES]}
    return (
        {"same size": [(size, size) for size in SIZES]}
        | {f"policy, {size} reward model": [(policy, size) for policy in SIZES] for size in SIZES}
        | {f"reward model, {size} policy": [(size, reward) for reward in SIZES] for size in SIZES}
    )


QUANTITIES = {
    "base": ("gold", "gold_seen", "gold_unseen", "rougeL", "length", "eos_rate"),
    "sft": ("gold", "gold_seen", "gold_unseen", "rougeL", "length", "eos_rate", "loss_before", "validation_loss",
            "loss_reduction", "flops", "seconds"),
    "preferences": ("pairs", "flops", "seconds"),
    "reward": ("gold_agreement", "label_accuracy", "validation_loss", "sft_scores", "flops", "seconds"),
    "ppo": ("gold", "gold_seen", "gold_unseen", "rougeL", "length", "eos_rate", "scores", "gain", "kl", "clipfrac",
            "explained_variance", "entropy", "flops", "seconds"),
}  # fmt: skip
LATE = {"clipfrac": "policy/clipfrac", "explained_variance": "val/explained_variance", "entropy": "objective/entropy"}
"""read off the curves: their mean over the last quarter of the updates"""


def quantity(run: dict, name: str) -> float | None:
    """One number of a run, or None if it was stopped before it had one."""
    if run.get("stopped"):
        return None
    if name == "loss_reduction":
        return run["loss_before"] - run["validation_loss"]
    if name == "flops":
        return float(run.get("training_flops", 0) + run.get("forward_flops", 0))
    if name in LATE:
        values = [x for x in run["curves"][LATE[name]] if x is not None]
        return float(np.mean(values[-max(1, len(values) // 4) :]))
    return run.get(name)


def _by_cell(runs: list[dict]) -> dict:
    return {(r["stage"], r["seed"], r["policy"], r["reward"]): r for r in final_runs(runs)}


def _seeds(runs: list[dict]) -> list[int]:
    return list(dict.fromkeys(run["seed"] for run in final_runs(runs)))


def summary(runs: list[dict]) -> list[dict]:
    """Rows {"stage", "quantity", "contrast", "seeds", "small", "medium", "mean", "low", "high", "distinguishable"}.

    "small" and "medium" hold one value a seed, only of seeds that have both. "mean" is that of medium - small, paired by
    seed, with Student's t interval over the seeds, which two seeds or more have; sizes are "distinguishable" if it
    excludes 0. Many rows are compared, each at 95 %: about one in twenty excludes 0 where there is no difference.
    """
    cells, table = _by_cell(runs), []
    for stage, names in QUANTITIES.items():
        for name in names:
            for contrast, (small, medium) in contrasts(stage).items():
                pairs = {seed: [cells.get((stage, seed, *cell)) for cell in (small, medium)] for seed in _seeds(runs)}
                values = {s: [quantity(run, name) for run in pair] for s, pair in pairs.items() if None not in pair}
                values = {seed: pair for seed, pair in values.items() if None not in pair}
                if values:
                    a, b = (list(column) for column in zip(*values.values(), strict=True))
                    row = {"stage": stage, "quantity": name, "contrast": contrast, "seeds": list(values)}
                    table.append(row | {"small": a, "medium": b} | difference(a, b))
    return table


def difference(small: list[float], medium: list[float]) -> dict:
    """Mean of medium - small over seeds, (S,) each, its interval, and whether that excludes 0; None for one seed."""
    delta = np.array(medium) - np.array(small)
    if len(delta) < 2:
        return {"mean": float(delta.mean()), "low": None, "high": None, "distinguishable": None}
    interval = evaluation.seed_interval(delta)
    return interval._asdict() | {"distinguishable": bool(interval.low > 0 or interval.high < 0)}


def win_rates(runs: list[dict], n_boot: int = 1000) -> list[dict]:
    """Rows {"stage", "contrast", "seed", "rate", "low", "high", "wins", "ties", "losses"}: medium over small by gold.

    Ties count one half; the interval is the paired bootstrap over the test posts of one seed (`evaluation.win_rate`).
    """
    cells, table = _by_cell(runs), []
    for stage in ("base", "sft", "ppo"):
        for contrast, (small, medium) in contrasts(stage).items():
            for seed in _seeds(runs):
                pair = [cells.get((stage, seed, *cell), {}).get("gold_each") for cell in (small, medium)]
                if None not in pair:
                    rate = evaluation.win_rate(pair[1], pair[0], n_boot)
                    table.append({"stage": stage, "contrast": contrast, "seed": seed} | rate._asdict())
    return table


def compute(runs: list[dict], seed: int, policy: str, reward: str) -> dict[str, float]:
    """FLOPs of each stage on the way to one PPO policy: {"sft", "preferences", "reward", "ppo"}. Tuning is not in it."""
    cells = _by_cell(runs)
    sizes = {"sft": (policy, None), "preferences": (policy, None), "reward": (policy, reward), "ppo": (policy, reward)}
    return {stage: quantity(cells[stage, seed, *cell], "flops") for stage, cell in sizes.items()}
