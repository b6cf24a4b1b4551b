"""PPO's mathematics against enumeration, brute force and closed forms; its loop against an objective written anew."""

import math

import pytest
import torch
from test_rollout import PROMPTS, alone, brief_policy, real_tokens
from torch.distributions import Categorical, kl_divergence

from conftest import random_policy
from rlhf_lib import models, ppo
from rlhf_lib.data import encode_prompts
from rlhf_lib.ppo import (
    ActorCritic,
    collect,
    compute_gae,
    exact_kl_check,
    kl_estimate,
    masked_mean,
    masked_whiten,
    policy_loss,
    summarize,
    token_rewards,
    train_ppo,
    update_step,
    value_loss,
)
from rlhf_lib.recipes import PPOConfig, get_recipe
from rlhf_lib.rollout import Rollout, generate
from rlhf_lib.runtime import TrainingFailure, make_accelerator

GARBAGE = (math.nan, math.inf, -math.inf, 1e30)


def prefix_mask(lengths, width: int) -> torch.Tensor:
    return torch.arange(width) < torch.as_tensor(lengths)[:, None]


def spoil(x: torch.Tensor, mask: torch.Tensor, value: float) -> torch.Tensor:
    return torch.where(mask, x, value)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


# ------------------------------------------------------------------------------------------------ KL estimators


def two_categoricals(seed: int, nearness: float = 0.0):
    torch.manual_seed(seed)
    logits = torch.randn(7, dtype=torch.float64)
    other = torch.randn(7, dtype=torch.float64)
    return logits.log_softmax(-1), (nearness * logits + (1 - nearness) * other).log_softmax(-1)


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("seed", range(4))
def test_k1_and_k3_have_the_exact_kl_as_their_mean(kind, seed):
    """Enumeration: each token of the vocabulary weighed by the policy's own probability."""
    logp, logq = two_categoricals(seed)
    mean = (logp.exp() * kl_estimate(logp, logq, kind)).sum()
    exact, reverse = (
        kl_divergence(Categorical(logits=a), Categorical(logits=b)) for a, b in [(logp, logq), (logq, logp)]
    )
    assert mean == pytest.approx(exact.item(), rel=1e-10)
    assert abs(exact - reverse) > 1e-3  # so that the direction is tested, too


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_average_to_the_kl_over_samples_of_the_policy(kind, generator):
    logp, logq = two_categoricals(3)
    draws = torch.multinomial(logp.exp(), 100_000, replacement=True, generator=generator)
    estimates = kl_estimate(logp[draws], logq[draws], kind)
    exact = kl_divergence(Categorical(logits=logp), Categorical(logits=logq))
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / len(draws) ** 0.5


def test_k2_is_the_kl_to_second_order_only():
    near_p, near_q = two_categoricals(0, nearness=0.99)
    near = kl_divergence(Categorical(logits=near_p), Categorical(logits=near_q))
    assert (near_p.exp() * kl_estimate(near_p, near_q, "k2")).sum() == pytest.approx(near.item(), rel=0.02)
    far_p, far_q = two_categoricals(0)
    far = kl_divergence(Categorical(logits=far_p), Categorical(logits=far_q))
    assert (far_p.exp() * kl_estimate(far_p, far_q, "k2")).sum() != pytest.approx(far.item(), rel=0.02)


def test_k3_is_never_negative_and_zero_only_at_equality():
    difference = torch.linspace(-4, 4, 81, dtype=torch.float64)
    estimates = kl_estimate(difference, torch.zeros_like(difference), "k3")
    assert (estimates >= 0).all()
    assert (estimates.abs() < 1e-12).tolist() == (difference.abs() < 1e-9).tolist()


def test_k3_keeps_its_digits_close_to_equality():
    """Written out as q/p - 1 - log(q/p), fp32 would lose the 5e-9 in the rounding of q/p."""
    estimate = kl_estimate(torch.tensor([-1.0 + 2**-13]), torch.tensor([-1.0]), "k3")
    assert estimate.item() == pytest.approx(0.5 * 2**-26, rel=0.01)


def test_an_unknown_estimator_is_an_error():
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


# --------------------------------------------------------------------------------------------- means over a mask


def test_masked_mean_is_the_mean_of_what_is_counted(generator):
    x = torch.randn(4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) < 0.5
    expected = sum(x[i, j].item() for i in range(4) for j in range(6) if mask[i, j]) / int(mask.sum())
    assert masked_mean(x, mask).item() == pytest.approx(expected, abs=1e-6)
    assert masked_mean(x, torch.zeros_like(mask)).item() == 0


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("function", [masked_mean, masked_whiten, lambda x, m: masked_whiten(x, m, shift_mean=False)])
def test_masked_garbage_changes_no_mean_and_no_whitening(function, garbage, generator):
    x, mask = torch.randn(4, 6, generator=generator), prefix_mask([6, 0, 2, 3], 6)
    assert torch.equal(function(spoil(x, mask, garbage), mask), function(x, mask))


def test_whitened_entries_have_mean_0_and_variance_1(generator):
    x, mask = 3 + 5 * torch.randn(5, 8, generator=generator), prefix_mask([8, 3, 1, 0, 5], 8)
    whitened = masked_whiten(x, mask)
    assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened[mask].var(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert (whitened[~mask] == 0).all()
    torch.testing.assert_close(masked_whiten(-2 + 0.1 * x, mask), whitened, atol=1e-5, rtol=1e-5)  # units do not matter


def test_without_shift_the_mean_stays_and_the_variance_becomes_1(generator):
    x, mask = 3 + 5 * torch.randn(5, 8, generator=generator), prefix_mask([8, 3, 1, 0, 5], 8)
    scaled = masked_whiten(x, mask, shift_mean=False)
    assert scaled[mask].mean().item() == pytest.approx(x[mask].mean().item(), abs=1e-5)
    assert scaled[mask].var(unbiased=False).item() == pytest.approx(1, abs=1e-5)
    assert (scaled[~mask] == 0).all()


# ------------------------------------------------------------------------------------------------ token rewards


def test_tokens_likelier_than_under_the_reference_cost():
    mask = prefix_mask([2], 2)
    rewards = token_rewards(torch.tensor([0.0]), torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.5, -1.0]]), mask, 0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.2]]))


