"""Small stand-ins for the Hub: rows with each data set's columns, and random models of each architecture with a tokenizer."""

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from rlhf_lib.tiny import demonstration, make_posts, reference_summary

ROWS = 60  # of each split
SPLITS = {"train": 1, "validation": 2, "test": 3}


def posts_of(split: str, n: int = ROWS) -> list[dict]:
    """Posts in parts, each with a good and a worse summary; no post stands in two splits."""
    rows = []
    for post in make_posts(n, seed=SPLITS[split], split="train"):
        subreddit, title, text = re.fullmatch(
            r"SUBREDDIT: r/(.*?)\n\nTITLE: (.*?)\n\nPOST: (.*)", post.context, re.S
        ).groups()
        good, worse = reference_summary(post), demonstration(post, 7)
        worse = worse if worse != good else f"{good} Thanks!"
        rows.append({"subreddit": subreddit, "title": title, "post": text, "good": good, "worse": worse})
    return rows


def _context(row: dict) -> str:
    return f"SUBREDDIT: r/{row['subreddit']}\n\nTITLE: {row['title']}\n\nPOST: {row['post']}"


def _shp(number: int, row: dict) -> dict:
    a_first = number % 2
    a, b = (row["good"], row["worse"])[:: 1 if a_first else -1]
    return {"post_id": f"p{number}", "domain": "advice_train", "history": row["post"], "human_ref_A": a, "human_ref_B": b,
            "labels": a_first, "score_ratio": [1.2, 2.0, 5.5][number % 3]}  # fmt: skip


DATA_SETS = {  # the columns of each, and how one row is written
    "synthetic-instruct-gptj-pairwise": (("train",), lambda i, r: {
        "prompt": f"What would you do? {r['post']}", "chosen": r["good"], "rejected": r["worse"]}),
    "SHP": (tuple(SPLITS), _shp),
    "tldr": (tuple(SPLITS), lambda i, r: {"prompt": f"{_context(r)}\n\nTL;DR:", "completion": f" {r['good']}"}),
    "tldr-preference": (("train", "validation"), lambda i, r: {
        "prompt": f"{_context(r)}\n\nTL;DR:", "chosen": f" {r['good']}", "rejected": f" {r['worse']}"}),
    "summarize_from_feedback_tldr_3_filtered": (tuple(SPLITS), lambda i, r: {
        "id": f"t3_{i}", "subreddit": r["subreddit"], "title": r["title"], "post": r["post"], "summary": r["good"]}),
    "alpaca": (("train",), lambda i, r: {
        "instruction": "Sum this up in a sentence." if i % 2 else f"Give advice. {r['post']}",
        "input": r["post"] if i % 2 else "", "output": r["good"], "text": "unused"}),
    "rm-static": (("train", "test"), lambda i, r: {
        "prompt": f"\n\nHuman: I am angry.\n\nAssistant: What happened?\n\nHuman: {r['post']}\n\nAssistant:",
        "response": f" {r['good']}", "chosen": f" {r['good']}", "rejected": f" {r['worse']}"}),
}  # fmt: skip


def write_data_sets(folder: Path) -> Path:
    """`--data-dir` with every data set: JSONL where it has one split, Parquet where it has several."""
    for name, (splits, row) in DATA_SETS.items():
        for split in splits:
            rows = [row(number, parts) for number, parts in enumerate(posts_of(split))]
            if len(splits) == 1:
                folder.mkdir(parents=True, exist_ok=True)
                lines = "".join(json.dumps(r) + "\n" for r in rows)
                (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            else:
                (folder / name / "data").mkdir(parents=True, exist_ok=True)
                file = folder / name / "data" / f"{split}-00000-of-00001.parquet"
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return folder


# ------------------------------------------------------------------------------------------------------- models

SPECIAL = {  # the special tokens of each family: those of the vocabulary, and the roles they have
    "gpt2": (["<|endoftext|>"], {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "gpt_neox": (["<|endoftext|>", "<|padding|>"], {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "llama": (["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"],
              {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}),
    "deberta": (["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"],
                {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]",
                 "mask_token": "[MASK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}),
}  # fmt: skip


def write_tokenizer(family: str, folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE (DeBERTa: unigram) tokenizer of at most 1000 entries that treats special tokens as the family's does."""
    special, roles = SPECIAL[family]
    texts = [_context(row) + row["good"] for row in posts_of("train", 200)]
    if family == "deberta":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=1000, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, show_progress=False,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in special}
    if family == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
            special_tokens=[("<|begin_of_text|>", ids["<|begin_of_text|>"])],
        )  # fmt: skip
    if family == "deberta":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
        )  # fmt: skip
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    fast.save_pretrained(folder)
    return fast


def write_model(family: str, folder: Path, seed: int = 0) -> Path:
    """A freshly initialised model of the family's true class, two layers of width 32, in a Hugging Face folder."""
    tokenizer = write_tokenizer(family, folder)
    torch.manual_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    shape = dict(vocab_size=1024, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    if family == "deberta":
        config = DebertaV2Config(
            **shape, num_labels=1, relative_attention=True, position_buckets=64, norm_rel_ebd="layer_norm",
            share_att_key=True, pos_att_type=["p2c", "c2p"], max_position_embeddings=512, position_biased_input=False,
            type_vocab_size=0, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
        )  # fmt: skip
        DebertaV2ForSequenceClassification(config).save_pretrained(folder)
        return folder
    config = {
        "gpt2": lambda: GPT2Config(vocab_size=1024, n_embd=32, n_layer=2, n_head=2, n_positions=1024, **ends),
        "gpt_neox": lambda: GPTNeoXConfig(**shape, max_position_embeddings=2048, **ends),
        "llama": lambda: LlamaConfig(**shape, num_key_value_heads=1, max_position_embeddings=2048, **ends),
    }[family]()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
