"""PPO for language models: the mathematics as pure functions, then one loop that reads like the algorithm.

Follows Ziegler et al. 2019 (arXiv 1909.08593), Stiennon et al. 2020 (arXiv 2009.01325) and the details collected by
Huang et al. 2024 (arXiv 2403.17031). Left out: adaptive KL control, reward scaling. Added: the critic learns alone in
the first updates (a short value pretraining, as in Yuan et al. 2025, arXiv 2503.01491).
Everywhere (B, T) is responses x response tokens, and `response_mask` (bool, or 0 and 1) True means counted.
"""

import time
from pathlib import Path

import torch
from torch import nn

from rlhf_lib import processes
from rlhf_lib.data import shuffled
from rlhf_lib.glossary import alarms, stop_if_alarmed
from rlhf_lib.models import ValueModel, checkpoint_gradients, freeze_embeddings, score_responses
from rlhf_lib.recipes import Recipe
from rlhf_lib.rollout import Rollout, generate, token_logprobs, token_statistics
from rlhf_lib.runtime import MetricLog, TrainingState, clip_gradients, prepare, progress, scaler_part, set_seed

# ------------------------------------------------------------------------------------------------- mathematics


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: str = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || ref) from samples of the policy, in nats: (B, T), (B, T) -> (B, T).

    k1 = log p - log q, unbiased; k2 = (log p - log q)^2 / 2; k3 = q/p - 1 - log(q/p), unbiased and never negative
    (Schulman, "Approximating KL divergence"). Raises ValueError for another `kind`.
    """
    log_ratio = logprobs - ref_logprobs
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"unknown KL estimator {kind!r}: choose k1, k2 or k3")


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `x` where `mask` is True: (B, T), (B, T) -> (). Zero when nothing is counted."""
    mask = mask.bool()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Scale the counted entries to variance 1, and to mean 0 if `shift_mean`: (B, T) -> (B, T), 0 where masked."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask.bool(), whitened, 0.0)


def token_rewards(
    scores, logprobs, ref_logprobs, response_mask, kl_coef: float, kl_estimator: str = "k1"
) -> torch.Tensor:
    """Reward of each response token: r_t = -kl_coef * k1_t, plus the score at the last token: (B, T), 0 where masked.

    `scores` is (B,), the rest (B, T). Stiennon et al. 2020, section 3.4 (R(x, y) with its KL term spread over tokens).
    """
    response_mask = response_mask.bool()
    rewards = torch.where(response_mask, -kl_coef * kl_estimate(logprobs, ref_logprobs, kl_estimator), 0.0)
    positions = torch.arange(response_mask.shape[1], device=response_mask.device)
    last = torch.where(response_mask, positions, -1).max(-1).values
    rows = torch.nonzero(last >= 0)[:, 0]
    rewards[rows, last[rows]] += scores.to(rewards.dtype)[rows]
    return rewards


def compute_gae(rewards, values, response_mask, gamma: float = 1.0, lam: float = 0.95):
    """Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16): (advantages, returns), (B, T).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}; after the last response token both the
    next value and the next advantage are 0. returns = advantages + values. Both are 0 where masked.
    """
    response_mask = response_mask.bool()
    values = torch.where(response_mask, values, 0.0)
    rewards = torch.where(response_mask, rewards, 0.0)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = torch.where(response_mask[:, t], delta + gamma * lam * next_advantage, 0.0)
        next_value, next_advantage = values[:, t], advantages[:, t]
    return advantages, torch.where(response_mask, advantages + values, 0.0)


def policy_loss(logprobs, old_logprobs, advantages, response_mask, cliprange: float = 0.2):
    """Clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), averaged over counted tokens: (loss, stats).

    loss = mean max(-A ratio, -A clip(ratio, 1 - cliprange, 1 + cliprange)), ratio = exp(logprobs - old_logprobs).
    """
    log_ratio = torch.where(response_mask.bool(), logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(unclipped, clipped), response_mask)
    with torch.no_grad():
        stats = {
            "policy/loss": loss.item(),
            "policy/approxkl": masked_mean(0.5 * log_ratio.square(), response_mask).item(),
            "policy/clipfrac": masked_mean((clipped > unclipped).float(), response_mask).item(),
            "val/ratio": masked_mean(ratio, response_mask).item(),
        }
    return loss, stats