def test_at_the_optimum_of_score_minus_beta_kl_every_response_earns_the_same():
    """pi* = ref exp(score / beta) / Z, so score - beta log(pi* / ref) = beta log Z: the sign and the unit of the KL."""
    torch.manual_seed(0)
    beta, width = 0.3, 3
    scores = torch.randn(6, dtype=torch.float64)  # six responses of three tokens
    ref = torch.randn(6, width, dtype=torch.float64) - 2
    log_z = (ref.sum(-1) + scores / beta).logsumexp(0) - ref.sum(-1).logsumexp(0)
    optimum = ref.clone()
    optimum[:, 0] += scores / beta - log_z  # the sum over tokens is all that matters
    rewards = token_rewards(scores, optimum, ref, prefix_mask([width] * 6, width), beta)
    torch.testing.assert_close(rewards.sum(-1), (beta * log_z).expand(6))


def test_the_score_is_paid_at_the_last_response_token_only(generator):
    lengths, width = [5, 1, 3, 0], 5
    mask = prefix_mask(lengths, width)
    logprobs, ref = (-torch.rand(4, width, generator=generator) for _ in range(2))
    scores = torch.tensor([2.0, -3.0, 0.5, 9.0])
    paid = token_rewards(scores, logprobs, ref, mask, 0.2) - token_rewards(0 * scores, logprobs, ref, mask, 0.2)
    expected = torch.zeros(4, width)
    for row, n in enumerate(lengths):
        if n:
            expected[row, n - 1] = scores[row]
    torch.testing.assert_close(paid, expected)


def test_an_empty_response_earns_nothing():
    mask = prefix_mask([0, 2], 3)
    rewards = token_rewards(torch.tensor([5.0, 1.0]), torch.zeros(2, 3), torch.zeros(2, 3), mask, 0.1)
    assert rewards.tolist() == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_rewards_are_0_where_masked_whatever_stands_there(garbage, generator):
    mask = prefix_mask([4, 2, 0], 4)
    logprobs, ref = (-torch.rand(3, 4, generator=generator) for _ in range(2))
    clean = token_rewards(torch.ones(3), logprobs, ref, mask, 0.1)
    assert torch.equal(token_rewards(torch.ones(3), spoil(logprobs, mask, garbage), ref, mask, 0.1), clean)
    assert (clean[~mask] == 0).all()


# --------------------------------------------------------------------------------------------------- advantages


def random_episodes(seed: int, n: int = 12, width: int = 7):
    torch.manual_seed(seed)
    lengths = torch.randint(0, width + 1, (n,)).tolist()
    lengths[:2] = [0, width]
    rewards, values = torch.randn(2, n, width, dtype=torch.float64)
    return rewards, values, prefix_mask(lengths, width), lengths


def gae_by_double_sum(r, v, gamma, lam):
    """A_t = sum over l of (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}) on one episode; V after its end is 0."""
    v = [*v, 0.0]
    n = len(r)
    return [sum((gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k]) for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.97, 0.0), (0.0, 0.5)])
