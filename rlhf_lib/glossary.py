"""Every metric that PPO logs: what it means, where it is healthy, and where training must stop."""

from dataclasses import dataclass
from math import inf

from rlhf_lib.runtime import TrainingFailure


@dataclass(frozen=True)
class Metric:
    meaning: str
    healthy: tuple[float, float]
    """(low, high)"""
    stop: tuple[float, float] = (-inf, inf)
    """outside of this, training ends"""
    causes: str = ""
    """likely causes of an alarm"""


GLOSSARY = {
    "loss": Metric("training loss of the step, nats: a token in SFT, a pair in reward modelling", (0, inf)),
    "validation_loss": Metric("the same loss on held-out data", (0, inf)),
    "accuracy": Metric("share of the step's pairs whose chosen response scores higher", (0.5, 1)),
    "validation_accuracy": Metric("the same on held-out pairs; the annotator's noise sets its ceiling", (0.5, 1)),
    "gold_agreement": Metric("share of held-out pairs ordered as the gold judge orders them; ties left out", (0.5, 1)),
    "grad_norm": Metric("global gradient norm of the step before clipping", (0, inf)),
    "objective/scores": Metric("mean reward-model score of the batch, less missing-EOS penalties", (-inf, inf)),
    "objective/scores_std": Metric("standard deviation of the scores over the batch", (0.05, inf)),
    "objective/kl": Metric(
        "KL(policy ‖ ref) by k1, summed over each response, nats a sequence", (-1, 30), (-10, 200),
        "tokens sampled from another distribution than the scored one, pads counted as actions, or kl_coef too low",
    ),
    "objective/kl_k3": Metric(
        "KL(policy ‖ ref) by k3, nats a sequence: never negative and mostly less noisy, but one token that the policy made "
        "rare can dominate it; for reading only (Schulman 2020)", (0, 30),
    ),
    "objective/rewards": Metric("sum of token rewards a response: score - kl_coef * KL", (-inf, inf)),
    "objective/entropy": Metric("mean entropy of the policy at response tokens, nats a token", (0.02, inf)),
    "policy/loss": Metric("clipped surrogate loss", (-1, 1)),
    "policy/approxkl": Metric(
        "half the mean squared log-ratio to the policy that sampled, averaged over the update's steps", (0, 0.1), (0, 5),
        "learning rate too high, too many epochs, or dropout left on",
    ),
    "policy/first_approxkl": Metric("approxkl at the update's first step, where both policies are the same", (0, 1e-3)),
    "policy/clipfrac": Metric("share of response tokens whose update the clip limits", (0, 0.35)),
    "policy/grad_norm": Metric("global gradient norm before clipping, averaged over the update's steps", (0, inf)),
    "val/ratio": Metric("mean probability ratio new : old, averaged over the update's steps", (0.9, 1.1)),
    "val/first_ratio": Metric(
        "mean ratio at the update's first step: 1 by construction", (0.99, 1.01), (0.5, 2),
        "dropout on, positions that do not follow the mask, or another temperature in sampling and update",
    ),
    "val/loss": Metric("clipped value loss", (0, inf)),
    "val/clipfrac": Metric("share of response tokens whose value update the clip limits", (0, 0.5)),
    "val/error": Metric("mean squared error of values against returns", (0, inf)),
    "val/explained_variance": Metric("1 - Var(returns - values) / Var(returns)", (0, 1)),
    "val/length": Metric("mean response length, tokens with EOS", (2, inf)),
    "val/eos_rate": Metric("share of responses that end by themselves", (0.9, 1)),
    "check/kl_sampled": Metric("KL a sequence by k1 on this batch, nats", (-1, 30)),
    "check/kl_exact": Metric("KL a sequence summed over the whole vocabulary at the same prefixes, nats", (0, 30)),
    "check/kl_z": Metric(
        "sampled less exact KL, in standard errors of their difference", (-4, 4), (-12, 12),
        "tokens sampled from another distribution than the scored one (top-k, top-p, temperature, min_new_tokens)",
    ),
    "eval/gold": Metric("mean gold score on validation posts; PPO never sees it", (-inf, 1)),
    "eval/scores": Metric("mean reward-model score on validation posts", (-inf, inf)),
    "lr": Metric("learning rate after this update", (0, inf)),
    "eps": Metric("episodes (responses) a second, sampled, scored and learnt from; no two runs share it", (0, inf)),
}  # fmt: skip


def alarms(row: dict) -> list[str]:
    """The metrics of a logged row that are outside their healthy range, each with its value and range."""
    found = []
    for key, value in row.items():
        metric = GLOSSARY.get(key)
        if metric and not metric.healthy[0] <= value <= metric.healthy[1]:
            found.append(f"{key} = {value:.4g} is outside {metric.healthy[0]:g} .. {metric.healthy[1]:g}")
    return found


def stop_if_alarmed(step: int, row: dict) -> None:
    """Raises TrainingFailure if a metric left the range in which going on makes sense."""
    for key, value in row.items():
        metric = GLOSSARY.get(key)
        if metric and not metric.stop[0] <= value <= metric.stop[1]:
            raise TrainingFailure(
                f"PPO stopped at update {step}: {key} = {value:.4g} left {metric.stop[0]:g} .. {metric.stop[1]:g}; "
                f"likely causes: {metric.causes}"
            )
