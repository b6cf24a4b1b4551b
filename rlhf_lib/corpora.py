"""Real data: an adapter for each data set, one prompt template a recipe, splits by prompt.

A data set is read from the Hugging Face Hub, or from a folder (`--data-dir DIR`) that holds, with the same columns,

    DIR/tldr.jsonl           or .parquet: every row; what the data set's own splits would be is then decided by hash
    DIR/tldr/train*.jsonl    or .parquet, also deeper: a split of the data set's own; likewise validation*, test*

where `tldr` is the last part of the name, here of trl-lib/tldr. The rows of both are the same afterwards:
{"prompt", "completion"} for SFT, {"prompt", "chosen", "rejected"} for the reward model, prompts for PPO and evaluation.
"""

import functools
import hashlib
import json
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_lib.data import first_tokens, shuffled
from rlhf_lib.recipes import DataConfig, Recipe
from rlhf_lib.runtime import UsageError

SPLITS = ("train", "validation", "test")
ROLES = ("sft", "preferences")

# --------------------------------------------------------------------------------------------------- templates


@dataclass(frozen=True)
class Template:
    """How a prompt is written. `render` takes the fields of a row and returns text that ends in `cue`."""

    cue: str
    render: Callable[[dict], str]
    body: str
    """what stands before the text that a prompt loses the end of when it is too long"""
    turn: str = ""
    """what begins a turn, in dialogues: they lose their oldest turns first"""


def _tldr(fields: dict) -> str:
    """Stiennon et al. 2020, appendix B; trl-lib's rows come so already."""
    if "post" in fields:
        return f"SUBREDDIT: r/{fields['subreddit']}\n\nTITLE: {fields['title']}\n\nPOST: {fields['post']}\n\nTL;DR:"
    return fields["prompt"]


def _dialogue(fields: dict) -> str:
    """Bai et al. 2022 (arXiv 2204.05862); the rows of rm-static come so already."""
    return fields["prompt"] if "prompt" in fields else f"Human: {_question(fields)}\n\nAssistant:"


def _alpaca(fields: dict) -> str:
    """The two prompts of tatsu-lab/stanford_alpaca, with and without an input."""
    given = fields.get("input")
    return (
        "Below is an instruction that describes a task"
        + (", paired with an input that provides further context" if given else "")
        + ". Write a response that appropriately completes the request.\n\n"
        + f"### Instruction:\n{fields['instruction']}\n\n"
        + (f"### Input:\n{given}\n\n" if given else "")
        + "### Response:"
    )


def _shp(fields: dict) -> str:
    """After the format of SteamSHP (stanfordnlp/SteamSHP-flan-t5-large), without its choice between two answers."""
    return f"POST: {_question(fields)}\n\nRESPONSE:"


def _question(fields: dict) -> str:
    return "\n\n".join(filter(None, (fields["instruction"], fields.get("input"))))


TLDR = Template("\n\nTL;DR:", _tldr, "POST: ")
DIALOGUE = Template("\n\nAssistant:", _dialogue, "Human: ", turn="\n\nHuman: ")
ALPACA = Template("\n\n### Response:", _alpaca, "### Instruction:\n")
SHP = Template("\n\nRESPONSE:", _shp, "POST: ")


def shorten(prompt: str, template: Template, count: Callable[[str], int], max_tokens: int) -> str:
    """The prompt, cut to `max_tokens` if it is longer: its text loses its end at a newline, and the cue stays.

    As in Stiennon et al. 2020 (Huang et al. 2024, detail 2). A dialogue loses its oldest turns first. Text without a
    newline at which it would fit is cut between words. `count` says how many tokens a text has.
    """
    while count(prompt) > max_tokens and template.turn and template.turn in prompt:
        prompt = prompt[prompt.index(template.turn) :].lstrip()
    if count(prompt) <= max_tokens:
        return prompt
    text = prompt.removesuffix(template.cue)
    start = text.find(template.body) + len(template.body)
    for gap in (r"\n", r"\s"):
        cuts = [m.start() for m in re.finditer(gap, text) if m.start() > start]
        kept = bisect_right(cuts, max_tokens, key=lambda cut: count(text[:cut].rstrip() + template.cue))
        if kept:
            return text[: cuts[kept - 1]].rstrip() + template.cue
    return text[:start].rstrip() + template.cue


