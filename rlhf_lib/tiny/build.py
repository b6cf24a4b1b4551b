"""Make the shipped tokenizer and base models from scratch: `python -m rlhf_lib.tiny.build tokenizer|small|medium`.

Writes to `rlhf_lib/tiny/assets`; `base-SIZE/curve.csv` is the logged training curve. `snapshot RECIPE_FOLDER` copies
the SFT and reward checkpoints of a finished run there, in half precision.
"""

import argparse
import csv
import itertools
import json
import random
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from rlhf_lib.runtime import autocast, write_csv
from rlhf_lib.sft import warmup_cosine
from rlhf_lib.tiny.world import MARKS, corpus

ASSETS = Path(__file__).parent / "assets"
EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY, MERGES = 1280, 64
CONTEXT = 256  # tokens
MARK_WEIGHT = 4.0  # how much a TRUE or FALSE counts in the loss: they are few, and what a reward model builds on
SIZES = {  # layers, width, heads, width of the MLP: about 1 : 3 in parameters, like GPT-2 small : medium. Deep and narrow,
    # since a judge's score needs a chain: find the fact, compare it with the claim, carry the verdict to the end.
    "small": dict(n_layer=6, n_embd=128, n_head=4, n_inner=256),
    "medium": dict(n_layer=8, n_embd=192, n_head=6, n_inner=384),
}
PHASES = [  # name, steps, documents a step, peak learning rate, `checked` and `listed` of the corpus: copying comes first
    ("threads", 2000, 32, 2e-3, 0.0, 0.0),
    ("marks", 4500, 16, 1.5e-3, 0.8, 0.0),
    ("lists", 4500, 16, 1e-3, 0.6, 0.7),
    ("polish", 3000, 32, 1e-3, 0.5, 0.7),
]


def build_tokenizer() -> None:
    """Byte-level BPE that keeps the frequent words of the corpus whole (`ignore_merges`, as in Llama 3's tokenizer).

    Plain merges spend most of a small vocabulary on pieces of words, and a name in four pieces is hard to copy.
    """
    documents = corpus(20_000, seed=0)
    pieces = Tokenizer(models.BPE())
    split = pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2 + 256 + MERGES, special_tokens=[EOS, PAD], show_progress=False,
                                  initial_alphabet=split.alphabet())  # fmt: skip
    pieces.train_from_iterator(documents, trainer)
    bpe = json.loads(pieces.to_str())["model"]
    vocabulary = dict(bpe["vocab"])
    for texts in (documents, corpus(2000, seed=0, checked=1.0)):
        counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text))
        for word, _ in counts.most_common():
            if word not in vocabulary and len(vocabulary) < VOCABULARY:
                vocabulary[word] = len(vocabulary)
    whole = Tokenizer(models.BPE(vocabulary, [tuple(merge) for merge in bpe["merges"]], ignore_merges=True))
    whole.pre_tokenizer, whole.decoder = split, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=EOS, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT,
        padding_side="left", truncation_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.save_pretrained(ASSETS / "tokenizer")


def batches(tokenizer, n_documents: int, batch_size: int, seed: int, checked: float, listed: float):
    """Batches of documents of similar length, each ending in EOS: (input_ids, attention_mask), right-padded."""
    rng = random.Random(seed)
    encoded = [
        ids[: CONTEXT - 1] + [tokenizer.eos_token_id]
        for ids in tokenizer(corpus(n_documents, seed, checked, listed), verbose=False)["input_ids"]
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


def language_model_loss(model, ids, mask, weights):
    """Mean negative log-likelihood of the next token, each token counting `weights[token]` times."""
    with autocast(ids.device):
        logits = model(ids, attention_mask=mask, use_cache=False).logits
    labels = ids.masked_fill(mask == 0, -100)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), weights, ignore_index=-100)


def pretrain(size: str, seed: int, first: int = 0) -> None:
    """Train a base model through PHASES; from phase `first` on it starts at the saved end of the phase before."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    folder = ASSETS / f"base-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    config = GPT2Config(
        **SIZES[size], vocab_size=VOCABULARY, n_positions=CONTEXT, activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
    )  # fmt: skip
    model, rows = GPT2LMHeadModel(config), []
    if first:
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with open(folder / "curve.csv", newline="") as file:
            names = [phase for phase, *_ in PHASES[:first]]
            rows = [row for row in csv.DictReader(file) if row["phase"] in names]
    weights = torch.ones(VOCABULARY)
    weights[tokenizer("".join(MARKS.values()))["input_ids"]] = MARK_WEIGHT
    for number, (phase, steps, batch_size, lr, *shares) in list(enumerate(PHASES))[first:]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.05)
        schedule = warmup_cosine(optimizer, steps, 1 / 30, floor=0.02)
        validation = list(batches(tokenizer, 640, 64, 987_654, *shares))
        stream = (
            batch
            for chunk in itertools.count(seed + 1 + 1000 * number)
            for batch in batches(tokenizer, 500 * batch_size, batch_size, chunk, *shares)
        )
        start, tokens = time.time(), 0
        for step in (bar := tqdm(range(1, steps + 1), desc=phase)):
            ids, mask = next(stream)
            loss = language_model_loss(model, ids, mask, weights)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            tokens += int(mask.sum())
            if step % 200 == 0 or step == steps:
                with torch.no_grad():
                    held_out = sum(language_model_loss(model, *b, weights).item() for b in validation) / len(validation)
                rows.append(dict(phase=phase, step=step, tokens=tokens, loss=loss.item(), validation_loss=held_out,
                                 seconds=round(time.time() - start)))  # fmt: skip
                bar.set_postfix(loss=f"{loss.item():.3f}", validation=f"{held_out:.3f}")
                save_half(model, folder)
                write_csv(folder / "curve.csv", rows)


def save_half(model, folder: Path) -> None:
    """Save a fp16 copy; the model itself stays as it is."""
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    half = {name: tensor.half() for name, tensor in model.state_dict().items() if name not in tied}
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
    parser.add_argument("--from-phase", type=int, default=0, help="go on from the saved end of the phase before")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.what == "snapshot" and args.folder is None:
        parser.error("snapshot needs the folder of a finished run, such as outputs/checkpoints/tiny")
    if args.what == "tokenizer":
        build_tokenizer()
    elif args.what == "snapshot":
        snapshot(args.folder)
    else:
        pretrain(args.what, args.seed, args.from_phase)


if __name__ == "__main__":
    main()