def value_loss(values, old_values, returns, response_mask, cliprange_value: float = 0.2):
    """Clipped value loss, averaged over counted tokens: (loss, stats). Huang et al. 2024, detail on value clipping.

    loss = mean max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2.
    """
    clipped = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    mask = response_mask.bool()
    error, clipped_error = (torch.where(mask, x - returns, 0.0).square() for x in (values, clipped))
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), response_mask)
    with torch.no_grad():
        stats = {
            "val/loss": loss.item(),
            "val/clipfrac": masked_mean((clipped_error > error).float(), response_mask).item(),
            "val/error": masked_mean(error, response_mask).item(),
        }
    return loss, stats


# -------------------------------------------------------------------------------------------------------- loop


class ActorCritic(nn.Module):
    """Policy and value model behind one forward, so that one optimizer and one process group hold both."""

    def __init__(self, policy: nn.Module, value_model: ValueModel):
        super().__init__()
        self.policy, self.value_model = policy, value_model

    def forward(self, input_ids, attention_mask, prompt_length: int, temperature: float = 1.0):
        """Log-probabilities and values of the response tokens, each (B, T); V_t is read before token t is chosen."""
        last = input_ids.shape[1] - prompt_length
        logprobs = token_logprobs(self.policy, input_ids, attention_mask, temperature, last)
        values = self.value_model(input_ids, attention_mask)[:, prompt_length - 1 : -1]
        return logprobs, values


def collect(rollout: Rollout, scores, actor_critic, ref_policy, config, accelerator) -> dict[str, torch.Tensor]:
    """Everything about a rollout that one PPO update needs, fixed before the first step: tensors (B, T)."""
    mask = rollout.response_mask
    batch = {
        key: torch.zeros(mask.shape, device=mask.device) for key in ("logprobs", "ref_logprobs", "values", "entropy")
    }
    with torch.no_grad():
        for rows, part in rollout.micro_batches(processes.share(range(len(mask))), config.micro_batch_size):
            ids, attention, last = part.input_ids, part.attention_mask, part.response_mask.shape[1]
            with accelerator.autocast():
                logprobs, entropy = token_statistics(actor_critic.policy, ids, attention, last, config.temperature)
                values = actor_critic.value_model(ids, attention)[:, part.prompt_length - 1 : -1]
                ref_logprobs = token_logprobs(ref_policy, ids, attention, config.temperature, last)
            for key, value in zip(batch, (logprobs, ref_logprobs, values, entropy), strict=True):
                batch[key][rows, :last] = value
    batch = {key: processes.summed(value) for key, value in batch.items()}
    rewards = token_rewards(scores, batch["logprobs"], batch["ref_logprobs"], mask, config.kl_coef, config.kl_estimator)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = compute_gae(rewards, batch["values"], mask, config.gamma, config.lam)
    return batch | {"rewards": rewards, "advantages": masked_whiten(advantages, mask), "returns": returns}