def test_gae_equals_the_double_sum(gamma, lam):
    rewards, values, mask, lengths = random_episodes(0)
    advantages, returns = compute_gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        expected = gae_by_double_sum(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(expected)
        assert returns[row, :n].tolist() == pytest.approx([a + v for a, v in zip(expected, values[row, :n].tolist())])
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_at_gamma_1_lambda_1_the_return_is_the_sum_of_the_rewards_to_come():
    rewards, values, mask, lengths = random_episodes(1)
    advantages, returns = compute_gae(rewards, values, mask, 1.0, 1.0)
    for row, n in enumerate(lengths):
        to_come = [rewards[row, t:n].sum().item() for t in range(n)]
        assert returns[row, :n].tolist() == pytest.approx(to_come)
    torch.testing.assert_close(advantages[mask], (returns - values)[mask])


def test_at_lambda_0_the_advantage_is_the_td_error():
    rewards, values, mask, lengths = random_episodes(2)
    advantages, _ = compute_gae(rewards, values, mask, 0.9, 0.0)
    for row, n in enumerate(lengths):
        for t in range(n):
            following = values[row, t + 1] if t + 1 < n else 0.0
            assert advantages[row, t].item() == pytest.approx(
                (rewards[row, t] + 0.9 * following - values[row, t]).item()
            )


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_values_that_foresee_everything_leave_no_advantage(lam):
    rewards, _, mask, _ = random_episodes(3)
    _, to_come = compute_gae(rewards, torch.zeros_like(rewards), mask, 0.9, 1.0)
    advantages, returns = compute_gae(rewards, to_come, mask, 0.9, lam)
    torch.testing.assert_close(advantages, torch.zeros_like(advantages))
    torch.testing.assert_close(returns, to_come)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_bootstrapping_never_reads_past_the_end(garbage):
    rewards, values, mask, _ = random_episodes(4)
    spoilt = compute_gae(spoil(rewards, mask, garbage), spoil(values, mask, garbage), mask)
    clean = compute_gae(rewards, values, mask)
    assert torch.equal(spoilt[0], clean[0]) and torch.equal(spoilt[1], clean[1])


def test_by_default_gamma_is_1_and_lambda_095():
    rewards, values, mask, _ = random_episodes(5)
    torch.testing.assert_close(compute_gae(rewards, values, mask), compute_gae(rewards, values, mask, 1.0, 0.95))
    assert (PPOConfig.gamma, PPOConfig.lam) == (1.0, 0.95)


# -------------------------------------------------------------------------------------------------- policy loss


def policy_case(seed: int = 0, shift: float = 0.0):
    """(logprobs that require a gradient, old logprobs, advantages, mask)."""
    torch.manual_seed(seed)
    mask = prefix_mask([5, 2, 0, 4], 5)
    old = -3 * torch.rand(4, 5)
    return (old + shift * torch.randn(4, 5)).requires_grad_(), old, torch.randn(4, 5), mask


def test_at_ratio_1_the_loss_is_minus_the_mean_advantage():
    logprobs, old, advantages, mask = policy_case()
    loss, stats = policy_loss(logprobs, old, advantages, mask)
    assert loss.item() == pytest.approx(-advantages[mask].mean().item(), abs=1e-6)
    assert (stats["policy/approxkl"], stats["policy/clipfrac"]) == (0, 0)
    assert stats["val/ratio"] == pytest.approx(1, abs=1e-6)
    assert all(type(value) is float for value in stats.values())


def test_at_ratio_1_the_gradient_is_the_policy_gradient():
    logprobs, old, advantages, mask = policy_case()
    policy_loss(logprobs, old, advantages, mask)[0].backward()
    again = logprobs.detach().clone().requires_grad_()
    (-(advantages * again)[mask].mean()).backward()  # REINFORCE with a baseline
    torch.testing.assert_close(logprobs.grad, again.grad)
    assert (logprobs.grad[~mask] == 0).all()


@pytest.mark.parametrize(
    "advantage, ratio, loss, clipped",
    [(2.0, 1.5, -2.4, True), (2.0, 0.5, -1.0, False), (-2.0, 0.5, 1.6, True), (-2.0, 1.5, 3.0, False)],
)
def test_the_clip_stops_gains_and_never_losses(advantage, ratio, loss, clipped):
    """At cliprange .2: the better side stands still beyond 1.2 or .8, the worse side is felt in full."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    value, stats = policy_loss(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1).bool(), 0.2)
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert logprobs.grad.item() == pytest.approx(0 if clipped else -advantage * ratio, abs=1e-6)
    assert stats["policy/clipfrac"] == float(clipped)
    assert stats["policy/approxkl"] == pytest.approx(0.5 * math.log(ratio) ** 2, rel=1e-5)
    assert stats["val/ratio"] == pytest.approx(ratio, rel=1e-5)


def test_policy_stats_average_over_what_is_counted():
    logprobs, mask = torch.tensor([[math.log(1.5), 0.0, 9.0, 9.0]]), prefix_mask([2], 4)
    stats = policy_loss(logprobs, torch.zeros(1, 4), torch.ones(1, 4), mask)[1]
    assert stats["policy/clipfrac"] == 0.5
    assert stats["policy/approxkl"] == pytest.approx(math.log(1.5) ** 2 / 4)
    assert stats["val/ratio"] == pytest.approx(1.25)
    assert stats["policy/loss"] == pytest.approx(-(1.2 + 1) / 2)


@pytest.mark.parametrize("cliprange, clipped", [(0.1, 1.0), (0.2, 0.0)])
def test_cliprange_is_the_distance_from_1(cliprange, clipped):
    args = torch.tensor([[math.log(1.15)]]), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1).bool()
    assert policy_loss(*args, cliprange)[1]["policy/clipfrac"] == clipped


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_masked_garbage_changes_neither_policy_loss_nor_stats_nor_gradient(garbage, spoilt):
    logprobs, *rest, mask = policy_case(shift=0.4)
    clean_loss, clean_stats = policy_loss(logprobs, *rest, mask)
    clean_loss.backward()
    args = [logprobs.detach(), *rest]
    args[spoilt] = spoil(args[spoilt], mask, garbage)
    args[0] = args[0].clone().requires_grad_()
    loss, stats = policy_loss(*args, mask)
    loss.backward()
    assert loss.item() == clean_loss.item() and stats == clean_stats
    assert torch.equal(args[0].grad, logprobs.grad)
    assert 0 < stats["policy/clipfrac"] < 1


# --------------------------------------------------------------------------------------------------- value loss


@pytest.mark.parametrize(
    "value, old, target, loss, gradient, clipped",
    [
        (1.0, 1.0, 3.0, 2.0, -2.0, 0.0),  # inside: half the squared error
        (1.1, 1.0, 3.0, 1.805, -1.9, 0.0),
        (1.0, 0.0, 1.0, 0.32, 0.0, 1.0),  # right, but moved too far: counts as .2, no gradient
        (-1.0, 0.0, 1.0, 2.0, -2.0, 0.0),  # moved away: the larger error counts, unclipped
        (3.0, 0.0, 1.0, 2.0, 2.0, 0.0),  # past the target: 2 is worse than .8
    ],
)
def test_value_loss_is_half_the_larger_of_two_squared_errors(value, old, target, loss, gradient, clipped):
    values = torch.tensor([[value]], requires_grad=True)
    result, stats = value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), torch.ones(1, 1).bool(), 0.2)
    result.backward()
    assert result.item() == pytest.approx(loss, abs=1e-6)
    assert values.grad.item() == pytest.approx(gradient, abs=1e-6)
    assert stats["val/clipfrac"] == clipped
    assert stats["val/error"] == pytest.approx((value - target) ** 2, abs=1e-5)
    assert stats["val/loss"] == pytest.approx(loss, abs=1e-6)


def test_value_stats_average_over_what_is_counted():
    values, mask = torch.tensor([[1.0, 0.0, 9.0, 9.0]]), prefix_mask([2], 4)
    stats = value_loss(values, torch.zeros(1, 4), torch.tensor([[1.0, 2.0, 0.0, 0.0]]), mask)[1]
    assert stats == pytest.approx({"val/loss": (0.32 + 2) / 2, "val/clipfrac": 0.5, "val/error": 2.0})


def test_value_loss_averages_over_what_is_counted(generator):
    values, returns = torch.randn(2, 3, 4, generator=generator)
    mask = prefix_mask([4, 1, 0], 4)
    loss, stats = value_loss(values, values, returns, mask)
    assert loss.item() == pytest.approx(0.5 * (values - returns)[mask].square().mean().item(), abs=1e-6)
    assert all(type(value) is float for value in stats.values())


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_masked_garbage_changes_neither_value_loss_nor_stats_nor_gradient(garbage, spoilt, generator):
    mask = prefix_mask([5, 2, 0, 4], 5)
    clean = torch.randn(3, 4, 5, generator=generator)
    values = clean[0].clone().requires_grad_()
    clean_loss, clean_stats = value_loss(values, clean[1], clean[2], mask)
    clean_loss.backward()
    args = list(clean)
    args[spoilt] = spoil(args[spoilt], mask, garbage)
    args[0] = args[0].clone().requires_grad_()
    loss, stats = value_loss(*args, mask)
    loss.backward()
    assert loss.item() == clean_loss.item() and stats == clean_stats
    assert torch.equal(args[0].grad, values.grad)


# ------------------------------------------------------------------------------------ one batch, one update step


def make_value_model(tokenizer, seed: int = 5):
    value_model = models.value_model_from(random_policy(tokenizer, seed=seed))
    torch.nn.init.normal_(value_model.head.weight, std=0.2)
    value_model.shift = 0.3
    return value_model


@pytest.fixture
def scene(tokenizer, ref_policy):
    """A rollout of many lengths, scores for it, actor and critic, the reference and settings off the defaults."""
    policy = brief_policy(tokenizer)
    rollout = generate(policy, tokenizer, PROMPTS, 10, 0.8, seed=(0, 1))
    lengths = rollout.response_mask.sum(-1)
    assert len(set(lengths.tolist())) >= 3
    scores = torch.linspace(-1, 2, len(PROMPTS))
    config = PPOConfig(temperature=0.8, kl_coef=0.1, micro_batch_size=3, max_grad_norm=1e9)
    torch.manual_seed(0)
    return rollout, scores, ActorCritic(policy, make_value_model(tokenizer)), ref_policy, config


def by_hand(rollout, row, actor_critic, temperature):
    """Log-probabilities (T, V) and values (T,) at one row's response tokens, from an unpadded forward, with gradient."""
    prompt, response = real_tokens(rollout, row)
    ids = torch.tensor([prompt + response])
    places = slice(len(prompt) - 1, len(prompt) + len(response) - 1)  # where each response token is still to come
    logp = (actor_critic.policy(input_ids=ids).logits[0, places] / temperature).log_softmax(-1)
    critic = actor_critic.value_model
    values = critic.body(input_ids=ids).last_hidden_state[0, places] @ critic.head.weight[0] - critic.shift
    return logp, values, torch.tensor(response)


def test_collect_equals_a_loop_over_unpadded_rows(scene):
    rollout, scores, actor_critic, ref_policy, config = scene
    batch = collect(rollout, scores, actor_critic, ref_policy, config, make_accelerator("no"))
    for row, n in enumerate(rollout.response_mask.sum(-1).tolist()):
        logp, values, response = by_hand(rollout, row, actor_critic, 0.8)
        prompt, _ = real_tokens(rollout, row)
        ref = alone(ref_policy, prompt + response.tolist(), 0.8)[len(prompt) - 1 : -1]
        chosen, ref_chosen = (x.gather(1, response[:, None])[:, 0] for x in (logp, ref))
        rewards = -0.1 * (chosen - ref_chosen)
        rewards[-1] += scores[row]
        expected = dict(logprobs=chosen, ref_logprobs=ref_chosen, values=values, rewards=rewards,
                        entropy=Categorical(logits=logp).entropy())  # fmt: skip
        for key, value in expected.items():
            torch.testing.assert_close(batch[key][row, :n], value.detach(), atol=2e-4, rtol=1e-4)
    advantages, returns = compute_gae(batch["rewards"], batch["values"], rollout.response_mask, 1.0, 0.95)
    torch.testing.assert_close(batch["returns"], returns)
    torch.testing.assert_close(batch["advantages"], masked_whiten(advantages, rollout.response_mask))


def test_collect_whitens_rewards_by_scale_only_and_only_if_asked(scene):
    rollout, scores, actor_critic, ref_policy, config = scene
    mask, accelerator = rollout.response_mask, make_accelerator("no")
    plain = collect(rollout, scores, actor_critic, ref_policy, config, accelerator)
    asked = PPOConfig(**(vars(config) | {"whiten_rewards": True}))
    whitened = collect(rollout, scores, actor_critic, ref_policy, asked, accelerator)
    torch.testing.assert_close(whitened["rewards"], masked_whiten(plain["rewards"], mask, shift_mean=False))
    assert whitened["rewards"][mask].mean().item() == pytest.approx(plain["rewards"][mask].mean().item(), abs=1e-5)
    torch.testing.assert_close(
        whitened["returns"], compute_gae(whitened["rewards"], plain["values"], mask, 1.0, 0.95)[1]
    )


def test_collect_and_the_update_score_alike(scene):
    """So that the ratio of the first step is 1."""
    rollout, scores, actor_critic, ref_policy, config = scene
    batch = collect(rollout, scores, actor_critic, ref_policy, config, make_accelerator("no"))
    with torch.no_grad():
        logprobs, values = actor_critic(rollout.input_ids, rollout.attention_mask, rollout.prompt_length, 0.8)
    mask = rollout.response_mask
    torch.testing.assert_close(logprobs[mask], batch["logprobs"][mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[mask], batch["values"][mask], atol=1e-5, rtol=1e-5)


def parameters_of(module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def step_from(scene, tokenizer, **settings):
    """The parameters' change in one step of plain gradient descent with rate 1, and the stats."""
    rollout, scores, actor_critic, ref_policy, config = scene
    config = PPOConfig(**(vars(config) | settings))
    accelerator = make_accelerator("no")
    batch = collect(rollout, scores, actor_critic, ref_policy, config, accelerator)
    torch.manual_seed(1)
    batch["logprobs"] = batch["logprobs"] + 0.4 * torch.randn_like(batch["logprobs"])  # ratios away from 1
    batch["values"] = batch["values"] + 0.3 * torch.randn_like(batch["values"])
    before = parameters_of(actor_critic)
    saved = {key: value.clone() for key, value in actor_critic.state_dict().items()}
    optimizer = torch.optim.SGD(actor_critic.parameters(), lr=1.0)
    rows = [6, 1, 4, 0, 7, 3]
    stats = update_step(rows, rollout, batch, actor_critic, optimizer, config, accelerator)
    change = parameters_of(actor_critic) - before
    actor_critic.load_state_dict(saved)
    return change, stats, batch, rows


def test_micro_batches_of_2_make_the_step_of_the_full_batch(scene, tokenizer):
    """Responses differ in length, so micro-batches must count by their tokens."""
    full, full_stats, *_ = step_from(scene, tokenizer, micro_batch_size=6)
    assert full.abs().max() > 1e-2
    for size in (1, 2, 4):
        change, stats, *_ = step_from(scene, tokenizer, micro_batch_size=size)
        torch.testing.assert_close(change, full, atol=1e-6, rtol=1e-4)
        assert stats == pytest.approx(full_stats, rel=1e-4, abs=1e-6)


def test_micro_batches_of_2_make_the_adamw_step_of_the_full_batch(scene):
    rollout, scores, actor_critic, ref_policy, config = scene
    accelerator, results = make_accelerator("no"), []
    batch = collect(rollout, scores, actor_critic, ref_policy, config, accelerator)
    saved = {key: value.clone() for key, value in actor_critic.state_dict().items()}
    for size in (8, 2):
        actor_critic.load_state_dict(saved)
        optimizer = torch.optim.AdamW(actor_critic.parameters(), lr=1e-4, eps=1e-5, weight_decay=0.0)
        settings = PPOConfig(**(vars(config) | {"micro_batch_size": size, "max_grad_norm": 1.0}))
        update_step(list(range(8)), rollout, batch, actor_critic, optimizer, settings, accelerator)
        results.append(parameters_of(actor_critic))
    assert (results[0] - torch.cat([saved[k].flatten() for k, _ in actor_critic.named_parameters()])).abs().max() > 5e-5
    torch.testing.assert_close(results[1], results[0], atol=1e-6, rtol=0)


def test_a_step_descends_an_objective_written_anew(scene, tokenizer):
    """Token mean of max(-A r, -A clip r) + .1 of half the larger squared error, from unpadded forwards of single rows."""
    change, stats, batch, rows = step_from(scene, tokenizer, vf_coef=0.1)
    rollout, _, actor_critic, _, _ = scene
    total, objective, kinds = int(rollout.response_mask[rows].sum()), 0.0, set()
    for row in rows:
        logp, values, response = by_hand(rollout, row, actor_critic, 0.8)
        for t, token in enumerate(response.tolist()):
            advantage, old = batch["advantages"][row, t], batch["values"][row, t]
            ratio = (logp[t, token] - batch["logprobs"][row, t]).exp()
            surrogate = min(advantage * ratio, advantage * ratio.clamp(0.8, 1.2), key=lambda x: x.item())
            target = batch["returns"][row, t]
            near = min(max(values[t], old - 0.2), old + 0.2)
            errors = (values[t] - target) ** 2, (near - target) ** 2
            objective = objective - surrogate / total + 0.1 * 0.5 * max(errors, key=lambda x: x.item()) / total
            kinds.add((bool(ratio > 1.2), bool(ratio < 0.8), bool(advantage > 0)))
    gradients = torch.autograd.grad(objective, list(actor_critic.parameters()), allow_unused=True)
    expected = torch.cat([-g.flatten() for g in gradients])
    assert len(kinds) >= 4
    torch.testing.assert_close(change, expected, atol=2e-5, rtol=1e-3)
    assert stats["policy/grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)


def test_the_gradient_is_clipped_by_its_global_norm(scene, tokenizer):
    free, stats, *_ = step_from(scene, tokenizer)
    clipped, clipped_stats, *_ = step_from(scene, tokenizer, max_grad_norm=0.01)
    assert free.norm() > 0.1
    torch.testing.assert_close(clipped, free * 0.01 / free.norm(), atol=1e-6, rtol=1e-3)  # one factor for both models
    assert clipped_stats["policy/grad_norm"] == pytest.approx(stats["policy/grad_norm"])  # logged before clipping


def test_a_step_leaves_no_gradient_behind(scene, tokenizer):
    first, *_ = step_from(scene, tokenizer)
    second, *_ = step_from(scene, tokenizer)
    torch.testing.assert_close(first, second)


# ------------------------------------------------------------------------------------------------------- metrics


def toy_rollout(lengths, width=4, prompt_length=2, finished=None):
    mask = prefix_mask(lengths, width)
    ids = torch.full((len(lengths), prompt_length + width), 7)
    finished = [True] * len(lengths) if finished is None else finished
    for row, (n, end) in enumerate(zip(lengths, finished)):
        if end:
            ids[row, prompt_length + n - 1] = 0
    attention = torch.cat([torch.ones(len(lengths), prompt_length).long(), mask.long()], 1)
    return Rollout(ids, attention, prompt_length, mask, ["x"] * len(lengths), 0)


def test_summary_counts_kl_per_sequence_and_entropy_per_token():
    rollout = toy_rollout([4, 1], finished=[False, True])
    mask, nothing = rollout.response_mask, torch.zeros(2, 4)
    batch = dict(
        logprobs=spoil(torch.full((2, 4), -1.0), mask, math.nan), ref_logprobs=spoil(torch.full((2, 4), -1.5), mask, 7.0),
        entropy=spoil(torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0]]), mask, 99.0), rewards=torch.tensor([[0, 0, 0, 2.0], [1, 0, 0, 0]]),
        values=nothing + 1.0, returns=spoil(torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0]]), mask, 0.0),
    )  # fmt: skip
    steps = [{"val/ratio": 1.0, "policy/approxkl": 0.0}, {"val/ratio": 1.2, "policy/approxkl": 0.5}]
    metrics = summarize(rollout, torch.tensor([1.0, 3.0]), batch, steps)
    assert metrics["objective/kl"] == pytest.approx((4 * 0.5 + 1 * 0.5) / 2)
    assert metrics["objective/entropy"] == pytest.approx(3.0)
    assert metrics["objective/scores"] == 2 and metrics["objective/scores_std"] == pytest.approx(2**0.5)
    assert metrics["objective/rewards"] == 1.5
    assert metrics["val/length"] == 2.5 and metrics["val/eos_rate"] == 0.5
    assert metrics["val/explained_variance"] == pytest.approx(0)  # a constant explains nothing
    assert metrics["val/ratio"] == pytest.approx(1.1) and metrics["val/first_ratio"] == 1.0
    assert metrics["policy/approxkl"] == 0.25 and metrics["policy/first_approxkl"] == 0.0
    assert all(type(value) is float for value in metrics.values())
    perfect = summarize(rollout, torch.tensor([1.0, 3.0]), batch | {"values": batch["returns"]}, steps)
    assert perfect["val/explained_variance"] == 1


