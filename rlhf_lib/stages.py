"""Each stage from recipe to checkpoint: load what it needs, train or measure, save. The notebooks and the CLI run these."""

import dataclasses
import itertools
import json
import random
import time
from pathlib import Path

import numpy as np

from rlhf_lib import corpora, data, doctor, evaluation, lora, models, ppo, processes, reward, sft
from rlhf_lib.recipes import Recipe
from rlhf_lib.rollout import generate, sample_texts
from rlhf_lib.runtime import Paths, UsageError, make_accelerator, progress, set_seed, write_csv, write_json
from rlhf_lib.tiny import annotate, annotator_agreement, demonstration, edited_summaries, gold_score, reference_summary

RESULT_SEEDS = (22, 23, 24)  # fresh; 1, 2, 3, 12 and 21 were looked at while the course was designed
NOISE = 10**6  # PPO's updates draw their noise from (seed, update); preferences and evaluations from here on
REFERENCES = 256  # SFT references over which reward-model scores have mean 0


# ------------------------------------------- what the stages read: the embedded world, or the data sets of a recipe


def demonstrations(recipe: Recipe, tokenizer, split: str, n: int) -> list[dict]:
    """SFT examples {"prompt", "completion"} of "train" or "validation"."""
    if recipe.data:
        return corpora.demonstrations(recipe, tokenizer, split, n)
    if split == "train":
        return data.demonstrations(data.training_posts("sft", n, recipe.seed), recipe.seed)
    return data.demonstrations(data.held_out_posts(split, n), seed=0)


def references(recipe: Recipe, tokenizer) -> list[dict]:
    """{"prompt", "completion"}: good answers to SFT prompts, over which reward-model scores have mean 0."""
    n = min(REFERENCES, recipe.sft.examples)
    if recipe.data:
        return corpora.demonstrations(recipe, tokenizer, "train", n)
    posts = data.training_posts("sft", n, recipe.seed)
    return [{"prompt": post.prompt, "completion": reference_summary(post)} for post in posts]


def ppo_prompts(recipe: Recipe, tokenizer, n: int) -> list[str]:
    if recipe.data:
        return corpora.questions(recipe, tokenizer, "train", n)[0]
    return [post.prompt for post in data.training_posts("ppo", n, recipe.seed)]


def held_out(recipe: Recipe, tokenizer, split: str, n: int) -> tuple[list[str], list[str], list | None]:
    """Prompts of "validation" or "test", a reference for each, and the posts that gold judges: None for real data."""
    if recipe.data:
        return *corpora.questions(recipe, tokenizer, split, n), None
    posts = data.held_out_posts(split, n)
    return [post.prompt for post in posts], [reference_summary(post) for post in posts], posts


def gold_scores(posts: list, texts: list[str]) -> np.ndarray:
    return np.array([gold_score(post, text) for post, text in zip(posts, texts, strict=True)])


def tell_lengths(recipe: Recipe, paths: Paths, tokenizer, role: str) -> None:
    """Print, and keep as CSV, how long the texts of a data set are and how many do not fit."""
    if recipe.data:
        rows = corpora.length_report(recipe, tokenizer, role)
        print(corpora.length_table(rows))
        write_csv(paths.evaluation / f"lengths_{role}.csv", rows)


# ------------------------------------------------------------------------------------------------------- stages


def train_sft(recipe: Recipe, paths: Paths, resume: bool = False, trackers: tuple[str, ...] = ()):
    """Demonstrations -> `checkpoints/sft`, or `sft_lora`, `sft_qlora`; returns (policy, tokenizer, logged rows).

    With an adapter the policy that is returned still has it; the checkpoint's weights have it merged.
    """
    accelerator = make_accelerator(recipe.precision)
    tokenizer = models.load_tokenizer(recipe.policy)
    policy = models.load_policy(recipe.policy, tokenizer)
    tell_lengths(recipe, paths, tokenizer, "sft")
    examples = demonstrations(recipe, tokenizer, "train", recipe.sft.examples)
    validation = demonstrations(recipe, tokenizer, "validation", recipe.sft.validation_examples)
    settings = models.stage_settings(recipe, paths, "sft")
    models.save_checkpoint(paths.checkpoints / "base", policy, tokenizer, settings)
    set_seed(recipe.seed)  # an adapter starts at random
    lora.adapt(policy, recipe.lora, recipe.sft.method)
    rows = sft.train_sft(with_rate(recipe, "sft"), policy, tokenizer, examples, validation, paths.checkpoints,
                         accelerator, settings, resume, trackers)  # fmt: skip
    finish(recipe, paths, "sft", policy, tokenizer, settings, rows)
    return policy, tokenizer, rows


