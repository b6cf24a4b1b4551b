"""The scaling study at smoke scale, killed and resumed; choices, costs and intervals on runs made by hand."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from rlhf_lib import data, evaluation, models, reporting, rollout, scaling, sft, stages
from rlhf_lib.__main__ import main
from rlhf_lib.recipes import get_recipe, scaling_recipe
from rlhf_lib.runtime import Paths, TrainingFailure, UsageError, make_accelerator
from rlhf_lib.scaling import SIZES, TUNING_SEED, Run

RECIPE = scaling_recipe("tiny", "smoke", overrides={"precision": "no"})
KILLED_AFTER = 11


class Killed(Exception):
    pass


def without_seconds(study: dict) -> dict:
    return study | {"runs": [{k: v for k, v in run.items() if k != "seconds"} for run in study["runs"]]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed and then finished: (paths, what the file held when it was killed, the study)."""
    paths = Paths("tiny", "smoke", tmp_path_factory.mktemp("scaling"))
    file, left = paths.evaluation / "scaling.json", KILLED_AFTER
    real = dict(scaling.TRAIN)

    def killed(stage):
        def train(*args):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real[stage](*args)

        return train

    with pytest.MonkeyPatch.context() as patch:
        for stage in real:
            patch.setitem(scaling.TRAIN, stage, killed(stage))
        with pytest.raises(Killed):
            scaling.run_scaling(RECIPE, paths)
    begun = json.loads(file.read_text())
    return paths, begun, scaling.run_scaling(RECIPE, paths)


def key(run: dict) -> Run:
    return Run(*(run[name] for name in Run._fields))


def test_the_study_tunes_first_and_then_trains_all_four_combinations(finished):
    _, _, study = finished
    keys = [key(run) for run in study["runs"]]
    assert len(keys) == len(set(keys)) == 22
    assert [k.seed for k in keys] == [TUNING_SEED] * 8 + [41] * 14
    final = [k for k in keys if k.seed == 41]
    for stage in ("reward", "ppo"):
        assert {(k.policy, k.reward) for k in final if k.stage == stage} == {(a, b) for a in SIZES for b in SIZES}
    for stage in ("base", "sft", "preferences"):
        assert [k.policy for k in final if k.stage == stage] == list(SIZES)


def test_a_killed_study_goes_on_where_it_stopped(finished):
    paths, begun, study = finished
    assert begun["runs"] == study["runs"][:KILLED_AFTER]  # the seconds too: nothing was repeated
    lines = (paths.evaluation / "scaling.json").read_text().splitlines()
    assert sum(line.startswith('{"stage"') for line in lines) == 22


def test_runs_made_again_from_lost_checkpoints_are_the_same_but_for_their_seconds(finished, tmp_path):
    paths, _, study = finished
    again = Paths("tiny", "smoke", tmp_path)
    kept = study | {"runs": study["runs"][:-1]}  # all but PPO of the medium policy on the small reward model
    (again.evaluation / "scaling.json").write_text(json.dumps(kept))
    folder = Paths("scaling", "smoke", tmp_path).checkpoints
    shutil.copytree(Paths("scaling", "smoke", paths.output_dir).checkpoints / "seed_41", folder / "seed_41")
    shutil.rmtree(folder / "seed_41" / "reward_medium_small_1.0")
    shutil.rmtree(folder / "seed_41" / "sft_medium_1.0")
    assert without_seconds(scaling.run_scaling(RECIPE, again)) == without_seconds(study)


def test_a_checkpoint_of_other_settings_is_not_used(finished, tmp_path):
    _, _, study = finished
    runs = {key(run): run for run in study["runs"]}
    one = scaling.Study(RECIPE, tmp_path, study["settings"], runs)
    run = Run("sft", 41, "small", None, 1.0)
    first = scaling._product(one, run)
    assert json.loads((first / "settings.json").read_text())["scale"] == "smoke"
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert scaling._product(one, run) == first and (first / "model.safetensors").stat().st_mtime_ns == before
    other = dataclasses.replace(one, settings=study["settings"] | {"world": "another"})
    scaling._product(other, run)
    assert (first / "model.safetensors").stat().st_mtime_ns != before