def test_exact_kl_equals_enumeration_of_the_vocabulary(scene):
    rollout, _, actor_critic, ref_policy, _ = scene
    sampled, exact = [], []
    for row in range(len(PROMPTS)):
        prompt, response = real_tokens(rollout, row)
        p, q = (
            alone(m, prompt + response, 0.8)[len(prompt) - 1 : -1].double() for m in (actor_critic.policy, ref_policy)
        )
        sampled.append(sum((p - q)[t, token].item() for t, token in enumerate(response)))
        exact.append((p.exp() * (p - q)).sum().item())
    gap = torch.tensor(sampled) - torch.tensor(exact)
    z = gap.mean() / (gap.std() / len(gap) ** 0.5)
    for batch_size in (3, 100):
        check = exact_kl_check(rollout, actor_critic.policy, ref_policy, 0.8, batch_size)
        assert check["check/kl_exact"] == pytest.approx(sum(exact) / len(exact), abs=1e-3)
        assert check["check/kl_sampled"] == pytest.approx(sum(sampled) / len(sampled), abs=1e-3)
        assert check["check/kl_z"] == pytest.approx(z.item(), abs=1e-3)


@pytest.mark.parametrize("sampled_at, low, high", [(1.0, 0, 4), (0.6, 4, math.inf)])
def test_the_kl_check_sees_another_sampling_temperature(policy, ref_policy, tokenizer, sampled_at, low, high):
    rollout = generate(policy, tokenizer, PROMPTS * 16, 10, sampled_at, seed=0)
    assert low <= abs(exact_kl_check(rollout, policy, ref_policy, 1.0)["check/kl_z"]) <= high


