"""Every metric: what it means, its formula, where it is healthy, where training must stop, and what a wrong value says.

Where the clinic (`clinic.json`) drove a metric out of its range, the causes stand in the order of what it measured.
`outputs/evaluation/glossary.md` is the same to be read.
"""

from dataclasses import dataclass
from math import inf

from rlhf_lib.runtime import TrainingFailure, UsageError


@dataclass(frozen=True)
class Metric:
    meaning: str
    formula: str
    """in the notation of `table`"""
    healthy: tuple[float, float]
    """(low, high)"""
    stop: tuple[float, float] = (-inf, inf)
    """outside of this, training ends"""
    below: tuple[str, ...] = ()
    """likely causes of a value below the healthy range, or lower than it should be; most likely first"""
    above: tuple[str, ...] = ()
    """the same, above or higher"""

    @property
    def causes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.below + self.above))


PADS = "pads counted as actions"
FAST = "learning rate too high"
POSITIONS = "positions that do not follow the mask"
KL_BELOW = (
    PADS, "dropout left on, if in the first update",
    "EOS forbidden in the first tokens (min_new_tokens), if only a little below 0", POSITIONS,
)  # fmt: skip
KL_ABOVE = (
    FAST, "kl_coef too low or 0", "the sign of the KL term flipped", "k3 in the reward instead of k1",
    "a reference that is not the policy's start, if in the first update",
)  # fmt: skip
RESCORED = (  # the update scores otherwise than the rollout was scored
    "dropout left on", "another temperature in the update than in sampling and scoring", POSITIONS,
)  # fmt: skip
LATE = "the score paid elsewhere than at the last token"
YOUNG_CRITIC = "a critic that has only begun to learn, if in the first updates"
CRITIC_OFF = (
    YOUNG_CRITIC, FAST, PADS, LATE, "advantages that read the critic behind the last token",
)  # fmt: skip
SCORE_BELOW = (LATE, "kl_coef too high or learning rate too low, if it does not rise")
RESCORED_DOCTOR = ("dropout left on, if check f fails too", "another temperature in one of the two passes that score")
UNTRAINED = "nothing learnt yet, if in the first steps, which scatter around chance"
PAIRS_BELOW = (
    UNTRAINED, "chosen and rejected swapped in the loss, if it falls towards 0",
    "the score read at another token than EOS, if it stays near 0.5",
)  # fmt: skip