def test_the_results_of_other_settings_are_kept_beside_the_new_ones(tmp_path, monkeypatch):
    paths = Paths("tiny", "smoke", tmp_path)
    (paths.evaluation / "scaling.json").write_text('{"settings": {"scale": "other"}, "runs": [1]}')
    monkeypatch.setattr(scaling, "planned", lambda *args: [])
    assert scaling.run_scaling(RECIPE, paths)["runs"] == []
    assert json.loads((paths.evaluation / "scaling.previous.json").read_text())["runs"] == [1]


def test_tuning_never_looks_at_gold_scores_or_test_posts(finished, monkeypatch, tmp_path):
    _, _, study = finished
    runs = {key(run): run for run in study["runs"]}
    for run in study["runs"]:
        assert ("gold" in run) == (run["seed"] != TUNING_SEED and run["stage"] in ("base", "sft", "ppo"))
        assert (
            (scaling.CRITERIA.get(run["stage"]) in run) or run["seed"] != TUNING_SEED or run["stage"] == "preferences"
        )
    asked = []
    real = data.held_out_posts
    monkeypatch.setattr(data, "held_out_posts", lambda split, n: asked.append(split) or real(split, n))
    monkeypatch.setattr(scaling, "_product", lambda s, r: scaling._folder(s, r))
    monkeypatch.setattr(scaling, "gold_score", lambda *_: pytest.fail("gold in tuning"))
    folder = Paths("scaling", "smoke", finished[0].output_dir).checkpoints
    monkeypatch.setattr(models, "save_checkpoint", lambda *_: None)
    one = scaling.Study(RECIPE, folder, study["settings"], runs)
    row = scaling.TRAIN["ppo"](one, Run("ppo", TUNING_SEED, "small", "small", 1.0))
    assert set(asked) == {"validation"}
    assert row["objective"] == next(r["objective"] for k, r in runs.items() if k[:3] == ("ppo", TUNING_SEED, "small"))


def test_the_data_of_both_sizes_are_equal(finished):
    paths, _, study = finished
    folder = Paths("scaling", "smoke", paths.output_dir).checkpoints / "seed_41"
    pairs = [json.loads((folder / f"preferences_{size}" / "preferences.json").read_text()) for size in SIZES]
    for part in ("train", "validation"):
        small, medium = (list(dict.fromkeys(p["prompt"] for p in each[part])) for each in pairs)
        assert small == medium
    tokens = [[r["training_tokens"] for r in study["runs"] if key(r)[:3] == ("sft", 41, size)] for size in SIZES]
    assert tokens[0] == tokens[1] != [0]


def test_the_rate_of_a_run_is_the_recipes_times_its_factor():
    study = scaling.Study(RECIPE, None, {}, {})
    recipe = scaling._recipe(study, Run("reward", 7, "small", "medium", 2.0))
    assert (recipe.policy, recipe.seed, recipe.reward.lr) == ("tiny:medium", 7, 2 * RECIPE.reward.lr)
    assert scaling._recipe(study, Run("ppo", 7, "small", "medium", 0.5)).policy == "tiny:small"
    assert recipe.sft == RECIPE.sft and recipe.ppo == RECIPE.ppo


def test_the_gain_is_the_score_less_that_of_sft_by_the_same_reward_model(finished):
    _, _, study = finished
    cells = {(r["stage"], r["policy"], r["reward"]): r for r in study["runs"] if r["seed"] == 41}
    for policy in SIZES:
        for reward in SIZES:
            run = cells["ppo", policy, reward]
            assert run["gain"] == pytest.approx(run["scores"] - cells["reward", policy, reward]["sft_scores"], abs=2e-4)