def test_the_kl_check_of_equal_models_is_0(policy, tokenizer):
    rollout = generate(policy, tokenizer, PROMPTS, 10, seed=0)
    check = exact_kl_check(rollout, policy, policy)
    assert list(check.values()) == pytest.approx([0, 0, 0], abs=1e-3)


# ------------------------------------------------------------------------------------------------------ the loop


@pytest.mark.parametrize("n, size", [(10, 4), (3, 8), (8, 8), (32, 8)])
def test_every_pass_over_the_prompts_uses_each_once(n, size):
    rows = [row for update in range(1, 2 * n + 1) for row in ppo._prompt_rows(update, size, n, seed=3)]
    passes = [rows[i : i + n] for i in range(0, len(rows), n)]
    assert all(sorted(p) == list(range(n)) for p in passes)
    assert len({tuple(p) for p in passes}) > 1  # shuffled anew


class RecordingAdamW(torch.optim.AdamW):
    """AdamW that notes its settings and the learning rate of each step."""

    made, rates = [], []

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        self.made.append(settings)

    def step(self, *args, **kwargs):
        self.rates.append(self.param_groups[0]["lr"])
        return super().step(*args, **kwargs)


@pytest.fixture
def cast(tokenizer, tmp_path):
    """`run(**overrides)` trains fresh copies of the same four models and returns (rows, models by name)."""
    torch.manual_seed(0)
    brief_policy(tokenizer).save_pretrained(tmp_path / "sft")

    def run(ref_scale=None, policy=None, resume=False, evaluate=None, seed=1, **overrides):
        settings = {"max_new_tokens": 8, "max_prompt_tokens": 24, "precision": "no"}
        settings |= {f"ppo.{key}": value for key, value in overrides.items()}
        recipe = get_recipe("tiny", "smoke", seed, settings)
        torch.manual_seed(0)
        reward_model = models.new_reward_model(tmp_path / "sft")
        reward_model.config.pad_token_id = tokenizer.pad_token_id
        reward_model.config.reward_mean = 0.5
        parts = dict(
            policy=policy or brief_policy(tokenizer),
            ref_policy=random_policy(tokenizer, seed=9, scale=ref_scale) if ref_scale else brief_policy(tokenizer),
            reward_model=reward_model, value_model=models.value_model_from(reward_model),
        )  # fmt: skip
        run.parts = parts
        rows = train_ppo(recipe, *parts.values(), tokenizer, tokenizer, PROMPTS * 2, tmp_path, make_accelerator("no"),
                         recipe.resolved(), resume=resume, evaluate=evaluate)  # fmt: skip
        assert all(row["eps"] > 0 for row in rows)
        return [{key: value for key, value in row.items() if key != "eps"} for row in rows], parts

    return run


