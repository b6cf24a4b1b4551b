"""Memory, tokens and steps of a stage before it runs. Configs are read, weights are not.

The stage's own functions run once on tensors that have shapes and no data (torch's FakeTensorMode), on batches as long as
the recipe allows, while a meter adds up the bytes of every tensor that is alive. So the estimate follows the library,
whatever the architecture. It is what torch.cuda.max_memory_allocated would say: the CUDA context, the fragments that an
allocator keeps and, on a CPU, the interpreter come on top.
"""

import contextlib
import gc
import weakref
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from rlhf_lib import doctor, lora, models, ppo
from rlhf_lib.data import position_ids
from rlhf_lib.recipes import Recipe
from rlhf_lib.reward import bradley_terry_loss, pair_scores
from rlhf_lib.rollout import RoomyLayer, _sample, token_logprobs, token_statistics
from rlhf_lib.runtime import autocast, mixed_precision
from rlhf_lib.sft import completion_loss

STAGES = ("sft", "reward", "ppo")
PARTS = ("weights", "optimizer", "gradients", "logits", "cache", "activations")

ARCHITECTURES = {  # (model type, what its config says, tokens with the PAD that is added): no network, no gated access
    "openai-community/gpt2": ("gpt2", {}, 50258),
    "openai-community/gpt2-medium": ("gpt2", dict(n_embd=1024, n_layer=24, n_head=16), 50258),
    "EleutherAI/pythia-1b-deduped": (
        "gpt_neox",
        dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=8, intermediate_size=8192, vocab_size=50304),
        50278,
    ),
    "meta-llama/Llama-3.2-1B": (
        "llama",
        dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
             intermediate_size=8192, vocab_size=128256, max_position_embeddings=131072, tie_word_embeddings=True),
        128257,
    ),
    "OpenAssistant/reward-model-deberta-v3-large-v2": (
        "deberta-v2",
        dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=128100,
             relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
             pos_att_type=["p2c", "c2p"], max_position_embeddings=512, position_biased_input=False, type_vocab_size=0),
        128001,
    ),
}  # fmt: skip


def estimate(recipe: Recipe, stage: str, gpu: bool = False) -> dict:
    """What `stage` ("sft", "reward" or "ppo") needs: {"models", "phases", "peak", "tokens", "steps", ...}, sizes in bytes.

    "models" has the parameters, trained parameters and bytes of each model; "phases" the memory at the peak of each phase of
    the stage by part; "peak" is the largest. With `gpu` as on a GPU under bf16, else as on the CPU: they differ in the
    attention, which on a CPU keeps its (B, heads, T, T) weights. Raises UsageError if a config cannot be read.
    """
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if gpu else mixed_precision()
    with FakeTensorMode(), Meter() as meter, _attention_of(gpu):
        run = _Run(recipe, meter, precision, gpu)
        getattr(run, stage)()
    phases = {name: peak | {"total": sum(peak.values())} for name, peak in run.phases.items()}
    peak = max(phases, key=lambda name: phases[name]["total"])
    return {"stage": stage, "gpu": gpu, "precision": precision, "method": getattr(recipe, stage).method,
            "models": run.models, "phases": phases, "peak_phase": peak, "peak": phases[peak]["total"],
            **work(recipe, stage)}  # fmt: skip