# ---------------------------------------------------------------------------------------------------- adapters


@dataclass(frozen=True)
class Adapter:
    """What one data set's rows hold."""

    template: Template
    columns: tuple[str, ...]
    """must be there; others are not read"""
    fields: Callable[[dict], dict]
    """row -> the fields of a template"""
    completion: Callable[[dict], str] | None = None
    """row -> a demonstration"""
    pair: Callable[[dict], tuple[str, str]] | None = None
    """row -> (chosen, rejected)"""
    splits: tuple[str, ...] = ("train",)
    """its own splits on the Hub"""


def _dialogue_fields(row: dict) -> dict:
    """The prompt as it is, and for other templates an instruction: the only turn, or the whole dialogue."""
    prompt = row["prompt"].strip()
    said = prompt.removesuffix("Assistant:").strip()
    only = said.count("Human:") == 1 and "Assistant:" not in said
    return {"prompt": prompt, "instruction": said.removeprefix("Human:").strip() if only else said}


def _shp_pair(row: dict) -> tuple[str, str]:
    """`labels` is 1 where A is preferred, 0 where B is."""
    if row["labels"] not in (0, 1):
        raise UsageError(f"labels is {row['labels']!r} in a row of stanfordnlp/SHP: expected 1 (A preferred) or 0 (B)")
    a, b = row["human_ref_A"], row["human_ref_B"]
    return (a, b) if row["labels"] == 1 else (b, a)


def _chosen_and_rejected(row: dict) -> tuple[str, str]:
    return row["chosen"], row["rejected"]


ADAPTERS = {
    "Dahoas/synthetic-instruct-gptj-pairwise": Adapter(
        DIALOGUE, ("prompt", "chosen", "rejected"), lambda row: {"instruction": row["prompt"].strip()},
        completion=lambda row: row["chosen"], pair=_chosen_and_rejected,
    ),
    "stanfordnlp/SHP": Adapter(
        SHP, ("history", "human_ref_A", "human_ref_B", "labels", "score_ratio"),
        lambda row: {"instruction": row["history"].strip()},
        completion=lambda row: _shp_pair(row)[0], pair=_shp_pair, splits=SPLITS,
    ),
    "trl-lib/tldr": Adapter(
        TLDR, ("prompt", "completion"), lambda row: {"prompt": row["prompt"].strip()},
        completion=lambda row: row["completion"], splits=SPLITS,
    ),
    "trl-lib/tldr-preference": Adapter(
        TLDR, ("prompt", "chosen", "rejected"), lambda row: {"prompt": row["prompt"].strip()},
        pair=_chosen_and_rejected, splits=("train", "validation"),
    ),
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered": Adapter(
        TLDR, ("subreddit", "title", "post", "summary"),
        lambda row: {key: row[key].strip() for key in ("subreddit", "title", "post")},
        completion=lambda row: row["summary"], splits=SPLITS,
    ),
    "tatsu-lab/alpaca": Adapter(
        ALPACA, ("instruction", "output"),
        lambda row: {"instruction": row["instruction"].strip(), "input": (row.get("input") or "").strip()},
        completion=lambda row: row["output"],
    ),
    "Dahoas/rm-static": Adapter(
        DIALOGUE, ("prompt", "chosen", "rejected"), _dialogue_fields,
        completion=lambda row: row["chosen"], pair=_chosen_and_rejected, splits=("train", "test"),
    ),
}  # fmt: skip
NUMBERS = ("labels", "score_ratio")


def adapter(name: str, role: str) -> Adapter:
    """The adapter of a data set for "sft" or "preferences"; raises UsageError if it has no such rows."""
    reads = {"sft": "completion", "preferences": "pair"}[role]
    fit = [known for known, each in ADAPTERS.items() if getattr(each, reads)]
    if name not in fit:
        raise UsageError(
            f"data.{role}={name!r} is no data set that this course can read for it: choose one of {', '.join(fit)}, or "
            "give your own rows the columns of one of them and its name in --data-dir"
        )
    return ADAPTERS[name]


# ----------------------------------------------------------------------------------------------------- reading


