"""Checks of the exercises in `03_ppo_alignment`."""

import copy
from collections.abc import Callable

import torch

from rlhf_lib.exercises import grade

# ------------------------------------------------------------------------------------- 03/01


def check_response_logprobs(answer: Callable) -> str:
    """answer(logits (B, L, V), input_ids (B, L), prompt_length, temperature) -> (B, T)."""

    def slice_of(logits, ids, first, last, change=lambda x: x):
        return change(logits[:, first:last]).log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    def truth(logits, ids, p, t):
        return slice_of(logits, ids[:, p:], p - 1, -1, lambda x: x / t)

    mistakes = {
        "the shift is forgotten. Logits at a token's own column have already seen it; token t is scored by the logits at "
        "column t - 1.": lambda logits, ids, p, t: slice_of(logits, ids[:, p:], p, None, lambda x: x / t),
        "the shift is one column too wide: token t is scored by the logits at column t - 1, not t - 2.":
            lambda logits, ids, p, t: slice_of(logits, ids[:, p:], p - 2, -2, lambda x: x / t),
        "the first response token is missing. The logits at the last prompt column, prompt_length - 1, score it.":
            lambda logits, ids, p, t: slice_of(logits, ids[:, p + 1 :], p, -1, lambda x: x / t),
        "the prompt is scored too. The policy chose only the tokens from prompt_length on.":
            lambda logits, ids, p, t: slice_of(logits, ids[:, 1:], 0, -1, lambda x: x / t),
        "the temperature is forgotten: the tokens were drawn from softmax(logits / temperature).":
            lambda logits, ids, p, t: slice_of(logits, ids[:, p:], p - 1, -1),
        "the logits are multiplied by the temperature. Divide them.":
            lambda logits, ids, p, t: slice_of(logits, ids[:, p:], p - 1, -1, lambda x: x * t),
        "the temperature divides the log-probabilities, which then no longer add up to probability 1. Divide the logits, "
        "before the softmax.": lambda logits, ids, p, t: slice_of(logits, ids[:, p:], p - 1, -1) / t,
        "these are logits: log_softmax is missing.":
            lambda logits, ids, p, t: (logits[:, p - 1 : -1] / t).gather(-1, ids[:, p:, None])[..., 0],
        "these are probabilities: the logarithm is missing.": lambda *case: truth(*case).exp(),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(2, 6, 4, generator=generator), torch.randint(4, (2, 6), generator=generator), p, t)
        for p, t in ((3, 1.0), (2, 0.7))
    ]
    return grade(answer, truth, cases, mistakes)


def check_kl_z(answer: Callable) -> str:
    """answer(logprobs, ref_logprobs, exact_kl, mask), each (N, T) -> number."""

    def gap(logprobs, ref, exact, mask):
        return torch.where(mask, logprobs - ref - exact, 0.0).sum(-1)

    def z(x, correction=1):
        return (x.mean() / (x.std(correction=correction) / len(x) ** 0.5)).item()

    mistakes = {
        "the mask is missing: what stands behind the end of a response is counted.":
            lambda logprobs, ref, exact, mask: z((logprobs - ref - exact).sum(-1)),
        "the sign is flipped: sampled less exact, so that a sampled KL that is too low gives a negative z.":
            lambda *case: -z(gap(*case)),
        "the sampled KL is compared with 0. Its expected value is the exact KL, so compare it with that.":
            lambda logprobs, ref, exact, mask: z(gap(logprobs, ref, torch.zeros_like(exact), mask)),
        "this divides by the standard deviation of one response. The mean of N has a standard error of that over the "
        "root of N.": lambda *case: (gap(*case).mean() / gap(*case).std()).item(),
        "the tokens are treated as the independent draws. Sum over each response first; the responses are independent.":
            lambda logprobs, ref, exact, mask: z((logprobs - ref - exact)[mask]),
        "each response is averaged over its tokens. Sum them: the KL of a response is a sum.":
            lambda *case: z(gap(*case) / case[3].sum(-1)),
        "this is the difference in nats: divide it by its standard error.": lambda *case: gap(*case).mean().item(),
        "the standard deviation divides by N. Its mean was estimated from the same N responses, so divide by N - 1.":
            lambda *case: z(gap(*case), correction=0),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    logprobs, ref, exact = (
        torch.rand(3, 5, 4, generator=generator) + torch.tensor([-3.0, -3.2, 0.0]).view(3, 1, 1)
    ).unbind()
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 1, 4])[:, None]
    return grade(answer, lambda *case: z(gap(*case)), [(logprobs, ref, exact, mask)], mistakes)