def preference_pairs(recipe: Recipe, paths: Paths) -> tuple[list[dict], list[dict]]:
    """Training and validation pairs: those of a data set, or those of `sample_preferences`.

    The latter are kept in `checkpoints/preferences.json` and reused while the settings that made them are the same.
    """
    if recipe.data:
        tokenizer, config = models.load_tokenizer(recipe.policy), recipe.reward
        return (corpora.preference_pairs(recipe, tokenizer, "train", config.prompts),
                corpora.preference_pairs(recipe, tokenizer, "validation", config.validation_prompts))  # fmt: skip
    file = paths.checkpoints / "preferences.json"
    parts = ("prompts", "samples_per_prompt", "edited_prompts", "demonstration_prompts", "validation_prompts",
             "annotator_scale")  # fmt: skip
    settings = models.stage_settings(recipe, paths, "reward")
    settings["reward"] = {key: getattr(recipe.reward, key) for key in parts}
    if file.exists():
        stored = json.loads(file.read_text())
        if stored["settings"] == settings:
            return stored["train"], stored["validation"]
    tokenizer = models.load_tokenizer(recipe.policy)
    policy = models.load_policy(_announced(recipe, paths, "sft"), tokenizer)
    train, validation = sample_preferences(recipe, policy, tokenizer)
    write_json(file, {"settings": settings, "train": train, "validation": validation})
    return train, validation


def sample_preferences(recipe: Recipe, policy, tokenizer) -> tuple[list[dict], list[dict]]:
    """Training and validation pairs: samples of the SFT policy and demonstrations, labelled by the noisy annotator."""
    config = recipe.reward
    policy.to(make_accelerator(recipe.precision).device)

    def compare(posts: list, summaries: list[list[str]], seed: str) -> list[dict]:
        """All pairs of distinct summaries of each post, labelled."""
        rng = random.Random(f"annotator-{seed}")
        return [
            annotate(post, a, b, config.annotator_scale, rng)
            for post, texts in zip(posts, summaries, strict=True)
            for a, b in itertools.combinations(dict.fromkeys(texts), 2)
        ]

    def sampled_pairs(posts: list, seed: int, bar) -> list[dict]:
        k = config.samples_per_prompt
        prompts = [post.prompt for post in posts for _ in range(k)]
        texts, _, _ = sample_texts(
            policy, tokenizer, prompts, recipe.max_new_tokens, seed=(recipe.seed, NOISE + seed),
            max_prompt_tokens=recipe.max_prompt_tokens, bar=bar,
        )  # fmt: skip
        return compare(posts, [texts[i * k : (i + 1) * k] for i in range(len(posts))], f"{recipe.seed}-{seed}")

    train_posts = data.training_posts("reward", config.prompts, recipe.seed)
    validation_posts = data.held_out_posts("validation", config.validation_prompts)
    total = (len(train_posts) + len(validation_posts)) * config.samples_per_prompt
    with progress(total=total, desc="Sampling preferences", unit="summary") as bar:
        train, validation = sampled_pairs(train_posts, 1, bar), sampled_pairs(validation_posts, 2, bar)
    posts = data.training_posts("edits", config.edited_prompts, recipe.seed)
    train += compare(posts, [edited_summaries(post, recipe.seed, config.samples_per_prompt - 1) for post in posts],
                     f"{recipe.seed}-edits")  # fmt: skip
    posts = data.training_posts("demonstrations", config.demonstration_prompts, recipe.seed)
    train += compare(posts, [[demonstration(post, recipe.seed), demonstration(post, recipe.seed + 1)] for post in posts],
                     f"{recipe.seed}-demonstrations")  # fmt: skip
    return train, validation