def read_rows(name: str, config: DataConfig) -> dict[str, list[dict]]:
    """The rows of a data set by its own splits, at most `config.limit` of each; the columns are checked."""
    columns = ADAPTERS[name].columns
    if config.dir:
        files = local_files(name, config)
        rows = {split: _read_files(paths, config.limit) for split, paths in files.items()}
    else:
        rows = {split: _read_hub(name, split, config.limit) for split in ADAPTERS[name].splits}
    for split, some in rows.items():
        if not some:
            raise UsageError(f"split {split} of data set {name} is empty: expected rows with {', '.join(columns)}")
        for number, row in enumerate(some, 1):
            if missing := [column for column in columns if column not in row]:
                raise UsageError(
                    f"row {number} of split {split} of data set {name} has no column {missing[0]!r} (it has "
                    f"{', '.join(map(str, row)) or 'none'}): expected {', '.join(columns)}"
                )
            for column in columns:
                kind = int | float if column in NUMBERS else str
                if not isinstance(row[column], kind):
                    raise UsageError(
                        f"column {column!r} of row {number} of split {split} of data set {name} is {row[column]!r:.40}: "
                        f"expected {'a number' if column in NUMBERS else 'text'}"
                    )
    return rows


def local_files(name: str, config: DataConfig) -> dict[str, list[Path]]:
    """The files of a data set in `config.dir`, by its own splits; see the top of this module."""
    folder, stem = Path(config.dir), name.rpartition("/")[2]
    if not folder.is_dir():
        raise UsageError(f"there is no folder {config.dir}: give --data-dir the folder that holds {stem}.jsonl")
    whole = [folder / f"{stem}{kind}" for kind in (".jsonl", ".parquet") if (folder / f"{stem}{kind}").is_file()]
    if whole:
        return {"train": whole}
    found = {}
    for split in SPLITS:
        files = [p for p in (folder / stem).rglob(f"{split}*") if p.suffix in (".jsonl", ".parquet") and p.is_file()]
        if files:
            found[split] = sorted(files)
    if "train" not in found:
        raise UsageError(
            f"{config.dir} has no copy of data set {name}: expected {stem}.jsonl, {stem}.parquet, or a folder {stem} "
            "with files train*.jsonl or train*.parquet, and validation* and test* if there are such"
        )
    return found


def _read_files(paths: list[Path], limit: int) -> list[dict]:
    rows = []
    for path in paths:
        for row in _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path):
            if limit and len(rows) == limit:
                return rows
            rows.append(row)
    return rows


def _json_rows(path: Path):
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UsageError(
                        f"line {number} of {path} is not JSON ({error.msg}): write one object a line"
                    ) from None
                if not isinstance(row, dict):
                    raise UsageError(f"line {number} of {path} is no JSON object: write one object a line")
                yield row


def _parquet_rows(path: Path):
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{path} cannot be read as Parquet ({error}): write it anew, or as JSONL") from error


