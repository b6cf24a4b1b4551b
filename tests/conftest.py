"""Shared fixtures: a random model small enough to check by brute force, and the tiny recipe at smoke scale."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import rlhf_lib  # noqa: F401  (before torch)
from rlhf_lib import models
from rlhf_lib.recipes import get_recipe
from rlhf_lib.runtime import Paths


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer("tiny:small")


def random_policy(tokenizer, seed: int = 0, scale: float = 0.3, **overrides) -> GPT2LMHeadModel:
    """Two layers, 32 wide, weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    settings = dict(
        n_layer=2, n_embd=32, n_head=2, vocab_size=len(tokenizer), n_positions=256, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, initializer_range=scale, attn_implementation="eager",
    )  # fmt: skip
    return GPT2LMHeadModel(GPT2Config(**(settings | overrides))).eval()


@pytest.fixture
def policy(tokenizer):
    return random_policy(tokenizer, seed=0)


@pytest.fixture
def ref_policy(tokenizer):
    return random_policy(tokenizer, seed=1)


@pytest.fixture
def smoke():
    return get_recipe("tiny", scale="smoke")


@pytest.fixture
def paths(tmp_path):
    return Paths("tiny", "smoke", tmp_path)