def train_reward(recipe: Recipe, paths: Paths, resume: bool = False, trackers: tuple[str, ...] = ()):
    """Preferences -> `checkpoints/reward`; returns (reward model, tokenizer, logged rows)."""
    if recipe.reward_model:
        return adopt_reward(recipe, paths)
    accelerator = make_accelerator(recipe.precision)
    tokenizer = models.load_tokenizer(recipe.policy)
    set_seed(recipe.seed)  # the head starts at random, and so does an adapter
    reward_model = models.new_reward_model(_announced(recipe, paths, recipe.reward.init), tokenizer)
    lora.adapt(reward_model, recipe.lora, recipe.reward.method)
    tell_lengths(recipe, paths, tokenizer, "preferences")
    train, validation = preference_pairs(recipe, paths)
    settings = models.stage_settings(recipe, paths, "reward")
    rows = reward.train_reward(with_rate(recipe, "reward"), reward_model, tokenizer, train, validation,
                               references(recipe, tokenizer), paths.checkpoints, accelerator, settings, resume, trackers)  # fmt: skip
    finish(recipe, paths, "reward", reward_model, tokenizer, settings, rows)
    write_json(paths.evaluation / "reward.json", reward_report(recipe, reward_model, tokenizer, validation))
    return reward_model, tokenizer, rows


def adopt_reward(recipe: Recipe, paths: Paths):
    """Ready-made reward model -> `checkpoints/reward`, its scores shifted to mean 0 on SFT references.

    Returns (reward model, its own tokenizer, one row). Held-out pairs are judged if the recipe names preferences.
    """
    reward_model, tokenizer = models.load_ready_made(recipe.reward_model)
    reward_model.to(make_accelerator(recipe.precision).device)
    reward_model.config.reward_mean = 0.0
    texts = references(recipe, models.load_tokenizer(recipe.policy))
    scores = models.score_responses(
        reward_model, tokenizer, [r["prompt"] for r in texts], [r["completion"] for r in texts]
    )
    reward_model.config.reward_mean = scores.double().mean().item()
    rows = [{"step": 0, "reward_mean": reward_model.config.reward_mean, "reward_std": scores.std().item()}]
    finish(recipe, paths, "reward", reward_model, tokenizer, models.stage_settings(recipe, paths, "reward"), rows)
    report = {"ready_made": recipe.reward_model} | rows[0]
    if recipe.data and recipe.data.preferences:
        report |= reward_report(recipe, reward_model, tokenizer, preference_pairs(recipe, paths)[1])
    write_json(paths.evaluation / "reward.json", report)
    return reward_model, tokenizer, rows


def load_reward(recipe: Recipe, paths: Paths, tokenizer):
    """The reward model of a run and the tokenizer that it reads with, which may be another one than the policy's."""
    folder = _announced(recipe, paths, "reward")
    return models.load_ready_made(folder) if recipe.reward_model else (models.load_reward_model(folder), tokenizer)


