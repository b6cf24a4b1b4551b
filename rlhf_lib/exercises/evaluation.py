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
