"""The stages end to end at smoke scale: checkpoints that open anywhere, runs that repeat and resume bit by bit."""

import contextlib
import csv
import dataclasses
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lib import doctor, models, reporting, stages
from rlhf_lib.glossary import GLOSSARY
from rlhf_lib.recipes import get_recipe
from rlhf_lib.runtime import Paths, TrainingFailure, TrainingState, UsageError

RECIPE = get_recipe("tiny", "smoke", overrides={"ppo.updates": 3, "precision": "no"})
LONGER = {"sft": {"sft.epochs": 6}, "reward": {"reward.epochs": 6}, "ppo": {"ppo.updates": 8}}
STAGES = {"sft": stages.train_sft, "reward": stages.train_reward, "ppo": stages.train_ppo}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of the main path."""
    paths = Paths("tiny", "smoke", tmp_path_factory.mktemp("run"))
    return paths, stages.run(RECIPE, paths)


def weights(folder) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def assert_same_weights(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_run_writes_checkpoints_metrics_and_a_report(finished):
    paths, report = finished
    assert set(report["models"]) == {"base", "sft", "ppo"}
    assert report["comparisons"]["ppo_over_sft"]["wins"] >= 0
    assert report["models"]["ppo"]["source"] == "your own ppo checkpoint"
    for stage in STAGES:
        assert (paths.evaluation / f"{stage}_metrics.csv").exists()
        assert not (paths.checkpoints / f"{stage}_state.pt").exists()
    assert json.loads((paths.evaluation / "evaluation.json").read_text())["seconds"].keys() >= {"sft", "ppo"}


def test_the_glossary_holds_what_the_loops_log_and_nothing_else(finished):
    paths, _ = finished
    logged = set()
    for stage in STAGES:
        with open(paths.evaluation / f"{stage}_metrics.csv") as file:
            logged |= set(next(csv.reader(file)))
    assert logged - {"step"} == {key for key in GLOSSARY if not key.startswith("doctor/")}


def test_smoke_runs_write_only_under_smoke(finished):
    paths, _ = finished
    assert paths.root.name == "smoke"
    assert [p.name for p in paths.output_dir.iterdir()] == ["smoke"]


def test_checkpoints_open_with_transformers_and_give_the_librarys_own_scores(finished):
    paths, _ = finished
    tokenizer = AutoTokenizer.from_pretrained(paths.checkpoints / "ppo")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    policy = AutoModelForCausalLM.from_pretrained(paths.checkpoints / "ppo")
    ours = models.load_policy(str(paths.checkpoints / "ppo"))
    ids = tokenizer("SUBREDDIT: r/work", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(policy(ids).logits, ours(ids).logits)
    reward = AutoModelForSequenceClassification.from_pretrained(paths.checkpoints / "reward")
    assert reward.config.num_labels == 1
    text = "SUBREDDIT: r/work\n\nTITLE: x\n\nPOST: y\n\nTL;DR: My boss eats my lunch all the time."
    ids = tokenizer(text + tokenizer.eos_token, return_tensors="pt")["input_ids"]
    score = models.score_responses(
        models.load_reward_model(paths.checkpoints / "reward"), tokenizer,
        ["SUBREDDIT: r/work\n\nTITLE: x\n\nPOST: y\n\nTL;DR:"], ["My boss eats my lunch all the time."],
    )  # fmt: skip
    torch.testing.assert_close(reward(ids).logits[0, 0] - reward.config.reward_mean, score[0], atol=1e-4, rtol=0)


def test_rewards_have_mean_zero_on_references(finished):
    from rlhf_lib import data
    from rlhf_lib.tiny import reference_summary

    paths, _ = finished
    posts = data.training_posts("sft", RECIPE.sft.examples, RECIPE.seed)
    scores = models.score_responses(
        models.load_reward_model(paths.checkpoints / "reward"), models.load_tokenizer("tiny:small"),
        [p.prompt for p in posts], [reference_summary(p) for p in posts],
    )  # fmt: skip
    assert abs(scores.mean().item()) < 1e-4


def changed(a: dict, b: dict) -> set[str]:
    return {name for name in a.keys() & b.keys() if not torch.equal(a[name], b[name])}


def test_embeddings_stay_the_base_models_and_all_other_weights_learn(finished):
    paths, _ = finished
    base, sft, reward, ppo = (weights(paths.checkpoints / name) for name in ("base", "sft", "reward", "ppo"))
    words = "transformer.wte.weight"
    for before, after in ((base, sft), (base, reward), (sft, ppo)):
        assert words in before.keys() & after.keys()
        assert changed(before, after) == (before.keys() & after.keys()) - {words}


@pytest.mark.parametrize("stage", STAGES)
def test_embeddings_learn_where_the_recipe_says_so(stage, tmp_path):
    recipe = dataclasses.replace(RECIPE, freeze_embeddings=False)
    recipe = dataclasses.replace(recipe, ppo=dataclasses.replace(recipe.ppo, updates=1))
    paths = Paths("tiny", "smoke", tmp_path)
    STAGES[stage](recipe, paths)
    before = {"sft": models.ASSETS / "base-small", "reward": models.ASSETS / "base-small", "ppo": models.ASSETS / "sft"}
    start, end = weights(before[stage]), weights(paths.checkpoints / stage)
    words = "transformer.wte.weight"
    assert not torch.equal(start[words].float(), end[words])


def copy_inputs(source: Paths, target: Paths, stage: str) -> None:
    for name in list(STAGES)[: list(STAGES).index(stage)]:
        shutil.copytree(source.checkpoints / name, target.checkpoints / name, dirs_exist_ok=True)
    if stage == "reward":
        shutil.copy(source.checkpoints / "preferences.json", target.checkpoints / "preferences.json")


def logged(paths: Paths, stage: str) -> list[dict]:
    """The metrics of a run, less the one that measures time."""
    with open(paths.evaluation / f"{stage}_metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "eps"} for row in csv.DictReader(file)]


@contextlib.contextmanager
def death_at_the_first_resume_point():
    save = TrainingState.save

    def save_and_die(self, step, rows, **parts):
        save(self, step, rows, **parts)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingState, "save", save_and_die)
        yield


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_after_a_resume_point_ends_with_the_same_weights_and_metrics(finished, tmp_path, stage):
    reference, _ = finished
    paths = Paths("tiny", "smoke", tmp_path)
    copy_inputs(reference, paths, stage)
    with death_at_the_first_resume_point():
        STAGES[stage](RECIPE, paths)
    STAGES[stage](RECIPE, paths, resume=True)
    assert_same_weights(reference.checkpoints / stage, paths.checkpoints / stage)
    assert logged(reference, stage) == logged(paths, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_and_resume_end_with_the_weights_of_an_uninterrupted_run(tmp_path, finished, stage):
    reference, _ = finished
    overrides = {"precision": "no"} | LONGER[stage]
    long = get_recipe("tiny", "smoke", overrides=overrides)
    runs = {name: Paths("tiny", "smoke", tmp_path / name) for name in ("whole", "killed")}
    for paths in runs.values():
        copy_inputs(reference, paths, stage)
    STAGES[stage](long, runs["whole"])
    command = [sys.executable, "-m", "rlhf_lib", stage, "--recipe", "tiny", "--scale", "smoke",
               "--output-dir", str(runs["killed"].output_dir), "--set", *(f"{k}={v}" for k, v in overrides.items())]  # fmt: skip
    metrics = runs["killed"].checkpoints / f"{stage}_metrics.jsonl"
    moments = sorted(random.sample(range(1, 7), 3)) if stage == "ppo" else [3]
    for moment in moments:
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= moment):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not (runs["killed"].checkpoints / stage).exists()
    STAGES[stage](long, runs["killed"], resume=True)
    assert_same_weights(runs["whole"].checkpoints / stage, runs["killed"].checkpoints / stage)


def test_the_same_seed_gives_identical_metrics_and_another_seed_does_not(finished, tmp_path):
    reference, _ = finished
    again = Paths("tiny", "smoke", tmp_path / "again")
    copy_inputs(reference, again, "ppo")
    stages.train_ppo(RECIPE, again)
    assert logged(again, "ppo") == logged(reference, "ppo")
    other = Paths("tiny", "smoke", tmp_path / "other")
    _, _, rows = stages.train_sft(dataclasses.replace(RECIPE, seed=2), other)
    assert rows[1]["loss"] != pytest.approx(
        float((reference.evaluation / "sft_metrics.csv").read_text().split("\n")[2].split(",")[2])
    )


def test_resuming_with_other_settings_is_refused(finished, tmp_path):
    reference, _ = finished
    paths = Paths("tiny", "smoke", tmp_path)
    copy_inputs(reference, paths, "ppo")
    with death_at_the_first_resume_point():
        stages.train_ppo(RECIPE, paths)
    changed = dataclasses.replace(RECIPE, ppo=dataclasses.replace(RECIPE.ppo, kl_coef=0.5))
    with pytest.raises(UsageError, match="cannot resume"):
        stages.train_ppo(changed, paths, resume=True)


def test_a_checkpoint_of_other_settings_is_not_reused(finished):
    paths, _ = finished
    other = dataclasses.replace(RECIPE, seed=77)
    folder, sentence = models.find_checkpoint(RECIPE, paths, "ppo")
    assert folder == str(paths.checkpoints / "ppo") and sentence == "your own ppo checkpoint"
    with pytest.raises(UsageError, match="other settings"):
        models.find_checkpoint(other, paths, "ppo")


def test_a_checkpoint_whose_inputs_were_made_anew_is_not_reused(finished, tmp_path):
    """PPO's result belongs to the SFT and reward models that it started from, not to their settings."""
    reference, _ = finished
    paths = Paths("tiny", "smoke", tmp_path)
    copy_inputs(reference, paths, "ppo")
    copy_inputs(reference, paths, "reward")
    shutil.copytree(reference.checkpoints / "ppo", paths.checkpoints / "ppo")
    assert stages.finished(RECIPE, paths, "ppo")
    tokenizer = models.load_tokenizer("tiny:small")
    policy = models.load_policy(paths.checkpoints / "sft", tokenizer)
    policy.get_input_embeddings().weight.data[5] += 1
    settings = json.loads((paths.checkpoints / "sft" / "settings.json").read_text())
    models.save_checkpoint(paths.checkpoints / "sft", policy, tokenizer, settings)
    assert stages.finished(RECIPE, paths, "sft")
    assert not stages.finished(RECIPE, paths, "reward") and not stages.finished(RECIPE, paths, "ppo")


