"""Supervised fine-tuning: next-token loss on the completion and its EOS only, and the loop that minimises it."""

import math
from pathlib import Path

import torch

from rlhf_lib import processes
from rlhf_lib.data import (
    by_length,
    check_context,
    completion_batch,
    context_length,
    encode_completions,
    encode_prompts,
    shuffled,
)
from rlhf_lib.models import checkpoint_gradients, freeze_embeddings
from rlhf_lib.recipes import Recipe
from rlhf_lib.rollout import token_logprobs
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


def completion_loss(model, input_ids, attention_mask, completion_mask) -> torch.Tensor:
    """Mean negative log-likelihood of the counted completion tokens, nats a token: ().

    `input_ids`, `attention_mask` (B, P+T), `completion_mask` (B, T) bool over the last T tokens.
    """
    logprobs = token_logprobs(model, input_ids, attention_mask, last=completion_mask.shape[1])  # (B, T)
    return -torch.where(completion_mask, logprobs, 0.0).sum() / completion_mask.sum()


def warmup_cosine(optimizer, steps: int, warmup: float, floor: float = 0.0):
    """Learning rate: linear warm-up over a share of the steps, then half a cosine down to `floor` of the peak."""
    ramp = max(1, round(steps * warmup))
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(
            (s + 1) / ramp,
            floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * max(0, s - ramp) / max(1, steps - ramp))),
        ),
    )


def train_sft(recipe: Recipe, policy, tokenizer, examples: list[dict], validation: list[dict], folder: Path,
              accelerator, settings: dict, resume: bool = False, trackers: tuple[str, ...] = ()) -> list[dict]:  # fmt: skip
    """Fine-tune `policy` in place on {"prompt", "completion"} examples; returns the logged rows."""
    config = recipe.sft
    if not examples:
        raise UsageError("there are no demonstrations to train on: check the data set, its split and its limit")
    set_seed(recipe.seed + processes.index())  # for dropout, which differs between shares
    encoded, held_out = (_encode(tokenizer, x, recipe.max_prompt_tokens) for x in (examples, validation))
    check_context(*max(((len(p), len(c)) for p, c in encoded + held_out), key=sum), context_length(policy))
    policy.to(accelerator.device).train()
    if recipe.freeze_embeddings:
        freeze_embeddings(policy)
    if recipe.gradient_checkpointing:
        checkpoint_gradients(policy.base_model)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    per_epoch = max(1, len(encoded) // config.batch_size)
    steps = per_epoch * config.epochs
    schedule = warmup_cosine(optimizer, steps, config.warmup)
    policy, optimizer = prepare(accelerator, policy, optimizer)
    parts = dict(model=accelerator.unwrap_model(policy), optimizer=optimizer, schedule=schedule)
    parts |= scaler_part(accelerator)
    state = TrainingState(folder / "sft_state.pt", settings)
    done, rows = state.load(**parts) if resume else state.set_aside()
    log = MetricLog(folder, "sft", rows, trackers, settings)

    def batch(rows: list) -> list[torch.Tensor]:
        tensors = completion_batch([p for p, _ in rows], [c for _, c in rows], tokenizer.pad_token_id)
        return [x.to(accelerator.device) for x in tensors]

    @torch.no_grad()
    def validation_loss() -> float:
        policy.eval()
        total = tokens = 0
        for rows in by_length(processes.share(held_out), 64, lambda example: sum(map(len, example))):
            tensors = batch(rows)
            count = int(tensors[2].sum())
            total += completion_loss(policy, *tensors).item() * count
            tokens += count
        policy.train()
        sums = processes.summed_stats({"total": total, "tokens": tokens})
        return sums["total"] / sums["tokens"]

    if done == 0:
        log.add(0, {"validation_loss": validation_loss()})
    bar = progress(range(done + 1, steps + 1), initial=done, total=steps, desc="SFT", unit="step")
    for step in bar:
        epoch, position = divmod(step - 1, per_epoch)
        order = shuffled(len(encoded), (recipe.seed, epoch))
        chosen = order[position * config.batch_size : (position + 1) * config.batch_size]
        total, loss = sum(len(encoded[i][1]) for i in chosen), 0.0
        for rows in by_length(processes.share(chosen), config.micro_batch_size, lambda i: sum(map(len, encoded[i]))):
            tensors = batch([encoded[i] for i in rows])
            part = completion_loss(policy, *tensors) * int(tensors[2].sum()) / total
            accelerator.backward(part)
            loss += part.item()
        loss = processes.summed_stats({"loss": loss})["loss"]
        processes.sum_gradients(policy)
        norm = clip_gradients(accelerator, policy, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        metrics = {"loss": loss, "grad_norm": norm, "lr": schedule.get_last_lr()[0]}
        if step % config.eval_every == 0 or step == steps:
            metrics["validation_loss"] = validation_loss()
        log.add(step, metrics)
        bar.set_postfix(loss=f"{loss:.3f}")
        if step % config.save_every == 0 and step < steps:
            state.save(step, log.rows, **parts)
    accelerator.unwrap_model(policy, keep_fp32_wrapper=False).eval()  # fp32, as it will be loaded
    return log.close()


def _encode(tokenizer, examples: list[dict], max_prompt_tokens: int) -> list[tuple[list[int], list[int]]]:
    prompts = encode_prompts(tokenizer, [e["prompt"] for e in examples], max_prompt_tokens)
    return list(zip(prompts, encode_completions(tokenizer, [e["completion"] for e in examples]), strict=True))
