"""The reward model: Bradley-Terry loss on preference pairs, and the loop that minimises it."""

from pathlib import Path

import torch
import torch.nn.functional as F

from rlhf_lib import processes
from rlhf_lib.data import (
    by_length,
    check_context,
    context_length,
    encode_completions,
    encode_prompts,
    pad,
    position_ids,
    shuffled,
)
from rlhf_lib.models import checkpoint_gradients, freeze_embeddings, reads_at_eos, score_responses
from rlhf_lib.recipes import Recipe
from rlhf_lib.runtime import (
    MetricLog,
    TrainingState,
    UsageError,
    clip_gradients,
    prepare,
    progress,
    scaler_part,
    set_seed,
)
from rlhf_lib.sft import warmup_cosine


def bradley_terry_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor, margin=0.0) -> torch.Tensor:
    """Mean of -log sigmoid(chosen - rejected - margin): (N,), (N,) -> (). ln 2 at ties.

    Bradley and Terry 1952; Stiennon et al. 2020 (arXiv 2009.01325), section 3.4; `margin` as in Llama 2 (arXiv 2307.09288).
    """
    return -F.logsigmoid(chosen_scores - rejected_scores - margin).mean()


def group_by_prompt(pairs: list[dict]) -> list[list[dict]]:
    """Pairs that share a prompt, together: each response is then scored once for all of its comparisons."""
    groups = {}
    for pair in pairs:
        groups.setdefault(pair["prompt"], []).append(pair)
    return list(groups.values())


PACKED = ("gpt2", "gpt_neox", "llama")
"""families whose attention takes the mask and the positions of `pack`; tested for each. Others read one row a response"""


def _characters(group: list[dict]) -> int:
    """How long the row of a group will be, roughly."""
    return len(group[0]["prompt"]) + sum(map(len, {pair[key] for pair in group for key in ("chosen", "rejected")}))


def pack(groups: list[tuple[list[int], list[list[int]]]], pad_id: int):
    """Rows that hold a prompt once, followed by all of its responses, each blind to the others.

    `groups` are (prompt ids, [response ids with EOS, ...]). Returns input_ids and position_ids (B, L), where each
    response's positions go on from its prompt; an attention mask (B, 1, L, L) bool, True where a token may look; and
    the (row, column) of each response's last token, in order.
    """
    ids, _ = pad([sum(responses, prompt) for prompt, responses in groups], pad_id)
    positions = torch.zeros_like(ids)
    segment = torch.full_like(ids, -1)  # 0 the prompt, 1, 2, ... its responses, -1 padding
    ends = []
    for row, (prompt, responses) in enumerate(groups):
        start = len(prompt)
        segment[row, :start], positions[row, :start] = 0, torch.arange(start)
        for number, response in enumerate(responses, 1):
            stop = start + len(response)
            segment[row, start:stop] = number
            positions[row, start:stop] = torch.arange(len(prompt), len(prompt) + len(response))
            ends.append((row, stop - 1))
            start = stop
    same = segment[:, :, None] == segment[:, None, :]  # (B, L, L)
    allowed = (same | (segment[:, None, :] == 0)) & torch.ones_like(same).tril()
    return ids, positions, allowed[:, None], torch.tensor(ends).T


