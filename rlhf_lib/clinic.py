"""The clinic: failures of PPO for language models, each put into the real loop for the duration of one run.

Nothing here is a copy of the loop. A fault is a list of attributes of the library, or of the models that take part, that
are replaced while a `with injected(...)` block runs, and put back whatever happens; or it is a setting of the recipe.
Each fault comes with the signs that it is predicted to show. They were written down after a pilot with seed 1 and are
tested on the seeds of `SEEDS`, which nothing was formulated on; for two cases, see `AGAIN`.
"""

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from rlhf_lib import data, doctor, models, ppo, rollout
from rlhf_lib.glossary import alarms
from rlhf_lib.recipes import CLINIC, Recipe
from rlhf_lib.runtime import (
    Paths,
    TrainingFailure,
    UsageError,
    make_accelerator,
    mixed_precision,
    progress,
    set_seed,
    write_lines,
)
from rlhf_lib.tiny import gold_score

SEEDS = (31, 32, 33, 34, 35)  # the confirming seeds; the signs were formulated on seed 1
AGAIN = dict.fromkeys(("temperature", "positions"), (36, 37, 38, 39, 40))
"""their first signs held on too few of SEEDS; new ones were written down and confirmed on these"""
SMOKE_SEEDS = (31,)
NOISE = 10**6 + 3  # validation summaries draw their noise from (seed, NOISE), as in `stages.train_ppo`

# --------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Outcome:
    """What one run of a case left behind: plain values, so that it goes through JSON unchanged."""

    case: str
    seed: int
    checks: dict[str, float | None]
    """what the doctor measured, by the name of the check; None if it was not finite"""
    failed: list[str]
    """the doctor's checks that failed"""
    curves: dict[str, list]
    """logged metrics by name, one value an update, None where an update did not log it, or it was not finite"""
    stopped: str
    """the message of the TrainingFailure that ended the run, or "" """
    gold: float | None
    """mean gold score of the final policy on validation posts; None if the policy cannot be sampled any more"""
    seconds: float

    @property
    def rows(self) -> list[dict]:
        """The curves as the loop logged them: one dict an update."""
        updates = range(len(self.curves.get("step", ())))
        return [{key: values[i] for key, values in self.curves.items() if values[i] is not None} for i in updates]


DOCTOR = tuple("abcdef")
TRAINING = {  # what rings during training; the critic's alarms, which ring in the first updates of correct runs, are left out
    "first step": ("val/first_ratio", "policy/first_approxkl"),
    "exact KL": ("check/kl_z",),
    "ranges": ("objective/kl", "objective/entropy", "policy/approxkl", "policy/clipfrac", "val/ratio", "val/length",
               "val/eos_rate"),
}  # fmt: skip
CHECKS = (*DOCTOR, *TRAINING)


def _rung(outcome: Outcome) -> dict[str, str]:
    """The first alarm of each metric that counts: {metric: "update 3: metric = value is outside low .. high"}."""
    watched, found = {key for keys in TRAINING.values() for key in keys}, {}
    for row in outcome.rows:
        for text in alarms(row):
            key = text.split(" = ")[0]
            if key in watched:
                found.setdefault(key, f"update {row['step']:.0f}: {text}")
    return found


def detections(outcome: Outcome) -> dict[str, bool]:
    """Which of `CHECKS` saw something: the doctor's (a) to (f), then the alarms during training."""
    rung = _rung(outcome)
    seen = {letter: any(name[0] == letter for name in outcome.failed) for letter in DOCTOR}
    seen |= {check: any(key in rung for key in keys) for check, keys in TRAINING.items()}
    seen["ranges"] |= bool(outcome.stopped) and not rung  # stopped by a value that is not finite
    return seen


def tripped(outcome: Outcome) -> str:
    """Everything that saw something, in words, or "nothing"."""
    told = [f"doctor {name} = {measured(outcome, name):.3g}" for name in outcome.failed]
    return "; ".join([*told, *_rung(outcome).values()]) or outcome.stopped or "nothing"