GLOSSARY = {
    "loss": Metric(
        "training loss of the step, nats: a token in SFT, a pair in reward modelling",
        "SFT: -sum(mask * logp) / sum(mask); reward model: mean_pairs(-log(sigmoid(chosen - rejected)))", (0, inf),
        above=(f"{FAST}, if it jumps or rises", "learning rate too low, if it hardly falls",
               "completions or labels that do not belong to their prompts, if it stays high"),
    ),
    "validation_loss": Metric(
        "the same loss on held-out data", "loss, over all held-out tokens or pairs at once", (0, inf),
        above=("too many epochs, if it rises while loss falls", f"{FAST}, if both rise",
               "held-out data of another kind than the training data"),
    ),
    "accuracy": Metric(
        "share of the step's pairs whose chosen response scores higher",
        "mean_pairs([chosen > rejected] + [chosen = rejected] / 2)", (0.5, 1), below=PAIRS_BELOW,
    ),
    "validation_accuracy": Metric(
        "the same on held-out pairs; the annotator's noise sets its ceiling", "accuracy, over all held-out pairs",
        (0.5, 1), below=(*PAIRS_BELOW, "chosen and rejected swapped in one of the two splits"),
    ),
    "gold_agreement": Metric(
        "share of held-out pairs ordered as the gold judge orders them; ties left out",
        "mean_pairs([d > 0] + [d = 0] / 2) where d = (chosen - rejected) * sign(gold_chosen - gold_rejected)",
        (0.5, 1), below=(UNTRAINED, "chosen and rejected swapped in the data, if accuracy is high",
                         "labels that follow something else than the judge, such as length"),
    ),
    "grad_norm": Metric(
        "global gradient norm of the step before clipping", "sqrt(sum(gradient^2))", (0, inf),
        above=("the first steps, after which it falls with the loss", f"{FAST}, if it rises later",
               "a broken example in the batch"),
    ),
    "objective/scores": Metric(
        "mean reward-model score of the batch, less missing-EOS penalties",
        "mean_B(scores) where scores = logit - reward_mean - missing_eos_penalty * [last_token != EOS]", (-inf, inf),
        below=(*SCORE_BELOW, "missing-EOS penalties, if val/eos_rate is low"),
        above=("the reward model's weak spots, if gold or a judge does not rise with it",
               "sampled at a lower temperature, or with top-k or top-p, if in the first update"),
    ),
    "objective/scores_std": Metric(
        "standard deviation of the scores over the batch", "std_B(scores)", (0.05, inf),
        below=(f"a policy that writes the same to every prompt: {FAST}, or kl_coef too low",
               "a reward model that reads the same token in every response"),
    ),
    "objective/kl": Metric(
        "KL(policy ‖ ref) by k1, summed over each response, nats a sequence",
        "mean_B(sum_t(mask * (logp - ref_logp)))", (-1, 30), (-10, 200), KL_BELOW, KL_ABOVE,
    ),
    "objective/kl_k3": Metric(
        "KL(policy ‖ ref) by k3, nats a sequence: never negative and mostly less noisy, but one token that the policy "
        "made rare can dominate it; for reading only (Schulman 2020)",
        "mean_B(sum_t(mask * (exp(-d) - 1 + d))) where d = logp - ref_logp", (0, 30),
        above=("one token drawn that the policy had made rare, if in a single update and objective/kl stays calm", FAST,
               "dropout left on, if in the first update", PADS, POSITIONS),
    ),
    "objective/rewards": Metric(
        "sum of token rewards a response: score - kl_coef * KL",
        "mean_B(sum_t(rewards)), which is mean_B(scores) - kl_coef * mean_B(sum_t(mask * (logp - ref_logp))) "
        "unless whitened", (-inf, inf),
        below=("kl_coef too high",),
        above=("the sign of the KL term flipped, if above objective/scores while objective/kl is above 0",
               "k3 in the reward instead of k1, if it is not objective/scores less kl_coef times objective/kl"),
    ),
    "objective/entropy": Metric(
        "mean entropy of the policy at response tokens, nats a token", "mean_mask(-sum_v(p * log(p)))", (0.02, inf),
        below=(f"a collapsed policy: {FAST}", "kl_coef too low or 0", "the sign of the KL term flipped"),
        above=(FAST, PADS, "dropout left on"),
    ),
    "policy/loss": Metric(
        "clipped surrogate loss",
        "mean_steps(mean_mask(max(-A * ratio, -A * clip(ratio, 1 - cliprange, 1 + cliprange))))", (-1, 1),
        below=("advantages that are not whitened",),
        above=(POSITIONS, "dropout left on", "advantages that are not whitened"),
    ),
    "policy/approxkl": Metric(
        "half the mean squared log-ratio to the policy that sampled, averaged over the update's steps",
        "mean_steps(mean_mask((logp - old_logp)^2) / 2)", (0, 0.1), (0, 5),
        above=(FAST, "dropout left on, if in the first update", f"{POSITIONS}, if policy/first_approxkl rings too",
               f"{PADS}, if val/ratio falls below its range", "too many epochs or minibatches a batch"),
    ),
    "policy/first_approxkl": Metric(
        "approxkl at the update's first step, where both policies are the same",
        "policy/approxkl of the first step alone", (0, 1e-3), above=RESCORED,
    ),
    "policy/clipfrac": Metric(
        "share of response tokens whose update the clip limits",
        "mean_steps(mean_mask([-A * clip(ratio, 1 - cliprange, 1 + cliprange) > -A * ratio]))", (0, 0.35),
        above=(FAST, "too many epochs or minibatches a batch", PADS, "dropout left on, if in the first update"),
    ),
    "policy/grad_norm": Metric(
        "global gradient norm before clipping, averaged over the update's steps",
        "mean_steps(sqrt(sum(gradient^2))) over policy and critic", (0, inf),
        above=(FAST, PADS, POSITIONS, "another temperature in the update than in sampling and scoring"),
    ),
    "val/ratio": Metric(
        "mean probability ratio new : old, averaged over the update's steps",
        "mean_steps(mean_mask(ratio)) where ratio = exp(logp - old_logp)", (0.9, 1.1),
        below=(PADS, FAST), above=(POSITIONS, "dropout left on, if in the first update", FAST),
    ),
    "val/first_ratio": Metric(
        "mean ratio at the update's first step: 1 by construction", "val/ratio of the first step alone", (0.99, 1.01),
        (0.5, 2), ("another temperature in the update than in sampling and scoring", POSITIONS), RESCORED,
    ),
    "val/loss": Metric(
        "clipped value loss",
        "mean_steps(mean_mask(max((V - R)^2, (V_clip - R)^2)) / 2)", (0, inf), above=CRITIC_OFF,
    ),
    "val/clipfrac": Metric(
        "share of response tokens whose value update the clip limits",
        "mean_steps(mean_mask([(V_clip - R)^2 > (V - R)^2]))", (0, 0.5),
        above=(YOUNG_CRITIC, FAST, "cliprange_value too small for the spread of the scores"),
    ),
    "val/error": Metric(
        "mean squared error of values against returns", "mean_steps(mean_mask((V - R)^2))", (0, inf), above=CRITIC_OFF,
    ),
    "val/explained_variance": Metric(
        "1 - Var(returns - values) / Var(returns)", "1 - var_mask(R - V_old) / var_mask(R)", (0, 1),
        below=(YOUNG_CRITIC, LATE, FAST),
    ),
    "val/length": Metric(
        "mean response length, tokens with EOS", "mean_B(sum_t(mask))", (2, inf),
        below=(f"a collapsed policy: {FAST}", f"{PADS}, which makes short responses pay",
               "k3 in the reward instead of k1"),
        above=(f"{PADS}, if all are as long as the longest", "the sign of the KL term flipped",
               "EOS forbidden in the first tokens (min_new_tokens)", "a reward model that likes length"),
    ),
    "val/eos_rate": Metric(
        "share of responses that end by themselves", "mean_B([last_token = EOS])", (0.9, 1),
        below=("the sign of the KL term flipped, if it falls", f"{FAST}, if it falls",
               "max_new_tokens too small, if from the first update on",
               "EOS was no target in SFT (PAD is EOS), if from the first update on"),
    ),
    "check/kl_sampled": Metric(
        "KL a sequence by k1 on this batch, nats", "mean_B(sampled) where sampled = sum_t(mask * (logp - ref_logp))",
        (-1, 30), below=KL_BELOW, above=KL_ABOVE,
    ),
    "check/kl_exact": Metric(
        "KL a sequence summed over the whole vocabulary at the same prefixes, nats",
        "mean_B(exact) where exact = sum_t(mask * sum_v(p * (log(p) - log(ref_p))))", (0, 30), above=KL_ABOVE,
    ),
    "check/kl_z": Metric(
        "sampled less exact KL, in standard errors of their difference",
        "mean_B(gap) / (std_B(gap) / sqrt(B)) where gap = sampled - exact", (-4, 4), (-12, 12),
        (PADS, "EOS forbidden in the first tokens (min_new_tokens)", POSITIONS),
        ("a collapsed policy, if objective/entropy is near 0: the rare tokens that balance the mean are never drawn",
         "sampled at a lower temperature, or with top-k or top-p, but scored without"),
    ),
    "eval/gold": Metric(
        "mean gold score on validation posts; PPO never sees it", "mean_posts(gold_score(post, summary))", (-inf, 1),
        below=("the reward model's weak spots, if eval/scores rises: stop earlier, or raise kl_coef",
               "a reward model that never saw the policy's own samples",
               "the language is lost: see objective/kl and val/eos_rate"),
    ),
    "eval/scores": Metric(
        "mean reward-model score on validation posts", "mean_posts(logit - reward_mean)", (-inf, inf),
        below=SCORE_BELOW,
    ),
    "lr": Metric(
        "learning rate after this update",
        "PPO: peak * min((s + 1) / W, 1 - s / S); "
        "SFT and reward model: peak * min((s + 1) / W, (1 + cos(pi * max(0, s - W) / (S - W))) / 2)",
        (0, inf), below=("more optimizer steps than the schedule was made for",),
    ),
    "eps": Metric(
        "episodes (responses) a second, sampled, scored and learnt from; no two runs share it", "batch_size / seconds",
        (0, inf),
        below=("longer responses: see val/length", "the check of the exact KL, in its updates", "a busy machine"),
    ),
    # what the doctor measures before the first update; a check fails above `healthy`, (c) on both sides
    "doctor/a ratio - 1 at step 0": Metric(
        "the policy is scored as it was when it sampled", "max(mask * abs(exp(logp - old_logp) - 1))", (0, 1e-4),
        above=(*RESCORED_DOCTOR, "log-probabilities kept from generation instead of scored anew"),
    ),
    "doctor/a KL at step 0": Metric(
        "policy and reference are still the same, nats a sequence",
        "max(abs(sum_t(mask * (old_logp - ref_logp))))", (0, 1e-3),
        above=("dropout left on, if check f fails too", "a reference that is not the policy's start",
               "a reference scored at another temperature"),
    ),
    "doctor/a approxkl at step 0": Metric(
        "no step has been taken", "mean_mask((logp - old_logp)^2) / 2", (0, 1e-8), above=RESCORED_DOCTOR,
    ),
    "doctor/a clipfrac at step 0": Metric(
        "nothing can be clipped yet", "mean_mask([-clip(ratio, 1 - cliprange, 1 + cliprange) > -ratio])", (0, 0),
        above=RESCORED_DOCTOR,
    ),
    "doctor/b padded - unpadded": Metric(
        "padding and positions change no log-probability", "max(mask * abs(logp - unpadded_logp)), over 8 responses",
        (0, 1e-4),
        above=(f"{POSITIONS}, or position_ids left out", "an attention mask that lets padding in",
               "dropout left on, if check f fails too"),
    ),
    "doctor/c surprise - entropy, z": Metric(
        "what is sampled is what is scored",
        "mean_B(gap) / (std_B(gap) / sqrt(B)) where gap = sum_t(mask * (-logp + sum_v(p * log(p))))",
        (-3, 3),
        below=("sampled at a lower temperature than scored", "sampled with top_p below 1",
               "sampled with a small top_k (transformers' default is 50, of which this check sees little)"),
        above=(f"{PADS}, if check e fails too",
               "EOS forbidden in the first tokens (min_new_tokens), if no other check fails",
               "dropout left on, if check f fails too", f"{POSITIONS}, if check b fails too",
               "sampled at a higher temperature than scored"),
    ),
    "doctor/d reward probe": Metric(
        "r = -beta (log p - log ref), score at the end",
        "max(abs(rewards - mask * (score * [t = last] - kl_coef * (logp - ref_logp))))", (0, 1e-5),
        above=("the sign of the KL term flipped, if measured is 2 kl_coef",
               "another estimator in the reward, if measured is 1.72 kl_coef (k3) or 1.5 kl_coef (k2)",
               f"{LATE}, if measured is 7, the probe's score"),
    ),
    "doctor/d beta > 0": Metric(
        "0 says yes: KL has a price, which anchors the policy", "[kl_coef <= 0]", (0, 0.5),
        above=("kl_coef is 0", "kl_coef is negative: KL is paid for"),
    ),
    "doctor/e EOS among labels": Metric(
        "each demonstration teaches exactly one EOS",
        "mean over demonstrations of [not exactly one EOS among the labels, or not at the end]",
        (0, 0),
        above=("PAD is EOS, and padding is masked in the labels by its id", "no EOS appended to the demonstrations",
               "EOS appended twice, or not at the end, by template and tokenizer"),
    ),
    "doctor/e masks end at EOS": Metric(
        "EOS is the last action of a response that ends",
        "mean_B([there is an EOS and the first is not the last counted token, or the mask is empty or has a hole])",
        (0, 0),
        above=(f"{PADS}, if check c fails too", "EOS left out of the mask, if check c passes",
               "PAD is EOS, and padding is found by its id, if the labels fail too"),
    ),
    "doctor/f two passes differ by": Metric(
        "dropout is off", "max(abs(logp - logp_of_another_pass))", (0, 1e-6),
        above=("dropout left on: call model.eval() before the first rollout, and no model.train() behind it",
               "operations that are not deterministic on this device"),
    ),
}  # fmt: skip


