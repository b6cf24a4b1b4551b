"""Rollouts: what is sampled is what is scored, whatever the padding, the split of the batch and the cache do."""

import numpy as np
import pytest
import torch
from scipy import stats

from conftest import random_policy
from rlhf_lib import data, rollout
from rlhf_lib.rollout import generate, sample_texts, token_logprobs, token_statistics
from rlhf_lib.runtime import TrainingFailure, UsageError

POST = (
    "My sister Nora moved in with us in May and has not paid any rent since. We had a long talk on Sunday. My friends say "
    "that I am too patient. Should I ask her to leave? TL;DR:"
)
# Ends of it, of 4 to 25 words, so that padding on the left is never the same twice.
PROMPTS = [" ".join(POST.split()[-4 - 3 * i :]) for i in range(8)]


def brief_policy(tokenizer, bonus: float = 7.0, **overrides):
    """A random policy whose EOS has the logit `bonus` everywhere, so that responses end at many different lengths."""
    policy = random_policy(tokenizer, seed=2, **overrides)
    body, eos = policy.transformer, tokenizer.eos_token_id
    with torch.no_grad():
        body.ln_f.weight[0], body.ln_f.bias[0] = 0.0, 1.0  # one coordinate is always 1, and only EOS reads it
        body.wte.weight[:, 0] = 0.0
        body.wte.weight[eos] = 0.0
        body.wte.weight[eos, 0] = bonus
    return policy


@pytest.fixture(scope="module")
def brief(tokenizer):
    return brief_policy(tokenizer)