def check_k3_loss_gradient(answer: Callable) -> str:
    """answer(logits (V,), ref_logits (V,)) -> expected gradient of k3 as a loss on fixed samples, (V,)."""

    def k3(logp, logq):
        return torch.expm1(logq - logp) - (logq - logp)

    def gradient(loss):
        def of(logits, ref_logits):
            logits = logits.clone().requires_grad_()
            value = loss(logits.log_softmax(-1), ref_logits.log_softmax(-1))
            return torch.autograd.grad(value, logits)[0]

        return of

    truth = gradient(lambda logp, logq: (logp.detach().exp() * k3(logp, logq)).sum())
    mistakes = {
        "the sign is flipped: this is the direction in which the loss falls.": lambda *case: -truth(*case),
        "the weights are differentiated too. The samples are fixed when the loss is taken, so detach the probabilities "
        "that weight them. (What you have is the gradient of KL(policy || ref).)":
            gradient(lambda logp, logq: (logp.exp() * k3(logp, logq)).sum()),
        "here k3 is a number that multiplies the gradient of the log-probability: that is k3 in the reward.":
            gradient(lambda logp, logq: (logp.exp() * k3(logp, logq).detach()).sum()),
        "the ratio in k3 is upside down: samples come from the policy, so it is ref / policy.":
            gradient(lambda logp, logq: (logp.detach().exp() * k3(logq, logp)).sum()),
        "the weights are those of the reference. The samples come from the policy.":
            gradient(lambda logp, logq: (logq.exp() * k3(logp, logq)).sum()),
        "the weights are missing: a token counts as often as the policy draws it.":
            gradient(lambda logp, logq: k3(logp, logq).sum()),
        "the loss is k1, whose expected gradient is 0 everywhere.":
            gradient(lambda logp, logq: (logp.detach().exp() * (logp - logq)).sum()),
        "the loss is k2, not k3.": gradient(lambda logp, logq: (logp.detach().exp() * 0.5 * (logp - logq).square()).sum()),
    }  # fmt: skip
    cases = [(torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, 1.0, -0.5])),
             (torch.tensor([0.0, 0.3, -0.2, 1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))]  # fmt: skip
    return grade(answer, truth, cases, mistakes)


# ------------------------------------------------------------------------------------- 03/02


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


# ------------------------------------------------------------------------------------- 03/03


def check_beta_for_kl(answer: Callable) -> str:
    """answer(ref (Y,), score (Y,), budget) -> the β at which the best policy has this KL."""

    def search(kl_of):
        def of(ref, score, budget):
            low, high = 0.01, 100.0
            for _ in range(100):
                beta = (low + high) / 2
                logp, logq = (ref.log() + score / beta).log_softmax(0), ref.log()
                low, high = (beta, high) if kl_of(logp, logq) > budget else (low, beta)
            return beta

        return of

    truth = search(lambda logp, logq: (logp.exp() * (logp - logq)).sum())
    mistakes = {
        "the search ran into its upper end. The score is divided by beta, so a larger beta gives a smaller KL: raise beta only while the KL is above the "
        "budget.": lambda *case: 100.0,
        "the search ran into its lower end. The score is divided by beta, so a smaller beta gives a larger KL: lower beta only while the KL is below the "
        "budget.": lambda *case: 0.01,
        "the KL is the wrong way round. The policy writes the texts, so its probabilities weight the log-ratio.": search(
            lambda logp, logq: (logq.exp() * (logq - logp)).sum()
        ),
        "this is 1 / beta. The best policy divides the score by beta.": lambda *case: 1 / truth(*case),
    }
    ref, score = torch.tensor([[0.7, 0.299, 0.001], [0.0, 1.0, 4.0]], dtype=torch.float64)
    return grade(answer, truth, [(ref, score, 0.3), (ref, score, 2.0)], mistakes)


def check_explained_variance(answer: Callable) -> str:
    """answer(values, returns, mask), each (B, T) -> ()."""

    def masked(rule):
        return lambda values, returns, mask: rule(values[mask], returns[mask])

    def truth(v, r):
        return 1 - (r - v).var() / r.var()

    def by_response(values, returns, mask):
        return sum(truth(v[m], r[m]) for v, r, m in zip(values, returns, mask)) / len(mask)

    mistakes = {
        "the mask is missing: what stands behind the end of a response is counted.": lambda v, r, m: truth(v, r),
        "an offset is held against the critic. Take the variance of the error, not its mean square.": masked(
            lambda v, r: 1 - (r - v).square().mean() / r.var(correction=0)
        ),
        "you divide by the variance of the values. A critic is measured by the returns that it had to foresee.": masked(
            lambda v, r: 1 - (r - v).var() / v.var()
        ),
        "this is the share that the critic does not explain: subtract it from 1.": masked(lambda v, r: 1 - truth(v, r)),
        "this is a squared correlation. It forgives a critic whose values are too large by a factor.": masked(
            lambda v, r: torch.corrcoef(torch.stack([v, r]))[0, 1] ** 2
        ),
        "you average over responses. Take all counted tokens of the batch together.": by_response,
    }
    generator = torch.Generator().manual_seed(0)
    returns = torch.randn(3, 5, generator=generator)
    values = 0.5 * returns + 0.4 * torch.randn(3, 5, generator=generator) + 0.7
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    return grade(answer, masked(truth), [(values, returns, mask)], mistakes)


