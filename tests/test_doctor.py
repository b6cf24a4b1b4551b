"""The doctor finds nothing on a sound set-up, and each of its checks fails on a fault made for it."""

import math

import pytest
import torch
from test_rollout import PROMPTS, brief_policy

from conftest import random_policy
from rlhf_lib import data, doctor, models, ppo, rollout
from rlhf_lib.doctor import Check, Report
from rlhf_lib.recipes import PPOConfig, get_recipe
from rlhf_lib.runtime import TrainingFailure

DEMONSTRATIONS = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, ["a b", "why", "she left me today"] * 3)]
ALL = {
    "a ratio - 1 at step 0", "a KL at step 0", "a approxkl at step 0", "a clipfrac at step 0", "b padded - unpadded",
    "c surprise - entropy, z", "d reward probe", "d beta > 0", "e EOS among labels", "e masks end at EOS",
    "f two passes differ by",
}  # fmt: skip


def examine(policy, tokenizer, ref_policy=None, **overrides) -> Report:
    recipe = get_recipe("tiny", "smoke", overrides={"max_new_tokens": 12} | overrides)
    return doctor.examine(recipe, policy, ref_policy or policy, tokenizer, PROMPTS, DEMONSTRATIONS, responses=128)


def failed(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def told(report: Report, name: str) -> str:
    """The likely causes that table and error name for a failed check, "" for one that passed."""
    causes = next(line for line in str(report).splitlines() if line.startswith(name)).partition("likely causes: ")[2]
    with pytest.raises(TrainingFailure) as error:
        report.raise_if_sick()
    assert not causes or f"; likely causes: {causes})" in str(error.value)
    return causes


@pytest.fixture
def brief(tokenizer):
    return brief_policy(tokenizer)


# ------------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize("seed", range(3))
def test_a_sound_set_up_passes_every_check(tokenizer, seed):
    report = examine(random_policy(tokenizer, seed=seed), tokenizer)
    assert {check.name for check in report.checks} == ALL
    assert report.healthy and failed(report) == set() and "likely causes" not in str(report)
    report.raise_if_sick()


def test_a_sound_set_up_with_brief_responses_and_another_temperature_passes(brief, tokenizer):
    assert failed(examine(brief, tokenizer, **{"ppo.temperature": 0.7})) == set()


def test_the_noise_of_512_responses_does_not_depend_on_how_the_doctor_splits_them(brief, tokenizer, monkeypatch):
    seen, generate = [], rollout.generate

    def spy(*args, **kwargs):
        seen.append(kwargs["indices"])
        return generate(*args, **kwargs)

    monkeypatch.setattr(rollout, "generate", spy)
    recipe = get_recipe("tiny", "smoke", overrides={"max_new_tokens": 4})
    doctor.examine(recipe, brief, brief, tokenizer, PROMPTS, DEMONSTRATIONS)
    assert [i for part in seen for i in part] == list(range(512))


def test_surprise_less_entropy_has_the_z_of_its_closed_form(brief, tokenizer):
    batch = rollout.generate(brief, tokenizer, PROMPTS, 6, seed=0)
    gaps = []
    for row in range(len(PROMPTS)):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()]
        n = int(batch.response_mask[row].sum())
        with torch.no_grad():
            each = torch.distributions.Categorical(logits=brief(input_ids=ids[None]).logits[0, -n - 1 : -1])
        gaps.append((-each.log_prob(ids[-n:]) - each.entropy()).sum())
    gaps = torch.stack(gaps)
    expected = gaps.mean() / (gaps.std() / len(gaps) ** 0.5)
    assert doctor._surprise([batch.rows([0, 1, 2]), batch.rows([3, 4, 5, 6, 7])], brief, 1.0).measured == pytest.approx(
        expected.item(), abs=1e-3
    )


# ------------------------------------------------------------------------------------------------------- faults


def test_a_and_f_see_dropout(tokenizer):
    policy = random_policy(tokenizer, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1).train()
    report = examine(policy, tokenizer)
    found = failed(report)
    assert {"f two passes differ by", "a ratio - 1 at step 0", "a approxkl at step 0", "a KL at step 0"} <= found
    assert told(report, "f two passes differ by").startswith("dropout left on: call model.eval()")
    assert all(
        told(report, name).startswith("dropout left on, if check f fails too") for name in found if name[0] == "a"
    )


def test_a_sees_a_policy_that_is_not_its_reference(policy, ref_policy, tokenizer):
    report = examine(policy, tokenizer, ref_policy)
    assert failed(report) == {"a KL at step 0"}
    assert "a reference that is not the policy's start" in told(report, "a KL at step 0")
    assert told(report, "a ratio - 1 at step 0") == told(report, "d reward probe") == ""


