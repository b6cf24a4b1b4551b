"""Checks of the exercises in `01_supervised_finetuning`."""

from collections.abc import Callable

import torch

from rlhf_lib.exercises import grade

# ------------------------------------------------------------------------------------- 01/01


def check_fit_prompt(answer: Callable) -> str:
    """answer(header, body, cue, max_tokens), lists of ids -> list of ids."""

    def last(body, room):
        return body[max(0, len(body) - room) :]

    def fit(cut, without=lambda header, cue: len(header) + len(cue)):
        return lambda header, body, cue, n: header + cut(body, n - without(header, cue)) + cue

    mistakes = {
        "the beginning of the whole prompt is cut, and the header with it. Cut the body alone.":
            lambda header, body, cue, n: last(header + body + cue, n),
        "the end of the whole prompt is cut, and the cue with it. Cut the body alone.":
            lambda header, body, cue, n: (header + body + cue)[:n],
        "the body loses its end. Keep its last tokens and drop the first.": fit(lambda body, room: body[:room]),
        "with no room left the whole body comes back, because body[-0:] is body. Count from the front.":
            fit(lambda body, room: body[-room:]),
        "a body that fits is cut. len(body) - room is then negative and counts from the end: stop at 0.":
            fit(lambda body, room: body[len(body) - room :]),
        "the cue is not counted. Leave room for it.": fit(last, lambda header, cue: len(header)),
        "the header is not counted. Leave room for it.": fit(last, lambda header, cue: len(cue)),
        "nothing is cut.": fit(lambda body, room: body),
    }  # fmt: skip
    cases = [([1, 2], [10, 11, 12, 13, 14, 15], [7, 8, 9], n) for n in (8, 5, 13, 11)]
    return grade(answer, fit(last), cases, mistakes)


def check_clean_test_rows(answer: Callable) -> str:
    """answer(train, test), lists of (prompt, facts, demonstration) -> the rows of test that may stay."""

    def unseen(key):
        return lambda train, test: [row for row in test if key(row) not in {key(other) for other in train}]

    def distinct(train, test):
        first = {row[1]: row for row in reversed(test)}
        return [row for row in truth(train, test) if first[row[1]] == row]

    truth = unseen(lambda row: row[1])
    mistakes = {
        "you compare whole rows, so a twin stays: the same post with another demonstration. Compare the facts.": unseen(
            lambda row: row
        ),
        "you compare prompts, so the same story in other words stays. Compare the facts.": unseen(lambda row: row[0]),
        "you compare demonstrations. Two posts may share one, and one post may have two: compare the facts.": unseen(
            lambda row: row[2]
        ),
        "these are the rows that must go: their facts stand in training. Return the others.": lambda train, test: [
            row for row in test if row not in truth(train, test)
        ],
        "you also drop a row because of another test row. Two test rows may share their facts.": distinct,
    }
    train = [("P1", "Anna, car", "My sister Anna took it."), ("P2", "Tom, lamp", "My boss Tom broke it.")]
    test = [
        ("P1", "Anna, car", "My sister took my car."),
        ("P3", "Anna, car", "Anna is at it again."),
        ("P4", "Eva, tent", "My aunt Eva lost it."),
        ("P5", "Eva, tent", "Eva, my aunt, lost it."),
        ("P2", "Tom, lamp", "My boss Tom broke it."),
        ("P6", "Leo, lamp", "My boss Tom broke it."),
    ]
    return grade(answer, truth, [(train, test)], mistakes)


def check_worth_stating(answer: Callable) -> str:
    """answer(p_right, earns, costs), each (N,), costs negative -> (N,) bool."""

    def positive(points):
        return lambda *case: points(*case) > 0

    mistakes = {
        "you ask whether the guess is more often right than wrong. The prices differ: weigh what it earns against what "
        "it costs.": positive(lambda p, e, c: p - 0.5),
        "the costs are negative already: add them.": positive(lambda p, e, c: p * e - (1 - p) * c),
        "you charge the full cost every time. It is due with probability 1 - p_right.": positive(
            lambda p, e, c: p * e + c
        ),
        "you count the gain every time. It is earned with probability p_right.": positive(
            lambda p, e, c: e + (1 - p) * c
        ),
        "you compare the prices alone. Weight each with its probability.": positive(lambda p, e, c: e + c),
        "it is the wrong way round: True must mean that stating the fact pays.": positive(
            lambda p, e, c: -p * e - (1 - p) * c
        ),
    }
    p = torch.tensor([0.46, 0.49, 0.6, 0.6, 0.3, 0.1])
    earns, costs = torch.tensor([[0.25, 0.25, 0.15, 0.2, 0.4, 0.3], [-0.2, -0.25, -0.2, -0.5, -0.1, -0.25]])
    return grade(answer, positive(lambda p, e, c: p * e + (1 - p) * c), [(p, earns, costs)], mistakes)