def check_penalised_scores(answer: Callable) -> str:
    """answer(scores (B,), response_ids (B, T), eos_id, penalty) -> (B,)."""

    def fined(finished, fine=lambda scores, penalty: scores - penalty):
        return lambda scores, ids, eos, penalty: torch.where(finished(ids, eos), scores, fine(scores, penalty))

    def ended(ids, eos):
        return (ids == eos).any(-1)

    mistakes = {
        "you look for EOS in the last column only. A response that ended earlier has pads there.": fined(
            lambda ids, eos: ids[:, -1] == eos
        ),
        "you fine a response that fills every column. It is finished if its last token is EOS.": fined(
            lambda ids, eos: (ids[:, :-1] == eos).any(-1)
        ),
        "you fine the responses that ended. The penalty is for those that did not.": fined(lambda *x: ~ended(*x)),
        "you pay those that never end: subtract the penalty.": fined(ended, lambda scores, penalty: scores + penalty),
        "the penalty replaces the score. Subtract it, so that a better unfinished response still scores higher.": fined(
            ended, lambda scores, penalty: torch.full_like(scores, -penalty)
        ),
        "you fine every response. Only those without EOS pay.": fined(lambda ids, eos: ids[:, 0] != ids[:, 0]),
    }
    ids = torch.tensor([[5, 6, 0, 1], [5, 6, 7, 0], [5, 6, 7, 8], [0, 1, 1, 1]])
    return grade(answer, fined(ended), [(torch.tensor([0.5, 1.5, 2.0, -1.0]), ids, 0, 3.0)], mistakes)


# ------------------------------------------------------------------------------------- 03/04


def check_wrong_masks(answer: Callable) -> str:
    """answer(response_ids (B, T), response_mask (B, T) bool, eos_id) -> (B,) bool, True where the mask is wrong."""

    def differs_from(counted):
        return lambda ids, mask, eos: (counted(ids == eos) != mask).any(-1)

    def to_first(ends):
        return ends.int().cumsum(-1) - ends.int() == 0

    def to_last(ends):
        return (ends.flip(-1).cumsum(-1).flip(-1) > 0) | ~ends.any(-1, keepdim=True)

    def behind_the_end_or_with_a_hole(ids, mask, eos):
        return (mask & ~to_first(ids == eos)).any(-1) | (mask.int().diff(dim=-1) > 0).any(-1)

    truth = differs_from(to_first)
    mistakes = {
        "a mask that leaves the EOS out, or the last token of a cut response, passes. It must count all there is to count.":
            behind_the_end_or_with_a_hole,
        "you look only for what is counted behind the end. A mask that counts too little passes.":
            lambda ids, mask, eos: (mask & ~to_first(ids == eos)).any(-1),
        "you call masks wrong that count their EOS. To stop is an action.": differs_from(lambda ends: ends.cumsum(-1) == 0),
        "you compare how many tokens count. A mask with a hole and one pad too many passes.":
            lambda ids, mask, eos: to_first(ids == eos).sum(-1) != mask.sum(-1),
        "it is the wrong way round: True must mean that the mask is wrong.": lambda *case: ~truth(*case),
        "one verdict for the whole batch: give one for each response.": lambda *case: truth(*case).any(),
        "the mask must end at the first EOS, not at the last.": differs_from(to_last),
        "a response that was cut at the limit has no EOS. All of its tokens count, and that is no fault.":
            lambda ids, mask, eos: truth(ids, mask, eos) | ~(ids == eos).any(-1),
    }  # fmt: skip
    rows = [
        ([5, 6, 0, 1], [1, 1, 1, 0]), ([5, 6, 7, 8], [1, 1, 1, 1]), ([5, 6, 0, 1], [1, 1, 1, 1]),
        ([5, 6, 0, 1], [1, 1, 0, 0]), ([5, 6, 7, 0], [1, 0, 1, 1]), ([5, 0, 6, 0], [1, 1, 0, 0]),
        ([5, 0, 6, 0], [1, 1, 1, 1]), ([5, 6, 7, 8], [1, 1, 1, 0]), ([0, 1, 1, 1], [1, 0, 0, 0]),
        ([5, 6, 0, 1], [1, 0, 1, 1]),
    ]  # fmt: skip
    ids, mask = (torch.tensor(part) for part in zip(*rows))
    return grade(answer, truth, [(ids, mask.bool(), 0)], mistakes)