def test_a_sees_an_update_scored_at_another_temperature(policy, tokenizer, monkeypatch):
    token_logprobs = rollout.token_logprobs
    monkeypatch.setattr(
        rollout,
        "token_logprobs",
        lambda model, ids, mask, temperature, last: token_logprobs(model, ids, mask, 1.5, last),
    )
    report = examine(policy, tokenizer)
    for name in ("a ratio - 1 at step 0", "a approxkl at step 0", "a clipfrac at step 0"):
        assert "another temperature in one of the two passes that score" in told(report, name)


def test_b_alone_sees_positions_that_count_padding(policy, tokenizer, monkeypatch):
    """Sampling and scoring agree on the wrong positions, so nothing else can see it."""
    monkeypatch.setattr(rollout, "position_ids", lambda mask: torch.arange(mask.shape[1]).expand_as(mask))
    report = examine(policy, tokenizer)
    assert failed(report) == {"b padded - unpadded"}
    assert told(report, "b padded - unpadded").startswith("positions that do not follow the mask")


def test_b_sees_padding_that_is_attended(policy, tokenizer, monkeypatch):
    logits = rollout._logits
    monkeypatch.setattr(
        rollout, "_logits", lambda model, ids, mask, keep: logits(model, ids, torch.ones_like(mask), keep)
    )
    assert "an attention mask that lets padding in" in told(examine(policy, tokenizer), "b padded - unpadded")


def nucleus(logits, top_p):
    """Logits of the most probable tokens that hold `top_p` together, the others at -inf."""
    p, order = logits.softmax(-1).sort(-1, descending=True)
    outside = p.cumsum(-1) - p >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -math.inf)


def top(logits, k):
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -math.inf)


@pytest.mark.parametrize(
    "change, sign, cause",
    [(lambda x: x / 0.7, -1, "lower temperature than scored"), (lambda x: x / 1.4, 1, "higher temperature than scored"),
     (lambda x: nucleus(x, 0.8), -1, "top_p below 1"), (lambda x: top(x, 5), -1, "a small top_k")],
    ids=["temperature .7", "temperature 1.4", "top_p .8", "top_k 5"],
)  # fmt: skip
def test_c_alone_sees_what_sampling_does_and_scoring_does_not(policy, tokenizer, monkeypatch, change, sign, cause):
    sample = rollout._sample
    monkeypatch.setattr(rollout, "_sample", lambda logits, *args: sample(change(logits), *args))
    report = examine(policy, tokenizer)
    assert failed(report) == {"c surprise - entropy, z"}
    z = next(check.measured for check in report.checks if check.name.startswith("c"))
    assert z * sign > 3  # sharper sampling surprises too little, flatter too much
    assert f"sampled {'at a' if 'temperature' in cause else 'with'} {cause}" in told(report, "c surprise - entropy, z")


def test_c_alone_sees_min_new_tokens(tokenizer, monkeypatch):
    sample, steps = rollout._sample, []

    def without_eos(logits, *args):
        steps.append(1)
        if len(steps) <= 8:
            logits = logits.clone()
            logits[:, tokenizer.eos_token_id] = -math.inf
        return sample(logits, *args)

    monkeypatch.setattr(rollout, "_sample", without_eos)
    report = examine(brief_policy(tokenizer), tokenizer)
    assert failed(report) == {"c surprise - entropy, z"}
    assert "(min_new_tokens), if no other check fails" in told(report, "c surprise - entropy, z")


def test_e_and_c_see_pads_that_count_as_actions(tokenizer, monkeypatch):
    """With the shipped SFT policy, which all but never writes PAD, and room enough for most responses to end."""
    policy = models.load_policy(models.ASSETS / "sft", tokenizer)
    generate = rollout.generate

    def counts_everything(*args, **kwargs):
        batch = generate(*args, **kwargs)
        batch.response_mask = torch.ones_like(batch.response_mask)
        return batch

    monkeypatch.setattr(rollout, "generate", counts_everything)
    report = examine(policy, tokenizer, max_new_tokens=40)
    assert told(report, "e masks end at EOS").startswith("pads counted as actions, if check c fails too")
    assert told(report, "c surprise - entropy, z").startswith("pads counted as actions, if check e fails too")


