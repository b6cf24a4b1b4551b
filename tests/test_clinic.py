"""Each fault does what it says and leaves nothing behind; signs, matrix and diagnoses are read off runs made by hand."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
import torch
from test_rollout import PROMPTS, brief_policy

from rlhf_lib import clinic, data, doctor, models, ppo, reporting, rollout
from rlhf_lib.__main__ import main
from rlhf_lib.clinic import CASES, CHECKS, FAULTS, Outcome
from rlhf_lib.recipes import CLINIC, SMOKE, PPOConfig, clinic_recipe
from rlhf_lib.runtime import Paths, TrainingFailure, UsageError, make_accelerator, set_seed


@pytest.fixture
def cast(tokenizer):
    reward_model = models.load_reward_model(models.ASSETS / "reward")
    return SimpleNamespace(
        policy=brief_policy(tokenizer), ref_policy=brief_policy(tokenizer), reward_model=reward_model,
        value_model=models.value_model_from(reward_model), tokenizer=tokenizer, reward_tokenizer=tokenizer,
    )  # fmt: skip


def sample(cast, n: int = 8, seed: int = 0):
    return ppo.generate(cast.policy, cast.tokenizer, PROMPTS, n, seed=seed)


# ----------------------------------------------------------------------------------------------- nothing is left


def everything(cast) -> list:
    """All that any fault may replace."""
    modules = list(cast.policy.modules())
    return [
        rollout._sample, rollout._logits, rollout.generate, ppo.generate, rollout.Rollout.__dict__["finished"],
        ppo.compute_gae, ppo.token_rewards, ppo.ActorCritic.forward, data.completion_batch, cast.policy.eval,
        cast.policy, cast.ref_policy, cast.reward_tokenizer, cast.reward_model.config.pad_token_id,
        cast.tokenizer.pad_token_id, [m.training for m in modules], [m.p for m in modules if hasattr(m, "p")],
    ]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_replaces_something_and_puts_it_back(case, cast):
    before = everything(cast)
    with clinic.injected(case, cast):
        inside = everything(cast)
    assert everything(cast) == before
    by_setting_or_not_at_all = case in ("k3_reward", "beta_zero", "learning_rate", "correct")
    assert (inside != before) != by_setting_or_not_at_all


@pytest.mark.parametrize("case", CASES)
def test_everything_is_put_back_after_an_exception(case, cast):
    before = everything(cast)
    with pytest.raises(TrainingFailure), clinic.injected(case, cast):
        raise TrainingFailure("stopped")
    assert everything(cast) == before


def test_faults_that_are_settings_change_a_setting_of_the_clinic():
    recipe = clinic_recipe("tiny").ppo
    names = {field.name for field in dataclasses.fields(PPOConfig)}
    changed = {case: settings for case in FAULTS if (settings := CASES[case].settings)}
    assert set(changed) == {"update_temperature", "pads_counted", "k3_reward", "beta_zero", "learning_rate"}
    for settings in changed.values():
        for key, value in settings.items():
            assert key in names and getattr(recipe, key) != value
    assert changed["learning_rate"]["lr"] == pytest.approx(10 * recipe.lr)


def test_the_clinics_recipe_is_short_and_at_smoke_scale_as_small_as_every_other():
    full, smoke = clinic_recipe("tiny"), clinic_recipe("tiny", "smoke")
    assert all(getattr(full.ppo, key.removeprefix("ppo.")) == value for key, value in CLINIC.items())
    for key in CLINIC:
        expected = SMOKE.get(key, CLINIC[key])
        assert getattr(smoke.ppo, key.removeprefix("ppo.")) == expected
    assert clinic_recipe("tiny", overrides={"ppo.updates": 3}).ppo.updates == 3


# -------------------------------------------------------------------------------------------- what a fault does


def frequencies(logits: torch.Tensor, n: int = 20_000) -> torch.Tensor:
    """How often `_sample` draws each token, over an even grid of noise: (V,)."""
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.bincount(rollout._sample(logits.expand(n, -1), 1.0, uniform), minlength=len(logits)) / n


def test_temperature_sharpens_what_is_sampled(cast):
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    with clinic.injected("temperature", cast):
        torch.testing.assert_close(frequencies(logits), (logits / 0.7).softmax(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(frequencies(logits), logits.softmax(-1), atol=1e-3, rtol=0)


def test_top_k_samples_the_ten_most_probable_in_proportion(cast):
    logits = torch.linspace(-1, 1, 15)[torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    kept = logits >= logits.sort().values[-10]
    expected = torch.where(kept, logits.exp(), 0.0)
    with clinic.injected("top_k", cast):
        torch.testing.assert_close(frequencies(logits), expected / expected.sum(), atol=1e-3, rtol=0)


def test_top_p_samples_the_fewest_that_hold_nine_tenths(cast):
    probs = torch.tensor([0.04, 0.5, 0.02, 0.25, 0.19])  # 0.5 + 0.25 + 0.19 is the first sum above 0.9
    with clinic.injected("top_p", cast):
        expected = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.19]) / 0.94
        torch.testing.assert_close(frequencies(probs.log()), expected, atol=1e-3, rtol=0)


def test_min_new_tokens_forbids_eos_at_first_in_every_rollout(cast):
    assert (sample(cast, 28).response_mask.sum(-1) < 24).any()
    with clinic.injected("min_new_tokens", cast):
        for seed in (0, 1):  # counted anew in each
            batch = sample(cast, 40, seed)
            lengths = batch.response_mask.sum(-1)
            assert (lengths > 24).all() and batch.finished.any() and lengths.min() < 40


def test_dropout_is_on_in_the_policy_alone_and_eval_does_not_turn_it_off(cast):
    ids = torch.arange(40)[None] + 5
    with torch.no_grad(), clinic.injected("dropout", cast):
        cast.policy.eval()
        a, b = cast.policy(ids).logits, cast.policy(ids).logits
        c, d = cast.ref_policy(ids).logits, cast.ref_policy(ids).logits
    assert not torch.allclose(a, b, atol=1e-2) and torch.equal(c, d)


def test_update_temperature_is_forgotten_in_the_update_alone(cast):
    batch, actor_critic = sample(cast), ppo.ActorCritic(cast.policy, lambda ids, mask: torch.zeros(ids.shape))
    args = batch.input_ids, batch.attention_mask, batch.prompt_length
    with torch.no_grad():
        at_1, at_07 = actor_critic(*args, 1.0)[0], actor_critic(*args, 0.7)[0]
        with clinic.injected("update_temperature", cast):
            torch.testing.assert_close(actor_critic(*args, 0.7)[0], at_1)
            last = batch.response_mask.shape[1]
            torch.testing.assert_close(
                rollout.token_logprobs(cast.policy, batch.input_ids, batch.attention_mask, 0.7, last), at_07
            )
    assert not torch.allclose(at_1, at_07, atol=1e-2)


@pytest.mark.parametrize("case", ["pads_counted", "eos_masked", "pad_is_eos"])
def test_mask_faults_change_the_mask_and_neither_tokens_nor_who_ended(case, cast, tokenizer):
    right = sample(cast)
    ended, is_eos = right.finished, right.input_ids[:, right.prompt_length :] == tokenizer.eos_token_id
    assert ended.any() and not ended.all()
    with clinic.injected(case, cast):
        wrong = sample(cast)
        assert torch.equal(wrong.finished, ended)
        part = wrong.rows([0, 3])
        assert torch.equal(part.response_mask.sum(-1), wrong.response_mask[[0, 3]].sum(-1))
    assert torch.equal(wrong.input_ids, right.input_ids) and torch.equal(wrong.attention_mask, right.attention_mask)
    if case == "pads_counted":
        assert wrong.response_mask.all()
    else:
        assert torch.equal(wrong.response_mask, right.response_mask & ~is_eos)
        assert torch.equal(right.response_mask.sum(-1) - wrong.response_mask.sum(-1), ended.long())


def test_positions_shift_with_the_padding(cast):
    batch = sample(cast)
    args, prompt = (cast.policy, batch.input_ids, batch.attention_mask), batch.prompt_length
    with torch.no_grad():
        right = rollout.token_logprobs(*args)[:, prompt - 1 :]
        with clinic.injected("positions", cast):
            wrong = rollout.token_logprobs(*args)[:, prompt - 1 :]
    off = torch.where(batch.response_mask, (right - wrong).abs(), 0.0).max(-1).values
    padded = ~batch.attention_mask[:, :prompt].bool().all(-1)
    assert 0 < padded.sum() < len(padded)
    assert (off[padded] > 1e-3).all() and (off[~padded] < 1e-4).all()


def test_gae_behind_bootstraps_from_the_pad(cast):
    rewards = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    values = torch.tensor([[0.5, 0.4, 5.0], [0.5, 0.4, 0.3]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with clinic.injected("gae_behind", cast):
        advantages, returns = ppo.compute_gae(rewards, values, mask, 1.0, 0.5)
    right, _ = ppo.compute_gae(rewards, values, mask, 1.0, 0.5)
    on_paper = [0.4 - 0.5 + 0.5 * 5.6, 1 + 5 - 0.4, 0.0]
    torch.testing.assert_close(advantages[0], torch.tensor(on_paper))
    torch.testing.assert_close(returns[0], torch.tensor([on_paper[0] + 0.5, on_paper[1] + 0.4, 0.0]))
    torch.testing.assert_close(advantages[1], right[1])  # no pad, nothing to read


def test_a_score_that_is_late_is_booked_and_never_learnt_from(cast):
    logprobs, ref = torch.tensor([[-1.0, -2.0, -9.0]] * 2), torch.tensor([[-1.5, -1.0, -9.0]] * 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scores, rest = torch.tensor([7.0, 3.0]), (logprobs, ref, mask, 0.1)
    right = ppo.token_rewards(scores, *rest)
    with clinic.injected("score_late", cast):
        wrong = ppo.token_rewards(scores, *rest)
    torch.testing.assert_close(wrong[0], torch.tensor([-0.05, 0.1, 7.0]))
    torch.testing.assert_close(wrong[1], right[1])  # it has no column behind its end
    torch.testing.assert_close(wrong.sum(-1), right.sum(-1))
    unpaid = ppo.token_rewards(torch.zeros(2), *rest)
    values = torch.zeros(2, 3)
    learnt, nothing = (ppo.compute_gae(rewards, values, mask)[0][0] for rewards in (wrong, unpaid))
    torch.testing.assert_close(learnt, nothing)


def test_kl_sign_pays_for_what_should_cost(cast):
    args = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]]), torch.tensor([[True, True]]), 0.1
    with clinic.injected("kl_sign", cast):
        torch.testing.assert_close(ppo.token_rewards(torch.zeros(1), *args), torch.tensor([[0.05, -0.1]]))


def test_a_shared_reference_is_the_policy(cast):
    with clinic.injected("shared_reference", cast):
        assert cast.ref_policy is cast.policy
    assert cast.ref_policy is not cast.policy


def test_pad_is_eos_reads_the_score_one_token_early_and_teaches_no_end(cast, tokenizer):
    prompts, texts = PROMPTS[:3], ["She left.", "My sister Nora moved in and pays no rent.", "Help!"]
    expected = []
    for prompt, text in zip(prompts, texts):
        ids = torch.tensor([tokenizer(f"{prompt} {text}", add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            expected.append(cast.reward_model(ids).logits[0, 0] - cast.reward_model.config.reward_mean)
    demonstrations = [{"prompt": p, "completion": t} for p, t in zip(prompts, texts)]
    with clinic.injected("pad_is_eos", cast):
        wrong = models.score_responses(cast.reward_model, cast.reward_tokenizer, prompts, texts)
        assert doctor._labels(tokenizer, demonstrations, 100).measured == 1
        with pytest.raises(UsageError, match="no PAD token of its own"):
            rollout.generate(cast.policy, cast.reward_tokenizer, prompts, 4)
    torch.testing.assert_close(wrong, torch.stack(expected), atol=1e-4, rtol=0)
    right = models.score_responses(cast.reward_model, cast.reward_tokenizer, prompts, texts)
    assert not torch.allclose(right, wrong, atol=1e-2)
    assert doctor._labels(tokenizer, demonstrations, 100).passed


@pytest.mark.parametrize(
    "case, seen",
    [("top_k", "c"), ("min_new_tokens", "c"), ("dropout", "af"), ("pads_counted", "e"), ("positions", "b"),
     ("score_late", "d"), ("kl_sign", "d"), ("k3_reward", "d"), ("beta_zero", "d"), ("pad_is_eos", "e"),
     ("shared_reference", ""), ("gae_behind", ""), ("correct", "")],
)  # fmt: skip
def test_the_doctor_looks_at_the_faulty_library(case, seen, cast, tokenizer):
    recipe = clinic_recipe("tiny", "smoke", overrides={"max_new_tokens": 28})
    recipe = dataclasses.replace(recipe, ppo=dataclasses.replace(recipe.ppo, **CASES[case].settings))
    demonstrations = [{"prompt": p, "completion": "She left me today."} for p in PROMPTS]
    set_seed(0)
    with clinic.injected(case, cast):
        report = doctor.examine(recipe, cast.policy, cast.ref_policy, tokenizer, PROMPTS, demonstrations, responses=128)
    letters = {check.name[0] for check in report.checks if not check.passed}
    assert set(seen) <= letters and (seen or not letters)


# --------------------------------------------------------------------------------------------------------- runs


@pytest.fixture
def clinic_smoke():
    return clinic_recipe("tiny", "smoke", overrides={"precision": "no"})


def test_the_correct_run_is_the_loop_itself(clinic_smoke, tmp_path):
    outcome = clinic.run_case("correct", 4, clinic_smoke)
    recipe = dataclasses.replace(clinic_smoke, seed=4)
    parts, prompts = clinic.make_cast(recipe), [p.prompt for p in data.training_posts("ppo", recipe.ppo.prompts, 4)]
    rows = ppo.train_ppo(
        recipe, parts.policy, parts.ref_policy, parts.reward_model, parts.value_model, parts.tokenizer,
        parts.reward_tokenizer, prompts, tmp_path, make_accelerator("no"), settings={},
    )  # fmt: skip
    assert len(outcome.rows) == len(rows) == 2
    for mine, plain in zip(outcome.rows, rows):
        plain.pop("eps")
        assert mine == pytest.approx(plain, rel=1e-3, abs=1e-6)
    assert not outcome.stopped and -1 <= outcome.gold <= 1 and outcome.failed == []


def test_a_run_with_a_shared_reference_has_no_kl(clinic_smoke):
    outcome = clinic.run_case("shared_reference", 4, clinic_smoke)
    assert max(map(abs, outcome.curves["objective/kl"])) < 1e-3
    assert max(outcome.curves["policy/approxkl"]) > 1e-8  # and yet the policy has moved
    assert Outcome(**json.loads(json.dumps(dataclasses.asdict(outcome)))) == outcome


def test_a_training_failure_is_a_detection_and_keeps_its_rows(clinic_smoke, monkeypatch):
    def stops(*args, **kwargs):
        folder = args[8]
        (folder / "ppo_metrics.jsonl").write_text('{"step": 1, "objective/kl": 300.0, "eps": 2.0}\n')
        raise TrainingFailure("PPO stopped at update 1: objective/kl = 300")

    monkeypatch.setattr(ppo, "train_ppo", stops)
    outcome = clinic.run_case("beta_zero", 4, clinic_smoke)
    assert outcome.stopped.startswith("PPO stopped") and outcome.rows == [{"step": 1.0, "objective/kl": 300.0}]
    assert clinic.detections(outcome) == {check: check in ("d", "ranges") for check in CHECKS}


def test_a_run_that_stops_before_its_first_row_has_no_curves(clinic_smoke, monkeypatch):
    def stops(*args, **kwargs):
        raise TrainingFailure("ppo diverged at step 1: policy/loss is nan")

    monkeypatch.setattr(ppo, "train_ppo", stops)
    outcome = clinic.run_case("learning_rate", 4, clinic_smoke)
    assert outcome.rows == [] and clinic.detections(outcome)["ranges"]
    assert math.isnan(clinic.first(outcome, "objective/kl")) and math.isnan(clinic.late(outcome, "objective/kl"))


def test_unknown_cases_and_models_are_refused_in_one_sentence(clinic_smoke):
    with pytest.raises(UsageError, match="unknown fault 'gremlins'"):
        clinic.run_case("gremlins", 1, clinic_smoke)
    with pytest.raises(UsageError, match="shipped snapshots"):
        clinic.make_cast(dataclasses.replace(clinic_smoke, policy="tiny:medium"))


# ------------------------------------------------------------------------------------- runs made by hand, and signs

NAMES = ("a ratio - 1 at step 0", "a KL at step 0", "a approxkl at step 0", "a clipfrac at step 0", "b padded - unpadded",
         clinic.Z, clinic.PROBE, clinic.BETA, "e EOS among labels", "e masks end at EOS", "f two passes differ by")  # fmt: skip
HEALTHY = {
    "step": [float(i) for i in range(1, 13)], "objective/scores": [-2.6 + 0.1 * i for i in range(12)],
    "objective/kl": [0.0, 0.0] + [0.1 * i for i in range(10)], "objective/entropy": [0.4 - 0.01 * i for i in range(12)],
    "policy/approxkl": [1e-3] * 12, "policy/first_approxkl": [1e-7] * 12, "policy/clipfrac": [0.01] * 12,
    "val/ratio": [1.0] * 12, "val/first_ratio": [1.0] * 12, "val/length": [21.0] * 12, "val/eos_rate": [1.0] * 12,
    "val/error": [9.0 - 0.5 * i for i in range(12)], "val/explained_variance": [-0.2] * 3 + [0.4] * 9,
    "check/kl_z": [None] * 3 + [0.5] + [None] * 3 + [-1.0] + [None] * 4,
}  # fmt: skip
HEALTHY["objective/rewards"] = [s - 0.5 * kl for s, kl in zip(HEALTHY["objective/scores"], HEALTHY["objective/kl"])]


def by_hand(case="correct", seed=1, failed=(), z=0.4, stopped="", **curves) -> Outcome:
    """A healthy run but for what is given; curves by the part of their name behind the slash."""
    names = {key.split("/")[-1]: key for key in HEALTHY}
    changed = {names[key]: values for key, values in curves.items()}
    return Outcome(
        case, seed, dict.fromkeys(NAMES, 0.0) | {clinic.Z: z}, list(failed), HEALTHY | changed, stopped, 0.5, 1.0
    )


SICK = {
    "temperature": dict(failed=[clinic.Z], z=-8.0, scores=[-2.0] * 12),
    "top_k": dict(failed=[clinic.Z], z=-6.0),
    "top_p": dict(failed=[clinic.Z], z=-9.0),
    "min_new_tokens": dict(failed=[clinic.Z], z=9.0, length=[26.0] * 12),
    "dropout": dict(failed=[NAMES[0], NAMES[-1]], first_approxkl=[0.02] * 12),
    "update_temperature": dict(first_approxkl=[0.02] * 12),
    "pads_counted": dict(failed=[clinic.Z, NAMES[9]], z=21.0, length=[40.0] * 12, kl=[0.0, 0.0] + [-35.0] * 10),
    "eos_masked": dict(failed=[NAMES[9]], length=[20.0] * 12),
    "positions": dict(failed=[NAMES[4]], first_approxkl=[0.02] * 12),
    "gae_behind": dict(error=[20.0] + [9.0] * 11),
    "score_late": dict(
        failed=[clinic.PROBE], scores=[-2.6] * 12, rewards=[-2.6 - 0.5 * kl for kl in HEALTHY["objective/kl"]]
    ),
    "k3_reward": dict(failed=[clinic.PROBE], rewards=[r - 0.05 for r in HEALTHY["objective/rewards"]]),
    "kl_sign": dict(failed=[clinic.PROBE], kl=[0.0, 0.0] + [0.5 * i for i in range(10)]),
    "beta_zero": dict(failed=[clinic.BETA], kl=[0.0, 0.0] + [0.2 * i for i in range(10)]),
    "shared_reference": dict(kl=[0.0] * 12),
    "pad_is_eos": dict(failed=[NAMES[8]], length=[20.0] * 12, scores=[-2.0] * 12),
    "learning_rate": dict(clipfrac=[0.6] * 12),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_signature_is_all_of_its_signs_and_no_sound_run_shows_it(case):
    ill, well = by_hand(case, **SICK[case]), by_hand()
    assert clinic.has_signature(case, ill, well)
    assert not clinic.has_signature(case, well, well)
    assert not clinic.has_signature("correct", ill, well) or case in ("gae_behind", "shared_reference")
    empty = dataclasses.replace(well, curves={})
    assert not clinic.has_signature(case, empty, well)


def test_a_sound_run_has_the_signature_of_health_whatever_its_critic_does():
    assert clinic.has_signature("correct", by_hand(), by_hand())
    assert clinic.tripped(by_hand()) == "nothing"
    assert not any(clinic.detections(by_hand(explained_variance=[-5.0] * 12)).values())


@pytest.mark.parametrize(
    "changes, check",
    [
        *((dict(failed=[name]), name[0]) for name in NAMES),
        (dict(first_ratio=[1.0, 1.2] + [1.0] * 10), "first step"),
        (dict(first_approxkl=[0.01] * 12), "first step"),
        (dict(kl_z=[None] * 11 + [-4.5]), "exact KL"),
        (dict(kl=[-2.0] * 12), "ranges"),
        (dict(clipfrac=[0.5] * 12), "ranges"),
        (dict(eos_rate=[0.5] * 12), "ranges"),
        (dict(stopped="ppo diverged at step 13: policy/loss is nan"), "ranges"),
        (dict(stopped="PPO stopped at update 12", first_ratio=[1.0] * 11 + [3.0]), "first step"),
    ],
)
def test_each_check_sees_its_own_alarm_and_no_other(changes, check):
    assert clinic.detections(by_hand(**changes)) == {name: name == check for name in CHECKS}


def test_what_tripped_is_told_once_with_its_first_update():
    text = clinic.tripped(by_hand(failed=[clinic.Z], z=-8.0, clipfrac=[0.01] * 4 + [0.5] * 8))
    assert "doctor c surprise - entropy, z = -8" in text
    assert text.count("policy/clipfrac") == 1 and "update 5: policy/clipfrac = 0.5 is outside 0 .. 0.35" in text


# ------------------------------------------------------------------------------------------------------- matrix


def hospital(seeds=(1, 2, 3)) -> list[Outcome]:
    """The correct run, one fault seen in every seed, one seen in the second seed only, one never seen."""
    runs = []
    for seed in seeds:
        runs += [
            by_hand("correct", seed),
            by_hand("beta_zero", seed, **SICK["beta_zero"]),
            by_hand("top_k", seed, **(SICK["top_k"] if seed == 2 else {})),
            by_hand("shared_reference", seed, **SICK["shared_reference"]),
        ]
    return runs


def test_a_fault_whose_signs_were_written_anew_counts_with_seeds_of_its_own():
    own = clinic.AGAIN["positions"]
    assert not set(own) & {1, *clinic.SEEDS}
    runs = [by_hand("correct", seed) for seed in (*clinic.SEEDS, *own)] + [by_hand("positions", own[0])]
    runs += [by_hand("positions", seed, **SICK["positions"]) for seed in own[1:]]
    runs += [by_hand("dropout", seed, **SICK["dropout"]) for seed in clinic.SEEDS]
    table = clinic.matrix(runs, clinic.SEEDS)
    assert table["positions"]["signature"] == [False, True, True, True, True]
    assert table["dropout"]["signature"] == [True] * 5 == table["correct"]["signature"]


def test_the_matrix_counts_checks_and_signatures_by_seed():
    table = clinic.matrix(hospital(), (1, 2, 3))
    assert list(table) == ["correct", "top_k", "beta_zero", "shared_reference"]
    assert table["correct"]["signature"] == [True] * 3 and not any(map(any, table["correct"]["detected"].values()))
    assert table["beta_zero"]["detected"]["d"] == [True] * 3 and table["beta_zero"]["signature"] == [True] * 3
    assert table["top_k"]["detected"]["c"] == [False, True, False] == table["top_k"]["signature"]
    assert table["shared_reference"]["signature"] == [True] * 3
    assert clinic.unseen(table) == ["shared_reference"]
    assert clinic.matrix(hospital(), (2,))["top_k"]["signature"] == [True]


def test_a_case_that_lacks_a_seed_is_left_out_and_a_seed_without_a_correct_run_is_refused():
    runs = [run for run in hospital() if (run.case, run.seed) != ("top_k", 3)]
    assert "top_k" not in clinic.matrix(runs, (1, 2, 3)) and "top_k" in clinic.matrix(runs, (1, 2))
    with pytest.raises(UsageError, match="correct run of seed 2"):
        clinic.matrix([run for run in hospital() if (run.case, run.seed) != ("correct", 2)], (1, 2, 3))


@pytest.fixture
def ward(monkeypatch, clinic_smoke, tmp_path):
    """`run(**arguments)` runs the stage with runs made by hand; `run.made` lists what was run."""

    def run_case(case, seed, recipe):
        if run.killed_at == (case, seed):
            raise KeyboardInterrupt
        run.made.append((case, seed))
        return by_hand(case, seed, **SICK.get(case, {}))

    def run(recipe=clinic_smoke, **arguments):
        run.made.clear()
        return clinic.run_clinic(recipe, Paths("tiny", "smoke", tmp_path), **arguments)

    run.made, run.killed_at = [], None
    monkeypatch.setattr(clinic, "run_case", run_case)
    return run


def test_the_stage_runs_every_case_with_every_seed_and_keeps_what_is_finished(ward, tmp_path):
    summary = ward(seeds=[5, 6])
    assert sorted(ward.made) == sorted((case, seed) for case in CASES for seed in (5, 6))
    stored = json.loads((tmp_path / "smoke" / "evaluation" / "tiny" / "clinic.json").read_text())
    assert stored == json.loads(json.dumps(summary)) and list(stored["matrix"]) == list(CASES)
    assert all(all(row["signature"]) for row in stored["matrix"].values())
    assert ward(seeds=[5, 6]) == summary and ward.made == []
    assert ward(seeds=[6])["seeds"] == [6] and ward.made == []


def test_a_killed_stage_goes_on_where_it_stopped(ward):
    ward.killed_at = (FAULTS[2], 5)
    with pytest.raises(KeyboardInterrupt):
        ward(seeds=[5])
    assert ward.made == [("correct", 5), (FAULTS[0], 5), (FAULTS[1], 5)]
    ward.killed_at = None
    ward(seeds=[5])
    assert ward.made == [(case, 5) for case in FAULTS[2:]]


def test_named_faults_run_again_and_alone(ward, clinic_smoke):
    ward(seeds=[5], faults=["top_k"])
    assert ward.made == [("correct", 5), ("top_k", 5)]
    summary = ward(seeds=[5], faults=["top_k", "kl_sign"])
    assert sorted(ward.made) == [("kl_sign", 5), ("top_k", 5)] and set(summary["matrix"]) == {
        "correct",
        "top_k",
        "kl_sign",
    }
    other = dataclasses.replace(clinic_smoke, max_new_tokens=9)
    ward(recipe=other, seeds=[5], faults=["top_k"])
    assert ward.made == [("correct", 5), ("top_k", 5)]  # runs of other settings do not count
    with pytest.raises(UsageError, match="unknown fault 'gremlins'"):
        ward(seeds=[5], faults=["gremlins"])


def test_the_stage_on_the_command_line(capsys, tmp_path):
    arguments = ["clinic", "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path)]
    assert main([*arguments, "--faults", "kl_sign"]) == 0
    out = capsys.readouterr().out
    assert "| `correct` |" in out and "| `kl_sign` |" in out and "Seeds 31:" in out
    stored = json.loads((tmp_path / "smoke" / "evaluation" / "tiny" / "clinic.json").read_text())
    assert [(run["case"], run["seed"]) for run in stored["runs"]] == [("correct", 31), ("kl_sign", 31)]
    assert stored["matrix"]["kl_sign"]["detected"]["d"] == [True]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["clinic", "--faults", "gremlins"], ["unknown fault 'gremlins'", "top_k"]),
        (["clinic", "--seed", "3"], ["clinic runs several seeds", "--seeds"]),
        (["clinic", "--seeds", "-1"], ["seed=-1"]),
        (["clinic", "--resume"], ["--resume does nothing for clinic"]),
        (["ppo", "--faults", "top_k"], ["--faults does nothing for ppo", "clinic"]),
    ],
)
def test_wrong_usage_of_the_stage_is_one_sentence(capsys, tmp_path, arguments, words):
    code = main([*arguments, "--recipe", "tiny", "--scale", "smoke", "--output-dir", str(tmp_path)])
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


# -------------------------------------------------------------------------------------------------- blind cases


def test_each_blind_case_hides_one_fault_and_no_two_the_same():
    hidden = [clinic.blind_fault(blind) for blind in clinic.BLIND]
    assert len(set(hidden)) == len(hidden) == 3 and set(hidden) <= set(FAULTS)
    assert not any(name in json.dumps(clinic.BLIND) for name in FAULTS)


@pytest.mark.parametrize("blind", clinic.BLIND)
def test_only_the_right_diagnosis_is_accepted_and_wrong_ones_hear_which_sign_is_missing(blind):
    truth = clinic.blind_fault(blind)
    ill, well = by_hand(truth, **SICK[truth]), by_hand()
    for name in FAULTS:
        verdict = clinic.diagnose(blind, name, ill, well)
        if name == truth:
            assert verdict.startswith("Right") and CASES[name].cure in verdict
        else:
            assert verdict.startswith(f"Not yet: a sign of {name} is that ")
            assert any(sentence in verdict for sentence, _ in CASES[name].signs)
    assert clinic.diagnose(blind, f" {truth.replace('_', ' ').upper()} ", ill, well).startswith("Right")
    assert clinic.diagnose(blind, "", ill, well).startswith("Your turn")
    assert clinic.diagnose(blind, None, ill, well).startswith("Your turn")
    assert "no fault 'bad_luck'" in clinic.diagnose(blind, "bad luck", ill, well)


def test_a_diagnosis_whose_signs_are_all_there_is_still_not_yet_if_it_is_wrong():
    blind = next(iter(clinic.BLIND))
    ill = by_hand(**SICK["beta_zero"])
    assert "something else" in clinic.diagnose(blind, "beta_zero", ill, by_hand())


# ------------------------------------------------------------------------------------------------------ reports


def test_the_figures_and_the_table_show_what_they_are_given(tmp_path):
    table = clinic.matrix(hospital(), (1, 2, 3))
    reporting.plot_detection(table, tmp_path)
    rows = (tmp_path / "detection.csv").read_text().splitlines()
    assert rows[0].split(",") == ["fault", *CHECKS, "signature"]
    assert rows[2].startswith("top_k,0.0,0.0,0.333")
    short = dataclasses.replace(by_hand(), curves={key: values[:5] for key, values in HEALTHY.items()})
    panels = [("objective/kl", "KL (nats)"), ("check/kl_z", "z")]
    reporting.plot_beside({"Stopped": short.rows}, by_hand().rows, panels, tmp_path, "beside")
    assert (tmp_path / "beside.png").stat().st_size > 0
    lines = (tmp_path / "beside.csv").read_text().splitlines()
    assert len(lines) == 1 + 12 + 5 and lines[0] == "run,step,objective/kl,check/kl_z"
    assert [line.split(",")[-1] for line in lines[13:]] == ["", "", "", "0.5", ""]
    markdown = reporting.clinic_table({"matrix": table, "seeds": [1, 2, 3]})
    line = next(line for line in markdown.splitlines() if line.startswith("| `top_k`"))
    assert line == "| `top_k` | · | · | 1 | · | · | · | · | · | · | 1 of 3 |"