def _read_hub(name: str, split: str, limit: int) -> list[dict]:
    """With a limit only what is needed is fetched: rows are streamed, from a shuffled buffer, since some data sets are
    sorted (SHP by subreddit)."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split=split, streaming=bool(limit))
        return list(rows.shuffle(seed=0, buffer_size=10_000).take(limit)) if limit else list(rows)
    except Exception as error:  # whatever the network, the Hub and the file system come up with
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"cannot fetch split {split} of data set {name} ({reason[:200]}): check the network, log in with `hf auth login` "
            "if the data set is gated, or give a folder with a copy by --data-dir"
        ) from error


def fingerprint(config: DataConfig) -> dict:
    """What a result depends on: the settings of the data, and a hash of every local file they name."""
    settings = {key: value for key, value in vars(config).items() if key != "dir"}
    if config.dir:
        settings["files"] = {name: [_digest(path, path.stat().st_mtime_ns) for paths in local_files(name, config).values()
                                    for path in paths] for name in _names(config)}  # fmt: skip
    return settings


def _roles(config: DataConfig) -> dict[str, str]:
    """The data set of each role that the recipe fills; raises UsageError if it cannot fill it."""
    roles = {role: name for role in ROLES if (name := getattr(config, role)) or role == "sft"}
    for role, name in roles.items():
        adapter(name, role)
    return roles


def _names(config: DataConfig) -> list[str]:
    return list(dict.fromkeys(_roles(config).values()))


@functools.cache
def _digest(path: Path, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------ splits


def prompt_hash(prompt: str) -> float:
    """A number in 0..1 that depends on the prompt alone, and not on its case, spacing or Unicode form."""
    text = " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def load(config: DataConfig) -> dict[str, dict[str, list[dict]]]:
    """All examples of a recipe: {"sft" or "preferences": {split: [...]}}, in the order of the files.

    A prompt belongs to one split, whatever data set, stage or row it comes from, so that no stage trains on what another
    tests. Where data sets disagree, test wins over validation and validation over train. What a data set has no split of its
    own for is taken from its training rows by the hash of their prompts. Exact repetitions are dropped.
    """
    return _load(config, json.dumps(fingerprint(config), default=str))


@functools.lru_cache(maxsize=2)
def _load(config: DataConfig, _: str) -> dict[str, dict[str, list[dict]]]:
    raw = {name: read_rows(name, config) for name in _names(config)}
    roles, template = _roles(config), ADAPTERS[config.sft].template
    examples, place = {}, {}  # place: hash of a prompt -> number of its split
    for role, name in roles.items():
        examples[role] = _examples(role, name, raw[name], template, config)
        own = raw[name].keys()
        for split, example in examples[role]:
            key = prompt_hash(example["prompt"])
            if split == "train" and role == "sft" and "test" not in own and key < config.test_share:
                split = "test"
            elif split == "train" and "validation" not in own and key > 1 - config.validation_share:
                split = "validation"
            place[key] = max(place.get(key, 0), SPLITS.index(split))
    found = {role: {split: [] for split in SPLITS} for role in roles}
    for role, some in examples.items():
        for _, example in some:
            found[role][SPLITS[place[prompt_hash(example["prompt"])]]].append(example)
    return found


def _examples(role: str, name: str, rows: dict, template: Template, config: DataConfig) -> list[tuple[str, dict]]:
    """(own split, example) of each usable row, once."""
    source, found = ADAPTERS[name], {}
    for split, some in rows.items():
        if "score_ratio" in source.columns:
            some = best_pairs(some, config.min_score_ratio, config.pairs_per_prompt)
        for row in some:
            try:
                prompt = template.render(source.fields(row))
            except KeyError:
                prompt = ""
            if not prompt.endswith(template.cue):
                if template is not source.template:
                    raise UsageError(
                        f"data set {name} cannot be told in the template of {config.sft}: choose another data.{role}"
                    )
                continue
            if role == "sft":
                example = {"prompt": prompt, "completion": source.completion(row).strip()}
            else:
                chosen, rejected = (text.strip() for text in source.pair(row))
                example = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            texts = tuple(example.values())
            if all(texts) and len(set(texts)) == len(texts):
                found[texts] = (split, example)  # of a row that stands in several splits, the last and strictest counts
    return list(found.values())


def best_pairs(rows: list[dict], min_score_ratio: float, pairs_per_prompt: int) -> list[dict]:
    """SHP: of each post the pairs with the clearest votes, at most `pairs_per_prompt` and none below `min_score_ratio`."""
    posts = {}
    for row in rows:
        if row["score_ratio"] >= min_score_ratio:
            posts.setdefault(row["history"], []).append(row)
    best = [sorted(some, key=lambda row: -row["score_ratio"])[:pairs_per_prompt] for some in posts.values()]
    return [row for some in best for row in some]


# ------------------------------------------------------------------------------------- what each stage reads


def demonstrations(recipe: Recipe, tokenizer, split: str, n: int) -> list[dict]:
    """At most `n` SFT examples {"prompt", "completion"} that fit: long prompts shortened, long completions left out."""
    return _fitting(recipe, tokenizer, _drawn(recipe, "sft", split), n)


def preference_pairs(recipe: Recipe, tokenizer, split: str, n: int) -> list[dict]:
    """All pairs {"prompt", "chosen", "rejected"} that fit, of at most `n` prompts."""
    pairs = _drawn(recipe, "preferences", split)
    kept = set(list(dict.fromkeys(pair["prompt"] for pair in pairs))[:n])
    return _fitting(recipe, tokenizer, [pair for pair in pairs if pair["prompt"] in kept], len(pairs))


def questions(recipe: Recipe, tokenizer, split: str, n: int) -> tuple[list[str], list[str]]:
    """At most `n` different prompts, shortened where they are long, and a reference for each."""
    references = {}
    for example in _drawn(recipe, "sft", split):
        references.setdefault(example["prompt"], example["completion"])
    some = [{"prompt": prompt, "completion": text} for prompt, text in list(references.items())[:n]]
    fitted = _shortened(recipe, tokenizer, some)
    return [e["prompt"] for e in fitted], [e["completion"] for e in fitted]


def _drawn(recipe: Recipe, role: str, split: str) -> list[dict]:
    """The examples of a split: held-out ones in an order of their own, the same for every seed; training ones shuffled."""
    examples = load(recipe.data).get(role, {}).get(split)
    if not examples:
        name = getattr(recipe.data, role)
        raise UsageError(
            f"nothing is left of {name or f'data.{role}'} for {split}: expected rows that are no repetition and whose prompt "
            "no stricter split holds, so read more (--limit) or raise data.validation_share and data.test_share"
        )
    if split == "train":
        return [examples[i] for i in shuffled(len(examples), (recipe.seed, ROLES.index(role)))]
    return sorted(
        examples, key=lambda example: prompt_hash(example["prompt"][::-1])
    )  # the share held out is by the hash


def _fitting(recipe: Recipe, tokenizer, examples: list[dict], n: int, chunk: int = 1000) -> list[dict]:
    """The first `n` examples whose responses, with EOS, have at most `max_new_tokens`; their prompts shortened."""
    found = []
    for start in range(0, len(examples), chunk):
        some = examples[start : start + chunk]
        for key in some[0].keys() - {"prompt"}:
            lengths = _lengths(tokenizer, [" " + example[key] for example in some])
            some = [e for e, length in zip(some, lengths, strict=True) if length < recipe.max_new_tokens]
            if not some:
                break
        found += _shortened(recipe, tokenizer, some) if some else []
        if len(found) >= n:
            return found[:n]
    if not found:
        raise UsageError(
            f"every response is longer than max_new_tokens={recipe.max_new_tokens}: raise it, or choose other data"
        )
    return found


def _shortened(recipe: Recipe, tokenizer, examples: list[dict]) -> list[dict]:
    """The examples without special tokens in their texts and with prompts of at most `max_prompt_tokens`."""
    template, first = ADAPTERS[recipe.data.sft].template, len(first_tokens(tokenizer))
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    examples = [{key: special.sub("", text) for key, text in example.items()} for example in examples]
    room = recipe.max_prompt_tokens - first
    for example, length in zip(examples, _lengths(tokenizer, [e["prompt"] for e in examples]), strict=True):
        if length > room:
            count = lambda text: _lengths(tokenizer, [text])[0]  # noqa: E731
            example["prompt"] = shorten(example["prompt"], template, count, room)
    return examples


def _lengths(tokenizer, texts: list[str]) -> list[int]:
    return list(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))


def length_report(recipe: Recipe, tokenizer, role: str, n: int = 5000) -> list[dict]:
    """Tokens of a stage's training texts before anything is cut: rows {"text", "count", "median", "p95", "max", "limit",
    "over"}, of at most `n` examples.

    `over` is the share above the limit: prompts of this kind are shortened, examples with such a response are left out.
    A prompt counts with its BOS, if it has one, and a response with its EOS.
    """
    examples, rows = _drawn(recipe, role, "train")[:n], []
    for key in examples[0]:
        texts = [e[key] if key == "prompt" else f" {e[key]}" for e in examples]
        extra = len(first_tokens(tokenizer)) if key == "prompt" else 1
        lengths = np.array(_lengths(tokenizer, texts)) + extra
        limit = recipe.max_prompt_tokens if key == "prompt" else recipe.max_new_tokens
        rows.append({"text": f"{role} {key}", "count": len(lengths), "median": float(np.median(lengths)),
                     "p95": float(np.quantile(lengths, 0.95)), "max": int(lengths.max()), "limit": limit,
                     "over": float((lengths > limit).mean())})  # fmt: skip
    return rows


def length_table(rows: list[dict]) -> str:
    lines = [f"{'tokens':<24} {'count':>7} {'median':>7} {'95 %':>7} {'max':>7} {'limit':>6}  over it"]
    for row in rows:
        fate = "shortened" if row["text"].endswith("prompt") else "left out"
        lines.append(f"{row['text']:<24} {row['count']:>7} {row['median']:>7.0f} {row['p95']:>7.0f} {row['max']:>7} "
                     f"{row['limit']:>6}  {row['over']:.1%}, {fate}")  # fmt: skip
    return "\n".join(lines)