def update_step(rows: list[int], rollout: Rollout, batch: dict, actor_critic, optimizer, config, accelerator,
                critic_only: bool = False) -> dict:  # fmt: skip
    """One optimizer step on some rows of the rollout, by processes and micro-batches weighted by their share of the tokens.

    With `critic_only` the policy gets no gradient and stays as it is.
    """
    total = int(rollout.response_mask[rows].sum())
    stats = {}
    for micro, part in rollout.micro_batches(processes.share(rows), config.micro_batch_size):
        mask = part.response_mask  # (b, t), with the padding of these rows only
        share = int(mask.sum()) / total
        old = {key: value[micro, : mask.shape[1]] for key, value in batch.items()}
        with accelerator.autocast():
            logprobs, values = actor_critic(part.input_ids, part.attention_mask, part.prompt_length, config.temperature)
        pg_loss, pg_stats = policy_loss(logprobs, old["logprobs"], old["advantages"], mask, config.cliprange)
        vf_loss, vf_stats = value_loss(values, old["values"], old["returns"], mask, config.cliprange_value)
        accelerator.backward((pg_loss + config.vf_coef * vf_loss) * share)
        for key, value in (pg_stats | vf_stats).items():
            stats[key] = stats.get(key, 0.0) + share * value
    stats = processes.summed_stats(stats)
    processes.sum_gradients(actor_critic)
    if critic_only:  # no gradient instead of a zero one, which Adam would count as a step
        accelerator.unwrap_model(actor_critic).policy.zero_grad(set_to_none=True)
    stats["policy/grad_norm"] = clip_gradients(accelerator, actor_critic, config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return stats


def train_ppo(recipe: Recipe, policy, ref_policy, reward_model, value_model, tokenizer, reward_tokenizer,
              prompts: list[str], folder: Path, accelerator, settings: dict, resume: bool = False,
              evaluate=None, trackers: tuple[str, ...] = ()) -> list[dict]:  # fmt: skip
    """PPO (Huang et al. 2024) on `policy` in place; returns the logged rows, one an update.

    `evaluate(policy) -> dict` is called now and then and never influences training. A diverging run ends in
    TrainingFailure. Run `doctor.examine` first: it finds what no curve shows.
    """
    config = recipe.ppo
    set_seed(recipe.seed)
    for model in (policy, ref_policy, reward_model, value_model):
        model.eval().to(accelerator.device)  # eval: dropout must be off in sampling, scoring and update
    if recipe.freeze_embeddings:
        freeze_embeddings(policy)
        freeze_embeddings(value_model.body)
    if recipe.gradient_checkpointing:
        checkpoint_gradients(policy.base_model)
        checkpoint_gradients(value_model.body)
    actor_critic = ActorCritic(policy, value_model)
    optimizer = torch.optim.AdamW(actor_critic.parameters(), lr=config.lr, eps=1e-5, weight_decay=0.0, fused=True)
    steps = config.updates * config.epochs * config.minibatches
    ramp = max(1, round(steps * config.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / ramp, 1 - step / steps))
    state = TrainingState(folder / "ppo_state.pt", settings)
    actor_critic, optimizer = prepare(accelerator, actor_critic, optimizer)
    parts = dict(actor_critic=accelerator.unwrap_model(actor_critic), optimizer=optimizer, schedule=schedule)
    parts |= scaler_part(accelerator)
    done, rows = state.load(**parts) if resume else state.set_aside()
    log = MetricLog(folder, "ppo", rows, trackers, settings)

    bar = progress(range(done + 1, config.updates + 1), initial=done, total=config.updates, desc="PPO", unit="update")
    for update in bar:
        start = time.perf_counter()
        order = _prompt_rows(update, config.batch_size, len(prompts), recipe.seed)
        batch_prompts = [prompts[i] for i in order]
        # 1. sample responses from the policy
        with accelerator.autocast():
            rollout = generate(policy, tokenizer, batch_prompts, recipe.max_new_tokens, config.temperature,
                               seed=(recipe.seed, update), max_prompt_tokens=recipe.max_prompt_tokens)  # fmt: skip
        # 2. score them; a response that never ends pays for it
        scores = score_responses(
            reward_model, reward_tokenizer, batch_prompts, rollout.texts, rollout.finished.tolist(),
            max_prompt_tokens=recipe.max_prompt_tokens,
        )  # fmt: skip
        scores = scores.to(accelerator.device) - config.missing_eos_penalty * ~rollout.finished
        # 3. log-probabilities, values, token rewards, advantages
        batch = collect(rollout, scores, parts["actor_critic"], ref_policy, config, accelerator)
        checks = {}
        if update % config.exact_kl_every == 0:
            checks = exact_kl_check(rollout, policy, ref_policy, config.temperature, config.micro_batch_size)
        # 4. a few epochs of minibatch steps
        stats = []
        for epoch in range(config.epochs):
            rows_in_order = shuffled(config.batch_size, (recipe.seed, update, epoch))
            size = config.batch_size // config.minibatches
            for first in range(0, config.batch_size, size):
                rows = rows_in_order[first : first + size]
                stats.append(update_step(rows, rollout, batch, actor_critic, optimizer, config, accelerator,
                                         critic_only=update <= config.critic_updates))  # fmt: skip
                schedule.step()
        # 5. log, check, save
        metrics = summarize(rollout, scores, batch, stats) | checks | {"lr": schedule.get_last_lr()[0]}
        metrics["eps"] = config.batch_size / (time.perf_counter() - start)
        if evaluate and (update % config.eval_every == 0 or update in (1, config.updates)):
            metrics |= evaluate(policy)
        row = log.add(update, metrics)
        stop_if_alarmed(update, row)
        for alarm in alarms(row):
            bar.write(f"update {update}: {alarm}")
        bar.set_postfix(score=f"{metrics['objective/scores']:.2f}", kl=f"{metrics['objective/kl']:.2f}",
                        clipfrac=f"{metrics['policy/clipfrac']:.2f}", eos=f"{metrics['val/eos_rate']:.2f}")  # fmt: skip
        if update % config.save_every == 0 and update < config.updates:
            state.save(update, log.rows, **parts)
    return log.close()


def summarize(rollout: Rollout, scores, batch: dict, stats: list[dict]) -> dict:
    """The metrics of one update as plain floats; `glossary.GLOSSARY` says what each means and when it is healthy."""
    mask = rollout.response_mask
    kl, kl_k3 = (kl_estimate(batch["logprobs"], batch["ref_logprobs"], kind) for kind in ("k1", "k3"))
    returns, values = batch["returns"][mask], batch["values"][mask]
    metrics = {
        "objective/scores": scores.mean(),
        "objective/scores_std": scores.std(),
        "objective/kl": torch.where(mask, kl, 0.0).sum(-1).mean(),
        "objective/kl_k3": torch.where(mask, kl_k3, 0.0).sum(-1).mean(),
        "objective/rewards": batch["rewards"].sum(-1).mean(),
        "objective/entropy": masked_mean(batch["entropy"], mask),
        "val/length": mask.sum(-1).float().mean(),
        "val/eos_rate": rollout.finished.float().mean(),
        "val/explained_variance": 1 - (returns - values).var() / returns.var().clamp(min=1e-8),
    }
    metrics = {key: float(value) for key, value in metrics.items()}
    first, rest = stats[0], {key: sum(s[key] for s in stats) / len(stats) for key in stats[0]}
    return metrics | rest | {"val/first_ratio": first["val/ratio"], "policy/first_approxkl": first["policy/approxkl"]}


@torch.no_grad()
def exact_kl_check(rollout: Rollout, policy, ref_policy, temperature: float = 1.0, batch_size: int = 32) -> dict:
    """Sampled KL against the exact KL over the whole vocabulary at the same prefixes, in nats a sequence, and z.

    Their difference has mean 0 when the tokens were drawn from the scored distribution; |z| > 4 is an alarm.
    """
    sampled, exact = [torch.zeros(0)], [torch.zeros(0)]
    for _, part in rollout.micro_batches(processes.share(range(len(rollout.texts))), batch_size):
        ids, attention, counted = part.input_ids, part.attention_mask, part.response_mask
        last = counted.shape[1]
        logprobs, _, kl = token_statistics(policy, ids, attention, last, temperature, other=ref_policy)
        ref_logprobs = token_logprobs(ref_policy, ids, attention, temperature, last)
        sampled.append(torch.where(counted, kl_estimate(logprobs, ref_logprobs), 0.0).sum(-1).cpu())
        exact.append(torch.where(counted, kl, 0.0).sum(-1).cpu())
    sampled, exact = (torch.cat(processes.gathered(torch.cat(parts))) for parts in (sampled, exact))
    gap = sampled - exact
    z = gap.mean() / (gap.std() / len(gap) ** 0.5).clamp(min=1e-6)
    return {"check/kl_sampled": sampled.mean().item(), "check/kl_exact": exact.mean().item(), "check/kl_z": z.item()}


def _prompt_rows(update: int, size: int, n: int, seed: int) -> list[int]:
    """Which prompts update number `update` uses: consecutive slices of a fresh permutation for each pass over them."""
    rows, position = [], (update - 1) * size
    while len(rows) < size:
        epoch, offset = divmod(position + len(rows), n)
        rows += shuffled(n, (seed, epoch))[offset : offset + size - len(rows)]
    return rows