def test_a_checkpoint_belongs_to_the_world_that_wrote_its_data(finished, monkeypatch):
    paths, _ = finished
    assert stages.finished(RECIPE, paths, "sft")
    read = type(paths.output_dir).read_bytes
    changed = lambda file: read(file) + b"# another judge" * (file.name == "judge.py")  # noqa: E731
    monkeypatch.setattr(type(paths.output_dir), "read_bytes", changed)
    assert not stages.finished(RECIPE, paths, "sft")


@pytest.mark.parametrize("file", ["config.json", "pytorch_model.bin", "tokenizer.json"])
def test_a_fingerprint_sees_every_file_that_a_model_is_made_of(file, tmp_path):
    for name in ("config.json", "pytorch_model.bin", "tokenizer.json"):
        (tmp_path / name).write_text("before")
    before = models.fingerprint(str(tmp_path))
    (tmp_path / file).write_text("after")
    assert models.fingerprint(str(tmp_path)) != before


def test_a_checkpoint_of_other_settings_is_kept_when_it_is_replaced(tmp_path):
    tokenizer = models.load_tokenizer("tiny:small")
    policy = models.load_policy("tiny:small", tokenizer)
    folder, previous = tmp_path / "sft", tmp_path / "sft.previous"
    models.save_checkpoint(folder, policy, tokenizer, {"seed": 1})
    models.save_checkpoint(folder, policy, tokenizer, {"seed": 1})
    assert not previous.exists()
    models.save_checkpoint(folder, policy, tokenizer, {"seed": 2})
    assert json.loads((previous / "settings.json").read_text()) == {"seed": 1}
    assert json.loads((folder / "settings.json").read_text()) == {"seed": 2}
    AutoModelForCausalLM.from_pretrained(previous)