def test_optimizer_steps_are_updates_times_epochs_times_minibatches_and_lr_falls_to_0(cast, monkeypatch):
    monkeypatch.setattr(RecordingAdamW, "made", [])
    monkeypatch.setattr(RecordingAdamW, "rates", [])
    monkeypatch.setattr(torch.optim, "AdamW", RecordingAdamW)
    rows, _ = cast(updates=3, epochs=2, minibatches=4, lr=1e-3, micro_batch_size=1, warmup=0.125)
    steps = 3 * 2 * 4
    falling = [1e-3 * (1 - i / steps) for i in range(steps)]
    assert RecordingAdamW.rates == pytest.approx([1e-3 / 3, 1e-3 * 2 / 3, *falling[2:]])  # warmed up over 3 of 24 steps
    assert [row["lr"] for row in rows] == pytest.approx([1e-3 * 2 / 3, 1e-3 / 3, 0])
    assert len(RecordingAdamW.made) == 1
    assert RecordingAdamW.made[0]["eps"] == 1e-5 and RecordingAdamW.made[0]["weight_decay"] == 0


def test_in_the_first_updates_only_the_critic_learns(cast, tokenizer):
    original, seen = parameters_of(brief_policy(tokenizer)), []
    rows, parts = cast(
        updates=3, lr=1e-3, critic_updates=2, evaluate=lambda policy: seen.append(parameters_of(policy)) or {}
    )
    assert torch.equal(seen[0], original) and torch.equal(seen[1], original) and not torch.equal(seen[2], original)
    assert rows[0]["val/loss"] > rows[1]["val/loss"]  # the critic has learnt in between
    assert rows[1]["objective/kl"] == pytest.approx(0, abs=1e-3)