def measured(outcome: Outcome, check: str) -> float:
    """What a check of the doctor measured; nan if it was not finite or not made."""
    value = outcome.checks.get(check)
    return math.nan if value is None else value


def first(outcome: Outcome, key: str) -> float:
    """A metric of the first update, when the same seed has sampled with the same weights in every run."""
    values = outcome.curves.get(key) or [None]
    return math.nan if values[0] is None else values[0]


def late(outcome: Outcome, key: str) -> float:
    """Mean of a metric over the last five updates that logged it."""
    values = [x for x in outcome.curves.get(key, ()) if x is not None][-5:]
    return sum(values) / len(values) if values else math.nan


def ledger(outcome: Outcome) -> float:
    """Mean over the updates of |rewards - (score - beta KL)|, with the beta that was meant, that of `recipes.CLINIC`."""
    rewards, scores, kl = (outcome.curves.get(f"objective/{key}", ()) for key in ("rewards", "scores", "kl"))
    beta = CLINIC["ppo.kl_coef"]
    off = [abs(r - (s - beta * k)) for r, s, k in zip(rewards, scores, kl, strict=True) if None not in (r, s, k)]
    return sum(off) / len(off) if off else math.nan


def every(outcome: Outcome, key: str, holds: Callable[[float], bool]) -> bool:
    """Whether `holds` is true of the metric in every update that logged it, and there is one."""
    values = [x for x in outcome.curves.get(key, ()) if x is not None]
    return bool(values) and all(map(holds, values))


# ---------------------------------------------------------------------------------------------------------- faults
# Each function takes the cast (the models and tokenizers of a run) and returns [(object, attribute, replacement), ...].


def _sampling(change: Callable) -> list[tuple]:
    """Sample from changed logits; whatever scores the tokens knows nothing of it."""
    sample = rollout._sample
    return [(rollout, "_sample", lambda logits, *rest: sample(change(logits), *rest))]


def temperature(cast, value: float = 0.7) -> list[tuple]:
    return _sampling(lambda logits: logits / value)


def top_k(cast, k: int = 10) -> list[tuple]:
    return _sampling(lambda logits: logits.masked_fill(logits < logits.topk(k).values[:, -1:], -math.inf))


def top_p(cast, p: float = 0.9) -> list[tuple]:
    def nucleus(logits):
        probs, order = logits.softmax(-1).sort(-1, descending=True)
        outside = probs.cumsum(-1) - probs >= p  # (B, V), by rank
        return logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -math.inf)

    return _sampling(nucleus)


def _generate(change: Callable) -> list[tuple]:
    """`generate` replaced for the loop and for the doctor by `change(the real one)`."""
    replaced = change(rollout.generate)
    return [(rollout, "generate", replaced), (ppo, "generate", replaced)]


def min_new_tokens(cast, n: int = 24) -> list[tuple]:
    """EOS is impossible before `n` tokens, as in transformers' `min_new_tokens`."""
    sample, eos, step = rollout._sample, cast.tokenizer.eos_token_id, 0

    def from_the_start(generate):
        def replaced(*args, **kwargs):
            nonlocal step
            step = 0
            return generate(*args, **kwargs)

        return replaced

    def without_eos(logits, *rest):
        nonlocal step
        step += 1
        if step <= n:
            logits = logits.index_fill(-1, torch.tensor([eos], device=logits.device), -math.inf)
        return sample(logits, *rest)

    return [*_generate(from_the_start), (rollout, "_sample", without_eos)]


def dropout(cast, p: float = 0.1) -> list[tuple]:
    """The policy stays in training mode, with dropout in every layer that has a place for it."""
    layers = [layer for layer in cast.policy.modules() if isinstance(layer, nn.Dropout)]
    return [
        *((module, "training", True) for module in cast.policy.modules()),
        *((layer, "p", p) for layer in layers),
        (cast.policy, "eval", lambda: cast.policy),
    ]


