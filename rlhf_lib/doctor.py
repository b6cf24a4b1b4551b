"""The doctor: tripwires that run before the first PPO update and find what no loss curve shows.

Everything is checked in fp32, where the tolerances hold on any machine: the faults it looks for are faults of logic.
(a) ratio and KL at step 0: sees dropout and scoring that differs between two passes; blind to any truncated sampling.
(b) padded against unpadded scoring: sees missing positions and wrong masks; blind to sampling.
(c) surprise minus entropy: sees that what was sampled is not what is scored (temperature, top-p, tight top-k,
    min_new_tokens, pads as actions); misses top_k=50 and whatever is wrong in sampling and scoring alike.
(d) a probe of the reward's sign and estimator. (e) EOS among labels and masks. (f) two passes agree.
"""

from dataclasses import dataclass

import torch

from rlhf_lib import data, ppo, rollout
from rlhf_lib.glossary import GLOSSARY, explain
from rlhf_lib.recipes import Recipe
from rlhf_lib.runtime import TrainingFailure

RESPONSES = 512


@dataclass(frozen=True)
class Check:
    name: str
    measured: float
    limit: float
    """the check passes when |measured| <= limit"""
    meaning: str
    causes: str = "unknown"
    """of a failure, most likely first"""

    @property
    def passed(self) -> bool:
        return abs(self.measured) <= self.limit  # False for nan, too

    @property
    def says(self) -> str:
        return self.meaning if self.passed else f"{self.meaning}; likely causes: {self.causes}"


@dataclass(frozen=True)
class Report:
    checks: list[Check]

    @property
    def healthy(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'check':<28} {'measured':>10} {'limit':>8}  result  what it says"]
        for c in self.checks:
            verdict = "ok" if c.passed else "FAIL"
            lines.append(f"{c.name:<28} {c.measured:>10.2g} {c.limit:>8.2g}  {verdict:<6}  {c.says}")
        return "\n".join(lines)

    def raise_if_sick(self) -> None:
        failed = [
            f"{c.name} (measured {c.measured:.3g}, limit {c.limit:g}: {c.says})" for c in self.checks if not c.passed
        ]
        if failed:
            raise TrainingFailure(f"the doctor stops PPO before its first update: {'; '.join(failed)}")


def _check(name: str, measured: float) -> Check:
    """A check whose limit, meaning and likely causes the glossary holds."""
    key = f"doctor/{name}"
    return Check(name, measured, GLOSSARY[key].healthy[1], GLOSSARY[key].meaning, explain(key, measured))


@torch.no_grad()
def examine(recipe: Recipe, policy, ref_policy, tokenizer, prompts: list[str], demonstrations: list[dict],
            responses: int = RESPONSES) -> Report:  # fmt: skip
    """Examine the set-up of a PPO run whose policy still equals its reference. Needs no reward model.

    `demonstrations` are SFT examples {"prompt", "completion"}, for the labels check.
    """
    config = recipe.ppo
    chosen = [prompts[i % len(prompts)] for i in range(responses)]
    batches = []
    for start in range(0, responses, 128):
        index = range(start, min(start + 128, responses))
        batches.append(
            rollout.generate(policy, tokenizer, [chosen[i] for i in index], recipe.max_new_tokens, config.temperature,
                             seed=(recipe.seed, 0), indices=index, max_prompt_tokens=recipe.max_prompt_tokens)
        )  # fmt: skip
    new, again = (_response_logprobs(policy, batches[0], config.temperature) for _ in range(2))  # (B, T)
    return Report([
        *_step_zero(batches[0], new, policy, ref_policy, config),
        _padding(batches[0], new, policy, config.temperature),
        _surprise(batches, policy, config.temperature),
        *_reward_probe(config),
        _labels(tokenizer, demonstrations, recipe.max_prompt_tokens),
        _masks(batches, tokenizer.eos_token_id),
        _check("f two passes differ by", (new - again).abs().max().item()),
    ])  # fmt: skip