def alarms(row: dict) -> list[str]:
    """The metrics of a logged row that are outside their healthy range, each with its value and range."""
    found = []
    for key, value in row.items():
        metric = GLOSSARY.get(key)
        if metric and not metric.healthy[0] <= value <= metric.healthy[1]:
            found.append(f"{key} = {value:.4g} is outside {metric.healthy[0]:g} .. {metric.healthy[1]:g}")
    return found


def explain(key: str, value: float) -> str:
    """Likely causes of a metric's value, most likely first: those of the side on which it left its healthy range.

    Those of both sides where it left none, or is nan. Raises UsageError for a metric that the glossary lacks.
    """
    if key not in GLOSSARY:
        raise UsageError(f"there is no metric {key!r} in the glossary: choose among {', '.join(GLOSSARY)}")
    metric = GLOSSARY[key]
    side = metric.below if value < metric.healthy[0] else metric.above if value > metric.healthy[1] else ()
    return "; ".join(side or metric.causes)


def stop_if_alarmed(step: int, row: dict) -> None:
    """Raises TrainingFailure if a metric left the range in which going on makes sense."""
    for key, value in row.items():
        metric = GLOSSARY.get(key)
        if metric and not metric.stop[0] <= value <= metric.stop[1]:
            raise TrainingFailure(
                f"PPO stopped at update {step}: {key} = {value:.4g} left {metric.stop[0]:g} .. {metric.stop[1]:g}; "
                f"likely causes: {explain(key, value)}"
            )


