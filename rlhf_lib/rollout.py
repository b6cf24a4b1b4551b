"""Sample responses and score their tokens under the very same distribution."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicLayer

from rlhf_lib import processes
from rlhf_lib.data import by_length, check_context, context_length, encode_prompts, pad, position_ids
from rlhf_lib.runtime import TrainingFailure, UsageError


@dataclass
class Rollout:
    """Prompts and their sampled responses, prompts padded on the left to P tokens, responses on the right to T."""

    input_ids: torch.Tensor  # (B, P+T)
    attention_mask: torch.Tensor  # (B, P+T), 1 on prompt and response up to and including EOS
    prompt_length: int  # P
    response_mask: torch.Tensor  # (B, T) bool, True on the response, its EOS included
    texts: list[str]
    eos_token_id: int

    @property
    def finished(self) -> torch.Tensor:
        """Which responses reached EOS: (B,) bool."""
        last = (self.response_mask.sum(-1) - 1).clamp(min=0)
        responses = self.input_ids[:, self.prompt_length :]
        return responses.gather(1, last[:, None])[:, 0] == self.eos_token_id

    def rows(self, index) -> "Rollout":
        """Some of the rows, cut to the padding that they need among themselves."""
        attention_mask, response_mask = self.attention_mask[index], self.response_mask[index]
        length = int(response_mask.sum(-1).max())
        prompt_length = int(attention_mask[:, : self.prompt_length].sum(-1).max())
        columns = slice(self.prompt_length - prompt_length, self.prompt_length + length)
        texts = [self.texts[i] for i in torch.as_tensor(index).tolist()]
        return Rollout(self.input_ids[index][:, columns], attention_mask[:, columns], prompt_length,
                       response_mask[:, :length], texts, self.eos_token_id)  # fmt: skip

    def micro_batches(self, rows: list[int], size: int):
        """`rows` in groups of similar length, at most `size` in each, with the group's part: yields (group, Rollout)."""
        lengths = self.attention_mask.sum(-1).tolist()
        for group in by_length(rows, size, lambda i: lengths[i]):
            yield group, self.rows(group)


def _logits(model, input_ids, attention_mask, keep: int) -> torch.Tensor:
    """Logits at the last `keep` positions, from positions that follow the mask: (B, keep, V), fp32."""
    return model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids(attention_mask), use_cache=False,
        logits_to_keep=keep,
    ).logits.float()  # fmt: skip


def token_logprobs(model, input_ids, attention_mask, temperature: float = 1.0, last: int | None = None) -> torch.Tensor:
    """Log-probability of each token given those before it: (B, T-1), column t scores token t+1.

    With `last`, only the final `last` columns, which spares the vocabulary projection of the others.
    """
    last = input_ids.shape[1] - 1 if last is None else last
    logits = _logits(model, input_ids, attention_mask, last + 1)[:, :-1] / temperature  # (B, last, V)
    targets = input_ids[:, -last:]
    return -F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def token_statistics(model, input_ids, attention_mask, last: int, temperature: float = 1.0, other=None):
    """Log-probability and entropy of the last `last` tokens, and with `other` the exact KL to it: each (B, last), nats.

    KL_t = sum over the vocabulary of p (log p - log q), with p from `model` and q from `other`.
    """
    logp = (_logits(model, input_ids, attention_mask, last + 1)[:, :-1] / temperature).log_softmax(-1)
    chosen = logp.gather(-1, input_ids[:, -last:, None])[..., 0]
    entropy = -(logp.exp() * logp).sum(-1)
    if other is None:
        return chosen, entropy
    logq = (_logits(other, input_ids, attention_mask, last + 1)[:, :-1] / temperature).log_softmax(-1)
    return chosen, entropy, (logp.exp() * (logp - logq)).sum(-1)


