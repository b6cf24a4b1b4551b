"""Tokens, padding and SFT: the loss counts the completion and its EOS, whatever stands around them."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_rollout import PROMPTS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from conftest import random_policy
from rlhf_lib import data, models, sft
from rlhf_lib.recipes import get_recipe
from rlhf_lib.runtime import MetricLog, TrainingFailure, UsageError, make_accelerator
from rlhf_lib.sft import completion_loss, train_sft
from rlhf_lib.tiny import make_posts

COMPLETIONS = ["a b", "my sister left", "I", "she took the rent again", "why", "so what now then", "it is late", "ok"]


def encoded(tokenizer):
    return data.encode_prompts(tokenizer, PROMPTS, 100), data.encode_completions(tokenizer, COMPLETIONS)


@pytest.fixture
def batch(tokenizer):
    return data.completion_batch(*encoded(tokenizer), tokenizer.pad_token_id)


def losses_alone(policy, prompt, completion):
    """Cross-entropy of each completion token of one unpadded example."""
    ids = torch.tensor(prompt + completion)
    with torch.no_grad():
        logits = policy(input_ids=ids[None]).logits[0]
    return F.cross_entropy(logits[len(prompt) - 1 : -1], ids[len(prompt) :], reduction="none")


# ---------------------------------------------------------------------------------------------- tokens, padding


def test_pad_is_not_eos(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("pad", [None, "<|end|>"])
def test_a_tokenizer_without_a_pad_of_its_own_gets_one_and_the_model_room_for_it(pad, tokenizer, tmp_path):
    words = Tokenizer(WordLevel({"<|end|>": 0, "a": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>", pad_token=pad).save_pretrained(
        tmp_path / "words"
    )
    random_policy(tokenizer, vocab_size=2, pad_token_id=None).save_pretrained(tmp_path / "policy")
    loaded = models.load_tokenizer(str(tmp_path / "words"))
    model = models.load_policy(str(tmp_path / "policy"), loaded)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.padding_side) == (0, 2, "left")
    judge = models.new_reward_model(str(tmp_path / "policy"), loaded)
    for each in (model, judge):
        assert each.get_input_embeddings().num_embeddings == 3 and each.config.pad_token_id == 2
    assert models.score_responses(judge, loaded, ["a a", "a"], ["a", "a a a"]).isfinite().all()


def test_truncation_takes_from_the_beginning_so_that_the_cue_survives(tokenizer):
    prompts = [post.prompt for post in make_posts(5, seed=0, split="train")]
    whole = data.encode_prompts(tokenizer, prompts, 10**6)
    assert [tokenizer.decode(ids) for ids in whole] == prompts
    for ids, full in zip(data.encode_prompts(tokenizer, prompts, 20), whole, strict=True):
        assert ids == full[-20:] and len(full) > 20
        assert tokenizer.decode(ids).endswith("TL;DR:")


def test_completions_are_a_space_the_text_and_one_eos(tokenizer):
    eos = tokenizer.eos_token_id
    for text, ids in zip(COMPLETIONS, data.encode_completions(tokenizer, COMPLETIONS), strict=True):
        assert tokenizer.decode(ids) == " " + text + tokenizer.eos_token
        assert ids.count(eos) == 1 and ids[-1] == eos
    finished = [i % 2 == 0 for i in range(len(COMPLETIONS))]
    for ids, end in zip(data.encode_completions(tokenizer, COMPLETIONS, finished), finished):
        assert (ids[-1] == eos) == end


def test_padding_on_either_side():
    ids, mask = data.pad([[5, 6, 7], [8]], 1, "left")
    assert (ids.tolist(), mask.tolist()) == ([[5, 6, 7], [1, 1, 8]], [[1, 1, 1], [0, 0, 1]])
    ids, mask = data.pad([[5, 6, 7], [8]], 1)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6, 7], [8, 1, 1]], [[1, 1, 1], [1, 0, 0]])


def test_a_real_token_that_equals_pad_is_still_attended():
    assert data.pad([[1, 1], [9]], 1, "left")[1].tolist() == [[1, 1], [0, 1]]


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    positions = data.position_ids(mask)
    assert [row[kept.bool()].tolist() for row, kept in zip(positions, mask)] == [[0, 1, 2]] * 3
    assert positions.min() >= 0


def test_completion_batch_counts_completion_and_eos(tokenizer, batch):
    ids, mask, completion_mask = batch
    for row, (prompt, completion) in enumerate(zip(*encoded(tokenizer))):
        assert ids[row][mask[row].bool()].tolist() == prompt + completion
        assert ids[row, -completion_mask.shape[1] :][completion_mask[row]].tolist() == completion
    assert completion_mask.shape[1] == max(map(len, encoded(tokenizer)[1]))


@pytest.mark.parametrize("prompts", [[], ["fine", ""]])
def test_an_empty_data_set_or_prompt_is_a_usage_error(tokenizer, prompts):
    with pytest.raises(UsageError, match="empty"):
        data.encode_prompts(tokenizer, prompts, 10)


def test_an_unknown_evaluation_split_is_a_usage_error():
    with pytest.raises(UsageError, match="validation or test"):
        data.held_out_posts("train", 2)


def test_shuffled_is_a_permutation_that_its_seed_decides():
    assert sorted(data.shuffled(20, 3)) == list(range(20))
    assert data.shuffled(20, (1, 2)) == data.shuffled(20, (1, 2)) != data.shuffled(20, (1, 3))


def test_groups_of_similar_length_hold_every_item_once():
    lengths = [5, 1, 9, 3, 7, 2, 8]
    groups = data.by_length(range(7), 3, lambda i: lengths[i])
    assert groups == [[1, 5, 3], [0, 4, 6], [2]]


# -------------------------------------------------------------------------------------------------------- loss


def test_loss_is_the_cross_entropy_of_completion_and_eos(policy, tokenizer):
    for prompt, completion in zip(*encoded(tokenizer)):
        args = data.completion_batch([prompt], [completion], tokenizer.pad_token_id)
        expected = losses_alone(policy, prompt, completion)
        assert len(expected) == len(completion)
        assert completion_loss(policy, *args).item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_loss_of_a_batch_is_the_mean_over_its_tokens_whatever_the_padding(policy, tokenizer, batch):
    each = torch.cat([losses_alone(policy, p, c) for p, c in zip(*encoded(tokenizer))])
    assert completion_loss(policy, *batch).item() == pytest.approx(each.mean().item(), abs=1e-5)


def test_eos_is_a_target(policy, tokenizer):
    """A completion of nothing but EOS costs -log p(EOS)."""
    ids = data.encode_prompts(tokenizer, PROMPTS[:1], 100)[0]
    args = data.completion_batch([ids], [[tokenizer.eos_token_id]], tokenizer.pad_token_id)
    with torch.no_grad():
        logp = policy(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert completion_loss(policy, *args).item() == pytest.approx(-logp[tokenizer.eos_token_id].item(), abs=1e-5)


def test_prompt_and_padding_are_never_targets(policy, tokenizer, batch):
    """The loss's gradient is zero at every logit that does not predict a completion token or its EOS."""
    kept = []

    def keep(module, args, logits):
        logits.retain_grad()
        kept.append(logits)

    policy.lm_head.register_forward_hook(keep)
    completion_loss(policy, *batch).backward()
    ids, _, completion_mask = batch
    width = completion_mask.shape[1]
    moved = (kept[0].grad[:, -width - 1 : -1].abs().sum(-1) > 0).tolist()
    assert moved == completion_mask.tolist() and not completion_mask.all()
    assert kept[0].grad[:, -1].abs().sum() == 0  # nothing is predicted after EOS
    targets = kept[0].grad[:, -width - 1 : -1].argmin(-1)  # the only logit whose gradient is negative
    assert torch.equal(targets[completion_mask], ids[:, -width:][completion_mask])


