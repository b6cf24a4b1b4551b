"""The reward model: its loss against closed forms, its packed scores against single rows, its training on real pairs."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_rollout import PROMPTS
from transformers import AutoModelForSequenceClassification

from conftest import random_policy
from rlhf_lib import data, models, reward
from rlhf_lib.models import score_responses
from rlhf_lib.recipes import get_recipe
from rlhf_lib.reward import bradley_terry_loss, evaluate_pairs, pair_scores, train_reward
from rlhf_lib.runtime import MetricLog, TrainingFailure, UsageError, make_accelerator

WORDS = "my sister took the rent and left should I call her or wait until she is back home again".split()


def reply(i: int) -> str:
    """A text that differs with `i` in its words and in its length."""
    return " ".join(WORDS[i % 7 : i % 7 + 1 + (5 * i) % 9])


@pytest.fixture
def make_reward_model(tokenizer, tmp_path):
    """`make(seed, **overrides)`: a fresh head on a random policy's body, loaded from its folder."""

    def make(seed: int = 0, **overrides):
        random_policy(tokenizer, seed=seed, **overrides).save_pretrained(tmp_path / "policy")
        torch.manual_seed(seed)
        model = models.new_reward_model(tmp_path / "policy")
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    return make


@pytest.fixture
def reward_model(make_reward_model):
    model = make_reward_model()
    model.config.reward_mean = 0.75
    return model


def alone(model, tokenizer, prompt, response, end=True):
    """Score of one response: the head on the body's last hidden state of the unpadded row, less the mean."""
    ids = tokenizer(prompt)["input_ids"] + tokenizer(" " + response)["input_ids"] + [tokenizer.eos_token_id] * end
    with torch.no_grad():
        hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return (hidden @ model.score.weight[0]).item() - model.config.reward_mean


# ------------------------------------------------------------------------------------------ Bradley-Terry loss


def test_loss_is_ln_2_at_ties_and_ln_1_plus_exp_of_the_margin_with_one():
    scores = torch.tensor([-3.0, 0.0, 5.0])
    assert bradley_terry_loss(scores, scores).item() == pytest.approx(math.log(2))
    assert bradley_terry_loss(scores, scores, margin=1.0).item() == pytest.approx(math.log(1 + math.e))
    assert bradley_terry_loss(scores + 2, scores, margin=2.0).item() == pytest.approx(math.log(2))


def test_loss_is_the_cross_entropy_of_a_softmax_over_the_two_scores():
    torch.manual_seed(0)
    chosen, rejected, margin = torch.randn(3, 20).double() * 3
    two = torch.stack([chosen - margin, rejected], 1)
    expected = F.cross_entropy(two, torch.zeros(20, dtype=torch.long))
    assert bradley_terry_loss(chosen, rejected, margin).item() == pytest.approx(expected.item(), rel=1e-12)


def test_gradient_raises_the_chosen_and_lowers_the_rejected_by_the_probability_of_being_wrong():
    scores = torch.tensor([[0.0, 2.0, -1.0], [0.0, -1.0, 3.0]], requires_grad=True)
    bradley_terry_loss(scores[0], scores[1]).backward()
    wrong = torch.sigmoid(scores[1] - scores[0]).detach() / 3
    torch.testing.assert_close(scores.grad, torch.stack([-wrong, wrong]))


def test_loss_stays_finite_for_scores_far_apart():
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


# --------------------------------------------------------------------------------------------------- the model


def test_head_has_std_1_over_sqrt_of_width_plus_1_and_no_bias(make_reward_model):
    model = make_reward_model(n_layer=1, n_embd=768)
    assert model.score.weight.std().item() == pytest.approx(1 / 769**0.5, rel=0.1)
    assert model.score.weight.mean().item() == pytest.approx(0, abs=4 / 769)
    assert model.score.bias is None and model.score.weight.shape == (1, 768)
    assert model.config.reward_mean == 0 and not model.training


def test_first_loss_is_near_ln_2(make_reward_model, tokenizer):
    """Averaged over heads: E log(1 + exp(-m)) is ln 2 + E m^2 / 8 for small margins m."""
    pairs = [{"prompt": p, "chosen": reply(i), "rejected": reply(i + 1)} for i, p in enumerate(PROMPTS * 3)]
    losses = []
    for seed in range(8):
        model = make_reward_model(seed, scale=0.02)  # GPT-2's own initialisation
        with torch.no_grad():
            losses.append(bradley_terry_loss(*pair_scores(model, tokenizer, pairs, 100)))
    assert math.log(2) - 0.1 < torch.stack(losses).mean() < math.log(2) + 0.25