def test_the_policys_first_step_after_the_critics_is_a_whole_one(cast, tokenizer):
    """Adam's first step has size lr wherever the gradient is not 0, and a smaller one if it has counted zeros before."""
    _, parts = cast(updates=4, epochs=1, minibatches=1, lr=1e-3, warmup=0, critic_updates=3)
    moved = (parameters_of(parts["policy"]) - parameters_of(brief_policy(tokenizer))).abs()
    assert moved.max() == pytest.approx(1e-3 / 4, rel=0.02)  # lr has fallen to a quarter


def test_training_changes_policy_and_values_and_neither_reference_nor_reward_model(cast, tokenizer):
    original = parameters_of(brief_policy(tokenizer))
    rows, parts = cast(lr=1e-3)
    assert [row["step"] for row in rows] == [1, 2]
    assert (parameters_of(parts["policy"]) - original).abs().max() > 1e-4
    assert torch.equal(parameters_of(parts["ref_policy"]), original)
    body, start = parts["value_model"].body, parts["reward_model"].base_model
    assert torch.equal(parameters_of(start), original)
    assert (parameters_of(body) - original).abs().max() > 1e-4
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-3) and abs(rows[1]["objective/kl"]) > 1e-3


def test_embeddings_of_policy_and_critic_stay_where_the_recipe_freezes_them(cast):
    _, parts = cast(lr=1e-3)
    words = {name: parts[name].get_input_embeddings().weight for name in ("policy", "ref_policy", "reward_model")}
    assert torch.equal(words["policy"], words["ref_policy"])
    assert torch.equal(parts["value_model"].body.get_input_embeddings().weight, words["reward_model"])


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_embeddings_are_those_that_read_and_those_that_write(tied, tokenizer):
    policy = random_policy(tokenizer, tie_word_embeddings=tied)
    models.freeze_embeddings(policy)
    frozen = {name for name, p in policy.named_parameters() if not p.requires_grad}
    assert frozen == {"transformer.wte.weight"} | (set() if tied else {"lm_head.weight"})


def test_each_update_starts_at_ratio_1_even_for_a_policy_handed_over_with_dropout_on(cast, tokenizer):
    policy = brief_policy(tokenizer, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3).train()
    rows, _ = cast(policy=policy, lr=1e-3)
    for row in rows:
        assert row["val/first_ratio"] == pytest.approx(1, abs=1e-5)
        assert row["policy/first_approxkl"] == pytest.approx(0, abs=1e-9)
        assert row["policy/approxkl"] > 1e-7  # later steps did move