def test_the_stored_gold_scores_are_those_of_the_policys_samples(finished):
    """Sampled once more from the saved checkpoint with nothing but the library."""
    paths, _, study = finished
    run = next(r for r in study["runs"] if key(r)[:4] == ("ppo", 41, "small", "medium"))
    folder = Paths("scaling", "smoke", paths.output_dir).checkpoints / "seed_41" / "ppo_small_medium_1.0"
    tokenizer = models.load_tokenizer(str(folder))
    posts = data.held_out_posts("test", RECIPE.eval.prompts)
    texts, _, _ = rollout.sample_texts(
        models.load_policy(folder, tokenizer), tokenizer, [p.prompt for p in posts], RECIPE.max_new_tokens,
        seed=(41, stages.NOISE), max_prompt_tokens=RECIPE.max_prompt_tokens,
    )  # fmt: skip
    gold = [scaling.gold_score(post, text) for post, text in zip(posts, texts, strict=True)]
    assert run["gold_each"] == pytest.approx(gold, abs=1e-9)
    assert run["gold"] == pytest.approx(sum(gold) / len(gold), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- cost


def test_tokens_and_flops_of_a_training_are_six_times_parameters_times_tokens(tokenizer, tmp_path):
    policy = models.load_policy("tiny:small", tokenizer)
    recipe = dataclasses.replace(RECIPE, seed=3)
    examples = stages.demonstrations(recipe, tokenizer, "train", recipe.sft.examples)
    validation = stages.demonstrations(recipe, tokenizer, "validation", recipe.sft.validation_examples)
    with scaling._loop("sft", tokenizer, policy) as loop:
        loop.rows = sft.train_sft(recipe, policy, tokenizer, examples, validation, tmp_path, make_accelerator("no"), {})
    prompts = data.encode_prompts(tokenizer, [e["prompt"] for e in examples], recipe.max_prompt_tokens)
    completions = data.encode_completions(tokenizer, [e["completion"] for e in examples])
    tokens = sum(map(len, prompts)) + sum(map(len, completions))  # one epoch, no example left over
    n = sum(p.numel() for name, p in policy.named_parameters() if "wte" not in name and "wpe" not in name)
    row = loop.row(training_only=True)
    assert row["training_tokens"] == tokens and row["training_flops"] == 6 * n * tokens
    assert "forward_tokens" not in row and scaling.parameters("small")["without_embeddings"] == n
    assert not policy.base_model._forward_pre_hooks


def test_tokens_of_sampling_are_each_prompt_once_and_all_but_the_last_token(tokenizer, policy):
    prompts = ["SUBREDDIT: r/a", "SUBREDDIT: r/a", "a longer prompt than the other two"]
    with scaling._loop("preferences", tokenizer, policy) as loop:
        batch = rollout.generate(policy, tokenizer, prompts, 6, seed=1)
    read = [len(ids) for ids in data.encode_prompts(tokenizer, [prompts[0], prompts[2]], 100)]
    written = (batch.response_mask.sum(-1)).tolist()
    ended = batch.finished.tolist()
    width = batch.response_mask.shape[1]
    fed = sum(min(n - end, width - 1) for n, end in zip(written, ended, strict=True))
    counted = loop.row()
    assert sum(read) + fed <= counted["forward_tokens"] <= sum(read) + fed + sum(ended)
    assert counted["training_tokens"] == 0
    assert counted["forward_flops"] == 2 * scaling._non_embedding(policy.base_model) * counted["forward_tokens"]


def test_what_is_uncounted_costs_no_tokens_and_a_failure_keeps_the_curves(tokenizer, policy):
    ids = torch.tensor([[5, 6, tokenizer.pad_token_id]])
    with scaling._loop("ppo", tokenizer, policy) as loop:
        with torch.no_grad():
            loop.uncounted(lambda x: policy(x))(ids)
            assert loop.cost["forward_tokens"] == 0
            policy(ids)
        (loop.folder / "ppo_metrics.jsonl").write_text('{"step": 1, "objective/kl": 0.25}\n')
        raise TrainingFailure("the KL exploded")
    row = loop.row()
    assert row["forward_tokens"] == 2 and row["stopped"] == "the KL exploded"
    assert row["curves"]["objective/kl"] == [0.25] and row["curves"]["eval/gold"] == [None]


def test_the_compute_of_a_policy_is_that_of_its_own_chain(finished):
    _, _, study = finished
    cells = {(r["stage"], r["policy"], r["reward"]): r for r in study["runs"] if r["seed"] == 41}
    cost = scaling.compute(study["runs"], 41, "small", "medium")
    assert cost["sft"] == cells["sft", "small", None]["training_flops"]
    assert cost["preferences"] == cells["preferences", "small", None]["forward_flops"]
    assert cost["reward"] == cells["reward", "small", "medium"]["training_flops"]
    run = cells["ppo", "small", "medium"]
    assert cost["ppo"] == run["training_flops"] + run["forward_flops"]


# -------------------------------------------------------------------------------------------------------- by hand


def tuning(stage, size, factor, value, seed=TUNING_SEED) -> dict:
    row = {"stage": stage, "seed": seed, "policy": size, "reward": None if stage == "sft" else size, "factor": factor}
    return row | ({} if value is None else {scaling.CRITERIA[stage]: value})


def test_the_chosen_rate_has_the_lowest_loss_or_the_highest_objective():
    runs = [tuning("sft", "small", f, v) for f, v in ((0.5, 0.9), (1.0, 0.7), (2.0, 0.8))]
    runs += [tuning("ppo", "small", f, v) for f, v in ((0.5, 1.0), (1.0, None), (2.0, 3.0))]
    runs += [tuning("reward", "medium", f, v) for f, v in ((0.5, 0.6), (1.0, 0.6))]
    runs += [tuning("sft", "small", 4.0, 0.1, seed=41)]  # another seed chooses nothing
    runs += [tuning("sft", "medium", 1.0, None)]
    assert scaling.chosen_rates(runs) == {"small": {"sft": 1.0, "ppo": 2.0}, "medium": {"reward": 0.5}}


def test_no_working_rate_ends_the_study_with_what_to_do():
    study = scaling.Study(RECIPE, None, {}, {})
    plan = scaling.planned(study, [41], (1.0,))
    run = next(plan)
    study.runs[run] = run._asdict() | {"stopped": "loss is nan"}
    with pytest.raises(TrainingFailure, match="no learning rate of sft small worked.*lower sft.lr"):
        next(plan)


def by_hand(stage, seed, policy, reward, **measured) -> dict:
    return Run(stage, seed, policy, reward, 1.0)._asdict() | measured


def test_the_summary_is_students_interval_of_the_paired_differences():
    gold = {"small": (0.5, 0.7, 0.9), "medium": (0.6, 0.9, 1.2)}  # differences 0.1, 0.2, 0.3
    runs = [by_hand("sft", 41 + i, size, None, gold=v, loss_before=2.0, validation_loss=0.5 + 0.1 * i)
            for size in SIZES for i, v in enumerate(gold[size])]  # fmt: skip
    runs += [by_hand("sft", TUNING_SEED, size, None, gold=9.0) for size in SIZES]
    rows = {row["quantity"]: row for row in scaling.summary(runs)}
    row, half = rows["gold"], 4.302653 * 0.1 / math.sqrt(3)  # t(0.975, 2 degrees of freedom)
    assert (row["seeds"], row["small"], row["medium"]) == ([41, 42, 43], [0.5, 0.7, 0.9], [0.6, 0.9, 1.2])
    assert row["mean"] == pytest.approx(0.2)
    assert (row["low"], row["high"]) == (pytest.approx(0.2 - half, abs=1e-5), pytest.approx(0.2 + half, abs=1e-5))
    assert row["distinguishable"] is False and "length" not in rows
    assert rows["loss_reduction"]["small"] == pytest.approx([1.5, 1.4, 1.3])
    assert scaling.difference([0, 0, 0], [0.9, 1.0, 1.1])["distinguishable"] is True
    assert scaling.difference([0.9, 1.0, 1.1], [0, 0, 0])["distinguishable"] is True
    table = reporting.scaling_table(scaling.summary(runs))
    assert "| sft | gold | 0.7 | 0.9 | 0.2 [-0.0484, 0.448] | no |" in table


def test_one_seed_has_a_difference_but_no_interval():
    runs = [by_hand("base", 41, size, None, gold=v) for size, v in zip(SIZES, (0.25, 0.5), strict=True)]
    (row,) = scaling.summary(runs)
    assert (row["mean"], row["low"], row["high"], row["distinguishable"]) == (0.25, None, None, None)
    assert "one seed" in reporting.scaling_table([row])


def test_contrasts_of_the_two_by_two_change_one_size_at_a_time():
    gold = {("small", "small"): 0.0, ("small", "medium"): 0.1, ("medium", "small"): 0.4, ("medium", "medium"): 0.8}
    runs = [by_hand("reward", 41, *cell, gold_agreement=v) for cell, v in gold.items()]
    means = {row["contrast"]: row["mean"] for row in scaling.summary(runs) if row["quantity"] == "gold_agreement"}
    assert means == pytest.approx({
        "same size": 0.8, "policy, small reward model": 0.4, "policy, medium reward model": 0.7,
        "reward model, small policy": 0.1, "reward model, medium policy": 0.4,
    })  # fmt: skip


def test_a_stopped_run_leaves_its_seed_out_of_the_comparison():
    curves = {name: [0.5] for name in scaling.LATE.values()}
    runs = [by_hand("ppo", seed, size, size, gold=0.5, curves=curves) for seed in (41, 42, 43) for size in SIZES]
    runs[0] = {k: v for k, v in runs[0].items() if k != "gold"} | {"stopped": "the KL exploded"}
    (row,) = [r for r in scaling.summary(runs) if r["quantity"] == "gold" and r["contrast"] == "same size"]
    assert row["seeds"] == [42, 43]


def test_late_quantities_are_means_over_the_last_quarter_of_the_curve():
    curves = {name: [1.0] * 6 + [None, 3.0, 5.0] for name in scaling.LATE.values()}
    run = by_hand("ppo", 41, "small", "small", curves=curves)
    assert [scaling.quantity(run, name) for name in scaling.LATE] == [4.0] * 3


def test_the_win_rate_is_that_of_medium_over_small_paired_by_prompt():
    small, medium = [0.1, 0.2, 0.3, 0.4, 0.5], [0.9, 0.2, 0.1, 0.8, 0.9]
    runs = [by_hand("sft", 41, size, None, gold_each=g) for size, g in zip(SIZES, (small, medium), strict=True)]
    (row,) = scaling.win_rates(runs)
    assert (row["wins"], row["ties"], row["losses"], row["rate"]) == (3, 1, 1, 0.7)
    assert (row["stage"], row["contrast"], row["seed"]) == ("sft", "same size", 41)
    assert (row["low"], row["high"]) == evaluation.win_rate(medium, small)[1:3]


# ---------------------------------------------------------------------------------------------------------- usage


def test_the_stage_prints_a_table_and_where_the_runs_are(finished, capsys):
    paths, _, _ = finished
    arguments = ["scaling", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(paths.output_dir)]
    assert main([*arguments, "--set", "precision=no"]) == 0  # nothing left to do
    out = capsys.readouterr().out
    assert "| ppo | gold |" in out and "scaling.json" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--seeds", "2", "41"], ["seed 2 chose the learning rates", "--seeds 41 42 43"]),
        (["--set", "sft.method=lora"], ["in full", "leave policy and method"]),
        (["--set", "policy=tiny:medium"], ["in full", "leave policy and method"]),
        (["--seed", "3"], ["--seeds"]),
    ],
)
def test_wrong_usage_is_one_sentence(capsys, tmp_path, arguments, words):
    code = main(["scaling", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path), *arguments])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert all(word in err for word in words)


def test_at_full_scale_the_study_reads_the_recipe_as_it_is():
    assert scaling_recipe("tiny") == get_recipe("tiny")
    with pytest.raises(UsageError):
        scaling_recipe("tiny", overrides={"sft.lr": -1})