def pair_scores(reward_model, tokenizer, pairs: list[dict], max_prompt_tokens: int):
    """Logits of the chosen and the rejected response of each pair, with gradient: (N,), (N,).

    Chosen and rejected share their prompt, and so may many pairs: each prompt is read once (`pack`) and each distinct
    response scored once, which gives the same numbers as one row a response at well under half the cost.
    Families that are not in `PACKED` get one row a response.
    """
    if not reads_at_eos(reward_model):
        raise UsageError(
            f"a reward model of type {reward_model.config.model_type} is only scored, never trained: train one on a causal "
            "language model, or name it as the recipe's reward_model"
        )
    groups, place = {}, {}
    for pair in pairs:
        responses = groups.setdefault(pair["prompt"], {})
        for key in ("chosen", "rejected"):
            responses.setdefault(pair[key], None)
    prompts = encode_prompts(tokenizer, list(groups), max_prompt_tokens)
    packed = [(ids, encode_completions(tokenizer, list(r))) for ids, r in zip(prompts, groups.values(), strict=True)]
    for prompt, responses in groups.items():
        for response in responses:
            place[prompt, response] = len(place)
    check_context(*max(((len(p), len(r)) for p, rs in packed for r in rs), key=sum), context_length(reward_model))
    device = next(reward_model.parameters()).device
    if reward_model.config.model_type in PACKED:
        ids, positions, allowed, ends = (x.to(device) for x in pack(packed, tokenizer.pad_token_id))
        mask = torch.zeros(allowed.shape, device=device).masked_fill(~allowed, torch.finfo(torch.float32).min)
    else:
        ids, mask = (x.to(device) for x in pad([p + r for p, rs in packed for r in rs], tokenizer.pad_token_id))
        positions, ends = position_ids(mask), torch.stack([torch.arange(len(ids), device=device), mask.sum(-1) - 1])
    hidden = reward_model.base_model(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
    scores = reward_model.score(hidden.last_hidden_state[ends[0], ends[1]])[:, 0].float()  # (distinct responses,)
    chosen, rejected = ([place[p["prompt"], p[key]] for p in pairs] for key in ("chosen", "rejected"))
    return scores[chosen], scores[rejected]


@torch.no_grad()
def evaluate_pairs(reward_model, tokenizer, pairs: list[dict], max_prompt_tokens: int) -> dict:
    """Loss and accuracy on held-out labels, and where the gold scores are known the agreement with gold."""
    mine = processes.share(group_by_prompt(pairs))
    chunks = [[pair for group in groups for pair in group] for groups in by_length(mine, 4, _characters)]
    pairs = [
        pair for part in processes.gathered(chunks) for chunk in part for pair in chunk
    ]  # in the order of `margin`
    margins = [torch.zeros(0)]
    for chunk in chunks:
        chosen, rejected = pair_scores(reward_model, tokenizer, chunk, max_prompt_tokens)
        margins.append((chosen - rejected).cpu())
    margin = torch.cat(processes.gathered(torch.cat(margins)))
    metrics = {"validation_loss": -F.logsigmoid(margin).mean().item(), "validation_accuracy": _accuracy(margin)}
    if "gold_chosen" in pairs[0]:
        gold = torch.tensor([p["gold_chosen"] - p["gold_rejected"] for p in pairs])
        differ = gold != 0
        if differ.any():
            metrics["gold_agreement"] = _accuracy(margin[differ] * gold[differ].sign())
    return metrics


def _accuracy(margin: torch.Tensor) -> float:
    return ((margin > 0).float() + 0.5 * (margin == 0).float()).mean().item()


def train_reward(recipe: Recipe, reward_model, tokenizer, pairs: list[dict], validation: list[dict],
                 references: list[dict], folder: Path, accelerator, settings: dict, resume: bool = False,
                 trackers: tuple[str, ...] = ()) -> list[dict]:  # fmt: skip
    """Train `reward_model` in place on {"prompt", "chosen", "rejected"} pairs; returns the logged rows.

    At the end `config.reward_mean` becomes the mean logit over `references` ({"prompt", "completion"}), so that
    scores have mean 0 there.
    """
    config = recipe.reward
    if not pairs or not validation:
        missing = "to train on" if not pairs else "to validate on"
        raise UsageError(f"there are no preference pairs {missing}: check the data set, its split and its limit")
    set_seed(recipe.seed + processes.index())  # for dropout, which differs between shares
    groups = group_by_prompt(pairs)
    reward_model.to(accelerator.device).train()
    if recipe.freeze_embeddings:
        freeze_embeddings(reward_model)
    if recipe.gradient_checkpointing:
        checkpoint_gradients(reward_model.base_model)
    optimizer = torch.optim.AdamW(reward_model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    per_epoch = max(1, len(groups) // config.batch_prompts)
    steps = per_epoch * config.epochs
    schedule = warmup_cosine(optimizer, steps, config.warmup)
    reward_model, optimizer = prepare(accelerator, reward_model, optimizer)
    model = accelerator.unwrap_model(reward_model)
    parts = dict(model=model, optimizer=optimizer, schedule=schedule) | scaler_part(accelerator)
    state = TrainingState(folder / "reward_state.pt", settings)
    done, rows = state.load(**parts) if resume else state.set_aside()
    log = MetricLog(folder, "reward", rows, trackers, settings)

    def validate() -> dict:
        model.eval()
        with accelerator.autocast():
            metrics = evaluate_pairs(model, tokenizer, validation, recipe.max_prompt_tokens)
        model.train()
        return metrics

    if done == 0:
        log.add(0, validate())
    bar = progress(range(done + 1, steps + 1), initial=done, total=steps, desc="Reward model", unit="step")
    for step in bar:
        epoch, position = divmod(step - 1, per_epoch)
        order = shuffled(len(groups), (recipe.seed, epoch))
        rows = order[position * config.batch_prompts : (position + 1) * config.batch_prompts]
        total, loss, accuracy = sum(len(groups[i]) for i in rows), 0.0, 0.0
        for micro in by_length(processes.share(rows), config.micro_batch_prompts, lambda i: _characters(groups[i])):
            batch = [pair for i in micro for pair in groups[i]]
            with accelerator.autocast():
                chosen, rejected = pair_scores(reward_model, tokenizer, batch, recipe.max_prompt_tokens)
            share = len(batch) / total
            part = bradley_terry_loss(chosen, rejected) * share
            accelerator.backward(part)
            loss += part.item()
            accuracy += _accuracy((chosen - rejected).detach()) * share
        metrics = processes.summed_stats({"loss": loss, "accuracy": accuracy})
        processes.sum_gradients(reward_model)
        norm = clip_gradients(accelerator, reward_model, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        metrics |= {"grad_norm": norm, "lr": schedule.get_last_lr()[0]}
        if step % config.eval_every == 0 or step == steps:
            metrics |= validate()
        log.add(step, metrics)
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", accuracy=f"{metrics['accuracy']:.2f}")
        if step % config.save_every == 0 and step < steps:
            state.save(step, log.rows, **parts)
    model = accelerator.unwrap_model(reward_model, keep_fp32_wrapper=False).eval()  # fp32, as it will be loaded
    model.config.reward_mean = score_responses(
        model, tokenizer, [r["prompt"] for r in references], [r["completion"] for r in references],
        max_prompt_tokens=recipe.max_prompt_tokens,
    ).double().mean().item()  # fmt: skip
    return log.close()