def reward_report(recipe: Recipe, reward_model, tokenizer, pairs: list[dict]) -> dict:
    """Held-out pairs: agreement with the labels, the length-only baseline and calibration; where gold is known, agreement
    with it and the noise ceiling."""
    distinct = list(dict.fromkeys((p["prompt"], p[key]) for p in pairs for key in ("chosen", "rejected")))
    scores = models.score_responses(reward_model, tokenizer, *map(list, zip(*distinct, strict=True)),
                                    max_prompt_tokens=recipe.max_prompt_tokens).tolist()  # fmt: skip
    score = dict(zip(distinct, scores, strict=True))
    chosen, rejected = (np.array([score[p["prompt"], p[key]] for p in pairs]) for key in ("chosen", "rejected"))
    length = np.array([[len(p["chosen"].split()), len(p["rejected"].split())] for p in pairs])
    probability = 1 / (1 + np.exp(-(chosen - rejected)))
    # calibration is read on randomly ordered pairs: here "first" is the chosen one in every other pair
    flip = np.arange(len(pairs)) % 2 == 1
    bins, error = evaluation.calibration(np.where(flip, 1 - probability, probability), (~flip).astype(int))
    if "gold_chosen" not in pairs[0]:
        accuracy = evaluation.mean_interval(
            evaluation.prompt_wins(chosen, rejected), recipe.eval.n_boot, groups=[p["prompt"] for p in pairs]
        )
        return {
            "pairs": len(pairs),
            "label_accuracy": accuracy.mean,
            "label_accuracy_low": accuracy.low,
            "label_accuracy_high": accuracy.high,
            "length_only_label_accuracy": evaluation.pairwise_accuracy(length[:, 0], length[:, 1]),
            "calibration_error": error,
            "calibration_bins": [list(map(float, row)) for row in bins],
        }
    gold = np.array([[p["gold_chosen"], p["gold_rejected"]] for p in pairs])
    differ = gold[:, 0] != gold[:, 1]
    if not differ.any():
        raise UsageError("gold ties on every held-out pair: raise reward.validation_prompts")
    sign = np.sign(gold[:, 0] - gold[:, 1])
    scale = recipe.reward.annotator_scale
    agreement = evaluation.mean_interval(
        evaluation.prompt_wins((sign * chosen)[differ], (sign * rejected)[differ]), recipe.eval.n_boot,
        groups=np.array([p["prompt"] for p in pairs])[differ],
    )  # fmt: skip
    return {
        "pairs": len(pairs),
        "pairs_with_a_gold_difference": int(differ.sum()),
        "gold_agreement": agreement.mean,
        "gold_agreement_low": agreement.low,
        "gold_agreement_high": agreement.high,
        "label_accuracy": evaluation.pairwise_accuracy(chosen, rejected),
        "label_noise_ceiling": float(np.mean(1 / (1 + np.exp(-np.abs(gold[:, 0] - gold[:, 1]) / scale)))),
        "length_only_label_accuracy": evaluation.pairwise_accuracy(length[:, 0], length[:, 1]),
        "length_only_gold_agreement": evaluation.pairwise_accuracy(
            (sign * length[:, 0])[differ], (sign * length[:, 1])[differ]
        ),
        "annotator_agreement": annotator_agreement(pairs, scale),
        "calibration_error": error,
        "calibration_bins": [list(map(float, row)) for row in bins],
    }


def train_ppo(recipe: Recipe, paths: Paths, resume: bool = False, trackers: tuple[str, ...] = (),
              report: doctor.Report | None = None):  # fmt: skip
    """SFT policy and reward model -> `checkpoints/ppo`; returns (policy, tokenizer, logged rows).

    The doctor goes first, unless you bring the `report` of `run_doctor`. Raises TrainingFailure if it is sick.
    """
    accelerator = make_accelerator(recipe.precision)
    sft_folder = _announced(recipe, paths, "sft")
    tokenizer = models.load_tokenizer(recipe.policy)
    policy = models.load_policy(sft_folder, tokenizer)
    reward_model, reward_tokenizer = load_reward(recipe, paths, tokenizer)
    # a reward model that reads other tokens, or that is not causal, cannot be a critic's start
    value_model = models.value_model_from(policy if recipe.reward_model else reward_model)
    set_seed(recipe.seed)  # an adapter starts at random
    for model in (policy, value_model.body):
        lora.adapt(model, recipe.lora, recipe.ppo.method)
    ref_policy = lora.AdapterOff(policy) if lora.has_adapter(policy) else models.load_policy(sft_folder, tokenizer)
    prompts = ppo_prompts(recipe, tokenizer, recipe.ppo.prompts)
    settings = models.stage_settings(recipe, paths, "ppo")
    if not (resume and (paths.checkpoints / "ppo_state.pt").exists()):
        (report or run_doctor(recipe, policy, ref_policy, tokenizer)).raise_if_sick()

    rows = ppo.train_ppo(with_rate(recipe, "ppo"), policy, ref_policy, reward_model, value_model, tokenizer,
                         reward_tokenizer, prompts, paths.checkpoints, accelerator, settings, resume,
                         on_validation(recipe, tokenizer, reward_model, reward_tokenizer), trackers)  # fmt: skip
    finish(recipe, paths, "ppo", policy, tokenizer, settings, rows)
    return policy, tokenizer, rows


