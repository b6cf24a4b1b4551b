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


# ------------------------------------------------------------------ 03_ppo_alignment/02_advantages_and_clipping


def check_n_step_advantage(answer: Callable) -> str:
    def later(x, k):
        """x of k tokens later, 0 behind the end."""
        return torch.nn.functional.pad(x, (0, k))[:, k:]

    def n_step(rewards_of=0, critic_at=0, critic=1, less=1, pads=False, pad_values=False):
        """The right function, or with keywords one that is off by so much, lacks a part or reads pads."""

        def function(rewards, values, response_mask, n):
            mask = torch.ones_like(response_mask) if pads else response_mask
            then = values if pad_values else values * mask
            total = sum(later(rewards * mask, k) for k in range(n + rewards_of))
            return (total + critic * later(then, n + critic_at) - less * values) * mask

        return function

    def first_pad(rewards, values, response_mask, n):
        length = response_mask.sum(-1, keepdim=True)
        behind = torch.arange(response_mask.shape[1]) + n >= length
        value = torch.nn.functional.pad(values, (0, 1)).gather(1, length)
        return n_step()(rewards, values, response_mask, n) + value * behind * response_mask

    rewards = torch.tensor([[0.0, -0.02, 0.1, 0.0, 0.98, -4.0], [0.3, 0.1, -1.0, 7.0, 8.0, 9.0]])
    values = torch.tensor([[0.5, 0.6, 0.2, 0.8, 0.9, 5.0], [0.4, -0.3, 0.7, 3.0, 2.0, 6.0]])
    mask = torch.arange(6) < torch.tensor([[5], [3]])
    mistakes = {
        "you read the critic at a pad. Behind the last token nothing is to come.": n_step(pad_values=True),
        "you read the critic behind the end: values[row, length] is a pad's, or is not there.": first_pad,
        "you count the pads as tokens. Stop at the length of each response.": n_step(pads=True),
        "you do not subtract V_t, what the critic expected before the token.": n_step(less=0),
        "the critic does not stand in for the rest. Add V_{t+n} where the response goes on.": n_step(critic=0),
        "you add n + 1 rewards. Token t itself is the first of the n.": n_step(rewards_of=1),
        "you add n - 1 rewards. Token t is the first of the n, token t + n - 1 the last.": n_step(rewards_of=-1),
        "you read the critic one token too early: V_{t+n-1} holds a reward that you added.": n_step(critic_at=-1),
        "you read the critic one token too late: the reward of token t + n is lost.": n_step(critic_at=1),
    }
    return grade(answer, n_step(), [(rewards, values, mask, n) for n in (1, 2, 3, 9)], mistakes)


def check_value_is_stopped(answer: Callable) -> str:
    def rule(stopped):
        """`stopped` as a function of the plain error, the clipped error, the move, and the move that was called for."""

        def function(values, old_values, returns, c):
            clipped = values.clamp(old_values - c, old_values + c)
            errors = (values - returns).abs(), (clipped - returns).abs()
            return stopped(*errors, values - old_values, returns - old_values, c)

        return function

    # eighths: exact in binary, so that ties are ties
    old_values = torch.tensor([[0.5, 0.625, 0.25, 0.75, 0.875, 0.5], [2.0, 2.0, 2.0, 2.0, -1.0, -1.0]])
    values = torch.tensor([[0.875, 0.25, 0.375, 0.875, 1.25, 1.125], [1.5, 2.5, 1.875, 0.5, -0.5, -1.5]])
    returns = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.5, -2.0, -2.0]])
    mistakes = {
        "you stop every value that left the clip range. One that moved away from its return must learn.": rule(
            lambda error, clipped, move, wanted, c: move.abs() > c
        ),
        "you stop every value that moved far towards its return. One that shot past it, like EOS, must learn.": rule(
            lambda error, clipped, move, wanted, c: (move.abs() > c) & (move * wanted > 0)
        ),
        "it is the wrong way round: where the plain error is the larger, the loss depends on the value.": rule(
            lambda error, clipped, move, wanted, c: clipped < error
        ),
        "it is the wrong way round: True must mean that the gradient is 0.": rule(
            lambda error, clipped, move, wanted, c: clipped <= error
        ),
        "you stop values inside the clip range. There both errors are equal: compare strictly.": rule(
            lambda error, clipped, move, wanted, c: clipped >= error
        ),
        "you stop no value at all. The clip range lies around old_values, not around the returns.": rule(
            lambda error, clipped, move, wanted, c: move != move
        ),
    }
    right = rule(lambda error, clipped, move, wanted, c: clipped > error)
    return grade(answer, right, [(values, old_values, returns, c) for c in (0.25, 0.5)], mistakes)


def check_minibatch_loss(answer: Callable) -> str:
    def weighted(weight, total):
        """Sum over micro-batches of weight(mask) times the mean loss of its counted tokens, divided by `total(masks)`."""
        return lambda losses, masks: sum(weight(m) * x[m].mean() for x, m in zip(losses, masks)) / total(masks)

    def tokens(masks):
        return sum(m.sum() for m in masks)

    def responses_first(losses, masks):
        means = [x[i][m[i]].mean() for x, m in zip(losses, masks) for i in range(len(m))]
        return sum(means) / len(means)

    masks = [torch.arange(t) < torch.tensor(lengths)[:, None] for t, lengths in ((2, [1, 2]), (5, [5, 3, 4]), (3, [3]))]
    losses = [torch.sin(torch.arange(m.numel()) + 1.0).view(m.shape) * k + k for k, m in enumerate(masks, 1)]
    mistakes = {
        "every micro-batch has the same weight. Weight it by its share of the tokens.": weighted(lambda m: 1, len),
        "you add the means. Weight each by its share, so that the weights add up to 1.": weighted(
            lambda m: 1, lambda masks: 1
        ),
        "you weight by the number of responses. Weight by the number of counted tokens.": weighted(
            len, lambda masks: sum(map(len, masks))
        ),
        "every response has the same weight. Every token must count the same, however long its response.": responses_first,
        "you divide by all positions, pads among them. Divide by the number of counted tokens.": weighted(
            torch.sum, lambda masks: sum(m.numel() for m in masks)
        ),
        "you count the losses of the pads. Take only those where the mask is True.": lambda losses, masks: (
            sum(x.sum() for x in losses) / sum(x.numel() for x in losses)
        ),
        "you do not divide by the number of counted tokens.": weighted(torch.sum, lambda masks: 1),
    }
    return grade(answer, weighted(torch.sum, tokens), [(losses, masks), (losses[:2], masks[:2])], mistakes)