def check_shared_weights(answer: Callable) -> str:
    """answer(policy, ref_policy) -> names of the reference's parameters that are the policy's own memory, in order."""

    def named(is_shared):
        return lambda policy, ref_policy: [n for n, q in ref_policy.named_parameters() if is_shared(policy, n, q)]

    def own(policy, _, q):
        return any(q is p for p in policy.parameters())

    truth = named(own)
    mistakes = {
        "you compare values. A fresh reference equals the policy, as it should; ask whether both are the same memory.":
            named(lambda policy, _, q: any(p.shape == q.shape and torch.equal(p, q) for p in policy.parameters())),
        "you miss weights that are shared in part, or under another name.":
            named(lambda policy, name, q: dict(policy.named_parameters()).get(name) is q),
        "these are the policy's names. Give the reference's.":
            lambda policy, ref_policy: truth(ref_policy, policy),
        "that says whether anything is shared. Name what is.": lambda *case: bool(truth(*case)),
        "that says how many are shared. Name them.": lambda *case: len(truth(*case)),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    policy, other = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)) for _ in range(2))
    with torch.no_grad():
        for p in (*policy.parameters(), *other.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator))
    in_part = torch.nn.Sequential(copy.deepcopy(policy[0]), policy[0])  # shared under another name
    return grade(answer, truth, [(policy, ref) for ref in (policy, copy.deepcopy(policy), in_part, other)], mistakes)


def check_reads_behind_the_end(answer: Callable) -> str:
    """answer(gae) -> bool, with gae(rewards, values, response_mask) -> (advantages, returns) as `ppo.compute_gae`."""

    def gae(*reads, untidy=False):
        """The recursion, right, or reading "values" or "rewards" behind the end, or carrying reward less "value" of the pads;
        `untidy` leaves numbers at the pads."""

        def function(rewards, values, response_mask, gamma=1.0, lam=0.95):
            carries = "rewards less values" in reads
            r = rewards if "rewards" in reads or carries else rewards * response_mask
            v = values if "values" in reads or carries else values * response_mask
            advantages, next_value, next_advantage = torch.zeros_like(values), 0.0, 0.0
            for t in reversed(range(values.shape[1])):
                counted = response_mask[:, t] | ("rewards" in reads) | carries
                advantages[:, t] = (r[:, t] + gamma * next_value - v[:, t] + gamma * lam * next_advantage) * counted
                next_value, next_advantage = v[:, t] * (response_mask[:, t] | (not carries)), advantages[:, t]
            garbage = rewards * ~response_mask if untidy else 0.0
            return advantages * response_mask + garbage, (advantages + v) * response_mask

        return function

    def probe(spoil=("rewards", "values"), counted_only=True, spoil_all=False, amounts=(100.0, 37.0)):
        def function(gae):
            mask = torch.arange(6) < torch.tensor([[2], [4], [6]])
            numbers = {"rewards": torch.ones(3, 6), "values": torch.ones(3, 6)}
            spoilt = {k: x + amount * (~mask | spoil_all) * (k in spoil)
                      for (k, x), amount in zip(numbers.items(), amounts, strict=True)}  # fmt: skip
            before, after = (gae(x["rewards"], x["values"], mask)[0] for x in (numbers, spoilt))
            return not torch.equal(*((x[mask] for x in (before, after)) if counted_only else (before, after)))

        return function

    mistakes = {
        "you change only the values behind the end. A function may read the rewards there.": probe(("values",)),
        "you change only the rewards behind the end. A function may read the values there.": probe(("rewards",)),
        "you change rewards and values by the same amount. A function that carries reward less value of the pads passes.":
            probe(amounts=(100.0, 100.0)),
        "you compare the pads as well. What stands at a pad is used by nobody: compare the counted tokens.":
            probe(counted_only=False),
        "you change numbers that the mask counts, so that every advantage moves. Change only what is behind the end.":
            probe(spoil_all=True),
        "your probe never notices anything. It needs a response that ends before the last column, and a change behind "
        "its end.": probe(()),
        "it is the wrong way round: True must mean that the function reads on.": lambda gae: not probe()(gae),
    }  # fmt: skip
    cases = [(gae(),), (gae("values"),), (gae("rewards"),), (gae("rewards less values"),), (gae(untidy=True),)]
    return grade(answer, probe(), cases, mistakes)