def on_validation(recipe: Recipe, tokenizer, reward_model, reward_tokenizer):
    """What `ppo.train_ppo` calls now and then: policy -> mean scores on validation prompts, by gold where it is known."""
    prompts, _, posts = held_out(recipe, tokenizer, "validation", recipe.ppo.eval_prompts)
    cut = recipe.max_prompt_tokens

    def evaluate(policy) -> dict:
        texts, finished, _ = sample_texts(policy, tokenizer, prompts, recipe.max_new_tokens, recipe.eval.temperature,
                                          seed=(recipe.seed, NOISE + 3), max_prompt_tokens=cut)  # fmt: skip
        scores = models.score_responses(reward_model, reward_tokenizer, prompts, texts, finished, cut)
        gold = {"eval/gold": float(np.mean(gold_scores(posts, texts)))} if posts else {}
        return gold | {"eval/scores": scores.mean().item()}

    return evaluate


def run_doctor(recipe: Recipe, policy, ref_policy, tokenizer, responses: int = doctor.RESPONSES) -> doctor.Report:
    """The doctor on this recipe's prompts and demonstrations."""
    prompts = ppo_prompts(recipe, tokenizer, min(512, recipe.ppo.prompts))
    examples = demonstrations(recipe, tokenizer, "train", min(64, recipe.sft.examples))
    for model in (policy, ref_policy):
        model.to(make_accelerator(recipe.precision).device)
    return doctor.examine(recipe, policy, ref_policy, tokenizer, prompts, examples, responses)


def with_rate(recipe: Recipe, stage: str) -> Recipe:
    """The recipe as the loop of a stage reads it: an adapter learns at `lora.lr_factor` times the stage's rate."""
    config = getattr(recipe, stage)
    if config.method == "full":
        return recipe
    return dataclasses.replace(recipe, **{stage: dataclasses.replace(config, lr=config.lr * recipe.lora.lr_factor)})


def finish(recipe: Recipe, paths: Paths, stage: str, model, tokenizer, settings: dict, rows: list[dict]) -> None:
    """Keep the metrics beside the evaluation files, save the checkpoint, drop the resume point; other processes wait."""
    name = models.folder_of(recipe, stage)
    write_csv(paths.evaluation / f"{name}_metrics.csv", rows)
    models.save_checkpoint(paths.checkpoints / name, model, tokenizer, settings)
    if processes.is_main():
        (paths.checkpoints / f"{stage}_state.pt").unlink(missing_ok=True)
    processes.wait()


