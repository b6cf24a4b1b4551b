"""Checks of the exercises in `04_evaluation`."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from rlhf_lib.exercises import grade

# ------------------------------------------------------------------------------------- 04/01


def check_longest_copy(answer: Callable) -> str:
    """answer(summary, post), lists of words -> number of words of the longest run that stands in both."""

    def table(otherwise):
        def function(a, b):
            c = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
            for i, x in enumerate(a):
                for j, y in enumerate(b):
                    c[i + 1, j + 1] = c[i, j] + 1 if x == y else otherwise(c, i, j)
            return c

        return function

    runs, subsequences = table(lambda c, i, j: 0), table(lambda c, i, j: max(c[i, j + 1], c[i + 1, j]))
    mistakes = {
        "this is the longest common subsequence, which jumps over words. A run ends at the first difference: back to 0.":
            lambda a, b: subsequences(a, b).max(),
        "you read the last corner. There stands the run that ends with both texts: take the largest entry.":
            lambda a, b: runs(a, b)[-1, -1],
        "you count all shared words. They must stand next to each other and in the same order.":
            lambda a, b: sum(word in b for word in a),
        "you count characters. Count words.": lambda a, b: runs(" ".join(a), " ".join(b)).max(),
    }  # fmt: skip
    texts = [
        ("my boss broke the lamp and left", "yesterday my boss the lamp expert broke the lamp again and smiled"),
        ("should I call her", "I wonder if I should call her"),
        ("a b a b c", "a b c a b a"),
    ]
    cases = [(summary.split(), post.split()) for summary, post in texts]
    return grade(answer, lambda a, b: runs(a, b).max(), cases, mistakes)


def check_bootstrap_means(answer: Callable) -> str:
    """answer(values, draws): the values of each prompt, and prompts drawn with replacement -> a mean for each draw."""

    def of(mean):
        return lambda values, draws: np.array([mean(values, draw) for draw in draws])

    def drawn(values, draw):
        return [value for prompt in draw for value in values[prompt]]

    mistakes = {
        "every prompt has the same weight. Every value must count the same, as in the mean that you report.": of(
            lambda values, draw: np.mean([np.mean(values[prompt]) for prompt in draw])
        ),
        "a prompt that was drawn twice counts once. Drawn twice, all its values count twice.": of(
            lambda values, draw: np.mean(drawn(values, sorted(set(draw))))
        ),
        "you take one value for each draw. The draws are prompts, and a prompt brings all its values.": of(
            lambda values, draw: np.mean([sum(values, [])[i] for i in draw])
        ),
        "you divide by the number of all values. Divide by the number of values in this draw.": of(
            lambda values, draw: np.sum(drawn(values, draw)) / sum(map(len, values))
        ),
        "you divide by the number of prompts. Divide by the number of values in this draw.": of(
            lambda values, draw: np.sum(drawn(values, draw)) / len(draw)
        ),
    }
    values = [[0.2, 0.4], [1.0], [0.5, 0.7, 0.9], [0.1]]
    draws = [[0, 1, 2, 3], [2, 2, 0, 1], [3, 3, 3, 0], [1, 2, 1, 2]]
    return grade(answer, of(lambda values, draw: np.mean(drawn(values, draw))), [(values, draws)], mistakes)


def check_prompts_needed(answer: Callable) -> str:
    """answer(sd, half_width, z) -> the least number of prompts whose interval is mean ± half_width or narrower."""

    def truth(sd, half_width, z):
        return np.ceil((z * sd / half_width) ** 2)

    mistakes = {
        "this is for an interval of half_width from end to end. It runs that far to each side.": lambda sd, h, z: truth(
            sd, h / 2, z
        ),
        "the square is missing: half the width asks for four times the prompts.": lambda sd, h, z: np.ceil(z * sd / h),
        "you round down, and the interval is a little too wide. Round up.": lambda sd, h, z: (z * sd / h) ** 2 // 1,
        "a number of prompts is whole: round up.": lambda sd, h, z: (z * sd / h) ** 2,
        "z is missing: one standard error to each side covers two thirds only.": lambda sd, h, z: truth(sd, h, 1),
        "z is not squared with the rest.": lambda sd, h, z: np.ceil(z * (sd / h) ** 2),
    }
    return grade(answer, truth, [(0.25, 0.05, 1.96), (0.5, 0.05, 1.96), (0.3, 0.02, 2.58)], mistakes)


# ------------------------------------------------------------------------------------- 04/03


def check_length_balanced_win_rate(answer: Callable) -> str:
    """answer(wins, len_a, len_b), each (N,) -> mean of the win rates where a is longer and where it is shorter."""

    def truth(wins, a, b):
        return (wins[a > b].mean() + wins[a < b].mean()) / 2

    mistakes = {
        "this is the plain win rate. If a is longer more often, length weighs in: average the two groups' rates.":
            lambda wins, a, b: wins.mean(),
        "posts of equal length are left out, but the two groups are pooled. Take the rate of each, then their mean.":
            lambda wins, a, b: wins[a != b].mean(),
        "posts of equal length count as if a were shorter. Leave them out.":
            lambda wins, a, b: (wins[a > b].mean() + wins[a <= b].mean()) / 2,
        "posts of equal length count as if a were longer. Leave them out.":
            lambda wins, a, b: (wins[a >= b].mean() + wins[a < b].mean()) / 2,
        "you add the two rates. Take their mean.": lambda *case: 2 * truth(*case),
        "ties are lost: a tie is half a win.": lambda wins, a, b: truth((wins == 1) * 1.0, a, b),
        "this is the rate where a is longer. Average it with the rate where a is shorter.":
            lambda wins, a, b: wins[a > b].mean(),
        "this is the rate where a is shorter. Average it with the rate where a is longer.":
            lambda wins, a, b: wins[a < b].mean(),
    }  # fmt: skip
    wins = np.array([1, 1, 0.5, 1, 1, 0, 0, 0.5, 0, 0])
    len_a, len_b = np.array([[30, 28, 25, 31, 27, 20, 18, 22, 24, 26], [20, 21, 24, 25, 20, 25, 23, 22, 24, 21]])
    return grade(answer, truth, [(wins, len_a, len_b)], mistakes)


def check_sign_test(answer: Callable) -> str:
    """answer(a, b), each (N,) -> two-sided p-value of the sign test, ties left out."""

    def p_value(sides=2, cap=1.0, off=0, ties=0.0):
        def function(a, b):
            wins, losses, equal = (a > b).sum(), (a < b).sum(), (a == b).sum()
            k, n = max(wins, losses), wins + losses + equal * (ties > 0)
            return min(cap, sides * stats.binom.sf(k - 1 + off, n, 0.5))

        return function

    def exactly(a, b):
        wins, losses = (a > b).sum(), (a < b).sum()
        return min(1.0, 2 * stats.binom.pmf(max(wins, losses), wins + losses, 0.5))

    mistakes = {
        "this is one-sided. Before the data you did not know which model would win: double it.": p_value(sides=1),
        "a probability cannot be above 1. With as many wins as losses both tails hold the middle: stop at 1.": p_value(
            cap=9.0
        ),
        "you ask for more wins than there were. The tail holds as many or more, so sf begins at k - 1.": p_value(off=1),
        "ties count as tosses of the coin. They say nothing about which model is better: leave them out.": p_value(
            ties=1.0
        ),
        "this is the chance of exactly so many wins. Add all outcomes that are at least as extreme.": exactly,
    }
    scores = [  # wins, losses, ties: 6, 1, 2 and 3, 3, 1 and 1, 7, 0
        ([3, 3, 3, 3, 3, 3, 1, 2, 2], [1, 1, 1, 1, 1, 1, 3, 2, 2]),
        ([3, 3, 3, 1, 1, 1, 2], [1, 1, 1, 3, 3, 3, 2]),
        ([3, 1, 1, 1, 1, 1, 1, 1], [1, 3, 3, 3, 3, 3, 3, 3]),
    ]
    return grade(answer, p_value(), [(np.array(a), np.array(b)) for a, b in scores], mistakes)


def check_seed_half_width(answer: Callable) -> str:
    """answer(new (S, P), old (S, P), t) -> half the width of the interval over S seeds."""

    def error(x, ddof=1):
        return x.std(ddof=ddof) / len(x) ** 0.5

    def gains(new, old):
        return (new - old).mean(1)

    mistakes = {
        "you treat all posts of all seeds as independent. One run is one draw: average over its posts first.":
            lambda new, old, t: t * error((new - old).ravel()),
        "the two models of a seed are not paired. Take the gain of each seed first.":
            lambda new, old, t: t * np.hypot(error(new.mean(1)), error(old.mean(1))),
        "the mean over seeds is missing its root of S: divide the standard deviation by it.":
            lambda new, old, t: t * gains(new, old).std(ddof=1),
        "you divide by S. The error of a mean falls with the root of S.":
            lambda new, old, t: t * error(gains(new, old)) / len(new) ** 0.5,
        "the standard deviation divides by S. Its mean was estimated from the same S runs: divide by S - 1.":
            lambda new, old, t: t * error(gains(new, old), ddof=0),
        "you average over seeds and take the spread of posts. Average over the posts of each seed.":
            lambda new, old, t: t * error((new - old).mean(0)),
        "this is the whole width.": lambda new, old, t: 2 * t * error(gains(new, old)),
        "t is missing. With few runs it is large.": lambda new, old, t: error(gains(new, old)),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    old = rng.uniform(0, 1, (3, 5)) + np.array([[0.0], [0.3], [0.1]])
    new = old + rng.uniform(0, 0.3, (3, 5)) + np.array([[0.1], [0.15], [0.0]])
    return grade(answer, lambda new, old, t: t * error(gains(new, old)), [(new, old, 4.303)], mistakes)