def alone(model, ids, temperature=1.0):
    """Log-probabilities over the vocabulary after each token of one unpadded sequence: (T, V)."""
    with torch.no_grad():
        return (model(input_ids=torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)


def real_tokens(batch, row):
    """(prompt ids, response ids) of one row, by its attention mask, as lists."""
    ids, kept = batch.input_ids[row], batch.attention_mask[row].bool()
    p = batch.prompt_length
    return ids[:p][kept[:p]].tolist(), ids[p:][kept[p:]].tolist()


# -------------------------------------------------------------------------------------------- scoring of tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_equal_a_loop_over_unpadded_rows(policy, tokenizer, side, temperature):
    sequences = data.encode_prompts(tokenizer, PROMPTS, 100)
    ids, mask = data.pad(sequences, tokenizer.pad_token_id, side)
    with torch.no_grad():
        scored = token_logprobs(policy, ids, mask, temperature)
    assert scored.shape == (len(PROMPTS), ids.shape[1] - 1)
    for row, sequence in enumerate(sequences):
        expected = alone(policy, sequence, temperature)[range(len(sequence) - 1), sequence[1:]]
        shift = ids.shape[1] - len(sequence) if side == "left" else 0
        torch.testing.assert_close(scored[row, shift : shift + len(expected)], expected, atol=1e-5, rtol=0)


def test_last_keeps_the_final_columns(policy, tokenizer):
    ids, mask = data.pad(data.encode_prompts(tokenizer, PROMPTS, 100), tokenizer.pad_token_id, "left")
    with torch.no_grad():
        everything = token_logprobs(policy, ids, mask)
        for last in (1, 7, ids.shape[1] - 1):
            torch.testing.assert_close(token_logprobs(policy, ids, mask, last=last), everything[:, -last:])


def test_token_statistics_equal_torch_distributions_at_each_prefix(brief, ref_policy, tokenizer):
    batch = generate(brief, tokenizer, PROMPTS, 8, seed=0)
    width = batch.response_mask.shape[1]
    args = (batch.input_ids, batch.attention_mask, width, 0.8)
    with torch.no_grad():
        logprobs, entropy, kl = token_statistics(brief, *args, other=ref_policy)
        torch.testing.assert_close(token_statistics(brief, *args), (logprobs, entropy))
    for row in range(len(PROMPTS)):
        prompt, response = real_tokens(batch, row)
        places = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        ours, other = (
            torch.distributions.Categorical(logits=alone(model, prompt + response, 0.8)[places])
            for model in (brief, ref_policy)
        )
        n = len(response)
        torch.testing.assert_close(logprobs[row, :n], ours.log_prob(torch.tensor(response)), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(entropy[row, :n], ours.entropy(), atol=1e-4, rtol=1e-5)
        expected = torch.distributions.kl_divergence(ours, other)
        torch.testing.assert_close(kl[row, :n], expected, atol=1e-4, rtol=1e-5)


# ------------------------------------------------------------------------------------------- shape of a response


def test_responses_end_at_their_first_eos_and_nothing_after_it_counts(brief, tokenizer):
    batch = generate(brief, tokenizer, PROMPTS * 8, 10, seed=3)
    responses, eos = batch.input_ids[:, batch.prompt_length :], tokenizer.eos_token_id
    lengths = set()
    for row in range(len(PROMPTS) * 8):
        tokens = responses[row].tolist()
        n = tokens.index(eos) + 1 if eos in tokens else len(tokens)
        lengths.add(n)
        assert batch.response_mask[row].tolist() == [True] * n + [False] * (len(tokens) - n)
        assert tokens[n:] == [tokenizer.pad_token_id] * (len(tokens) - n)
        assert bool(batch.finished[row]) == (eos in tokens)
        assert batch.texts[row] == tokenizer.decode(tokens[:n], skip_special_tokens=True).strip()
    assert len(lengths) >= 5 and batch.finished.any() and not batch.finished.all()  # the case is worth the test


def test_attention_covers_the_prompt_and_the_counted_response(brief, tokenizer):
    batch = generate(brief, tokenizer, PROMPTS, 10, seed=3)
    encoded = data.encode_prompts(tokenizer, PROMPTS, 100)
    assert batch.prompt_length == max(map(len, encoded))
    assert batch.attention_mask[:, batch.prompt_length - 1].all()  # padding on the left: the response follows its cue
    assert torch.equal(batch.attention_mask[:, batch.prompt_length :].bool(), batch.response_mask)
    assert [real_tokens(batch, row)[0] for row in range(len(PROMPTS))] == encoded


def test_width_is_that_of_the_longest_response(tokenizer):
    batch = generate(brief_policy(tokenizer, bonus=30.0), tokenizer, PROMPTS, 40, seed=0)
    assert batch.finished.all()
    assert batch.response_mask.shape[1] == batch.response_mask.sum(-1).max() < 40


def test_texts_are_stripped(policy, tokenizer):
    texts = generate(policy, tokenizer, PROMPTS * 4, 4, seed=0).texts
    assert texts == [text.strip() for text in texts] and any(texts)


def test_a_long_prompt_loses_its_beginning_and_keeps_the_cue(policy, tokenizer):
    batch = generate(policy, tokenizer, PROMPTS, 2, seed=0, max_prompt_tokens=6)
    assert batch.prompt_length == 6
    assert all(tokenizer.decode(row[:6]).endswith("TL;DR:") for row in batch.input_ids)


def test_rows_picks_rows_and_cuts_their_padding(brief, tokenizer):
    batch = generate(brief, tokenizer, PROMPTS, 6, seed=1)
    lengths = batch.attention_mask.sum(-1)
    short = lengths.argsort()[:2].tolist()
    for index in (short, [5, 2], list(range(len(PROMPTS)))):
        picked = batch.rows(index)
        assert picked.texts == [batch.texts[i] for i in index]
        assert torch.equal(picked.finished, batch.finished[index])
        for row, i in enumerate(index):
            assert real_tokens(picked, row) == real_tokens(batch, i)
        mask = picked.attention_mask.bool()
        assert mask[:, 0].any() and picked.response_mask[:, -1].any()  # no column of padding alone
        assert torch.equal(mask[:, picked.prompt_length :], picked.response_mask)
    assert batch.rows(short).input_ids.shape[1] < batch.input_ids.shape[1]


def test_micro_batches_hold_every_row_once_with_less_padding(brief, tokenizer):
    batch = generate(brief, tokenizer, PROMPTS, 6, seed=1)
    rows = [7, 1, 4, 2, 6]
    parts = list(batch.micro_batches(rows, 2))
    assert [len(group) for group, _ in parts] == [2, 2, 1]
    assert sorted(i for group, _ in parts for i in group) == sorted(rows)
    assert all(part.texts == [batch.texts[i] for i in group] for group, part in parts)
    lengths = [int(n) for group, _ in parts for n in batch.attention_mask[group].sum(-1)]
    assert lengths == sorted(lengths)


# ----------------------------------------------------------------------------------------------------- the noise


def responses_of(batch):
    return [real_tokens(batch, row)[1] for row in range(len(batch.texts))]


@pytest.mark.parametrize("parts", [[[0, 1, 2], [3, 4, 5, 6, 7]], [[i] for i in range(8)], [[7, 0, 3], [6, 5, 4, 2, 1]]])
def test_noise_depends_on_the_index_and_not_on_the_split(brief, tokenizer, parts):
    together = responses_of(generate(brief, tokenizer, PROMPTS, 10, seed=(1, 4)))
    for part in parts:
        split = generate(brief, tokenizer, [PROMPTS[i] for i in part], 10, seed=(1, 4), indices=part)
        assert responses_of(split) == [together[i] for i in part]


def test_equal_prompts_share_the_prefix_and_still_get_noise_of_their_own(brief, tokenizer):
    prompts = [PROMPTS[3]] * 4 + [PROMPTS[1]] + [PROMPTS[3]] * 3
    together = responses_of(generate(brief, tokenizer, prompts, 10, seed=2))
    each = [generate(brief, tokenizer, [p], 10, seed=2, indices=[i]) for i, p in enumerate(prompts)]
    assert together == [responses_of(batch)[0] for batch in each]
    assert len({tuple(r) for r in together[:4]}) > 1


def test_the_seed_decides_the_sample(policy, tokenizer):
    samples = [responses_of(generate(policy, tokenizer, PROMPTS, 6, seed=s)) for s in (0, 0, 1, (1, 1), (1, 2))]
    assert samples[0] == samples[1]
    different = samples[1:]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_without_a_seed_torch_decides(policy, tokenizer):
    torch.manual_seed(0)
    first, second = (responses_of(generate(policy, tokenizer, PROMPTS, 6)) for _ in range(2))
    torch.manual_seed(0)
    assert responses_of(generate(policy, tokenizer, PROMPTS, 6)) == first != second


def test_sample_texts_does_not_depend_on_the_batch_size(brief, tokenizer):
    whole = generate(brief, tokenizer, PROMPTS, 10, seed=5)
    for batch_size in (3, 256):
        texts, finished, lengths = sample_texts(brief, tokenizer, PROMPTS, 10, seed=5, batch_size=batch_size)
        assert texts == whole.texts
        assert finished == whole.finished.tolist()
        assert lengths == whole.response_mask.sum(-1).tolist()


# ------------------------------------------------------------------------------------- the sampling distribution


def evenly(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_evenly_spread_noise_draws_each_token_as_often_as_softmax_says(temperature):
    torch.manual_seed(0)
    logits, n = torch.randn(40) * 2, 20_000
    drawn = rollout._sample(logits.expand(n, -1), temperature, evenly(n))
    frequencies = drawn.bincount(minlength=40) / n
    expected = (logits.double() / temperature).softmax(-1)
    assert (frequencies - expected).abs().max() <= 1.01 / n + 1e-6  # inverse CDF: off by one draw at most


def test_any_token_of_the_vocabulary_can_be_drawn():
    """No top-k (transformers keeps 50 unless told) and no top-p."""
    logits = torch.linspace(0, 1, 1280)  # no ties, and nothing below 1/2200
    drawn = rollout._sample(logits.expand(4000, -1), 1.0, evenly(4000))
    assert len(drawn.unique()) == 1280


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf])
    drawn = rollout._sample(logits.expand(1000, -1), 1.0, torch.linspace(1e-12, 1 - 1e-12, 1000, dtype=torch.float64))
    assert set(drawn.tolist()) == {0, 2}


def test_generation_settings_of_the_model_do_not_truncate_the_distribution(policy, tokenizer):
    policy.generation_config.top_k, policy.generation_config.top_p = 5, 0.5
    with torch.no_grad():
        policy.transformer.wte.weight.mul_(0.01)  # every token about equally likely
    first = generate(policy, tokenizer, PROMPTS[:1] * 400, 1, seed=0).input_ids[:, -1]
    assert len(first.unique()) > 300  # of 400 draws from 1280; the mean is 343


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_frequencies_of_the_first_token_follow_the_model(policy, tokenizer, temperature):
    n, prompt = 4000, PROMPTS[2]
    first = generate(policy, tokenizer, [prompt] * n, 1, temperature, seed=0).input_ids[:, -1]
    ids = data.encode_prompts(tokenizer, [prompt], 100)[0]
    expected = n * alone(policy, ids, temperature)[-1].double().exp().numpy()
    observed = first.bincount(minlength=len(expected)).numpy()
    often = expected >= 5
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    assert often.sum() > 20
    assert stats.chisquare(observed, expected * n / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_cached_generation_samples_from_what_token_logprobs_scores(brief, tokenizer, temperature, monkeypatch):
    """Logits seen at each step, when finished rows have left the batch, against one forward over the padded whole."""
    seen, sizes, sample = {}, [], rollout._sample

    def spy(logits, t, uniform):
        sizes.append(len(logits))
        token = sample(logits, t, uniform)
        logp = (logits / temperature).log_softmax(-1).gather(1, token[:, None])[:, 0]
        seen.update(zip(uniform.tolist(), zip(token.tolist(), logp.tolist())))  # the noise names row and step
        return token

    monkeypatch.setattr(rollout, "_sample", spy)
    prompts = PROMPTS * 4
    batch = generate(brief, tokenizer, prompts, 12, temperature, seed=0)
    with torch.no_grad():
        scored = token_logprobs(brief, batch.input_ids, batch.attention_mask, temperature)[:, batch.prompt_length - 1 :]
    noise = rollout._noise(0, range(len(prompts)), 12)
    for row, step in batch.response_mask.nonzero().tolist():
        token, logp = seen[noise[row, step].item()]
        assert token == batch.input_ids[row, batch.prompt_length + step]
        assert logp == pytest.approx(scored[row, step].item(), abs=1e-4)
    assert sizes[0] == len(prompts) > sizes[-1]  # rows did leave


def test_temperature_0_is_greedy_and_equals_transformers(tokenizer):
    policy = brief_policy(tokenizer, bonus=5.5)
    batch = generate(policy, tokenizer, PROMPTS, 12, temperature=0)
    ids, mask = data.pad(data.encode_prompts(tokenizer, PROMPTS, 100), tokenizer.pad_token_id, "left")
    theirs = policy.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    assert torch.equal(batch.input_ids, theirs)
    assert batch.finished.any() and len(set(batch.response_mask.sum(-1).tolist())) > 1


# ------------------------------------------------------------------------------------------------------- misuse


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and 20 < len(text) < 250


def test_a_prompt_longer_than_the_context_is_a_usage_error(policy, tokenizer):
    with pytest.raises(UsageError, match="context of 256") as error:
        generate(policy, tokenizer, ["word " * 300], 4, seed=0)
    assert one_sentence(error)
    assert generate(policy, tokenizer, ["word " * 300], 4, seed=0, max_prompt_tokens=252).prompt_length == 252
    with pytest.raises(UsageError):
        generate(policy, tokenizer, ["word " * 300], 5, seed=0, max_prompt_tokens=252)


def test_a_negative_temperature_is_a_usage_error(policy, tokenizer):
    with pytest.raises(UsageError, match="temperature is -1") as error:
        generate(policy, tokenizer, ["TL;DR:"], 4, temperature=-1, seed=0)
    assert one_sentence(error)


def test_broken_weights_do_not_sample_nonsense_in_silence(tokenizer):
    policy = random_policy(tokenizer)
    policy.get_input_embeddings().weight.data[7] = float("nan")
    with pytest.raises(TrainingFailure, match="not finite") as error:
        generate(policy, tokenizer, ["TL;DR:"], 4, seed=0)
    assert one_sentence(error)


@pytest.mark.parametrize("prompts, new_tokens", [([], 4), (["TL;DR:", ""], 4), (["TL;DR:"], 0)])
def test_nothing_to_generate_is_a_usage_error(policy, tokenizer, prompts, new_tokens):
    with pytest.raises(UsageError) as error:
        generate(policy, tokenizer, prompts, new_tokens, seed=0)
    assert one_sentence(error)


# --------------------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_stream_ends_with_what_generate_returns_and_grows_by_one_token(brief, policy, tokenizer, temperature):
    model = brief if temperature else policy  # the most probable token of the brief one is always EOS
    whole = generate(model, tokenizer, PROMPTS, 20, temperature, seed=(3, 1))
    parts = list(rollout.generate_stream(model, tokenizer, PROMPTS, 20, temperature, seed=(3, 1)))
    assert parts[-1].texts == whole.texts and any(whole.texts)
    for name in ("input_ids", "attention_mask", "response_mask", "finished"):
        assert torch.equal(getattr(parts[-1], name), getattr(whole, name)), name
    assert len(parts) == whole.response_mask.shape[1] > 5
    for length, part in enumerate(parts, 1):
        end = whole.prompt_length + length
        assert torch.equal(part.input_ids, whole.input_ids[:, :end])
        assert torch.equal(part.attention_mask, whole.attention_mask[:, :end])
        assert part.texts == [t.strip() for t in tokenizer.batch_decode(part.input_ids[:, whole.prompt_length :], True)]


def test_a_stream_keeps_no_graph_and_leaves_the_callers_gradients_on(brief, tokenizer):
    for part in rollout.generate_stream(brief, tokenizer, PROMPTS[:1], 3, seed=1):
        assert torch.is_grad_enabled() and not part.input_ids.requires_grad


def test_a_stream_refuses_what_generate_refuses(brief, tokenizer):
    with pytest.raises(UsageError, match="max_new_tokens"):
        next(rollout.generate_stream(brief, tokenizer, PROMPTS, 0))
