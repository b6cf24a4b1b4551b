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


# ------------------------------------------------------------------------------------- 01/03


def check_lora_training_bytes(answer: Callable) -> str:
    """answer(layers, frozen, r), layers a list of (n_in, n_out) -> bytes of (weights, gradients, moments) in fp32."""

    def count(weights=lambda base, new: base + new, gradients=lambda base, new: new, moments=2, each=4,
              new=lambda r, i, o: r * (i + o), rest=1):  # fmt: skip
        """The right function, or one with another count of one part."""

        def function(layers, frozen, r):
            base, added = sum(i * o for i, o in layers) + rest * frozen, sum(new(r, i, o) for i, o in layers)
            learnt = gradients(base, added)
            return each * weights(base, added), each * learnt, each * moments * added

        return function

    mistakes = {
        "frozen weights get no gradient. Count those of A and B alone.": count(gradients=lambda base, new: base + new),
        "Adam keeps two numbers for each trained one, the mean of the gradient and of its square.": count(moments=1),
        "A is (r, n_in) and B is (n_out, r): add the two, r does not multiply the whole matrix.":
            count(new=lambda r, i, o: r * i * o),
        "you count A alone. B has r numbers for each output.": count(new=lambda r, i, o: r * i),
        "A and B are weights, too: they are held beside the frozen ones.": count(weights=lambda base, new: base),
        "the other frozen weights, such as the embeddings, are held all the same.": count(rest=0),
        "these are numbers. In fp32 each has 4 bytes.": count(each=1),
    }  # fmt: skip
    cases = [([(128, 384), (256, 128)], 1000, 8), ([(64, 64)], 0, 1)]
    return grade(answer, count(), cases, mistakes)


def check_factor_gradients(answer: Callable) -> str:
    """answer(gradient (out, in) of the loss for scale B A, A, B, scale) -> its gradients for A and for B."""

    def truth(g, a, b, scale):
        return scale * b.T @ g, scale * g @ a.T

    mistakes = {
        "the scale is missing: the weight moves by scale times B A.": lambda g, a, b, scale: (b.T @ g, g @ a.T),
        "the two are swapped: A's comes first.": lambda *case: truth(*case)[::-1],
        "these are steps, not gradients: the sign is flipped.": lambda *case: tuple(-x for x in truth(*case)),
        "the scale counts once for each factor.": lambda g, a, b, scale: (scale**2 * b.T @ g, scale**2 * g @ a.T),
    }
    generator = torch.Generator().manual_seed(0)
    g, a, b = (torch.randn(*shape, generator=generator) for shape in ((4, 5), (2, 5), (4, 2)))
    return grade(answer, truth, [(g, a, b, 3.0), (g, a, torch.zeros(4, 2), 0.5)], mistakes)


def check_swap_adapter(answer: Callable) -> str:
    """answer(weight (out, in), old, new), adapters (A, B, alpha); `old` is merged into weight -> weight with `new`."""

    def update(a, b, alpha):
        return alpha / a.shape[0] * b @ a

    def truth(weight, old, new):
        return weight - update(*old) + update(*new)

    mistakes = {
        "the scale is alpha / r, and r is the number of rows of A.": lambda w, old, new: (
            w - old[2] * old[1] @ old[0] + new[2] * new[1] @ new[0]
        ),
        "the old adapter is still in the weight: subtract it.": lambda w, old, new: w + update(*new),
        "the new adapter is missing: add it.": lambda w, old, new: w - update(*old),
        "the signs are turned round: the old one leaves, the new one comes.": lambda w, old, new: truth(w, new, old),
        "each adapter has a rank and an alpha of its own: you scale both alike.": lambda w, old, new: (
            w - update(*old) + old[2] / old[0].shape[0] * new[1] @ new[0]
        ),
    }
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 5), (2, 5), (4, 2), (3, 5), (4, 3))
    weight, *factors = (torch.randn(*shape, generator=generator) for shape in shapes)
    return grade(answer, truth, [(weight, (*factors[:2], 16.0), (*factors[2:], 8.0))], mistakes)