def generate(policy, tokenizer, prompts: list[str], max_new_tokens: int, temperature: float = 1.0, seed=None,
             indices: list[int] | None = None, max_prompt_tokens: int | None = None) -> Rollout:  # fmt: skip
    """Sample one response a prompt from the policy's full distribution (no top-k, no top-p), cut at the first EOS.

    `seed` is an int or a tuple of ints; the noise of a response depends on `seed` and its index alone (its place in
    `prompts`, or `indices`), not on how the batch is split. Temperature 0 takes the most probable token.
    Equal prompts that stand next to each other are read once. Several processes sample their shares and return the whole.
    Raises UsageError if there is no prompt, or prompt and response exceed the model's context, and TrainingFailure if
    the policy's logits are not finite.
    """
    ids, mask, uniforms = _start(
        policy, tokenizer, prompts, max_new_tokens, temperature, seed, indices, max_prompt_tokens
    )
    responses = torch.zeros(uniforms.shape, dtype=torch.long, device=ids.device)  # (B, max_new_tokens)
    response_mask = torch.zeros_like(responses, dtype=torch.bool)
    if mine := list(processes.share(range(len(prompts)))):
        some = [prompts[i] for i in mine]
        *_, last = _respond(policy, tokenizer, some, ids[mine], mask[mine], uniforms[mine], temperature)
        responses[mine], response_mask[mine] = last
    responses, response_mask = processes.summed(responses), processes.summed(response_mask.long()).bool()
    return _rollout(tokenizer, ids, mask, responses, response_mask)


def generate_stream(policy, tokenizer, prompts: list[str], max_new_tokens: int, temperature: float = 1.0, seed=None,
                    max_prompt_tokens: int | None = None):  # fmt: skip
    """`generate` token by token: yields a Rollout after each, whose `texts` hold what is written so far.

    The last one is what `generate` returns with the same seed; what `generate` raises comes with the first.
    """
    ids, mask, uniforms = _start(policy, tokenizer, prompts, max_new_tokens, temperature, seed, None, max_prompt_tokens)
    for responses, response_mask in _respond(policy, tokenizer, prompts, ids, mask, uniforms, temperature):
        yield _rollout(tokenizer, ids, mask, responses, response_mask)


def _start(policy, tokenizer, prompts, max_new_tokens, temperature, seed, indices, max_prompt_tokens):
    """Refuse what cannot work; ids and mask of the prompts, (B, P), and the noise of each step, (B, max_new_tokens)."""
    if isinstance(prompts, str):
        raise UsageError("prompts is one string: pass a list of strings, one for each response")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UsageError("the tokenizer has no PAD token of its own: load it with rlhf_lib.models.load_tokenizer")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    if temperature < 0:
        raise UsageError(f"temperature is {temperature}: it must be 0 (the most probable token) or more")
    device = next(policy.parameters()).device
    context = context_length(policy)
    encoded = encode_prompts(tokenizer, prompts, max_prompt_tokens or 10**9)
    check_context(max(map(len, encoded)), max_new_tokens, context)
    ids, mask = (x.to(device) for x in pad(encoded, tokenizer.pad_token_id, "left"))
    uniforms = _noise(seed, indices if indices is not None else range(len(prompts)), max_new_tokens).to(device)
    return ids, mask, uniforms


@torch.no_grad()
def _respond(policy, tokenizer, prompts, ids, mask, uniforms, temperature):
    """The sampling loop: yields after each step tokens, PAD after the end, and which of them count, like `uniforms`."""
    device, max_new_tokens = ids.device, uniforms.shape[1]
    first = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
    starts = set(first)
    owner = torch.tensor(np.cumsum([i in starts for i in range(len(prompts))]) - 1, device=device)
    out = policy(input_ids=ids[first], attention_mask=mask[first], position_ids=position_ids(mask[first]),
                 use_cache=True, logits_to_keep=1)  # fmt: skip
    cache = out.past_key_values
    cache.layers = [RoomyLayer(layer, owner, max_new_tokens) for layer in cache.layers]
    logits = out.logits[owner, -1]  # (B, V)
    responses = torch.full((len(prompts), max_new_tokens), tokenizer.pad_token_id, device=device)
    response_mask = torch.zeros_like(responses, dtype=torch.bool)
    rows, attention = torch.arange(len(prompts), device=device), mask  # the rows still computed, finished ones leave
    alive = torch.ones_like(rows, dtype=torch.bool)
    for step in range(max_new_tokens):
        token = _sample(logits.float(), temperature, uniforms[rows, step])
        token = torch.where(alive, token, tokenizer.pad_token_id)
        responses[rows, step], response_mask[rows, step] = token, alive
        attention = torch.cat([attention, alive[:, None].long()], 1)
        alive = alive & (token != tokenizer.eos_token_id)
        yield responses, response_mask
        if step + 1 == max_new_tokens or not alive.any():
            break
        if alive.float().mean() < 0.75:
            rows, attention, token = rows[alive], attention[alive], token[alive]
            for layer in cache.layers:
                layer.select(alive)
            alive = alive[alive]
        logits = policy(input_ids=token[:, None], attention_mask=attention, position_ids=position_ids(attention)[:, -1:],
                        past_key_values=cache, use_cache=True).logits[:, -1]  # fmt: skip