@pytest.mark.parametrize("left", [0, 1000])
def test_half_a_file_of_weights_is_a_usage_error(tmp_path, left):
    tokenizer = models.load_tokenizer("tiny:small")
    models.save_checkpoint(tmp_path / "sft", models.load_policy("tiny:small", tokenizer), tokenizer, {})
    file = tmp_path / "sft" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(UsageError, match="cannot load .*sft") as error:
        models.load_policy(tmp_path / "sft", tokenizer)
    assert "\n" not in str(error.value)


def test_stages_that_a_resumed_run_skips_have_no_seconds(finished, tmp_path):
    reference, report = finished
    assert all(seconds > 0 for seconds in report["seconds"].values())
    paths = Paths("tiny", "smoke", tmp_path)
    shutil.copytree(reference.checkpoints, paths.checkpoints, dirs_exist_ok=True)
    shutil.copytree(reference.evaluation, paths.evaluation, dirs_exist_ok=True)
    seconds = stages.run(RECIPE, paths, resume=True)["seconds"]
    assert seconds["sft"] is seconds["reward"] is seconds["ppo"] is None and seconds["evaluate"] > 0


def test_the_reward_report_needs_a_pair_with_a_gold_difference(monkeypatch):
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b", "gold_chosen": 0.5, "gold_rejected": 0.5}]
    monkeypatch.setattr(models, "score_responses", lambda *args, **kw: torch.tensor([0.0, 1.0]))
    with pytest.raises(UsageError, match="gold ties on every held-out pair"):
        stages.reward_report(RECIPE, None, None, pairs)


