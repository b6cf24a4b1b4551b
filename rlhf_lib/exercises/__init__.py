"""Exercises of the notebooks: each check takes the learner's function and names the likely mistake.

A check returns one sentence, "Right …", "Your turn …" or "Not yet …". It never raises, so that a notebook with open
exercises still runs from top to bottom. The solutions stand folded in the notebooks; tests run them.
"""

import copy
from collections.abc import Callable, Sequence

import torch


def grade(answer: Callable, truth: Callable, cases: Sequence[tuple], mistakes: dict[str, Callable]) -> str:
    """Compare `answer` with `truth` on every case; on a difference look for the known mistake that explains it.

    `cases` are tuples of arguments; `mistakes` maps a sentence to the wrong function it describes.
    """
    expected = [truth(*copy.deepcopy(case)) for case in cases]
    try:
        given = [answer(*copy.deepcopy(case)) for case in cases]
    except NotImplementedError:
        return "Your turn: replace the line that raises NotImplementedError."
    except Exception as error:
        return f"Not yet: your function ends in {type(error).__name__}: {error}"
    if _same(given, expected):
        return "Right."
    for sentence, wrong in mistakes.items():
        if _same(given, [wrong(*copy.deepcopy(case)) for case in cases]):
            return f"Not yet: {sentence}"
    i = next(i for i in range(len(cases)) if not _same(given[i], expected[i]))
    return f"Not yet: for {cases[i]} your function gives {given[i]}, expected {expected[i]}."


def _same(a, b) -> bool:
    """Equal up to rounding; sequences entry by entry."""
    if isinstance(b, (list, tuple)):
        return isinstance(a, (list, tuple)) and len(a) == len(b) and all(map(_same, a, b))
    if a is None or isinstance(b, str):
        return a == b
    try:
        a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # not numbers at all
        return False
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


# The checks, one module a chapter; they need `grade`, so they come last.
from rlhf_lib.exercises.evaluation import *  # noqa: E402, F403
from rlhf_lib.exercises.ppo_alignment import *  # noqa: E402, F403
from rlhf_lib.exercises.reward_modeling import *  # noqa: E402, F403
from rlhf_lib.exercises.supervised_finetuning import *  # noqa: E402, F403