def evaluate(recipe: Recipe, paths: Paths, stages: tuple = ("base", "sft", "ppo")) -> dict:
    """Compare base, SFT and PPO on held-out prompts: gold, reward-model score, ROUGE, BLEU, length, EOS, win rates.

    Without a gold judge the reward model decides the comparisons, and the report says so: PPO was trained on it, so they
    show that PPO did its work, not that people like it better.
    """
    config = recipe.eval
    tokenizer = models.load_tokenizer(recipe.policy)
    prompts, references, posts = held_out(recipe, tokenizer, config.split, config.prompts)
    found = {stage: models.find_checkpoint(recipe, paths, stage) for stage in stages}
    accelerator = make_accelerator(recipe.precision)
    reward_source = models.find_checkpoint(recipe, paths, "reward")[1]
    reward_model, reward_tokenizer = load_reward(recipe, paths, tokenizer)
    reward_model.to(accelerator.device)
    samples = [{"prompt": p, "reference": r} for p, r in zip(prompts, references, strict=True)]
    table, judged, rouge_l, words = {}, {}, {}, {}
    with progress(total=len(prompts) * len(stages), desc="Evaluation", unit="summary") as bar:
        for stage in stages:
            folder, source = found[stage]
            policy = models.load_policy(folder, tokenizer).to(accelerator.device)
            texts, finished, lengths = sample_texts(policy, tokenizer, prompts, recipe.max_new_tokens, config.temperature,
                                                    seed=(recipe.seed, NOISE), bar=bar,
                                                    max_prompt_tokens=recipe.max_prompt_tokens)  # fmt: skip
            scores = models.score_responses(
                reward_model, reward_tokenizer, prompts, texts, finished, recipe.max_prompt_tokens
            ).numpy()
            judged[stage], words[stage] = (gold_scores(posts, texts) if posts else scores), lengths
            rouge_l[stage] = evaluation.rouge_l_each(texts, references)
            table[stage] = {
                "source": source,
                **(gold_summary(posts, judged[stage], config.n_boot) if posts else {}),
                "scores": float(scores.mean()),
                **evaluation.rouge(texts, references),
                "bleu": evaluation.bleu(texts, references),
                "length": float(np.mean(lengths)),
                "eos_rate": float(np.mean(finished)),
            }
            for row, text, g, s in zip(samples, texts, judged[stage], scores, strict=True):
                row |= {stage: text} | ({f"{stage}_gold": float(g)} if posts else {}) | {f"{stage}_score": float(s)}
    comparisons = {}
    for a, b in (("ppo", "sft"), ("sft", "base")):
        if a in judged and b in judged:
            rate = evaluation.win_rate(judged[a], judged[b], config.n_boot)
            comparisons[f"{a}_over_{b}"] = rate._asdict() | {
                "rougeL_difference": evaluation.mean_interval(rouge_l[a] - rouge_l[b], config.n_boot)._asdict()
            }
            if not posts:
                comparisons[f"{a}_over_{b}"]["length_controlled"] = evaluation.length_controlled_win_rate(
                    evaluation.prompt_wins(judged[a], judged[b]), words[a], words[b]
                )
    report = {"recipe": recipe.name, "seed": recipe.seed, "scale": recipe.scale, "split": config.split,
              "temperature": config.temperature, "prompts": len(prompts),
              **({"unseen": sum(bool(post.unseen) for post in posts)} if posts else {"judge": "reward model"}),
              "reward_model": reward_source, "models": table, "comparisons": comparisons}  # fmt: skip
    if "ppo" in stages:
        report["ppo_kl"] = sequence_kl(recipe, paths, prompts[:256])
    write_json(paths.evaluation / "evaluation.json", report)
    write_csv(paths.evaluation / "samples.csv", samples)
    return report


def gold_summary(posts: list, gold: np.ndarray, n_boot: int) -> dict:
    """Gold over all posts with its interval, over those like training, and over those with something unseen, by kind."""
    unseen = np.array([bool(post.unseen) for post in posts])
    return {
        "gold": evaluation.mean_interval(gold, n_boot)._asdict(),
        "gold_seen": float(gold[~unseen].mean()) if (~unseen).any() else None,
        "gold_unseen": float(gold[unseen].mean()) if unseen.any() else None,
        "gold_unseen_by_kind": {
            kind: float(np.mean([g for g, p in zip(gold, posts, strict=True) if kind in p.unseen]))
            for kind in sorted({k for p in posts for k in p.unseen})
        },
    }


def sequence_kl(recipe: Recipe, paths: Paths, prompts: list[str]) -> dict:
    """`policy_kl` of the run's PPO policy and its SFT policy."""
    tokenizer = models.load_tokenizer(recipe.policy)
    device = make_accelerator(recipe.precision).device
    policy, ref = (models.load_policy(models.find_checkpoint(recipe, paths, s)[0], tokenizer).to(device)
                   for s in ("ppo", "sft"))  # fmt: skip
    return policy_kl(recipe, policy, ref, tokenizer, prompts)


def policy_kl(recipe: Recipe, policy, ref_policy, tokenizer, prompts: list[str]) -> dict:
    """KL(policy || ref_policy), nats a sequence: sampled (k1) and exact, at the temperature of the evaluation."""
    temperature = recipe.eval.temperature or 1.0  # a greedy policy has no KL
    batch = generate(policy, tokenizer, prompts, recipe.max_new_tokens, temperature, seed=(recipe.seed, NOISE),
                     max_prompt_tokens=recipe.max_prompt_tokens)  # fmt: skip
    return ppo.exact_kl_check(batch, policy, ref_policy, temperature)