def test_every_stage_says_which_models_it_starts_from(finished, tmp_path, capsys):
    stages.train_ppo(RECIPE, Paths("tiny", "smoke", tmp_path))
    said = capsys.readouterr().out
    assert "sft: the shipped sft snapshot" in said and "reward: the shipped reward snapshot" in said


def test_ppo_trusts_a_report_that_it_is_given(finished, tmp_path, monkeypatch):
    paths = Paths("tiny", "smoke", tmp_path)
    copy_inputs(finished[0], paths, "ppo")
    monkeypatch.setattr(stages, "run_doctor", lambda *_: pytest.fail("the doctor was called again"))
    sick, healthy = (doctor.Report([doctor.Check("a ratio", x, 0.1, "dropout")]) for x in (1.0, 0.0))
    with pytest.raises(TrainingFailure, match="a ratio"):
        stages.train_ppo(RECIPE, paths, report=sick)
    assert not (paths.checkpoints / "ppo").exists()
    assert len(stages.train_ppo(RECIPE, paths, report=healthy)[2]) == 3


def test_bf16_repeats_itself_and_starts_at_ratio_1(finished, tmp_path):
    reference, _ = finished
    recipe = get_recipe("tiny", "smoke", overrides={"precision": "bf16"})
    metrics = []
    for name in ("first", "second"):
        paths = Paths("tiny", "smoke", tmp_path / name)
        _, _, rows = stages.train_ppo(recipe, paths)
        metrics.append(logged(paths, "ppo"))
        assert rows[0]["policy/first_approxkl"] < 1e-6 and abs(rows[0]["objective/kl"]) < 0.05
    assert metrics[0] == metrics[1]