def test_what_stands_in_the_padding_does_not_matter(policy, batch):
    ids, mask, completion_mask = batch
    other = torch.where(mask.bool(), ids, 77)
    assert not torch.equal(other, ids)
    expected = completion_loss(policy, ids, mask, completion_mask).item()
    assert completion_loss(policy, other, mask, completion_mask).item() == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture
def train(tokenizer, tmp_path):
    """`run(**overrides)` fine-tunes a fresh random policy on eight examples; returns (rows, policy)."""

    def run(examples=None, resume=False, policy=None, **overrides):
        settings = {"epochs": 40, "batch_size": 8, "lr": 1e-2, "eval_every": 10, "save_every": 10} | overrides
        overrides = {f"sft.{key}": value for key, value in settings.items()}
        recipe = get_recipe("tiny", "smoke", overrides=overrides | {"freeze_embeddings": False})  # they start at random
        policy = policy or random_policy(tokenizer, scale=0.1, resid_pdrop=0.05)  # so that the random state matters
        if examples is None:
            examples = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS)]
        held_out = [{"prompt": p, "completion": c} for p, c in zip(PROMPTS, COMPLETIONS)]
        rows = train_sft(recipe, policy, tokenizer, examples, held_out, tmp_path, make_accelerator("no"),
                         recipe.resolved(), resume)  # fmt: skip
        return rows, policy

    return run