def update_temperature(cast) -> list[tuple]:
    """The update scores at temperature 1, whatever the recipe samples and records at."""
    forward = ppo.ActorCritic.forward

    def forgetful(self, input_ids, attention_mask, prompt_length, temperature=1.0):
        return forward(self, input_ids, attention_mask, prompt_length)

    return [(ppo.ActorCritic, "forward", forgetful)]


def _masks(change: Callable) -> list[tuple]:
    """Another response mask, `change(rollout) -> (B, T) bool`; which responses ended is still read off the tokens."""

    def masked(generate):
        def replaced(*args, **kwargs):
            batch = generate(*args, **kwargs)
            return dataclasses.replace(batch, response_mask=change(batch))

        return replaced

    ended = property(lambda batch: (batch.input_ids[:, batch.prompt_length :] == batch.eos_token_id).any(-1))
    return [*_generate(masked), (rollout.Rollout, "finished", ended)]


def pads_counted(cast) -> list[tuple]:
    return _masks(lambda batch: torch.ones_like(batch.response_mask))


def eos_masked(cast) -> list[tuple]:
    return _masks(lambda batch: batch.response_mask & (batch.input_ids[:, batch.prompt_length :] != batch.eos_token_id))


def positions(cast) -> list[tuple]:
    """A forward without `position_ids`: with padding on the left, GPT-2 counts the pads."""

    def column_positions(model, input_ids, attention_mask, keep):
        out = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=keep)
        return out.logits.float()

    return [(rollout, "_logits", column_positions)]


def gae_behind(cast) -> list[tuple]:
    """The last token bootstraps from the critic's value one column behind the end, as if the response went on."""
    compute_gae = ppo.compute_gae

    def reads_on(rewards, values, response_mask, gamma=1.0, lam=0.95):
        mask = response_mask.bool()
        last = mask & ~F.pad(mask, (0, 1))[:, 1:]
        behind = F.pad(values, (0, 1))[:, 1:]  # V_{t+1}, behind the end that of a pad
        return compute_gae(rewards + gamma * behind * last, values, mask, gamma, lam)

    return [(ppo, "compute_gae", reads_on)]


def _rewards(change: Callable) -> list[tuple]:
    """`token_rewards` replaced by `change(the real one)`."""
    return [(ppo, "token_rewards", change(ppo.token_rewards))]


def score_late(cast) -> list[tuple]:
    """The score arrives one column behind the last token, where the mask hides it from the advantages."""

    def late_by_one(token_rewards):
        def replaced(scores, logprobs, ref_logprobs, response_mask, *rest):
            rewards = token_rewards(torch.zeros_like(scores), logprobs, ref_logprobs, response_mask, *rest)
            column = response_mask.sum(-1).clamp(max=response_mask.shape[1] - 1)
            rewards[torch.arange(len(scores), device=scores.device), column] += scores
            return rewards

        return replaced

    return _rewards(late_by_one)


def kl_sign(cast) -> list[tuple]:
    """KL is paid for instead of charged."""

    def flipped(token_rewards):
        return lambda scores, logprobs, ref_logprobs, response_mask, kl_coef, *rest: token_rewards(
            scores, logprobs, ref_logprobs, response_mask, -kl_coef, *rest
        )

    return _rewards(flipped)


def shared_reference(cast) -> list[tuple]:
    """`ref_policy = policy`, without a copy."""
    return [(cast, "ref_policy", cast.policy)]