def test_the_reward_report_on_pairs_whose_answer_is_known(monkeypatch):
    """A judge that prefers what is longer, on three pairs: two where that is right, one where gold ties."""
    pairs = [
        {"prompt": "p", "chosen": "a b c", "rejected": "a", "gold_chosen": 0.9, "gold_rejected": 0.3},
        {"prompt": "p", "chosen": "a b", "rejected": "a b c d", "gold_chosen": 0.2, "gold_rejected": 0.8},
        {"prompt": "q", "chosen": "a", "rejected": "a b", "gold_chosen": 0.5, "gold_rejected": 0.5},
    ]
    scores = lambda model, tok, prompts, responses, **kw: torch.tensor([float(len(r.split())) for r in responses])  # noqa: E731
    monkeypatch.setattr(models, "score_responses", scores)
    report = stages.reward_report(RECIPE, None, None, pairs)
    assert report["pairs"] == 3 and report["pairs_with_a_gold_difference"] == 2
    assert report["gold_agreement"] == 1.0 and report["length_only_gold_agreement"] == 1.0
    assert report["gold_agreement_low"] == report["gold_agreement_high"] == 1.0
    assert report["label_accuracy"] == pytest.approx(1 / 3) == report["length_only_label_accuracy"]
    sure = 1 / (1 + math.exp(-0.6 / RECIPE.reward.annotator_scale))
    assert report["label_noise_ceiling"] == pytest.approx((2 * sure + 0.5) / 3)
    assert report["annotator_agreement"] == pytest.approx((2 * (sure**2 + (1 - sure) ** 2) + 0.5) / 3)


def test_the_agreement_has_an_interval_over_posts_not_over_pairs(monkeypatch):
    """The judge is right on all pairs of one post and wrong on all of another: two posts, so anything from 0 to 1."""
    gold = {"gold_chosen": 0.9, "gold_rejected": 0.3}
    pairs = [{"prompt": "p", "chosen": "a " * (i + 2), "rejected": "a", **gold} for i in range(15)]
    pairs += [{"prompt": "q", "chosen": "a", "rejected": "a " * (i + 2), **gold} for i in range(15)]
    scores = lambda model, tok, prompts, responses, **kw: torch.tensor([float(len(r.split())) for r in responses])  # noqa: E731
    monkeypatch.setattr(models, "score_responses", scores)
    report = stages.reward_report(RECIPE, None, None, pairs)
    assert (report["gold_agreement"], report["gold_agreement_low"], report["gold_agreement_high"]) == (0.5, 0, 1)


def test_the_summary_over_seeds_is_the_mean_of_the_reports_with_students_interval(finished):
    _, report = finished
    reward_model = {key: 0.8 for key in ("gold_agreement", "label_accuracy", "label_noise_ceiling", "calibration_error",
                                         "length_only_gold_agreement", "annotator_agreement")}  # fmt: skip
    reports = []
    for gold in (0.8, 0.9, 1.0):
        one = json.loads(json.dumps(report | {"reward_model": reward_model}))
        one["models"]["ppo"]["gold"]["mean"] = gold
        reports.append(one)
    rows = {row["quantity"]: row for row in stages.summarize_seeds(reports)}
    row = rows["ppo gold"]
    half = 4.302653 * 0.1 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert row["values"] == [0.8, 0.9, 1.0] and row["mean"] == pytest.approx(0.9)
    assert (row["low"], row["high"]) == (pytest.approx(0.9 - half, abs=1e-4), pytest.approx(0.9 + half, abs=1e-4))
    table = reporting.results_table({"seeds": [11, 12, 13], "table": list(rows.values())})
    assert "| **gold score, PPO** | 0.800 | 0.900 | 1.000 | 0.900 [0.652, 1.148] |" in table
    start, end = reporting.README_MARKS["results"]
    renewed = reporting.readme_with(f"before\n{start}\nstale row\n{end}\nafter", "results", table)
    assert (
        renewed.startswith("before\n")
        and renewed.endswith("\nafter")
        and "stale row" not in renewed
        and table in renewed
    )


def test_evaluation_never_trains_on_what_it_tests():
    from rlhf_lib import data

    recipe = get_recipe("tiny")
    train = {p.prompt for stage in data.STREAMS for p in data.training_posts(stage, 500, recipe.seed)}
    for split in ("validation", "test"):
        assert not train & {p.prompt for p in data.held_out_posts(split, 500)}