@pytest.mark.parametrize(
    "response, mask, passed",
    [
        ([7, 8, 0, 1], [True, True, True, False], True),
        ([7, 8, 9, 5], [True, True, True, True], True),
        ([7, 8, 0, 1], [True, True, True, True], False),
        ([7, 0, 8, 0], [True, True, True, True], False),
        ([7, 8, 9, 5], [True, False, True, True], False),
        ([7, 8, 0, 1], [False, False, False, False], False),
        ([7, 8, 0, 1], [True, True, False, False], False),
    ],
    ids=[
        "ends at EOS",
        "never ends",
        "counts what follows EOS",
        "ends twice",
        "has a hole",
        "counts nothing",
        "leaves EOS out",
    ],
)
def test_e_sees_each_kind_of_wrong_mask(response, mask, passed):
    ids = torch.tensor([[5, 5, *response], [5, 5, 0, 1, 1, 1]])
    counted = torch.tensor([mask, [True, False, False, False]])
    check = doctor._masks([rollout.Rollout(ids, torch.ones(2, 6), 2, counted, ["", ""], 0)], 0)
    assert check.passed == passed and check.measured == (0 if passed else 0.5)
    assert passed or {
        "pads counted as actions, if check c fails too",
        "EOS left out of the mask, if check c passes",
    } <= {*told(Report([check]), "e masks").split("; ")}


def test_d_sees_a_flipped_sign(policy, tokenizer, monkeypatch):
    rewards = ppo.token_rewards
    monkeypatch.setattr(ppo, "token_rewards", lambda s, p, q, m, beta, kind: rewards(s, p, q, m, -beta, kind))
    report = examine(policy, tokenizer)
    assert failed(report) == {"d reward probe"}
    assert "the sign of the KL term flipped, if measured is 2 kl_coef" in told(report, "d reward probe")


def test_d_sees_a_score_paid_at_every_token(policy, tokenizer, monkeypatch):
    rewards = ppo.token_rewards
    monkeypatch.setattr(ppo, "token_rewards", lambda s, *rest: rewards(0 * s, *rest) + s[:, None])
    report = examine(policy, tokenizer)
    assert failed(report) == {"d reward probe"}
    assert "the score paid elsewhere than at the last token" in told(report, "d reward probe")


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_d_sees_another_estimator_in_the_reward(policy, tokenizer, kind):
    report = examine(policy, tokenizer, **{"ppo.kl_estimator": kind})
    assert failed(report) == {"d reward probe"}
    assert "another estimator in the reward" in told(report, "d reward probe")


def test_d_sees_a_kl_that_costs_nothing(policy, tokenizer):
    report = examine(policy, tokenizer, **{"ppo.kl_coef": 0.0})
    assert failed(report) == {"d beta > 0"} and "kl_coef is 0" in told(report, "d beta > 0")


def test_d_sees_a_kl_that_is_rewarded():
    report = Report(doctor._reward_probe(PPOConfig(kl_coef=-0.05)))
    assert failed(report) == {"d beta > 0"} and "kl_coef is negative" in told(report, "d beta > 0")


@pytest.mark.parametrize(
    "end, cause",
    [([], "no EOS appended"), ([0, 0], "EOS appended twice"), ([0, 5], "or not at the end")],
    ids=["no EOS", "EOS twice", "EOS before the end"],
)
def test_e_sees_demonstrations_that_teach_another_ending(policy, tokenizer, monkeypatch, end, cause):
    encode = data.encode_completions
    monkeypatch.setattr(data, "encode_completions", lambda *args: [ids[:-1] + end for ids in encode(*args)])
    report = examine(policy, tokenizer)
    assert failed(report) == {"e EOS among labels"} and cause in told(report, "e EOS among labels")
    assert next(c for c in report.checks if c.name == "e EOS among labels").measured == 1


def test_e_sees_a_pad_that_is_eos(policy, tokenizer, monkeypatch):
    """Then the labels, which mask padding by its id, lose their EOS."""
    batch = data.completion_batch

    def masks_by_id(prompts, completions, pad_id):
        ids, mask, counted = batch(prompts, completions, 0)
        return ids, mask, counted & (ids[:, -counted.shape[1] :] != 0)

    monkeypatch.setattr(data, "completion_batch", masks_by_id)
    report = examine(policy, tokenizer)
    assert failed(report) == {"e EOS among labels"} and told(report, "e EOS among labels").startswith("PAD is EOS")


# ------------------------------------------------------------------------------------------------------- report


def test_a_sick_report_names_what_failed_and_nothing_else(policy, tokenizer):
    report = examine(policy, tokenizer, **{"ppo.kl_coef": 0.0})
    with pytest.raises(TrainingFailure, match="before its first update: d beta > 0 .measured 1, limit 0.5") as error:
        report.raise_if_sick()
    assert "reward probe" not in str(error.value) and not report.healthy
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(ALL)
    assert [line for line in lines if "FAIL" in line] == [line for line in lines if line.startswith("d beta > 0")]


@pytest.mark.parametrize(
    "measured, passed", [(1.0, True), (-1.0, True), (1.1, False), (-1.1, False), (math.nan, False)]
)
def test_a_check_passes_within_its_limit_on_both_sides_and_never_on_nan(measured, passed):
    assert Check("x", measured, 1.0, "").passed == passed
