"""Checks of the exercises in `02_reward_modeling`."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from rlhf_lib.exercises import grade

# ------------------------------------------------------------------------------------- 02/01


def check_pairs_of_ranking(answer: Callable) -> str:
    """answer(groups), a list of lists of names, best group first -> list of (better, worse), in any order."""

    def between(*levels):
        return [(a, b) for better, worse in levels for a in better for b in worse]

    def truth(groups):
        return between(*combinations(groups, 2))

    mistakes = {
        "you compare neighbours only. A group beats all groups below it.": lambda groups: between(
            *zip(groups, groups[1:])
        ),
        "you compare the best group only. Every group beats all groups below it.": lambda groups: between(
            *((groups[0], worse) for worse in groups[1:])
        ),
        "each pair is turned round: the better one comes first.": lambda groups: [(b, a) for a, b in truth(groups)],
        "you pair the members of a group. They tie, so no choice was made between them.": lambda groups: (
            truth(groups) + [pair for group in groups for pair in combinations(group, 2)]
        ),
        "you pair each group with itself. Begin one group lower.": lambda groups: (
            truth(groups) + between(*zip(groups, groups))
        ),
        "each pair comes twice, once in each order. Keep the one with the better first.": lambda groups: (
            truth(groups) + [(b, a) for a, b in truth(groups)]
        ),
    }

    def in_order(function):
        return lambda groups: sorted(function(groups))

    cases = [([["A"], ["B", "C"], ["D"], ["E"]],), ([["A", "B"], ["C", "D"]],)]
    wrong = {sentence: in_order(function) for sentence, function in mistakes.items()}
    return grade(in_order(answer), in_order(truth), cases, wrong)


def check_majority_right(answer: Callable) -> str:
    """answer(p, n), n odd -> probability that the majority of n annotators is right."""

    def at_least(needed, ways=math.comb):
        return lambda p, n: sum(ways(n, k) * p**k * (1 - p) ** (n - k) for k in range(needed(n), n + 1))

    mistakes = {
        "this is the chance that all n are right. A majority is enough.": lambda p, n: p**n,
        "this is the chance that one of them is right. It takes more than half.": lambda p, n: 1 - (1 - p) ** n,
        "you count a minority as well. More than half is n // 2 + 1 or more.": at_least(lambda n: n // 2),
        "you demand one vote too many. More than half is n // 2 + 1 or more.": at_least(lambda n: n // 2 + 2),
        "the number of ways is missing: k right votes can fall in comb(n, k) ways.": at_least(
            lambda n: n // 2 + 1, lambda n, k: 1
        ),
        "this is the chance of the narrowest majority. Add the wider ones.": lambda p, n: (
            math.comb(n, n // 2 + 1) * p ** (n // 2 + 1) * (1 - p) ** (n // 2)
        ),
        "this is the chance that the majority is wrong.": at_least(
            lambda n: 0, lambda n, k: math.comb(n, k) * (k <= n // 2)
        ),
    }
    return grade(answer, at_least(lambda n: n // 2 + 1), [(0.7, 3), (0.8, 5), (0.55, 7)], mistakes)


def check_best_scale(answer: Callable) -> str:
    """answer(signed_gaps (N,), scales), gaps below 0 where the label contradicts gold -> one of the scales."""

    def best(value):
        return lambda gaps, scales: max(scales, key=lambda s: value(gaps, s))

    def log_likelihood(x):
        return -np.logaddexp(0, -x).sum()

    mistakes = {
        "the largest scale is best only if most labels contradict gold. Is the sign turned, or the least likely scale "
        "taken?": lambda gaps, scales: max(scales),
        "the smallest scale is best only if no label is wrong. Keep the sign of the gap: it says what was chosen.": best(
            lambda gaps, s: log_likelihood(np.abs(gaps) / s)
        ),
        "you add probabilities. All labels together have the product, so add logarithms.": best(
            lambda gaps, s: (1 / (1 + np.exp(-gaps / s))).sum()
        ),
        "you multiply by the scale. Bradley-Terry divides the gap by it.": best(
            lambda gaps, s: log_likelihood(gaps * s)
        ),
    }
    gaps = np.array([0.8, 0.8, 0.7, 0.6, 0.6, 0.5, 0.4, 0.4, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.5])
    scales = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0]
    return grade(answer, best(lambda gaps, s: log_likelihood(gaps / s)), [(gaps, scales)], mistakes)
