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


# ------------------------------------------------------------------------------------- 01/02


def check_completion_labels(answer: Callable) -> str:
    """answer(ids (B, L), prompt_lengths (B,), lengths (B,)) -> labels (B, L); PAD is EOS and stands on the right."""

    def labels(before=0, behind=0, ignore=-100, keep=lambda ids: torch.ones_like(ids, dtype=torch.bool)):
        """The right function, or one whose learnt stretch begins `before` too early and ends `behind` too late."""

        def function(ids, prompt_lengths, lengths):
            column = torch.arange(ids.shape[1])
            learnt = (column >= prompt_lengths[:, None] - before) & (column < lengths[:, None] + behind)
            return ids.masked_fill(~(learnt & keep(ids)), ignore)

        return function

    mistakes = {
        "EOS is lost. PAD has the same id here, so mask by position: lengths counts the EOS.": labels(
            keep=lambda ids: ids != 0
        ),
        "one pad is learnt. The last counted column is lengths - 1.": labels(behind=1),
        "all pads are learnt, so the model sees many EOS for one. Stop at lengths.": labels(behind=9),
        "the prompt is learnt too. Mask the columns below prompt_lengths.": labels(before=9),
        "the last prompt token is learnt. It predicts the completion, but a label stands in its own column: "
        "transformers shifts by itself.": labels(before=1),
        "the first completion token is lost. It stands at column prompt_lengths.": labels(before=-1),
        "the labels are shifted, and transformers shifts them once more. Leave each label in its own column.":
            lambda *case: torch.nn.functional.pad(labels()(*case)[:, 1:], (0, 1), value=-100),
        "what is ignored must be -100. 0 is a token, here EOS itself.": labels(ignore=0),
    }  # fmt: skip
    ids = torch.tensor([[5, 6, 7, 8, 0, 0, 0], [5, 9, 0, 0, 0, 0, 0], [4, 5, 6, 7, 8, 9, 0]])
    return grade(answer, labels(), [(ids, torch.tensor([2, 1, 3]), torch.tensor([5, 3, 7]))], mistakes)


def check_endings(answer: Callable) -> str:
    """answer(p_eos (T,)) -> (share of texts that end by themselves, mean number of tokens)."""

    def going_on(p):
        return (1 - p).cumprod(0)

    def share(p):
        return 1 - going_on(p)[-1]

    def tokens(p):
        return 1 + going_on(p)[:-1].sum()

    def of_finished(p):
        ends = p * torch.cat([torch.ones(1), going_on(p)[:-1]])
        return (ends * torch.arange(1, len(p) + 1)).sum() / share(p)

    mistakes = {
        "you add the chances up. Each holds only while the text goes on: multiply the chances of going on.":
            lambda p: (p.sum(), tokens(p)),
        "the share is that of the texts that are cut. Subtract it from 1.": lambda p: (1 - share(p), tokens(p)),
        "one over the probability is the mean without a limit. Here writing stops after T tokens.":
            lambda p: (share(p), 1 / p.mean()),
        "the first token is missing from the mean: every text has it.": lambda p: (share(p), tokens(p) - 1 + going_on(p)[-1]),
        "the mean is one token too long for texts that are cut. After the limit nothing is written.":
            lambda p: (share(p), 1 + going_on(p).sum()),
        "the mean leaves out the texts that are cut. They count with T tokens.": lambda p: (share(p), of_finished(p)),
    }  # fmt: skip
    cases = [(torch.tensor([0.1, 0.2, 0.5, 0.3]),), (torch.full((10,), 0.05),)]
    return grade(answer, lambda p: (share(p), tokens(p)), cases, mistakes)


def check_habit_at_temperature(answer: Callable) -> str:
    """answer(share, temperature) -> share of the samples at this temperature."""

    def normalised(weight):
        return lambda share, t: weight(share, t) / (weight(share, t) + weight(1 - share, t))

    mistakes = {
        "the two probabilities no longer add up to 1: divide by their sum.": lambda share, t: share ** (1 / t),
        "it is the wrong way round: a low temperature must sharpen. The exponent is 1 / temperature.": normalised(
            lambda share, t: share**t
        ),
        "you divide the probabilities by the temperature. Divide the logits, their logarithms.": lambda share, t: (
            torch.sigmoid((2 * share - 1) / t)
        ),
        "the temperature has no effect: divided by their sum, both probabilities are what they were. Divide the logits.":
            lambda share, t: share,
    }  # fmt: skip
    shares = torch.tensor([0.4, 0.5, 0.46, 0.83, 0.94])
    return grade(answer, normalised(lambda share, t: share ** (1 / t)), [(shares, 0.5), (shares, 2.0)], mistakes)