def run(recipe: Recipe, paths: Paths, resume: bool = False, trackers: tuple[str, ...] = ()) -> dict:
    """The main path: SFT, preferences, reward model, PPO, evaluation; returns the evaluation with seconds a stage.

    A stage that was resumed or already finished has no seconds.
    """
    seconds = {}
    for name, stage in (("sft", train_sft), ("reward", train_reward), ("ppo", train_ppo)):
        start = time.time()
        done = resume and finished(recipe, paths, name)
        whole = not done and not (resume and (paths.checkpoints / f"{name}_state.pt").exists())
        if not done:
            stage(recipe, paths, resume, trackers)
        seconds[name] = round(time.time() - start, 1) if whole else None
    start = time.time()
    report = evaluate(recipe, paths)
    seconds["evaluate"] = round(time.time() - start, 1)
    report["seconds"] = seconds
    write_json(paths.evaluation / "evaluation.json", report)
    return report


def _announced(recipe: Recipe, paths: Paths, stage: str) -> str:
    """The folder of a stage's model, after saying where it comes from."""
    folder, source = models.find_checkpoint(recipe, paths, stage)
    print(f"{stage}: {source}")
    return folder


def finished(recipe: Recipe, paths: Paths, stage: str) -> bool:
    """Whether the run's own checkpoint of this stage is there, made with these settings from these inputs."""
    try:
        return Path(models.find_checkpoint(recipe, paths, stage)[0]).is_relative_to(paths.checkpoints)
    except UsageError:
        return False


def results(recipe: Recipe, paths: Paths, seeds: list[int] | None = None, resume: bool = False) -> dict:
    """The main path on seeds that nothing was tuned on: files under `seed_N`, and their summary in `results.json`."""
    seeds = list(dict.fromkeys(seeds or RESULT_SEEDS))
    if len(seeds) < 2:
        raise UsageError(f"results over {len(seeds)} seed have no interval: give at least two, like --seeds 11 12 13")
    reports = {}
    for seed in seeds:
        own = Paths(f"{recipe.name}/seed_{seed}", recipe.scale, paths.output_dir)
        report = run(dataclasses.replace(recipe, seed=seed), own, resume)
        reports[seed] = report | {"reward_model": json.loads((own.evaluation / "reward.json").read_text())}
    summary = {"recipe": recipe.resolved(), "seeds": list(reports), "table": summarize_seeds(list(reports.values()))}
    write_json(paths.evaluation / "results.json", summary)
    return summary


def summarize_seeds(reports: list[dict]) -> list[dict]:
    """Rows {"quantity", "values", "mean", "low", "high"}: a Student-t interval over the seeds for each headline number."""
    quantities = {
        f"{stage} {key}": [_mean(r["models"][stage].get(key)) for r in reports]
        for stage in ("base", "sft", "ppo")
        for key in (
            "gold",
            "gold_seen",
            "gold_unseen",
            "scores",
            "rouge1",
            "rouge2",
            "rougeL",
            "bleu",
            "length",
            "eos_rate",
        )  # fmt: skip
    }
    for name in ("ppo_over_sft", "sft_over_base"):
        for key in ("rate", "low"):
            quantities[f"{name} {key}"] = [r["comparisons"][name][key] for r in reports]
        quantities[f"{name} rougeL difference"] = [r["comparisons"][name]["rougeL_difference"]["mean"] for r in reports]
        quantities[f"{name} rougeL difference low"] = [
            r["comparisons"][name]["rougeL_difference"]["low"] for r in reports
        ]
    quantities["ppo kl"] = [r["ppo_kl"]["check/kl_exact"] for r in reports]
    for key in ("gold_agreement", "label_accuracy", "label_noise_ceiling", "length_only_gold_agreement",
                "annotator_agreement", "calibration_error"):  # fmt: skip
        quantities[f"reward {key}"] = [r["reward_model"].get(key) for r in reports]
    for stage in ("sft", "reward", "ppo", "evaluate"):
        quantities[f"seconds {stage}"] = [r["seconds"][stage] for r in reports]
    rows = []
    for quantity, values in quantities.items():
        if len(values) > 1 and None not in values:
            rows.append({"quantity": quantity, "values": values} | evaluation.seed_interval(values)._asdict())
    return rows


def _mean(value):
    return value["mean"] if isinstance(value, dict) else value