@pytest.fixture
def calls(monkeypatch):
    """The (temperature, seed) of each call of `generate` by the loop."""
    seen = []

    def spy(policy, tokenizer, prompts, max_new_tokens, temperature=1.0, seed=None, **kwargs):
        seen.append((temperature, seed))
        return generate(policy, tokenizer, prompts, max_new_tokens, temperature, seed, **kwargs)

    monkeypatch.setattr(ppo, "generate", spy)
    return seen


def test_one_temperature_for_sampling_reference_update_and_check(cast, calls):
    """Another one in sampling shows in the call, in the reference as a first KL, in the update as a first ratio."""
    rows, _ = cast(temperature=0.7, updates=2, lr=3e-3)
    assert [temperature for temperature, _ in calls] == [0.7, 0.7]
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-3)
    assert rows[0]["val/first_ratio"] == pytest.approx(1, abs=1e-5)
    assert rows[1]["check/kl_sampled"] == pytest.approx(rows[1]["objective/kl"], abs=1e-3)
    assert abs(rows[1]["objective/kl"]) > 0.01


def test_every_update_and_every_seed_has_noise_of_its_own(cast, calls):
    cast(updates=3)
    cast(updates=1, seed=2)
    assert len({seed for _, seed in calls}) == 4


def test_a_response_without_eos_pays_the_penalty(cast):
    free, _ = cast(updates=1, missing_eos_penalty=0.0)
    fined, _ = cast(updates=1, missing_eos_penalty=3.0)
    unfinished = 1 - free[0]["val/eos_rate"]
    assert 0 < unfinished < 1
    for key in ("objective/scores", "objective/rewards"):
        assert free[0][key] - fined[0][key] == pytest.approx(3.0 * unfinished, abs=1e-4)


def test_micro_batch_size_changes_no_result(cast):
    (whole, parts), (split, split_parts) = cast(micro_batch_size=8), cast(micro_batch_size=3)
    torch.testing.assert_close(parameters_of(split_parts["policy"]), parameters_of(parts["policy"]), atol=1e-5, rtol=0)
    for a, b in zip(whole, split, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)


def test_a_killed_run_resumes_to_the_same_numbers(cast):
    class Killed(BaseException):
        pass

    calls = []

    def kill_at_the_second_update(policy):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return {}

    rows, parts = cast(updates=3)
    with pytest.raises(Killed):
        cast(updates=3, evaluate=kill_at_the_second_update)
    resumed, resumed_parts = cast(updates=3, resume=True)
    assert resumed == rows
    for key in ("policy", "value_model"):
        assert torch.equal(parameters_of(resumed_parts[key]), parameters_of(parts[key]))


def test_another_seed_makes_another_run(cast):
    assert cast(updates=1)[0] == cast(updates=1)[0] != cast(updates=1, seed=2)[0]


def test_evaluation_never_influences_training(cast):
    def evaluate(policy):
        torch.rand(100)
        return {"eval/gold": 0.5}

    (rows, parts), (watched, watched_parts) = cast(), cast(evaluate=evaluate)
    assert torch.equal(parameters_of(watched_parts["policy"]), parameters_of(parts["policy"]))
    assert [row.pop("eval/gold") for row in watched] == [0.5, 0.5]
    assert watched == rows


def test_a_policy_far_from_its_reference_stops_with_step_metric_and_causes(cast):
    with pytest.raises(TrainingFailure, match="update 1: objective/kl = .*likely causes: .*kl_coef too low"):
        cast(ref_scale=3.0)


def test_a_score_that_is_not_finite_stops_training(cast, monkeypatch):
    monkeypatch.setattr(
        ppo, "score_responses", lambda model, tok, prompts, *rest, **kw: torch.full((len(prompts),), math.nan)
    )
    with pytest.raises(TrainingFailure, match="step 1: objective/scores is nan"):
        cast()


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_mask_of_ones_and_zeros_counts_like_a_bool_mask(dtype):
    g = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(3, 5, generator=g) for _ in range(3))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    functions = [
        lambda m: ppo.masked_mean(x, m), lambda m: ppo.masked_whiten(x, m),
        lambda m: ppo.token_rewards(x[:, 0], x, y, m, 0.1), lambda m: torch.stack(ppo.compute_gae(x, y, m)),
        lambda m: ppo.policy_loss(x, y, z, m)[0], lambda m: ppo.value_loss(x, y, z, m)[0],
    ]  # fmt: skip
    for function in functions:
        assert torch.equal(function(mask), function(mask.to(dtype)))


def test_an_alarm_that_does_not_stop_training_is_printed(cast, capsys, monkeypatch):
    monkeypatch.setattr(ppo, "alarms", lambda row: [f"metric at {row['step']}"])
    cast(updates=2)
    assert "update 1: metric at 1" in capsys.readouterr().out


def test_the_reward_model_reads_the_same_truncated_prompt_as_the_policy(cast, tokenizer, monkeypatch):
    """It was trained on prompts cut to max_prompt_tokens, and a longer one may not fit its context."""
    seen, score = [], ppo.score_responses

    def spy(model, tok, prompts, responses, finished=None, max_prompt_tokens=10**6, **kwargs):
        seen.extend(map(len, encode_prompts(tok, prompts, max_prompt_tokens)))
        return score(model, tok, prompts, responses, finished, max_prompt_tokens=max_prompt_tokens, **kwargs)

    monkeypatch.setattr(ppo, "score_responses", spy)
    cast(updates=1)
    assert max(map(len, encode_prompts(tokenizer, PROMPTS, 10**6))) > 24  # truncation matters here
    assert max(seen) == 24