def work(recipe: Recipe, stage: str) -> dict:
    """{"steps": optimizer steps, "tokens": tokens that are trained on, "generated": tokens that are sampled}, at most.

    "At most", because texts are counted at the length where they are cut.
    """
    config, P, T = getattr(recipe, stage), recipe.max_prompt_tokens, recipe.max_new_tokens
    if stage == "sft":
        steps = max(1, config.examples // config.batch_size) * config.epochs
        return {"steps": steps, "tokens": steps * config.batch_size * (P + T), "generated": 0}
    if stage == "reward" and recipe.reward_model:
        return {"steps": 0, "tokens": 0, "generated": 0}
    if stage == "reward" and recipe.data:
        steps = max(1, config.prompts // config.batch_prompts) * config.epochs
        return {"steps": steps, "tokens": steps * config.batch_prompts * (P + 2 * pairs_per_prompt(recipe) * T),
                "generated": 0}  # fmt: skip
    if stage == "reward":
        prompts = config.prompts + config.edited_prompts + config.demonstration_prompts
        steps = max(1, prompts // config.batch_prompts) * config.epochs
        return {"steps": steps, "tokens": steps * config.batch_prompts * (P + config.samples_per_prompt * T),
                "generated": (config.prompts + config.validation_prompts) * config.samples_per_prompt * T}  # fmt: skip
    responses = config.updates * config.batch_size
    return {"steps": config.updates * config.epochs * config.minibatches,
            "tokens": responses * config.epochs * (P + T), "generated": responses * T}  # fmt: skip


def pairs_per_prompt(recipe: Recipe) -> int:
    """Pairs of a prompt in a data set of preferences: what SHP's setting allows, else one, which is what most prompts have."""
    return recipe.data.pairs_per_prompt if recipe.data.preferences == "stanfordnlp/SHP" else 1


def report(estimate: dict, tokens_per_second: float | None = None) -> str:
    """An estimate to read. Hours are named only for a speed that you measured, in trained and sampled tokens a second."""
    device = "a GPU" if estimate["gpu"] else "this CPU"
    lines = [f"{estimate['stage']} ({estimate['method']}) on {device}, "
             f"{'bf16 autocast over fp32 weights' if estimate['precision'] == 'bf16' else 'fp32'}"]  # fmt: skip
    rows = [["model", "parameters", "trained", "weights"]]
    rows += [
        [name, f"{m['parameters']:,}", f"{m['trained']:,}", size(m["bytes"])] for name, m in estimate["models"].items()
    ]
    lines += ["", *_columns(rows)]
    rows = [["memory at the peak of", *PARTS, "total"]]
    rows += [[name, *(size(phase[part]) for part in PARTS), size(phase["total"])]
             for name, phase in estimate["phases"].items()]  # fmt: skip
    lines += ["", *_columns(rows), "",
              f"peak: {size(estimate['peak'])}, in {estimate['peak_phase']!r}, on batches as long as the recipe allows",
              f"work: {estimate['steps']:,} optimizer steps, at most {estimate['tokens']:,} tokens trained on and "
              f"{estimate['generated']:,} sampled"]  # fmt: skip
    if tokens_per_second:
        hours = (estimate["tokens"] + estimate["generated"]) / tokens_per_second / 3600
        lines.append(f"time: at most {hours:.2f} hours at {tokens_per_second:g} tokens a second")
    return "\n".join(lines)


def size(count: int) -> str:
    """Bytes to read, in binary units, as GPUs are sold."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
            for row in rows]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ the meter


class Meter(TorchDispatchMode):
    """Bytes of the tensors that live, counted by storage from the moment they are made, `now` and at the `peak`, by part.

    `part` is where new tensors are counted; tensors as wide as the `vocabulary` count as logits. It works on real tensors,
    too, and sees all but what a kernel allocates for itself.
    """

    def __init__(self):
        super().__init__()
        self.live, self.now, self.part, self.vocabulary = {}, dict.fromkeys(PARTS, 0), "activations", None
        self.total, self.peak = 0, {}
        self.reset()

    def reset(self) -> None:
        """Forget the peak: from here on it is the peak of what comes."""
        self.peak, self.highest = dict(self.now), self.total

    def label(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor that is there already as `part` from here on."""
        size, old = self.live[key := tensor.untyped_storage()._cdata]
        self.live[key] = size, part
        self.now[old] -= size
        self.now[part] += size

    def _add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self.live:
            logits = self.part == "activations" and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
            part, size = "logits" if logits else self.part, storage.nbytes()
            self.live[key] = size, part
            self.now[part] += size
            self.total += size
            weakref.finalize(storage, self._drop, key)
            if self.total > self.highest:
                self.peak, self.highest = dict(self.now), self.total
        return tensor

    def _drop(self, key: int) -> None:
        size, part = self.live.pop(key)
        self.now[part] -= size
        self.total -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and self._fake(args[0]):
            return args[0].dtype != torch.bool  # there is no number: 1, and False where something is asked
        out = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._add, out)
        return out

    @staticmethod
    def _fake(tensor: torch.Tensor) -> bool:
        return hasattr(tensor, "fake_mode")


class _FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps: query, key, value, result and one number a row; never the (T, T) weights."""

    @staticmethod
    def forward(ctx, query, key, value):
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _fused(module, query, key, value, attention_mask, **kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))  # a mask rules sharing out
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.bfloat16() for x in (query, key, value))
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionInterface.register("fused_estimate", _fused)
ALL_MASK_ATTENTION_FUNCTIONS["fused_estimate"] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]


class _CudaAutocast(TorchFunctionMode):
    """Autocast on a GPU also turns these to fp32; on a CPU it leaves them as they come."""

    FP32 = {torch.pow, torch.Tensor.pow, F.layer_norm, F.softmax, torch.softmax, F.log_softmax, torch.exp, torch.sum,
            torch.Tensor.sum, torch.rsqrt}  # fmt: skip

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.FP32 and torch.is_autocast_enabled("cpu"):
            args = [x.float() if torch.is_tensor(x) and x.dtype == torch.bfloat16 else x for x in args]
        return function(*args, **(kwargs or {}))


def _attention_of(gpu: bool):
    return _CudaAutocast() if gpu else contextlib.nullcontext()


# ------------------------------------------------------------------------------------------- models without weights


def config_of(name: str):
    """(config of a model, tokens of its tokenizer with PAD). Raises UsageError if it cannot be read."""
    if name in ARCHITECTURES:
        kind, shape, tokens = ARCHITECTURES[name]
        return AutoConfig.for_model(kind, **shape), tokens
    config = models._open(AutoConfig, models.locate(str(name)))
    return config, len(models.load_tokenizer(name))


class _Packed(nn.Linear):
    """A 4-bit layer as bitsandbytes keeps and multiplies it: half a byte a weight and its scales, dequantised for each use."""

    def __init__(self, layer: nn.Module):
        n_in, n_out = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = n_in, n_out, layer.bias
        blocks = n_in * n_out // lora.BLOCK
        size = n_in * n_out // 2 + blocks + 4 * -(-blocks // 256) + 4 * (1 + 16 + 256)  # as in `lora.scale_tensors`
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        x = x.bfloat16() if torch.is_autocast_enabled("cpu") else x
        return _PackedProduct.apply(x, self.weight, self.bias, self.out_features)


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, n_out):
        ctx.shape = n_out, x.shape[-1]
        return F.linear(x, x.new_empty(n_out, x.shape[-1]), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        return grad @ grad.new_empty(*ctx.shape), None, None, None


class _Text:
    """A stand-in for a tokenizer: text "7 x" has 7 tokens, the space before a completion counts for its EOS."""

    pad_token_id, eos_token_id, bos_token_id = 0, 1, None

    def __call__(self, texts, **_):
        return {"input_ids": [[0] * int(text.split()[0]) for text in texts]}


class _Run:
    """One stage on fake tensors: builds its models, then plays its phases in order and keeps the peak of each."""

    def __init__(self, recipe: Recipe, meter: Meter, precision: str, gpu: bool):
        self.recipe, self.meter, self.precision, self.gpu = recipe, meter, precision, gpu
        self.P, self.T = recipe.max_prompt_tokens, recipe.max_new_tokens
        self.models, self.phases = {}, {}
        self.config, self.tokens = config_of(recipe.policy)

    # ---- what is resident

    @contextlib.contextmanager
    def counted(self, part: str):
        self.meter.part = part
        yield
        self.meter.part = "activations"

    def load(self, auto_class, method: str = "full", name: str = ""):
        """A model as `models` loads it: fp32, room for PAD; with the adapter of `method`. `name` if it is not the policy's."""
        config, tokens = config_of(name) if name else (self.config, self.tokens)
        attention = "fused_estimate" if self.gpu and config.model_type != "deberta-v2" else "eager"
        config.num_labels = 1
        with self.counted("weights"):
            model = auto_class.from_config(config, dtype=torch.float32, attn_implementation=attention)
            if tokens > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(tokens, mean_resizing=False)
            model.config.pad_token_id = 0
            self.meter.vocabulary = max(self.tokens, self.config.vocab_size)
            self.adapt(model, method)
        return model.eval()

    def adapt(self, model, method: str) -> None:
        if method == "qlora":
            for name, layer in lora._linear_layers(model.base_model).items():
                lora._replace(model.base_model, name, _Packed(layer))
        if method != "full":
            with mock.patch.object(nn.Module, "to", lambda module, *_, **__: module):  # fake tensors cannot be moved
                lora.adapt(model, self.recipe.lora, "lora")
        gc.collect()

    def policy(self, method: str = "full"):
        return self.load(AutoModelForCausalLM, method)

    def reward_model(self, method: str = "full"):
        return self.load(AutoModelForSequenceClassification, method, self.recipe.reward_model)

    def train(self, **trained) -> None:
        """Embeddings frozen as the recipe says, AdamW's two moments, gradients that are counted as such."""
        for model in trained.values():
            if self.recipe.freeze_embeddings:
                models.freeze_embeddings(getattr(model, "body", model))
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda p: self.meter.label(p.grad, "gradients"))
                    with self.counted("optimizer"):
                        self.moments = [*getattr(self, "moments", []), *(torch.zeros_like(parameter) for _ in "mv")]

    def describe(self, **loaded) -> None:
        for name, model in loaded.items():
            parameters = list(model.parameters())
            self.models[name] = {
                "parameters": _count(model),
                "trained": sum(p.numel() for p in parameters if p.requires_grad),
                "bytes": sum(p.numel() * p.element_size() for p in [*parameters, *model.buffers()]),
            }

    # ---- what happens

    def autocast(self):
        return autocast("cpu", self.precision)

    @contextlib.contextmanager
    def phase(self, name: str, training: bool = False):
        self.meter.reset()
        with contextlib.nullcontext() if training else torch.no_grad():
            yield
        self.phases[name] = self.meter.peak

    def tensors(self, rows: int):
        """Prompts and completions of full length: ids, attention mask, completion mask."""
        ids = torch.zeros(rows, self.P + self.T, dtype=torch.long)
        return ids, torch.ones_like(ids), torch.ones(rows, self.T, dtype=torch.bool)

    def pairs(self, prompts: int) -> list[dict]:
        """Each prompt with all pairs of its responses, or with the pairs of a data set."""
        if self.recipe.data:
            return [{"prompt": f"{self.P} {n}", "chosen": f"{self.T - 1} a{i}", "rejected": f"{self.T - 1} b{i}"}
                    for n in range(prompts) for i in range(pairs_per_prompt(self.recipe))]  # fmt: skip
        k = self.recipe.reward.samples_per_prompt
        texts = [f"{self.T - 1} {i}" for i in range(k)]
        return [{"prompt": f"{self.P} {n}", "chosen": a, "rejected": b}
                for n in range(prompts) for i, a in enumerate(texts) for b in texts[:i]]  # fmt: skip

    def micro_batches(self, batch: int, micro: int, step) -> None:
        """One optimizer step as the loops take it; a third micro-batch would need no more than the second."""
        with self.phase("train", training=True):
            for _ in range(min(2, -(-batch // micro))):
                step(min(batch, micro))

    def generate(self, policy, rows: int, distinct: int) -> None:
        """The first and the last step of `rollout.generate`, the first on `distinct` prompts."""
        ids, mask, _ = self.tensors(rows)
        prompt, owner = mask[:distinct, : self.P], torch.zeros(rows, dtype=torch.long)
        uniform = torch.zeros(rows, dtype=torch.float64)
        out = policy(input_ids=ids[:distinct, : self.P], attention_mask=prompt, position_ids=position_ids(prompt),
                     use_cache=True, logits_to_keep=1)  # fmt: skip
        cache = out.past_key_values
        for layer in cache.layers:
            for tensor in (layer.keys, layer.values):
                self.meter.label(tensor, "cache")
        with self.counted("cache"):
            cache.layers = [RoomyLayer(layer, owner, self.T) for layer in cache.layers]
        logits = out.logits[owner, -1]
        _sample(logits.float(), 1.0, uniform)
        for layer in cache.layers:
            layer.keys, layer.values = (x[:, :, : self.P + self.T - 1] for x in layer.buffers)
        logits = policy(input_ids=ids[:, :1], attention_mask=mask, position_ids=position_ids(mask)[:, -1:],
                        past_key_values=cache, use_cache=True).logits[:, -1]  # fmt: skip
        _sample(logits.float(), 1.0, uniform)

    def score(self, reward_model, rows: int) -> None:
        ids, mask, _ = self.tensors(rows)
        if models.reads_at_eos(reward_model):
            models.reward_scores(reward_model, ids, mask)
        else:
            room = min(ids.shape[1], reward_model.config.max_position_embeddings)
            reward_model(input_ids=ids[:, :room], attention_mask=mask[:, :room])

    def save(self, model, method: str) -> None:
        """`models.save_checkpoint` merges an adapter into a copy, whose weights are fp32 again."""
        if method != "full":
            with self.phase("save"), self.counted("weights"):
                _ = [torch.empty(n) for n in [_count(model)]]

    def sft(self) -> None:
        config = self.recipe.sft
        policy = self.policy(config.method)
        self.train(policy=policy)
        self.describe(policy=policy)
        if self.precision == "bf16":
            policy.forward = convert_outputs_to_fp32(self.autocast()(policy.forward))  # accelerate's `prepare`
        with self.phase("validate"):
            completion_loss(policy, *self.tensors(min(64, config.validation_examples)))
        policy.train()
        self.micro_batches(
            config.batch_size, config.micro_batch_size, lambda n: completion_loss(policy, *self.tensors(n)).backward()
        )
        policy.zero_grad()
        self.save(policy, config.method)

    def reward(self) -> None:
        config = self.recipe.reward
        if self.recipe.reward_model:
            reward_model = self.reward_model()
            self.describe(reward_model=reward_model)
            with self.phase("score references"):
                self.score(reward_model, min(32, self.recipe.sft.examples))
            return
        if not self.gpu:  # on a GPU it waits in the host's memory while the policy samples
            reward_model = self.reward_model(config.method)
        if not self.recipe.data:  # whose pairs are ready
            policy = self.policy()
            self.describe(policy=policy)
            with self.phase("sample"):
                rows = min(384, config.prompts * config.samples_per_prompt)
                self.generate(policy, rows, -(-rows // config.samples_per_prompt))
            del policy
            gc.collect()
        if self.gpu:
            reward_model = self.reward_model(config.method)
        self.train(reward_model=reward_model)
        self.describe(reward_model=reward_model)
        with self.phase("validate"), self.autocast():
            pair_scores(reward_model, _Text(), self.pairs(min(4, config.validation_prompts)), self.P)
        reward_model.train()

        def step(prompts: int) -> None:
            with self.autocast():
                chosen, rejected = pair_scores(reward_model, _Text(), self.pairs(prompts), self.P)
            bradley_terry_loss(chosen, rejected).backward()

        self.micro_batches(config.batch_prompts, config.micro_batch_prompts, step)
        reward_model.zero_grad()
        reward_model.eval()
        with self.phase("score references"):
            self.score(reward_model, min(32, self.recipe.sft.examples))
        self.save(reward_model, config.method)

    def ppo(self) -> None:
        config = self.recipe.ppo
        policy, reward_model = self.policy(config.method), None
        ref_policy = lora.AdapterOff(policy) if config.method != "full" else self.policy()
        if not self.gpu:
            reward_model, value_model = self._reward_and_value(config.method)
        with self.phase("doctor"):
            rows = min(128, doctor.RESPONSES)
            self.generate(policy, rows, rows)
            ids, mask, _ = self.tensors(rows)
            token_statistics(policy, ids, mask, self.T)
        if self.gpu:
            reward_model, value_model = self._reward_and_value(config.method)
        self.train(policy=policy, value_model=value_model)
        self.describe(policy=policy, value_model=value_model, reward_model=reward_model)
        if config.method == "full":
            self.describe(ref_policy=ref_policy)
        actor_critic = ppo.ActorCritic(policy, value_model)
        with self.phase("generate"), self.autocast():
            self.generate(policy, config.batch_size, min(config.batch_size, config.prompts))
        with self.phase("score"):
            self.score(reward_model, min(32, config.batch_size))
        micro = min(config.micro_batch_size, config.batch_size)
        ids, mask, _ = self.tensors(micro)
        with self.phase("collect"), self.autocast():
            token_statistics(policy, ids, mask, self.T, config.temperature)
            value_model(ids, mask)
            token_logprobs(ref_policy, ids, mask, config.temperature, self.T)
        with self.phase("exact KL"):
            token_statistics(policy, ids, mask, self.T, config.temperature, other=ref_policy)

        def step(rows: int) -> None:
            ids, attention, mask = self.tensors(rows)
            with self.autocast():
                logprobs, values = actor_critic(ids, attention, self.P, config.temperature)
            old = torch.zeros_like(values)
            loss, _ = ppo.policy_loss(logprobs, old, old, mask, config.cliprange)
            vf_loss, _ = ppo.value_loss(values, old, old, mask, config.cliprange_value)
            (loss + config.vf_coef * vf_loss).backward()

        self.micro_batches(config.batch_size // config.minibatches, config.micro_batch_size, step)
        actor_critic.zero_grad()
        with self.phase("evaluate"):
            rows = min(384, config.eval_prompts)
            self.generate(policy, rows, rows)
        self.save(policy, config.method)

    def _reward_and_value(self, method: str):
        reward_model = self.reward_model()
        if self.recipe.reward_model:
            twin = self.policy()
            with self.counted("weights"):
                head = nn.Linear(twin.config.hidden_size, 1, bias=False)
        else:
            twin = self.reward_model()
            head = twin.score
        with self.counted("weights"):
            self.adapt(twin.base_model, method)
        return reward_model, models.ValueModel(twin.base_model, head)


def _count(model: nn.Module) -> int:
    """Parameters, those of 4-bit layers as they were before."""
    packed = [m for m in model.modules() if isinstance(m, _Packed)]
    return (sum(p.numel() for p in model.parameters()) - sum(m.weight.numel() for m in packed)
            + sum(m.in_features * m.out_features for m in packed))  # fmt: skip