def _response_logprobs(model, batch, temperature: float) -> torch.Tensor:
    """As the PPO loop scores a rollout: (B, T)."""
    return rollout.token_logprobs(
        model, batch.input_ids, batch.attention_mask, temperature, batch.response_mask.shape[1]
    )


def _step_zero(batch, new, policy, ref_policy, config) -> list[Check]:
    mask = batch.response_mask
    old = rollout.token_statistics(policy, batch.input_ids, batch.attention_mask, mask.shape[1], config.temperature)[0]
    ref = _response_logprobs(ref_policy, batch, config.temperature)
    _, stats = ppo.policy_loss(new, old, torch.ones_like(new), mask, config.cliprange)
    ratio_error = torch.where(mask, (new - old).exp() - 1, 0.0).abs().max().item()
    kl = torch.where(mask, ppo.kl_estimate(old, ref), 0.0).sum(-1).abs().max().item()
    return [
        _check("a ratio - 1 at step 0", ratio_error),
        _check("a KL at step 0", kl),
        _check("a approxkl at step 0", stats["policy/approxkl"]),
        _check("a clipfrac at step 0", stats["policy/clipfrac"]),
    ]


def _padding(batch, padded, policy, temperature: float) -> Check:
    worst = 0.0
    for row in range(min(8, len(padded))):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()][None]
        n = int(batch.attention_mask[row, batch.prompt_length :].sum())
        logp = (policy(input_ids=ids).logits.float() / temperature).log_softmax(-1)
        alone = logp[0, :-1].gather(-1, ids[0, 1:, None])[-n:, 0]
        worst = max(worst, (padded[row, :n] - alone).abs().max().item())
    return _check("b padded - unpadded", worst)


def _surprise(batches, policy, temperature: float) -> Check:
    gaps = []
    for batch in batches:
        logprobs, entropy = rollout.token_statistics(
            policy, batch.input_ids, batch.attention_mask, batch.response_mask.shape[1], temperature
        )
        gaps.append(torch.where(batch.response_mask, -logprobs - entropy, 0.0).sum(-1))
    gap = torch.cat(gaps)  # (N,) mean 0 if the tokens were drawn from the scored distribution
    z = (gap.mean() / (gap.std() / len(gap) ** 0.5)).item()
    return _check("c surprise - entropy, z", z)


def _reward_probe(config) -> list[Check]:
    logprobs, ref = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.5, -1.0, -3.0]])
    mask = torch.tensor([[True, True, False]])
    beta = config.kl_coef
    rewards = ppo.token_rewards(torch.tensor([7.0]), logprobs, ref, mask, beta, config.kl_estimator)
    expected = torch.tensor([[-0.5 * beta, 7.0 + beta, 0.0]])
    return [
        _check("d reward probe", (rewards - expected).abs().max().item()),
        _check("d beta > 0", 0.0 if beta > 0 else 1.0),
    ]


def _labels(tokenizer, demonstrations: list[dict], max_prompt_tokens: int) -> Check:
    prompts = data.encode_prompts(tokenizer, [d["prompt"] for d in demonstrations], max_prompt_tokens)
    completions = data.encode_completions(tokenizer, [d["completion"] for d in demonstrations])
    ids, _, mask = data.completion_batch(prompts, completions, tokenizer.pad_token_id)
    labels = ids[:, -mask.shape[1] :].masked_fill(~mask, -100)  # (B, T)
    wrong = ((labels == tokenizer.eos_token_id).sum(-1) != 1) | (labels[:, -1] != tokenizer.eos_token_id)
    return _check("e EOS among labels", wrong.float().mean().item())


def _masks(batches, eos_token_id: int) -> Check:
    wrong = total = 0
    for batch in batches:
        responses, mask = batch.input_ids[:, batch.prompt_length :], batch.response_mask
        ends = responses == eos_token_id
        last = mask.sum(-1) - 1
        elsewhere = ends.any(-1) & (ends.float().argmax(-1) != last)  # argmax: the first EOS
        holes = (mask.int().diff(dim=-1) > 0).any(-1)
        wrong += int((elsewhere | holes | (last < 0)).sum())
        total += len(mask)
    return _check("e masks end at EOS", wrong / total)
