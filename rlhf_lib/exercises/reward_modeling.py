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


# ------------------------------------------------------------------------------------- 02/02


def check_vote_loss(answer: Callable) -> str:
    """answer(margins, votes, annotators), each (N,) -> mean loss of a vote."""

    def loss(margins, votes, others):
        return -(votes * logsigmoid(margins) + others * logsigmoid(-margins))

    def truth(margins, votes, annotators):
        return loss(margins, votes, annotators - votes).sum() / annotators.sum()

    mistakes = {
        "the votes for b are missing. They too are choices, with the margin turned round.": lambda m, v, n: (
            loss(m, v, 0 * v).sum() / n.sum()
        ),
        "the margin is not turned round for the votes for b.": lambda m, v, n: loss(m, n, 0 * v).sum() / n.sum(),
        "the majority's vote stands for all. A close vote must ask for a small margin.": lambda m, v, n: (
            loss(m, n * (v > n / 2), n * (v <= n / 2)).sum() / n.sum()
        ),
        "every pair has the same weight. Every vote must count the same: divide by all votes.": lambda m, v, n: (
            loss(m, v, n - v) / n
        ).mean(),
        "you divide by the number of pairs. Divide by the number of votes.": lambda m, v, n: loss(m, v, n - v).mean(),
        "you do not divide by the number of votes.": lambda m, v, n: loss(m, v, n - v).sum(),
        "the sign is flipped: this is the log-likelihood.": lambda *case: -truth(*case),
        "votes for a and for b are exchanged.": lambda m, v, n: loss(m, n - v, v).sum() / n.sum(),
    }
    margins = torch.tensor([1.5, -0.5, 0.2, 3.0])
    votes, annotators = torch.tensor([[3.0, 1.0, 2.0, 4.0], [4.0, 1.0, 5.0, 4.0]])
    return grade(answer, truth, [(margins, votes, annotators)], mistakes)


def check_model_distance(answer: Callable) -> str:
    """answer(scores_a, scores_b, prompt), each (N,) -> root mean square of what cannot be shifted away."""

    def without_shift(prompt, difference):
        return torch.cat([difference[prompt == p] - difference[prompt == p].mean() for p in prompt.unique()])

    def rms(x):
        return x.square().mean().sqrt()

    def truth(a, b, prompt):
        return rms(without_shift(prompt, a - b))

    mistakes = {
        "no constant is taken off. Two models that differ by one are the same to every pair.": lambda a, b, prompt: rms(
            a - b
        ),
        "one constant is taken off for all prompts. No pair compares two prompts, so each has its own.": lambda a, b, prompt: (
            rms(a - b - (a - b).mean())
        ),
        "this is the mean square: take its root.": lambda *case: truth(*case) ** 2,
        "every prompt has the same weight. Every summary must count the same.": lambda a, b, prompt: (
            sum(rms(without_shift(prompt[prompt == p], (a - b)[prompt == p])) for p in prompt.unique())
            / len(prompt.unique())
        ),
        "the unit is divided away. It is not arbitrary: doubling a model's scores makes it surer.": lambda a, b, prompt: (
            rms(without_shift(prompt, a / a.std() - b / b.std()))
        ),
        "positive and negative differences cancel: square them.": lambda a, b, prompt: 0.0,
    }
    prompt = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    a = torch.tensor([0.5, 1.5, -1.0, 0.0, 2.0, 0.3, 0.1, -0.4, 1.0])
    b = a + torch.tensor([3.0, -2.0, 0.5])[prompt] + torch.tensor([0.1, -0.2, 0.4, 0.0, -0.3, 0.9, 0.2, -0.6, 0.3])
    return grade(answer, truth, [(a, b, prompt)], mistakes)


def check_pushes(answer: Callable) -> str:
    """answer(scores (K,), pairs), a list of (winner, loser) -> gradient of the summed loss by the scores, (K,)."""

    def gradient(push=lambda margin: torch.sigmoid(-margin), winner=-1, loser=1, add=True):
        def function(scores, pairs):
            total = torch.zeros_like(scores)
            for w, l in pairs:  # noqa: E741
                force = push(scores[w] - scores[l])
                total[w] = add * total[w] + winner * force
                total[l] = add * total[l] + loser * force
            return total

        return function

    truth = gradient()
    mistakes = {
        "the sign is flipped: the gradient points where the loss rises, so it is negative for a winner.": gradient(
            winner=1, loser=-1
        ),
        "you take the probability of the choice that was made. The push is the surprise, the probability of the other "
        "choice.": gradient(torch.sigmoid),
        "the losers are not pushed. Each pair lowers its loser as much as it lifts its winner.": gradient(loser=0),
        "the winners are not pushed. Each pair lifts its winner as much as it lowers its loser.": gradient(winner=0),
        "a summary keeps the push of its last pair only. Add up the pushes of all its pairs.": gradient(add=False),
        "you divide by the number of pairs. The summed loss is asked for.": lambda scores, pairs: (
            truth(scores, pairs) / len(pairs)
        ),
        "every pair pushes with the same force. A pair that is learnt must fall silent.": gradient(torch.ones_like),
        "every pair pushes both of its scores the same way. The loser's push has the other sign.": gradient(loser=-1),
    }
    cases = [(torch.tensor([1.0, 0.0, -0.5, 2.0]), [(0, 1), (0, 2), (2, 3), (3, 1), (1, 0)])]
    return grade(answer, truth, cases, mistakes)