def test_training_learns_one_batch_by_heart(train, tokenizer):
    rows, policy = train()
    assert [row["step"] for row in rows] == list(range(41))
    each = torch.cat([losses_alone(policy, p, c) for p, c in zip(*encoded(tokenizer))])
    assert rows[0]["validation_loss"] > 5 and rows[-1]["validation_loss"] < 0.3
    assert rows[-1]["validation_loss"] == pytest.approx(each.mean().item(), abs=1e-4)
    assert not policy.training


def test_steps_are_epochs_times_full_batches_and_the_rate_warms_up_then_falls_to_0(train):
    rows, _ = train(epochs=5, batch_size=3, lr=1e-3, warmup=0.2)
    assert len(rows) == 1 + 5 * (8 // 3)  # step 0 is the untrained policy
    rates = [row["lr"] for row in rows[1:]]  # the rate after each of the 10 steps
    cosine = [0.5e-3 * (1 + math.cos(math.pi * i / 8)) for i in range(9)]
    assert rates == pytest.approx([1e-3, *cosine], abs=1e-12)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_micro_batches_change_neither_loss_nor_gradient(train, tokenizer, size):
    """The optimizer step is the batch's, however many forward passes it takes: every completion token counts once."""
    policy = random_policy(tokenizer, scale=0.1)
    each = torch.cat([losses_alone(policy, p, c) for p, c in zip(*encoded(tokenizer))]).mean().item()
    expected = train(epochs=1, micro_batch_size=8, policy=policy)[0][1]
    row = train(epochs=1, micro_batch_size=size, policy=random_policy(tokenizer, scale=0.1))[0][1]
    assert expected["loss"] == pytest.approx(each, abs=1e-5)
    assert (row["loss"], row["grad_norm"]) == pytest.approx((expected["loss"], expected["grad_norm"]), rel=1e-4)


def test_a_killed_run_resumes_to_the_same_numbers(train, monkeypatch):
    rows, policy = train(epochs=10, batch_size=4)
    add = MetricLog.add

    def die_at_14(self, step, metrics):
        if step == 14:
            raise KeyboardInterrupt
        return add(self, step, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricLog, "add", die_at_14)
        train(epochs=10, batch_size=4)
    resumed, again = train(epochs=10, batch_size=4, resume=True)
    assert resumed == rows
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), policy.parameters()))


def test_no_demonstrations_is_a_usage_error(train):
    with pytest.raises(UsageError, match="no demonstrations"):
        train(examples=[])


def test_an_example_longer_than_the_context_is_a_usage_error(train):
    with pytest.raises(UsageError, match="context of 256"):
        train(examples=[{"prompt": PROMPTS[0], "completion": "word " * 300}])


def test_a_loss_that_is_not_finite_stops_training(train, monkeypatch):
    loss = sft.completion_loss
    monkeypatch.setattr(
        sft, "completion_loss", lambda *args: loss(*args) * (math.nan if torch.is_grad_enabled() else 1)
    )
    with pytest.raises(TrainingFailure, match="sft diverged at step 1: loss is nan"):
        train()
