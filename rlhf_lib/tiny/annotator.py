"""Human preferences with known noise: a Bradley-Terry draw on the gold score."""

import math
import random

from rlhf_lib.tiny.judge import gold_score
from rlhf_lib.tiny.world import Post


def preference_probability(gold_a: float, gold_b: float, scale: float) -> float:
    """P(annotator prefers a over b) = sigmoid((gold_a - gold_b) / scale), with `scale` in gold points."""
    return 0.5 * (1 + math.tanh((gold_a - gold_b) / (2 * scale)))  # the sigmoid, safe from overflow


def annotate(post: Post, summary_a: str, summary_b: str, scale: float, rng: random.Random) -> dict:
    """One annotator's choice: {"prompt", "chosen", "rejected", "gold_chosen", "gold_rejected"}."""
    a, b = (gold_score(post, summary_a), summary_a), (gold_score(post, summary_b), summary_b)
    if rng.random() >= preference_probability(a[0], b[0], scale):
        a, b = b, a
    return {"prompt": post.prompt, "chosen": a[1], "rejected": b[1], "gold_chosen": a[0], "gold_rejected": b[0]}


def annotator_agreement(pairs: list[dict], scale: float) -> float:
    """Probability that two annotators agree on a pair, averaged over the pairs."""
    p = [preference_probability(pair["gold_chosen"], pair["gold_rejected"], scale) for pair in pairs]
    return sum(x * x + (1 - x) * (1 - x) for x in p) / len(p)