def _rollout(tokenizer, ids, mask, responses, response_mask) -> Rollout:
    """The responses so far, cut to the longest, joined to their prompts."""
    longest = int(response_mask.any(0).sum())
    responses, response_mask = responses[:, :longest], response_mask[:, :longest]  # (B, T)
    texts = [t.strip() for t in tokenizer.batch_decode(responses, skip_special_tokens=True)]
    return Rollout(torch.cat([ids, responses], 1), torch.cat([mask, response_mask.long()], 1), ids.shape[1],
                   response_mask, texts, tokenizer.eos_token_id)  # fmt: skip


class RoomyLayer(DynamicLayer):
    """A cache layer with room for the tokens to come: appending copies one column instead of the whole cache."""

    def __init__(self, layer: DynamicLayer, rows: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.buffers = [F.pad(x[rows], (0, 0, 0, room)) for x in (layer.keys, layer.values)]  # (B, heads, P+room, d)
        self.keys, self.values = (x[:, :, : layer.keys.shape[-2]] for x in self.buffers)

    def select(self, rows: torch.Tensor) -> None:
        length = self.keys.shape[-2]
        self.buffers = [x[rows] for x in self.buffers]
        self.keys, self.values = (x[:, :, :length] for x in self.buffers)

    def update(self, key_states, value_states, *args, **kwargs):
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        self.keys, self.values = (x[:, :, :end] for x in self.buffers)
        return self.keys, self.values


def _noise(seed, indices, steps: int) -> torch.Tensor:
    """One uniform number a response and step: (B, steps)."""
    if seed is None:
        return torch.rand(len(indices), steps, dtype=torch.float64)
    seed = list(seed) if isinstance(seed, tuple | list) else [seed]
    return torch.from_numpy(np.stack([np.random.default_rng([*seed, int(i)]).random(steps) for i in indices]))


def _sample(logits: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw from softmax(logits / temperature): (B, V), (B,) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    cdf = (logits / temperature).softmax(-1).double().cumsum(-1)
    if cdf[:, -1].isnan().any():
        raise TrainingFailure(
            "the policy's logits are not finite: its weights are broken, so load an earlier checkpoint"
        )
    return torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None]).squeeze(1).clamp(max=logits.shape[-1] - 1)


def sample_texts(policy, tokenizer, prompts: list[str], max_new_tokens: int, temperature: float = 1.0, seed=0,
                 batch_size: int = 384, max_prompt_tokens: int | None = None, bar=None):  # fmt: skip
    """Responses to many prompts, batch by batch: (texts, finished, lengths in tokens with EOS), lists in order."""
    texts, finished, lengths = [], [], []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        rollout = generate(policy, tokenizer, [prompts[i] for i in rows], max_new_tokens, temperature, seed,
                           indices=rows, max_prompt_tokens=max_prompt_tokens)  # fmt: skip
        texts += rollout.texts
        finished += rollout.finished.tolist()
        lengths += rollout.response_mask.sum(-1).tolist()
        if bar is not None:
            bar.update(len(rows))
    return texts, finished, lengths