# ------------------------------------------------------------------------------------- 01/04


def check_unpack_nibbles(answer: Callable) -> str:
    """answer(packed (N,) uint8) -> (2N,) indexes 0..15; of each byte the upper four bits come first."""

    def both(first, second, join=lambda a, b: torch.stack([a, b], -1).flatten()):
        return lambda packed: join(first(packed.long()), second(packed.long()))

    def high(x):
        return x >> 4

    def low(x):
        return x & 15

    mistakes = {
        "the two indexes of a byte are swapped: the upper four bits come first.": both(low, high),
        "the order is wrong: the two indexes of a byte are neighbours.": both(
            high, low, lambda a, b: torch.cat([a, b])
        ),
        "the upper four bits must move down by four: shift them, 240 is no index.": both(lambda x: x & 240, low),
        "the lower index still carries the upper one: mask it with 15.": both(high, lambda x: x),
        "half of the indexes are missing: a byte holds two.": lambda packed: high(packed.long()),
    }
    packed = torch.tensor([0x12, 0xF0, 0x7A, 0x0F, 0x33], dtype=torch.uint8)
    return grade(answer, both(high, low), [(packed,)], mistakes)


def check_bits_per_weight(answer: Callable) -> str:
    """answer(block, group), group None without double quantisation -> bits of memory a weight."""

    def bits(single, double):
        return lambda block, group: single(block) if group is None else double(block, group)

    def plain(block):
        return 4 + 32 / block

    mistakes = {
        "the scale of a group serves group times block weights: divide by both.": bits(
            plain, lambda block, group: 4 + 8 / block + 32 / group
        ),
        "with double quantisation the 8-bit scale takes the place of the 32-bit one.": bits(
            plain, lambda block, group: 4 + 32 / block + 8 / block + 32 / (block * group)
        ),
        "the scales of the scales are missing: one of 32 bits a group.": bits(
            plain, lambda block, group: 4 + 8 / block
        ),
        "these are the scales alone. Add the 4 bits of the weight itself.": bits(
            lambda block: 32 / block, lambda block, group: 8 / block + 32 / (block * group)
        ),
        "these are bytes. A byte has 8 bits.": bits(
            lambda block: plain(block) / 8, lambda block, group: (4 + 8 / block + 32 / (block * group)) / 8
        ),
        "group is ignored: with double quantisation a scale has 8 bits.": bits(
            plain, lambda block, group: plain(block)
        ),
    }
    truth = bits(plain, lambda block, group: 4 + 8 / block + 32 / (block * group))
    return grade(answer, truth, [(64, None), (64, 256), (32, 64), (128, None)], mistakes)


def check_largest_model(answer: Callable) -> str:
    """answer(memory in bytes, bits a frozen weight, share of adapter numbers) -> frozen weights that fit, with Adam."""

    def fits(each=lambda bits: bits / 8, trained=16):
        return lambda memory, bits, share: memory / (each(bits) + trained * share)

    mistakes = {
        "bits are not bytes: divide by 8.": fits(each=lambda bits: bits),
        "4 bytes of each trained number are missing: it has a weight, a gradient and two moments.": fits(trained=12),
        "8 bytes of each trained number are missing: it has a weight, a gradient and two moments.": fits(trained=8),
        "the adapter is missing: it has share times as many numbers as there are frozen weights.": fits(trained=0),
        "frozen weights have neither gradient nor moments: only share of them cost 16 bytes.":
            lambda memory, bits, share: memory / (bits / 8 + 16),
    }  # fmt: skip
    return grade(answer, fits(), [(24e9, 4.127, 0.01), (24e9, 16.0, 0.005), (16e9, 32.0, 0.02)], mistakes)