def test_score_is_read_at_eos_less_the_mean_and_ignores_padding(reward_model, tokenizer):
    responses = [reply(i) for i in range(len(PROMPTS))]
    expected = [alone(reward_model, tokenizer, p, r) for p, r in zip(PROMPTS, responses)]
    assert len({len(tokenizer(p + r)["input_ids"]) for p, r in zip(PROMPTS, responses)}) > 4
    for batch_size in (1, 3, 128):
        scores = score_responses(reward_model, tokenizer, PROMPTS, responses, batch_size=batch_size)
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.tensor(expected).std() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_score_ignores_padding_on_either_side(reward_model, tokenizer, side):
    sequences = [tokenizer(p + " " + reply(i) + tokenizer.eos_token)["input_ids"] for i, p in enumerate(PROMPTS)]
    with torch.no_grad():
        scores = models.reward_scores(reward_model, *data.pad(sequences, tokenizer.pad_token_id, side))
    expected = [alone(reward_model, tokenizer, p, reply(i)) for i, p in enumerate(PROMPTS)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_response_that_never_ended_is_scored_without_eos(reward_model, tokenizer):
    responses = [reply(i) for i in range(len(PROMPTS))]
    finished = [i % 3 != 0 for i in range(len(PROMPTS))]
    scores = score_responses(reward_model, tokenizer, PROMPTS, responses, finished).tolist()
    expected = [alone(reward_model, tokenizer, p, r, end) for p, r, end in zip(PROMPTS, responses, finished)]
    assert scores == pytest.approx(expected, abs=1e-5)
    ended = score_responses(reward_model, tokenizer, PROMPTS, responses).tolist()
    assert all((abs(a - b) < 1e-5) == end for a, b, end in zip(scores, ended, finished))


def test_saved_score_is_the_hugging_face_logit_less_reward_mean(reward_model, tokenizer, tmp_path):
    models.save_checkpoint(tmp_path / "reward", reward_model, tokenizer, {"a": 1})
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    assert theirs.config.num_labels == 1 and theirs.config.reward_mean == 0.75
    again, responses = models.load_reward_model(tmp_path / "reward"), [reply(i) for i in range(len(PROMPTS))]
    scores = score_responses(again, tokenizer, PROMPTS, responses)
    assert torch.equal(scores, score_responses(reward_model, tokenizer, PROMPTS, responses))
    for prompt, response, score in zip(PROMPTS, responses, scores.tolist()):
        ids = tokenizer(prompt + " " + response + tokenizer.eos_token, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert theirs(input_ids=ids).logits.item() - 0.75 == pytest.approx(score, abs=1e-5)


def test_a_model_with_two_labels_is_no_reward_model(reward_model, tmp_path):
    reward_model.config.num_labels = 2
    AutoModelForSequenceClassification.from_config(reward_model.config).save_pretrained(tmp_path / "two")
    with pytest.raises(UsageError, match="2 labels"):
        models.load_reward_model(tmp_path / "two")


def test_the_critic_starts_as_the_reward_model(reward_model, tokenizer):
    critic = models.value_model_from(reward_model)
    ids = torch.tensor([tokenizer(PROMPTS[3] + " " + reply(3) + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        values = critic(ids, torch.ones_like(ids))
        torch.nn.init.zeros_(reward_model.score.weight)  # the critic's head is its own
        assert torch.equal(critic(ids, torch.ones_like(ids)), values)
    assert values.shape == ids.shape
    reward_model.score.weight.data.copy_(critic.head.weight)
    assert values[0, -1].item() == pytest.approx(alone(reward_model, tokenizer, PROMPTS[3], reply(3)), abs=1e-5)


def test_the_critic_on_a_policy_starts_at_0_and_ignores_padding_after_training(policy):
    critic = models.value_model_from(policy)
    ids = torch.randint(2, 1000, (1, 9))
    with torch.no_grad():
        assert (critic(ids, torch.ones_like(ids)) == 0).all()
        torch.nn.init.normal_(critic.head.weight)
        padded = torch.cat([torch.ones(1, 4).long(), ids], 1)
        mask = torch.cat([torch.zeros(1, 4), torch.ones(1, 9)], 1).long()
        torch.testing.assert_close(critic(padded, mask)[:, 4:], critic(ids, torch.ones_like(ids)), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ packed pairs


def many_pairs() -> list[dict]:
    """Prompts with one to six pairs, shared responses, prompts that come back later, lengths of all kinds."""
    pairs = [
        {"prompt": PROMPTS[i % 4], "chosen": reply(i), "rejected": reply(j)}
        for i, j in [(0, 1), (1, 2), (2, 3), (3, 9), (5, 6), (4, 8), (8, 0), (9, 5), (12, 0), (16, 12), (0, 1)]
    ]
    assert len({p["prompt"] for p in pairs}) == 4
    return pairs


def test_packed_scores_equal_single_rows(reward_model, tokenizer):
    pairs = many_pairs()
    with torch.no_grad():
        chosen, rejected = pair_scores(reward_model, tokenizer, pairs, 100)
    for scores, key in ((chosen, "chosen"), (rejected, "rejected")):
        prompts, responses = [p["prompt"] for p in pairs], [p[key] for p in pairs]
        single = score_responses(reward_model, tokenizer, prompts, responses, max_prompt_tokens=100)
        torch.testing.assert_close(scores, single + 0.75, atol=1e-5, rtol=0)  # logits: the mean still in them
        expected = [alone(reward_model, tokenizer, p, r) + 0.75 for p, r in zip(prompts, responses)]
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_packed_scores_truncate_prompts_as_single_rows_do(reward_model, tokenizer):
    pairs = many_pairs()
    with torch.no_grad():
        chosen, _ = pair_scores(reward_model, tokenizer, pairs, 9)
    prompts, responses = [p["prompt"] for p in pairs], [p["chosen"] for p in pairs]
    single = score_responses(reward_model, tokenizer, prompts, responses, max_prompt_tokens=9)
    torch.testing.assert_close(chosen, single + 0.75, atol=1e-5, rtol=0)


def test_a_response_does_not_see_its_neighbours(reward_model, tokenizer):
    pairs = many_pairs()
    changed = [dict(p, rejected="something else entirely") for p in pairs]
    with torch.no_grad():
        before, after = (pair_scores(reward_model, tokenizer, x, 100)[0] for x in (pairs, changed))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_packing_gives_the_gradient_of_single_rows(reward_model, tokenizer):
    pairs = many_pairs()
    bradley_terry_loss(*pair_scores(reward_model, tokenizer, pairs, 100)).backward()
    packed = [p.grad.clone() for p in reward_model.parameters()]
    reward_model.zero_grad()
    scores = []
    for pair in pairs:
        for key in ("chosen", "rejected"):
            ids = tokenizer(pair["prompt"] + " " + pair[key] + tokenizer.eos_token, return_tensors="pt")["input_ids"]
            scores.append(reward_model(input_ids=ids).logits[0, 0])
    bradley_terry_loss(torch.stack(scores[::2]), torch.stack(scores[1::2])).backward()
    for ours, parameter in zip(packed, reward_model.parameters()):
        torch.testing.assert_close(ours, parameter.grad, atol=1e-5, rtol=1e-3)


# -------------------------------------------------------------------------------------------- held-out accuracy


def test_evaluation_counts_pairs_one_by_one_however_many_prompts_there_are(reward_model, tokenizer):
    pairs = many_pairs() + [{"prompt": f"{i} TL;DR:", "chosen": reply(i), "rejected": reply(i + 1)} for i in range(40)]
    pairs = [p | {"gold_chosen": i % 11, "gold_rejected": 5} for i, p in enumerate(pairs)]
    pairs.append(pairs[0] | {"chosen": pairs[0]["rejected"]})  # a tie counts half
    metrics = evaluate_pairs(reward_model, tokenizer, pairs, 100)
    losses, right, agree = [], [], []
    for p in pairs:
        chosen, rejected = (alone(reward_model, tokenizer, p["prompt"], p[key]) for key in ("chosen", "rejected"))
        margin = 0.0 if p["chosen"] == p["rejected"] else chosen - rejected
        losses.append(math.log(1 + math.exp(-margin)))
        right.append(0.5 if margin == 0 else float(margin > 0))
        if p["gold_chosen"] != p["gold_rejected"]:
            agree.append(right[-1] if p["gold_chosen"] > p["gold_rejected"] else 1 - right[-1])
    assert len(agree) < len(pairs) and 0 < sum(right) < len(pairs) - 1
    expected = [sum(x) / len(x) for x in (losses, right, agree)]
    keys = ("validation_loss", "validation_accuracy", "gold_agreement")
    assert [metrics[key] for key in keys] == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture
def train(make_reward_model, tokenizer, tmp_path):
    """`run(**overrides)` trains a fresh model on eight pairs; returns (rows, model, references)."""

    def run(pairs=None, validation=None, resume=False, max_prompt_tokens=16, attn_pdrop=0.05, **overrides):
        """Dropout, so that the random state matters."""
        settings = {"epochs": 30, "batch_prompts": 4, "lr": 3e-3, "eval_every": 20, "save_every": 10} | overrides
        settings = {f"reward.{key}": value for key, value in settings.items()}
        recipe = get_recipe("tiny", "smoke", overrides={"max_prompt_tokens": max_prompt_tokens} | settings)
        model = make_reward_model(attn_pdrop=attn_pdrop)
        if pairs is None:
            pairs = [{"prompt": p, "chosen": reply(i), "rejected": reply(i + 1)} for i, p in enumerate(PROMPTS)]
        references = [{"prompt": p, "completion": reply(i + 2)} for i, p in enumerate(PROMPTS)]
        validation = pairs if validation is None else validation
        rows = train_reward(recipe, model, tokenizer, pairs, validation, references, tmp_path, make_accelerator("no"),
                            recipe.resolved(), resume)  # fmt: skip
        return rows, model, references

    return run


def test_training_learns_a_handful_of_pairs_and_centres_the_references(train, tokenizer):
    rows, model, references = train()
    assert [row["step"] for row in rows] == list(range(2 * 30 + 1))
    assert rows[0]["validation_loss"] > 0.4 and rows[-1]["lr"] == pytest.approx(0, abs=1e-12)
    assert rows[-1]["validation_loss"] < 0.2 and rows[-1]["validation_accuracy"] == 1
    assert not model.training
    prompts, completions = [r["prompt"] for r in references], [r["completion"] for r in references]
    scores = score_responses(model, tokenizer, prompts, completions, max_prompt_tokens=16)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert model.config.reward_mean != 0 and scores.std() > 0.1


@pytest.mark.parametrize("size", [1, 3, 100])
def test_micro_batches_change_neither_loss_nor_gradient(train, make_reward_model, tokenizer, size):
    """The optimizer step is the batch's, however many forward passes it takes: every pair counts once."""
    pairs = [
        {"prompt": p, "chosen": reply(i + j), "rejected": reply(i + j + 1)}
        for i, p in enumerate(PROMPTS)
        for j in range(1 + i % 4)
    ]
    with torch.no_grad():
        mean = bradley_terry_loss(*pair_scores(make_reward_model(), tokenizer, pairs, 16)).item()
    settings = dict(pairs=pairs, epochs=1, batch_prompts=8, attn_pdrop=0.0)
    expected = train(micro_batch_prompts=8, **settings)[0][1]
    row = train(micro_batch_prompts=size, **settings)[0][1]
    assert expected["loss"] == pytest.approx(mean, abs=1e-5)
    keys = ("loss", "accuracy", "grad_norm")
    assert [row[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=1e-4)


def test_a_killed_run_resumes_to_the_same_numbers(train, monkeypatch):
    rows, model, _ = train(epochs=10)
    add = MetricLog.add

    def die_at_14(self, step, metrics):
        if step == 14:
            raise KeyboardInterrupt
        return add(self, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricLog, "add", die_at_14)
        train(epochs=10)
    resumed, resumed_model, _ = train(epochs=10, resume=True)
    assert resumed == rows
    assert all(torch.equal(a, b) for a, b in zip(resumed_model.parameters(), model.parameters()))
    assert resumed_model.config.reward_mean == model.config.reward_mean


def test_resuming_another_run_is_a_usage_error(train):
    train(epochs=6)
    with pytest.raises(UsageError, match="other settings"):
        train(epochs=6, lr=1e-3, resume=True)


@pytest.mark.parametrize("missing, words", [({"pairs": []}, "to train on"), ({"validation": []}, "to validate on")])
def test_no_pairs_is_a_usage_error(train, missing, words):
    with pytest.raises(UsageError, match=f"no preference pairs {words}"):
        train(**missing)


def test_agreement_with_gold_is_left_out_where_gold_always_ties(reward_model, tokenizer):
    pairs = [{"prompt": PROMPTS[0], "chosen": "yes", "rejected": "no", "gold_chosen": 0.5, "gold_rejected": 0.5}]
    assert set(reward.evaluate_pairs(reward_model, tokenizer, pairs, 64)) == {"validation_loss", "validation_accuracy"}


@pytest.mark.parametrize("long", [{"chosen": "word " * 300}, {"prompt": "word " * 300}])
def test_a_pair_longer_than_the_context_is_a_usage_error(train, long):
    pair = {"prompt": PROMPTS[0], "chosen": "yes", "rejected": "no"} | long
    with pytest.raises(UsageError, match="context of 256"):
        train(pairs=[pair], max_prompt_tokens=10**6)


def test_scoring_a_text_longer_than_the_context_is_a_usage_error(reward_model, tokenizer):
    with pytest.raises(UsageError, match="context of 256"):
        score_responses(reward_model, tokenizer, ["word " * 300], ["yes"])


def test_a_loss_that_is_not_finite_stops_training(train, monkeypatch):
    monkeypatch.setattr(reward, "bradley_terry_loss", lambda c, r: (c - r).mean() * math.nan)
    with pytest.raises(TrainingFailure, match="reward diverged at step 1: loss is nan"):
        train()
