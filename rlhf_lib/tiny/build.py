"""Make the shipped tokenizer and base models from scratch: `python -m rlhf_lib.tiny.build tokenizer|small|medium`.

Writes to `rlhf_lib/tiny/assets`; `base-SIZE/curve.csv` is the logged training curve. `snapshot RECIPE_FOLDER` copies
the SFT and reward checkpoints of a finished run there, in half precision.
"""

import argparse
import csv
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from rlhf_lib.runtime import autocast
from rlhf_lib.tiny.world import corpus

ASSETS = Path(__file__).parent / "assets"
EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 1280
CONTEXT = 256  # tokens
SIZES = {  # layers, width, heads: about 1 : 3 in parameters, like GPT-2 small : medium
    "small": dict(n_layer=4, n_embd=128, n_head=4),
    "medium": dict(n_layer=6, n_embd=192, n_head=6),
}


def build_tokenizer() -> None:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        corpus(20_000, seed=0), vocab_size=VOCABULARY, special_tokens=[EOS, PAD], show_progress=False
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=EOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT,
        padding_side="left", truncation_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.save_pretrained(ASSETS / "tokenizer")


def batches(tokenizer, n_documents: int, batch_size: int, seed: int):
    """Batches of documents of similar length, each ending in EOS: (input_ids, attention_mask), right-padded."""
    rng = random.Random(seed)
    encoded = [
        ids[: CONTEXT - 1] + [tokenizer.eos_token_id]
        for ids in tokenizer(corpus(n_documents, seed=seed), verbose=False)["input_ids"]
    ]
    pool = batch_size * 50
    order = []
    for start in range(0, n_documents, pool):
        chunk = sorted(encoded[start : start + pool], key=len)
        groups = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        rng.shuffle(groups)
        order += groups
    for group in order:
        width = max(map(len, group))
        ids = torch.tensor([x + [tokenizer.pad_token_id] * (width - len(x)) for x in group])
        yield ids, (ids != tokenizer.pad_token_id).long()


def language_model_loss(model, ids, mask):
    with autocast(ids.device):
        logits = model(ids, attention_mask=mask, use_cache=False).logits
    labels = ids.masked_fill(mask == 0, -100)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def pretrain(size: str, steps: int, batch_size: int, lr: float, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    config = GPT2Config(
        **SIZES[size], vocab_size=VOCABULARY, n_positions=CONTEXT, activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
    warmup = steps // 30
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / warmup) * (0.02 + 0.98 * (1 + math.cos(math.pi * s / steps)) / 2)
    )
    validation = list(batches(tokenizer, 640, 64, seed=987_654))
    folder = ASSETS / f"base-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    rows, start, tokens = [], time.time(), 0
    per_epoch = 500  # steps worth of fresh documents at a time
    stream = (
        b for chunk in range(10**6) for b in batches(tokenizer, per_epoch * batch_size, batch_size, seed + 1 + chunk)
    )
    for step in (bar := tqdm(range(1, steps + 1))):
        ids, mask = next(stream)
        loss = language_model_loss(model, ids, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += int(mask.sum())
        if step % 200 == 0 or step == steps:
            with torch.no_grad():
                held_out = sum(language_model_loss(model, *b).item() for b in validation) / len(validation)
            rows.append(
                dict(
                    step=step,
                    tokens=tokens,
                    loss=loss.item(),
                    validation_loss=held_out,
                    seconds=round(time.time() - start),
                )
            )
            bar.set_postfix(loss=f"{loss.item():.3f}", validation=f"{held_out:.3f}")
            save_half(model, folder)
            with open(folder / "curve.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


def save_half(model, folder: Path) -> None:
    """Save a fp16 copy; the model itself stays as it is."""
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=half)


def snapshot(recipe_folder: Path) -> None:
    """Ship the SFT and reward model of a finished run."""
    sft = AutoModelForCausalLM.from_pretrained(recipe_folder / "sft")
    save_half(sft, ASSETS / "sft")
    reward = AutoModelForSequenceClassification.from_pretrained(recipe_folder / "reward")
    save_half(reward, ASSETS / "reward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["tokenizer", *SIZES, "snapshot"])
    parser.add_argument("folder", nargs="?", type=Path, help="snapshot: outputs/checkpoints/tiny")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "tokenizer":
        build_tokenizer()
    elif args.what == "snapshot":
        snapshot(args.folder)
    else:
        pretrain(args.what, args.steps, args.batch_size, args.lr, args.seed)


if __name__ == "__main__":
    main()
