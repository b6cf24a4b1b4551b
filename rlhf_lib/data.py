"""Examples, splits, tokenization and padding. One prompt template per data set, used by every stage."""

import numpy as np
import torch

from rlhf_lib.runtime import UsageError
from rlhf_lib.tiny import Post, demonstration, make_posts

# Every stage draws its training posts from a stream of its own; validation and test posts are the same for all runs.
STREAMS = {"sft": 1, "reward": 2, "ppo": 3, "edits": 4, "demonstrations": 5}


def training_posts(stage: str, n: int, seed: int) -> list[Post]:
    """`n` posts of the train split for one stage of the run with this seed."""
    return make_posts(n, seed=seed * 10 + STREAMS[stage], split="train")


def held_out_posts(split: str, n: int) -> list[Post]:
    """The first `n` posts of "validation" or "test": the same for every seed, so runs can be compared."""
    if split not in ("validation", "test"):
        raise UsageError(f"unknown evaluation split {split!r}: choose validation or test")
    return make_posts(n, seed=0, split=split)


def demonstrations(posts: list[Post], seed: int) -> list[dict]:
    """SFT examples: {"prompt", "completion"}."""
    return [{"prompt": post.prompt, "completion": demonstration(post, seed)} for post in posts]


# ------------------------------------------------------------------------------------------------ tokenization


def first_tokens(tokenizer) -> list[int]:
    """[BOS] where the tokenizer itself begins a text with it, as Llama's does and as its model was pretrained, else []."""
    first = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def encode_prompts(tokenizer, prompts: list[str], max_tokens: int) -> list[list[int]]:
    """Token ids of each prompt; a long one loses its beginning, so that the cue at its end survives.

    A BOS of the tokenizer's comes first, is never lost and counts among the `max_tokens`.
    """
    if not prompts:
        raise UsageError("there are no prompts: the data set is empty, so check its path, split and limit")
    first = first_tokens(tokenizer)
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    if empty := [i for i, ids in enumerate(encoded) if not ids]:
        raise UsageError(f"prompt {empty[0]} is empty: every prompt needs at least the cue")
    room = max_tokens - len(first)
    return [first + ids[max(0, len(ids) - room) :] for ids in encoded]


def encode_completions(tokenizer, completions: list[str], finished: list[bool] | None = None) -> list[list[int]]:
    """Token ids of each completion: a space, the text, and EOS unless `finished` says that it never ended."""
    finished = [True] * len(completions) if finished is None else finished
    encoded = tokenizer([" " + text for text in completions], add_special_tokens=False)["input_ids"]
    return [ids + [tokenizer.eos_token_id] * bool(end) for ids, end in zip(encoded, finished, strict=True)]


def check_context(prompt_tokens: int, new_tokens: int, context: int) -> None:
    """Raises UsageError if prompt and completion together do not fit the model's context."""
    if prompt_tokens + new_tokens > context:
        raise UsageError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the model's context of {context}: "
            "lower max_prompt_tokens or max_new_tokens"
        )


def context_length(model) -> int:
    return getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", 10**9)


def pad(sequences: list[list[int]], pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Pad to the longest: (input_ids, attention_mask), each (B, T)."""
    width = max(map(len, sequences))
    fill = [[0] * (width - len(x)) for x in sequences]
    left = side == "left"
    ids = [[pad_id] * len(f) + x if left else x + [pad_id] * len(f) for f, x in zip(fill, sequences, strict=True)]
    mask = [f + [1] * len(x) if left else [1] * len(x) + f for f, x in zip(fill, sequences, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def position_ids(attention_mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens only, so that padding on the left shifts nothing: (B, T)."""
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)


def completion_batch(prompts: list[list[int]], completions: list[list[int]], pad_id: int):
    """Prompt and completion joined and padded on the left: (input_ids, attention_mask, completion_mask).

    The first two are (B, P+T), the last is (B, T) with T the longest completion: True where a token is learnt, that is
    on the completion and its EOS, False on prompt and padding.
    """
    ids, mask = pad([p + c for p, c in zip(prompts, completions, strict=True)], pad_id, "left")
    _, completion_mask = pad(completions, pad_id, "left")
    return ids, mask, completion_mask.bool()


def by_length(items, size: int, length) -> list[list]:
    """`items` in groups of at most `size` and of similar `length(item)`, so that little is spent on padding."""
    items = sorted(items, key=length)
    return [items[start : start + size] for start in range(0, len(items), size)]


def shuffled(n: int, seed) -> list[int]:
    """A permutation of range(n) that depends on `seed` (an int or a tuple of ints) alone."""
    return np.random.default_rng(seed).permutation(n).tolist()