SECTIONS = {
    "": "SFT and reward model (`lr` is logged by PPO too, `eps` by PPO alone)",
    "objective": "PPO: what is maximised, and what it costs",
    "policy": "PPO: the policy's steps",
    "val": "PPO: ratio, critic and responses",
    "check": "PPO: sampled against exact KL",
    "eval": "PPO: validation",
    "doctor": "The doctor, before the first update",
}
PREFACE = """\
# Glossary

Every metric that the loops log, and every check of the doctor. Made from `rlhf_lib/glossary.py`, do not edit:
`python -m rlhf_lib.glossary > outputs/evaluation/glossary.md`

A metric outside its healthy range raises an alarm, which is a reason to look, not a verdict. Outside of the range under
*stops outside* training ends. Likely causes stand in the order in which to look: **low** for a value below the healthy
range, or lower than it should be, **high** for one above. `rlhf_lib.glossary.explain(key, value)` picks the side for
you. The ranges suit summaries of some thirty tokens: keep the curves of a correct run of your own beside them.

**Notation.** All (B, T), response by token: `logp`, `old_logp`, `ref_logp` are the log-probabilities of the sampled
tokens under the policy now, the policy that sampled, and the reference; `ratio` is `exp(logp - old_logp)`; `mask` is
the response mask; `A` are the whitened advantages, `R` the returns, `V` and `V_old` the values now and at sampling, and
`V_clip` is `clip(V, V_old - cliprange_value, V_old + cliprange_value)`. (What stands under `objective/` is measured
before the first step, when `logp` is `old_logp`.) `sum_t` runs over the tokens of a response, `sum_v` over the
vocabulary, where `p` and `ref_p` are the two distributions. `mean_B` and `std_B` run over the responses of a batch,
`mean_mask` and `var_mask` over its counted tokens, `mean_steps` over the optimizer steps of an update, `mean_pairs`
over pairs of responses with the scores `chosen` and `rejected`. `[...]` is 1 if true, else 0. `s` optimizer steps of
`S` are done, and the warm-up takes `W`.

What no range shows: a reference that shares its weights with the policy (`objective/kl` is 0 in every update, while
`policy/approxkl` is not), and advantages that read the critic behind the last token (`val/error` ends higher than in a
correct run of the same seed)."""


def table() -> str:
    """The glossary as a page of Markdown, which is kept as `outputs/evaluation/glossary.md`."""
    lines = [PREFACE]
    for prefix, title in SECTIONS.items():
        lines += ["", f"## {title}", "", "| metric | meaning | formula | healthy | stops outside | likely causes |"]
        lines += ["|---" * 6 + "|"]
        for key, m in GLOSSARY.items():
            if key.rpartition("/")[0] == prefix:
                sides = [f"**{side}:** {'; '.join(x)}" for side, x in (("low", m.below), ("high", m.above)) if x]
                cells = [
                    f"`{key.removeprefix('doctor/')}`",
                    m.meaning,
                    f"`{m.formula}`",
                    _range(m.healthy),
                    _range(m.stop),
                ]
                lines.append(f"| {' | '.join(cells)} | {'<br>'.join(sides)} |")
    return "\n".join(lines) + "\n"


def _range(limits: tuple[float, float]) -> str:
    return "–" if limits == (-inf, inf) else f"{limits[0]:g} … {limits[1]:g}".replace("inf", "∞")


if __name__ == "__main__":
    print(table(), end="")