def pad_is_eos(cast) -> list[tuple]:
    """PAD and EOS are one token, in a code base that finds pads by their id.

    The labels of SFT lose their EOS, so does the response mask, and the reward model reads one token too early.
    """
    eos, batch = cast.tokenizer.eos_token_id, data.completion_batch
    tokenizer = copy.deepcopy(cast.reward_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token

    def labels_by_id(prompts, completions, pad_id):
        ids, mask, counted = batch(prompts, completions, eos)
        return ids, mask, counted & (ids[:, -counted.shape[1] :] != eos)

    return [
        *eos_masked(cast),
        (data, "completion_batch", labels_by_id),
        (cast, "reward_tokenizer", tokenizer),
        (cast.reward_model.config, "pad_token_id", eos),
    ]


# ----------------------------------------------------------------------------------------------------------- cases

Z = "c surprise - entropy, z"
PROBE, BETA, MASKS = "d reward probe", "d beta > 0", "e masks end at EOS"
FAMILIES = {
    "sampling": "What is sampled is not what is scored",
    "masks": "Masks and positions",
    "price": "The price of KL",
    "reference": "The reference",
    "tokens": "Tokens",
    "steps": "The size of the steps",
}


@dataclass(frozen=True)
class Case:
    """One failure: what is done, the signs it is predicted to show, the cure."""

    done: str
    signs: tuple
    """(sentence, predicate(outcome, outcome of the correct run with the same seed)); the signature is all of them"""
    cure: str = ""
    family: str = ""
    inject: Callable = lambda cast: []
    settings: dict = dataclasses.field(default_factory=dict)
    """settings of PPOConfig that the fault changes"""


def _failing(letter: str) -> tuple:
    return f"the doctor's check {letter} fails", lambda ill, well: detections(ill)[letter]


SILENT = ("the doctor finds nothing", lambda ill, well: not ill.failed)
SHARPER = ("check c falls below −3: the tokens are too predictable", lambda ill, well: measured(ill, Z) < -3)
ONE_LESS = (
    "the first update's mean length is less than the correct run's, by one token for each response that ended",
    lambda ill, well: abs(first(ill, "val/length") - first(well, "val/length") + first(well, "val/eos_rate")) < 0.01,
)
RATIO_OFF = (
    "approxkl at the first step of an update is never near 0",
    lambda ill, well: every(ill, "policy/first_approxkl", lambda x: x > 1e-3),
)
FARTHER = (
    "the KL at the end is above the correct run's",
    lambda ill, well: late(ill, "objective/kl") > late(well, "objective/kl"),
)

CASES = {
    "correct": Case("nothing", (("no check sees anything", lambda ill, well: not any(detections(ill).values())),)),
    # ------------------------------------------------------------------------------------------- sampling
    "temperature": Case(
        "sampled at temperature 0.7, scored at 1",
        (SHARPER, ("the first update's score is above the correct run's, before anything was learnt",
                   lambda ill, well: first(ill, "objective/scores") > first(well, "objective/scores"))),
        "One temperature, read from the recipe, in sampling, scoring, reference and update.", "sampling", temperature,
    ),
    "top_k": Case(
        "sampled from the 10 most probable tokens, scored as if from all",
        (SHARPER, ("check a passes", lambda ill, well: not detections(ill)["a"])),
        "Sample with top_k=0: transformers' default is 50.", "sampling", top_k,
    ),
    "top_p": Case(
        "sampled from the most probable tokens that hold 90 % together, scored as if from all",
        (SHARPER,),
        "Sample with top_p=1 while training. Truncate when you deploy, if you must.", "sampling", top_p,
    ),
    "min_new_tokens": Case(
        "EOS forbidden in the first 24 tokens of a response",
        (("check c rises above 3: the tokens are too surprising", lambda ill, well: measured(ill, Z) > 3),
         ("the first update's responses are longer than the correct run's",
          lambda ill, well: first(ill, "val/length") > first(well, "val/length"))),
        "Let the policy stop when it wants to, and let the reward teach it when. Forbid nothing in sampling.",
        "sampling", min_new_tokens,
    ),
    "dropout": Case(
        "dropout of 0.1 left on in the policy",
        (_failing("f"), RATIO_OFF),
        "model.eval() before the first rollout, and no model.train() behind it: eval mode stops no gradient.",
        "sampling", dropout,
    ),
    "update_temperature": Case(
        "sampled and recorded at temperature 0.7, updated at 1",
        (SILENT, RATIO_OFF),
        "One function scores in rollout and update, with the same arguments.",
        "sampling", update_temperature, {"temperature": 0.7},
    ),
    # ---------------------------------------------------------------------------------------------- masks
    "pads_counted": Case(
        "pads behind the end counted as actions (at a tenth of the learning rate, to see the KL: at the full one approxkl "
        "ends the run first)",
        (_failing("e"), ("check c rises above 3: nobody expected the pads", lambda ill, well: measured(ill, Z) > 3),
         ("the first update's mean length is above the correct run's: it is that of the longest response",
          lambda ill, well: first(ill, "val/length") > 1.1 * first(well, "val/length")),
         ("the KL of a batch falls below −1",
          lambda ill, well: any(x is not None and x < -1 for x in ill.curves.get("objective/kl", ())))),
        "The response mask ends at the first EOS, and every sum goes through it.", "masks", pads_counted, {"lr": 4e-5},
    ),
    "eos_masked": Case(
        "EOS left out of the actions",
        (("the doctor's check of masks fails", lambda ill, well: MASKS in ill.failed), ONE_LESS),
        "EOS is an action: the response mask includes it.", "masks", eos_masked,
    ),
    "positions": Case(
        "position_ids left out of the forward that scores, so that padding on the left shifts them",
        (_failing("b"), ("check a passes", lambda ill, well: not detections(ill)["a"]),
         ("approxkl at the first step is above a thousandth in at least half of the updates",
          lambda ill, well: statistics.median([x or 0.0 for x in ill.curves.get("policy/first_approxkl") or [0.0]]) > 1e-3)),
        "Positions follow the attention mask in every forward.", "masks", positions,
    ),
    "gae_behind": Case(
        "the advantage of the last token reads the critic one column behind the end",
        (SILENT, ("the critic's error at the end is more than half again the correct run's",
                  lambda ill, well: late(ill, "val/error") > 1.5 * late(well, "val/error"))),
        "Behind the last token nothing is to come: its next value is 0.", "masks", gae_behind,
    ),
    "score_late": Case(
        "the score paid one column behind the last token",
        (("the doctor's reward probe fails", lambda ill, well: PROBE in ill.failed),
         ("the score at the end is below the correct run's",
          lambda ill, well: late(ill, "objective/scores") < late(well, "objective/scores"))),
        "Pay the score at the last token that the mask counts.", "masks", score_late,
    ),
    # ---------------------------------------------------------------------------------------------- price
    "k3_reward": Case(
        "the KL estimator k3 in the reward",
        (("the doctor's reward probe fails", lambda ill, well: PROBE in ill.failed),
         ("the rewards do not add up to the score less β·KL", lambda ill, well: ledger(ill) > 0.01)),
        "k1 in the reward, k3 for reading.", "price", settings={"kl_estimator": "k3"},
    ),
    "kl_sign": Case(
        "the sign of the KL term flipped",
        (("the doctor's reward probe fails", lambda ill, well: PROBE in ill.failed),
         ("the KL at the end is more than half again the correct run's",
          lambda ill, well: late(ill, "objective/kl") > 1.5 * late(well, "objective/kl"))),
        "Probe the reward where policy and reference differ: what is likelier than under the reference must cost.",
        "price", kl_sign,
    ),
    "beta_zero": Case(
        "no price on KL: β = 0",
        (("the doctor's check of β fails", lambda ill, well: BETA in ill.failed), FARTHER),
        "Set β above 0, and watch the KL: it is what the score costs.", "price", settings={"kl_coef": 0.0},
    ),
    # ------------------------------------------------------------------------------------------ reference
    "shared_reference": Case(
        "the reference is the policy itself, not a copy",
        (SILENT, ("the KL stays at 0 in every update, while the correct run's does not",
                  lambda ill, well: every(ill, "objective/kl", lambda x: abs(x) < 0.01) and late(well, "objective/kl") > 0.1)),
        "Load the reference a second time, or deep-copy it before the optimizer is made.", "reference", shared_reference,
    ),
    # --------------------------------------------------------------------------------------------- tokens
    "pad_is_eos": Case(
        "PAD and EOS are one token, and pads are found by their id",
        (_failing("e"), ONE_LESS,
         ("the first update's score differs from the correct run's, on the same texts",
          lambda ill, well: abs(first(ill, "objective/scores") - first(well, "objective/scores")) > 0.05)),
        "Give PAD a token of its own; find pads by the mask, never by the id.", "tokens", pad_is_eos,
    ),
    # ---------------------------------------------------------------------------------------------- steps
    "learning_rate": Case(
        "a learning rate ten times too high",
        (SILENT, ("a range of the glossary is left", lambda ill, well: detections(ill)["ranges"])),
        "Lower the learning rate until approxkl and clip fraction are in range; warm it up.",
        "steps", settings={"lr": 4e-3},
    ),
}  # fmt: skip
FAULTS = tuple(name for name in CASES if name != "correct")


def has_signature(case: str, ill: Outcome, well: Outcome) -> bool:
    """Whether every predicted sign of the case is there."""
    return all(sign(ill, well) for _, sign in CASES[case].signs)


@contextlib.contextmanager
def injected(case: str, cast):
    """The fault is in the library, and in the cast, while the block runs; everything is put back afterwards."""
    with contextlib.ExitStack() as stack:
        for target, attribute, replacement in CASES[case].inject(cast):
            stack.enter_context(mock.patch.object(target, attribute, replacement))
        yield


# ------------------------------------------------------------------------------------------------------------- run


def make_cast(recipe: Recipe) -> SimpleNamespace:
    """Fresh models from the shipped snapshots: policy, ref_policy, reward_model, value_model and two tokenizers."""
    if recipe.policy != "tiny:small":
        raise UsageError(
            f"the clinic runs on the shipped snapshots of tiny:small, not on {recipe.policy}: leave policy"
        )
    tokenizer = models.load_tokenizer(recipe.policy)
    policy, ref_policy = (models.load_policy(models.ASSETS / "sft", tokenizer) for _ in range(2))
    reward_model = models.load_reward_model(models.ASSETS / "reward")
    return SimpleNamespace(
        policy=policy, ref_policy=ref_policy, reward_model=reward_model,
        value_model=models.value_model_from(reward_model), tokenizer=tokenizer, reward_tokenizer=tokenizer,
    )  # fmt: skip


def run_case(case: str, seed: int, recipe: Recipe) -> Outcome:
    """The doctor and a short PPO training under a fault; `recipe` is that of `recipes.clinic_recipe`.

    A TrainingFailure is a detection, not an error. Raises UsageError for an unknown case.
    """
    start = time.perf_counter()
    settings = CASES[known(case)].settings
    recipe = dataclasses.replace(recipe, seed=seed, ppo=dataclasses.replace(recipe.ppo, **settings))
    set_seed(seed)
    accelerator = make_accelerator(recipe.precision)
    cast = make_cast(recipe)
    for model in (cast.policy, cast.ref_policy, cast.reward_model, cast.value_model):
        model.to(accelerator.device)
    prompts = [post.prompt for post in data.training_posts("ppo", recipe.ppo.prompts, seed)]
    examples = data.demonstrations(data.training_posts("sft", min(64, recipe.sft.examples), seed), seed)
    responses = doctor.RESPONSES if recipe.scale == "full" else 32
    with injected(case, cast):
        report = doctor.examine(recipe, cast.policy, cast.ref_policy, cast.tokenizer, prompts, examples, responses)
        rows, stopped = _train(recipe, cast, prompts, accelerator)
    keys = dict.fromkeys(key for row in rows for key in row if key != "eps")
    return Outcome(
        case, seed,
        checks={check.name: _short(check.measured) for check in report.checks},
        failed=[check.name for check in report.checks if not check.passed],
        curves={key: [_short(row[key]) if key in row else None for row in rows] for key in keys},
        stopped=stopped, gold=_gold(recipe, cast), seconds=round(time.perf_counter() - start, 1),
    )  # fmt: skip


def known(case: str) -> str:
    if case not in CASES:
        raise UsageError(f"unknown fault {case!r}: choose among {', '.join(CASES)}")
    return case


def _short(x: float) -> float | None:
    return float(f"{x:.5g}") if math.isfinite(x) else None


def _train(recipe: Recipe, cast, prompts: list[str], accelerator) -> tuple[list[dict], str]:
    """The loop, quiet: (logged rows, message of the TrainingFailure that ended it or "")."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        try:
            rows = ppo.train_ppo(recipe, cast.policy, cast.ref_policy, cast.reward_model, cast.value_model,
                                 cast.tokenizer, cast.reward_tokenizer, prompts, Path(folder), accelerator,
                                 settings={})  # fmt: skip
            return rows, ""
        except TrainingFailure as failure:
            log = Path(folder) / "ppo_metrics.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            return [json.loads(line) for line in lines], str(failure)


def _gold(recipe: Recipe, cast) -> float | None:
    posts = data.held_out_posts("validation", recipe.ppo.eval_prompts)
    try:
        texts, _, _ = rollout.sample_texts(
            cast.policy, cast.tokenizer, [post.prompt for post in posts], recipe.max_new_tokens,
            seed=(recipe.seed, NOISE), max_prompt_tokens=recipe.max_prompt_tokens,
        )  # fmt: skip
    except TrainingFailure:
        return None
    return _short(sum(gold_score(post, text) for post, text in zip(posts, texts, strict=True)) / len(posts))


# ---------------------------------------------------------------------------------------------------------- matrix


def seeds_of(case: str, seeds) -> tuple[int, ...]:
    """The seeds with which a case counts in the matrix over `seeds`."""
    return AGAIN.get(case, SEEDS) if tuple(seeds) == SEEDS else tuple(seeds)


def matrix(outcomes: list[Outcome], seeds) -> dict[str, dict]:
    """{case: {"detected": {check: [bool a seed]}, "seeds", "signature", "stopped", "gold": [a value a seed]}}.

    Only the cases that were run with all of `seeds`; over `SEEDS`, those in `AGAIN` count with their own. The signature
    of "correct" is that no check sees anything. Raises UsageError if the correct run of a seed is missing.
    """
    by = {(outcome.case, outcome.seed): outcome for outcome in outcomes}
    if missing := [seed for seed in seeds if ("correct", seed) not in by]:
        raise UsageError(f"the correct run of seed {missing[0]} is missing: run the case 'correct' with it")
    table = {}
    for case in CASES:
        own = seeds_of(case, seeds)
        if all((name, seed) in by for seed in own for name in (case, "correct")):
            ill, well = ([by[name, seed] for seed in own] for name in (case, "correct"))
            seen = [detections(outcome) for outcome in ill]
            table[case] = {
                "seeds": list(own),
                "detected": {check: [s[check] for s in seen] for check in CHECKS},
                "signature": [has_signature(case, a, b) for a, b in zip(ill, well, strict=True)],
                "stopped": [bool(outcome.stopped) for outcome in ill],
                "gold": [outcome.gold for outcome in ill],
            }
    return table


def unseen(table: dict[str, dict]) -> list[str]:
    """The faults that no check saw, in no seed."""
    return [case for case, row in table.items() if case != "correct" and not any(map(any, row["detected"].values()))]


def run_clinic(recipe: Recipe, paths: Paths, seeds: list[int] | None = None, faults: list[str] | None = None) -> dict:
    """Every case with every seed -> `clinic.json`: the matrix over `seeds`, and all runs.

    Finished runs of the same settings are kept and not repeated, unless `faults` names them.
    """
    seeds = list(dict.fromkeys(seeds or (SEEDS if recipe.scale == "full" else SMOKE_SEEDS)))
    named = {known(case) for case in faults or ()}
    file = paths.evaluation / "clinic.json"
    settings = _settings(recipe)
    runs = {}
    if file.exists() and (stored := json.loads(file.read_text()))["settings"] == settings:
        runs = {(run["case"], run["seed"]): Outcome(**run) for run in stored["runs"]}
    chosen = [case for case in CASES if case == "correct" or not named or case in named]
    wanted = [(case, seed) for seed in seeds for case in chosen if seed in seeds_of(case, seeds)]
    again = [(case, seed) for case in chosen for seed in seeds_of(case, seeds) if seed not in seeds]
    wanted += [cell for case, seed in again for cell in (("correct", seed), (case, seed))]
    todo = [cell for cell in dict.fromkeys(wanted) if cell not in runs or cell[0] in named]
    bar = progress(todo, desc="Clinic", unit="run")
    for case, seed in bar:
        bar.set_postfix_str(f"{case}, seed {seed}")
        runs[case, seed] = run_case(case, seed, recipe)
        write_lines(file, _summary(settings, runs, seeds))
    summary = _summary(settings, runs, seeds)
    write_lines(file, summary)
    return summary


def _summary(settings: dict, runs: dict, seeds: list[int]) -> dict:
    """What `clinic.json` holds; while the stage still runs, over the seeds that were begun."""
    begun = [seed for seed in seeds if ("correct", seed) in runs]
    table = matrix(list(runs.values()), begun)
    return {
        "settings": settings,
        "seeds": begun,
        "matrix": table,
        "runs": [dataclasses.asdict(r) for r in runs.values()],
    }


def _settings(recipe: Recipe) -> dict:
    """What the runs depend on, their seed and the code of the faults aside: run a changed fault again with `--faults`.

    They train in full, whatever `ppo.method` says.
    """
    keys = ("policy", "max_prompt_tokens", "max_new_tokens", "freeze_embeddings", "scale", "ppo")
    settings = {key: value for key, value in recipe.resolved().items() if key in keys}
    settings["ppo"].pop("method", None)
    settings["precision"] = mixed_precision() if recipe.precision == "auto" else recipe.precision
    weights = {stage: models.fingerprint(str(models.ASSETS / stage)) for stage in models.SHIPPED}
    return json.loads(json.dumps(settings | {"weights": weights}))


# ----------------------------------------------------------------------------------------------------- blind cases

BLIND = {  # a hash of the case and its fault, so that nobody reads the answer by accident
    "case_a": "558f98ab9e988207",
    "case_b": "b75d6cabff911c54",
    "case_c": "eb087f70238cef70",
}


def _digest(blind: str, case: str) -> str:
    return hashlib.sha256(f"{blind}: {case}".encode()).hexdigest()[:16]


def blind_fault(blind: str) -> str:
    """The fault of a blind case: do not print it before you have a diagnosis."""
    return next(case for case in FAULTS if _digest(blind, case) == BLIND[blind])


def diagnose(blind: str, diagnosis: str, ill: Outcome, well: Outcome) -> str:
    """Check a diagnosis (a name of `FAULTS`) of a blind case against its run and the correct run of the same seed.

    Returns one sentence, "Right …", "Your turn …" or "Not yet …", which says which sign of a wrong diagnosis is missing.
    """
    name = str(diagnosis or "").strip().lower().replace(" ", "_").replace("-", "_")
    if not name:
        return f"Your turn: write the name of a fault for {blind}."
    if name not in FAULTS:
        return f"Not yet: there is no fault {name!r} here; the names are {', '.join(FAULTS)}."
    if name == blind_fault(blind):
        return f"Right: {CASES[name].done}. The cure: {CASES[name].cure}"
    for sentence, sign in CASES[name].signs:
        if not sign(ill, well):
            return f"Not yet: a sign of {name} is that {sentence}. That is not so here."
    return f"Not yet: the signs of {name} are all here, but something else is, too. Compare the first updates."
