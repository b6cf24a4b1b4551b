"""Real data: each adapter on rows written by hand, templates that keep their cue, splits that no stage breaks."""

import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_lib import corpora
from rlhf_lib.__main__ import main
from rlhf_lib.corpora import ADAPTERS, ALPACA, DIALOGUE, SPLITS, TLDR, prompt_hash, shorten
from rlhf_lib.recipes import RECIPES, DataConfig, get_recipe
from rlhf_lib.runtime import UsageError

TLDR_TEXT = "SUBREDDIT: r/cats\n\nTITLE: The cat\n\nPOST: It sleeps.\n\nIt eats.\n\nTL;DR:"
ALPACA_PLAIN = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName a fruit.\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
    "that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nun chat\n\n### Response:"
)
TALK = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Tea or coffee?\n\nAssistant:"


def shp(post="Why?", a="A says.", b="B says.", labels=1, ratio=3.0) -> dict:
    return {"post_id": "x", "history": post, "human_ref_A": a, "human_ref_B": b, "labels": labels, "score_ratio": ratio}


def write(folder, name: str, rows: list[dict]):
    file = folder / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def config(folder, sft: str, preferences: str = "", **settings) -> DataConfig:
    return DataConfig(sft=sft, preferences=preferences, dir=str(folder), **settings)


def everything(examples: dict) -> list[dict]:
    return [example for split in SPLITS for example in examples[split]]


# ---------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize(
    "name, row, prompt, completion, pair",
    [
        ("Dahoas/synthetic-instruct-gptj-pairwise", {"prompt": " Name a fruit. ", "chosen": " Pear.", "rejected": "No."},
         "Human: Name a fruit.\n\nAssistant:", "Pear.", ("Pear.", "No.")),
        ("stanfordnlp/SHP", shp(), "POST: Why?\n\nRESPONSE:", "A says.", ("A says.", "B says.")),
        ("stanfordnlp/SHP", shp(labels=0), "POST: Why?\n\nRESPONSE:", "B says.", ("B says.", "A says.")),
        ("trl-lib/tldr", {"prompt": TLDR_TEXT, "completion": " My cat rests."}, TLDR_TEXT, "My cat rests.", None),
        ("trl-lib/tldr-preference", {"prompt": TLDR_TEXT, "chosen": " My cat.", "rejected": " Cat!"}, TLDR_TEXT, None,
         ("My cat.", "Cat!")),
        ("vwxyzjn/summarize_from_feedback_tldr_3_filtered",
         {"id": "t3", "subreddit": "cats", "title": "The cat", "post": "It sleeps.\n\nIt eats.\n", "summary": " My cat."},
         TLDR_TEXT, "My cat.", None),
        ("tatsu-lab/alpaca", {"instruction": "Name a fruit.", "input": "", "output": "Pear.", "text": "-"}, ALPACA_PLAIN,
         "Pear.", None),
        ("tatsu-lab/alpaca", {"instruction": "Name a fruit.", "output": "Pear."}, ALPACA_PLAIN, "Pear.", None),
        ("tatsu-lab/alpaca", {"instruction": "Translate.", "input": "un chat", "output": "a cat"}, ALPACA_INPUT, "a cat",
         None),
        ("Dahoas/rm-static", {"prompt": TALK, "response": " Tea.", "chosen": " Tea.", "rejected": " Beer."}, TALK.strip(),
         "Tea.", ("Tea.", "Beer.")),
    ],
)  # fmt: skip
def test_an_adapter_reads_its_columns(name, row, prompt, completion, pair, tmp_path):
    stem = name.rpartition("/")[2]
    write(tmp_path, stem, [row])
    source = ADAPTERS[name]
    assert source.template.cue.endswith(prompt[-6:]) and (source.completion is None) == (completion is None)
    if completion:
        found = everything(corpora.load(config(tmp_path, name))["sft"])
        assert found == [{"prompt": prompt, "completion": completion}]
    if pair:
        if completion is None:  # its prompts are told in the template of another data set
            write(tmp_path, "tldr", [{"prompt": "TITLE: x\n\nPOST: y\n\nTL;DR:", "completion": "z"}])
        found = everything(corpora.load(config(tmp_path, name if completion else "trl-lib/tldr", name))["preferences"])
        assert found == [{"prompt": prompt, "chosen": pair[0], "rejected": pair[1]}]


def test_every_recipe_names_data_sets_that_there_are_adapters_for():
    for recipe in RECIPES.values():
        if recipe.data:
            assert corpora.adapter(recipe.data.sft, "sft")
            assert bool(recipe.data.preferences) != bool(recipe.reward_model)
            if recipe.data.preferences:
                assert corpora.adapter(recipe.data.preferences, "preferences")


def test_a_recipe_tells_all_its_prompts_in_one_template(tmp_path):
    write(tmp_path, "alpaca", [{"instruction": "Name a fruit.", "input": "", "output": "Pear."}])
    single = "\n\nHuman: Name a fruit.\n\nAssistant:"
    rows = [{"prompt": p, "chosen": "Tea.", "rejected": "Beer."} for p in (single, TALK)]
    write(tmp_path, "rm-static", rows)
    found = everything(corpora.load(config(tmp_path, "tatsu-lab/alpaca", "Dahoas/rm-static"))["preferences"])
    dialogue = TALK.strip().removesuffix("\n\nAssistant:")
    whole = ALPACA_PLAIN.replace("Name a fruit.", dialogue)
    assert {e["prompt"] for e in found} == {ALPACA_PLAIN, whole}


def test_shp_keeps_the_clearest_pairs_of_each_post(tmp_path):
    rows = [shp("Why?", a=f"a{i}", ratio=ratio) for i, ratio in enumerate((1.9, 2.0, 9.0, 4.0, 3.0))]
    write(tmp_path, "SHP", [*rows, shp("How?", a="b", ratio=2.5)])
    found = corpora.load(config(tmp_path, "stanfordnlp/SHP", "stanfordnlp/SHP", pairs_per_prompt=2))
    assert sorted(e["chosen"] for e in everything(found["preferences"])) == ["a2", "a3", "b"]
    assert sorted(e["completion"] for e in everything(found["sft"])) == ["a2", "a3", "b"]
    found = corpora.load(config(tmp_path, "stanfordnlp/SHP", "stanfordnlp/SHP"))  # 2 itself is clear enough, 1.9 is not
    assert sorted(e["chosen"] for e in everything(found["preferences"])) == ["a1", "a2", "a3", "a4", "b"]
    found = corpora.load(config(tmp_path, "stanfordnlp/SHP", "stanfordnlp/SHP", min_score_ratio=0.0))
    assert len(everything(found["preferences"])) == 6


def test_rows_that_teach_nothing_are_dropped(tmp_path):
    good = {"prompt": TLDR_TEXT, "completion": "My cat."}
    unusable = [{"prompt": TLDR_TEXT, "completion": " "}, {"prompt": "no cue", "completion": "x"}, good]
    write(tmp_path, "tldr", [good, *unusable])
    pair = {"prompt": TLDR_TEXT, "chosen": "A.", "rejected": "B."}
    write(tmp_path, "tldr-preference", [pair, pair | {"rejected": " A. "}, pair])
    found = corpora.load(config(tmp_path, "trl-lib/tldr", "trl-lib/tldr-preference"))
    assert everything(found["sft"]) == [good] and everything(found["preferences"]) == [pair]


# ----------------------------------------------------------------------------------------------------- cutting


def words(text: str) -> int:
    return len(text.split())


def test_a_long_post_loses_its_end_at_a_newline_and_keeps_the_cue():
    post = "SUBREDDIT: r/a\n\nTITLE: b c\n\nPOST: one two.\n\nthree four.\nfive six seven.\n\nTL;DR:"
    head = "SUBREDDIT: r/a\n\nTITLE: b c\n\nPOST: "
    assert words(post) == 14
    cut = lambda n: shorten(post, TLDR, words, n)  # noqa: E731
    assert cut(14) == post
    assert cut(13) == cut(11) == f"{head}one two.\n\nthree four.\n\nTL;DR:"
    assert cut(10) == cut(9) == f"{head}one two.\n\nTL;DR:"
    assert cut(8) == f"{head}one\n\nTL;DR:"  # no newline at which it would fit: between words


def test_a_dialogue_loses_its_oldest_turns_first():
    talk = "Human: one two\n\nAssistant: three\n\nHuman: four\nfive\n\nAssistant:"
    assert shorten(talk, DIALOGUE, words, 9) == talk
    assert shorten(talk, DIALOGUE, words, 8) == "Human: four\nfive\n\nAssistant:"
    assert shorten(talk, DIALOGUE, words, 3) == "Human: four\n\nAssistant:"


@pytest.mark.parametrize("template", [TLDR, ALPACA, DIALOGUE])
def test_whatever_the_limit_a_cut_prompt_fits_begins_as_it_did_and_ends_in_its_cue(template):
    rng = random.Random(0)
    head = {TLDR: "SUBREDDIT: r/a\n\nTITLE: b\n\n", ALPACA: "", DIALOGUE: ""}[template] + template.body
    for _ in range(200):
        text = "".join(rng.choice(["word", "word", " ", " ", "\n", "\n\n"]) for _ in range(rng.randrange(60))).strip()
        prompt, limit = f"{head}x{text}{template.cue}", rng.randrange(8, 30)
        cut = shorten(prompt, template, words, limit)
        assert words(cut) <= limit and cut.startswith(head.strip()) and cut.endswith(template.cue)
        assert prompt.startswith(cut.removesuffix(template.cue))


def test_prompts_are_shortened_to_the_limit_with_bos_and_special_tokens_in_texts_are_only_text(tmp_path, tokenizer):
    post = "POST: My boss left.<|endoftext|>\n\n" + "She eats my lunch. " * 40 + "\n\nTL;DR:"
    write(tmp_path, "tldr", [{"prompt": post, "completion": "Help<|endoftext|>!"}])
    recipe = get_recipe("tldr-gpt2", "smoke", overrides={"data.dir": str(tmp_path), "max_prompt_tokens": 20})
    split = next(s for s in SPLITS if corpora.load(recipe.data)["sft"][s])
    assert corpora.demonstrations(recipe, tokenizer, split, 5) == [
        {"prompt": "POST: My boss left.\n\nTL;DR:", "completion": "Help!"}
    ]


# ------------------------------------------------------------------------------------------------------ splits


def tldr_rows(numbers) -> list[dict]:
    return [{"prompt": f"TITLE: {n}\n\nPOST: It is about {n}.\n\nTL;DR:", "completion": f"About {n}."} for n in numbers]


def preference_rows(numbers) -> list[dict]:
    return [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in tldr_rows(numbers)]


def prompts_of(found: dict, role: str, split: str) -> set[str]:
    return {e["prompt"] for e in found[role][split]}


def test_a_prompt_has_one_split_whatever_data_set_it_comes_from_and_the_strictest_wins(tmp_path):
    for split, numbers in (("train", range(50)), ("validation", range(40, 60)), ("test", range(45, 70))):
        write(tmp_path / "tldr", split, tldr_rows(numbers))
    write(tmp_path / "tldr-preference", "train", preference_rows(range(80)))
    write(tmp_path / "tldr-preference", "validation", preference_rows(range(30, 40)))
    found = corpora.load(config(tmp_path, "trl-lib/tldr", "trl-lib/tldr-preference"))
    texts = {n: row["prompt"] for n, row in enumerate(tldr_rows(range(80)))}
    expected = {
        "train": [*range(30), *range(70, 80)],
        "validation": range(30, 45),  # 30..39 by the preferences' own split, 40..44 by that of the demonstrations
        "test": range(45, 70),
    }
    for split, numbers in expected.items():
        assert prompts_of(found, "preferences", split) == {texts[n] for n in numbers}
        assert prompts_of(found, "sft", split) == {texts[n] for n in numbers if n < 70}


def test_without_splits_of_its_own_a_data_set_is_split_by_the_hash_of_the_prompt(tmp_path):
    rows = tldr_rows(range(2000))
    write(tmp_path, "tldr", rows)
    write(tmp_path, "tldr-preference", preference_rows(range(1000, 3000)))
    settings = config(tmp_path, "trl-lib/tldr", "trl-lib/tldr-preference", validation_share=0.1, test_share=0.2)
    found = corpora.load(settings)
    sizes = {split: len(found["sft"][split]) for split in SPLITS}
    assert sum(sizes.values()) == 2000 and abs(sizes["test"] - 400) < 60 and abs(sizes["validation"] - 200) < 45
    for a in SPLITS:
        for b in SPLITS:
            if a != b:
                assert not prompts_of(found, "sft", a) & prompts_of(found, "preferences", b)
    alone = config(tmp_path, "trl-lib/tldr", validation_share=0.1, test_share=0.2)
    random.Random(1).shuffle(rows)
    write(tmp_path, "tldr", rows)
    shuffled = corpora.load(alone)
    for split in SPLITS:  # nothing but the prompt decides
        assert prompts_of(shuffled, "sft", split) == prompts_of(found, "sft", split)


def test_spelling_that_no_reader_would_notice_makes_no_new_prompt():
    assert prompt_hash("My Cat\n\nsleeps") == prompt_hash("my cat sleeps ") != prompt_hash("my cat sleep")
    assert prompt_hash("cafe\u0301") == prompt_hash("caf\u00e9")


def real(folder, **overrides):
    return get_recipe("tldr-pythia-1b", "smoke", overrides={
        "data.dir": str(folder), "data.limit": 0, "data.sft": "trl-lib/tldr", **overrides})  # fmt: skip


def test_training_order_depends_on_the_seed_and_held_out_order_does_not(tmp_path, tokenizer):
    write(tmp_path, "tldr", tldr_rows(range(200)))
    write(tmp_path, "tldr-preference", preference_rows(range(200)))
    recipes = [real(tmp_path, seed=seed) for seed in (1, 2)]
    drawn = [{split: corpora.demonstrations(recipe, tokenizer, split, 9) for split in SPLITS} for recipe in recipes]
    assert drawn[0]["train"] != drawn[1]["train"] and all(len(some) == 9 for some in drawn[0].values())
    assert drawn[0]["test"] == drawn[1]["test"] and drawn[0]["validation"] == drawn[1]["validation"]
    prompts, references = corpora.questions(recipes[0], tokenizer, "test", 9)
    assert [{"prompt": p, "completion": r} for p, r in zip(prompts, references, strict=True)] == drawn[0]["test"]


def test_pairs_of_a_prompt_stay_together_and_prompts_are_counted(tmp_path, tokenizer):
    rows = [row | {"rejected": f"No {k}."} for row in preference_rows(range(100)) for k in range(3)]
    write(tmp_path, "tldr", tldr_rows(range(100)))
    write(tmp_path, "tldr-preference", rows)
    pairs = corpora.preference_pairs(real(tmp_path), tokenizer, "train", 7)
    assert len(pairs) == 21 and len({pair["prompt"] for pair in pairs}) == 7


def test_a_prompt_with_several_demonstrations_is_one_question(tmp_path, tokenizer):
    rows = tldr_rows(range(60))
    write(tmp_path, "tldr", rows + [row | {"completion": "Another."} for row in rows])
    recipe = real(tmp_path, **{"data.preferences": ""})
    prompts, references = corpora.questions(recipe, tokenizer, "train", 1000)
    assert len(prompts) == len(set(prompts)) == len(references)
    assert len(corpora.demonstrations(recipe, tokenizer, "train", 1000)) == 2 * len(prompts)


# ----------------------------------------------------------------------------------------------------- lengths


def test_long_responses_are_left_out_and_the_report_counts_them(tmp_path, tokenizer):
    rows = tldr_rows(range(60))
    for number, row in enumerate(rows):
        row["completion"] = "no" + " no" * (number % 10)
    write(tmp_path, "tldr", rows)
    recipe = real(tmp_path, **{"data.preferences": "", "max_new_tokens": 6, "max_prompt_tokens": 12})
    train = corpora.load(recipe.data)["sft"]["train"]
    count = {key: [len(tokenizer(space + e[key])["input_ids"]) + eos for e in train]
             for key, space, eos in (("prompt", "", 0), ("completion", " ", 1))}  # fmt: skip
    kept = corpora.demonstrations(recipe, tokenizer, "train", 1000)
    assert len(kept) == sum(n <= 6 for n in count["completion"]) and 0 < len(kept) < len(train)
    report = corpora.length_report(recipe, tokenizer, "sft")
    for row, key, limit in zip(report, ("prompt", "completion"), (12, 6), strict=True):
        n = sorted(count[key])
        assert (row["text"], row["count"], row["max"], row["limit"]) == (f"sft {key}", len(n), n[-1], limit)
        assert row["median"] == (n[len(n) // 2] + n[(len(n) - 1) // 2]) / 2
        assert row["over"] == pytest.approx(sum(x > limit for x in n) / len(n))
    table = corpora.length_table(report)
    assert f"{report[1]['over']:.1%}, left out" in table and f"{report[0]['over']:.1%}, shortened" in table


# ----------------------------------------------------------------------------------------------------- reading


def test_every_layout_of_a_folder_gives_the_same_rows(tmp_path):
    parts = {"train": tldr_rows(range(9)), "validation": tldr_rows(range(9, 12)), "test": tldr_rows(range(12, 15))}
    for split, rows in parts.items():
        write(tmp_path / "a" / "tldr", split, rows)
        (tmp_path / "b" / "tldr" / "data").mkdir(parents=True, exist_ok=True)
        for shard, some in enumerate((rows[:2], rows[2:])):
            file = tmp_path / "b" / "tldr" / "data" / f"{split}-{shard:05d}-of-00002.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), file)
    for folder in ("a", "b"):
        assert corpora.read_rows("trl-lib/tldr", config(tmp_path / folder, "trl-lib/tldr")) == parts
        few = corpora.read_rows("trl-lib/tldr", config(tmp_path / folder, "trl-lib/tldr", limit=2))
        assert few == {split: rows[:2] for split, rows in parts.items()}
    write(tmp_path / "c", "tldr", parts["train"])
    assert corpora.read_rows("trl-lib/tldr", config(tmp_path / "c", "trl-lib/tldr")) == {"train": parts["train"]}


@pytest.mark.parametrize("limit", [0, 3])
def test_the_hub_is_read_split_by_split_and_streamed_under_a_limit(limit, monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        rows = datasets.Dataset.from_list(tldr_rows(range(10)))
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = corpora.read_rows("trl-lib/tldr", DataConfig(sft="trl-lib/tldr", limit=limit))
    assert asked == [("trl-lib/tldr", split, bool(limit)) for split in SPLITS]
    assert {split: len(some) for split, some in rows.items()} == dict.fromkeys(SPLITS, limit or 10)
    assert all(row in tldr_rows(range(10)) for row in rows["train"])


def test_a_fingerprint_follows_the_content_of_the_files_and_not_their_folder(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder, "tldr", tldr_rows(range(5)))
    a, b = (corpora.fingerprint(config(tmp_path / folder, "trl-lib/tldr")) for folder in ("a", "b"))
    assert a == b
    write(tmp_path / "b", "tldr", tldr_rows(range(6)))
    assert corpora.fingerprint(config(tmp_path / "b", "trl-lib/tldr")) != a
    assert corpora.fingerprint(config(tmp_path / "a", "trl-lib/tldr", limit=3)) != a
    assert len(everything(corpora.load(config(tmp_path / "b", "trl-lib/tldr"))["sft"])) == 6  # no stale copy is used


# ----------------------------------------------------------------------------------------------- wrong usage


def tldr_file(rows):
    return lambda folder: write(folder, "tldr", rows)


@pytest.mark.parametrize(
    "prepare, arguments, expected",
    [
        (lambda folder: None, [], ["has no copy of data set trl-lib/tldr", "tldr.jsonl", "train*.parquet"]),
        (lambda folder: folder.rmdir(), [], ["there is no folder", "--data-dir", "tldr.jsonl"]),
        (tldr_file([]), [], ["split train of data set trl-lib/tldr is empty", "prompt, completion"]),
        (tldr_file([{"prompt": "x", "summary": "y"}]), [],
         ["no column 'completion'", "it has prompt, summary", "expected prompt, completion"]),
        (tldr_file([*tldr_rows([1]), {"prompt": "x", "completion": None}]), [],
         ["column 'completion' of row 2", "None", "expected text"]),
        (lambda folder: (folder / "tldr.jsonl").write_text('{"prompt": 1\n'), [], ["line 1 of", "is not JSON", "one object a line"]),
        (lambda folder: (folder / "tldr.jsonl").write_text('["a"]\n'), [], ["line 1 of", "no JSON object"]),
        (lambda folder: (folder / "tldr.parquet").write_text("no"), [], ["cannot be read as Parquet"]),
        (tldr_file(tldr_rows([1])), [], ["nothing is left of trl-lib/tldr for", "--limit", "data.validation_share"]),
        (tldr_file([r | {"completion": "no " * 99} for r in tldr_rows(range(60))]), [],
         ["every response is longer than max_new_tokens"]),
        (tldr_file(tldr_rows(range(60))), ["data.sft=me/mine"], ["data.sft='me/mine' is no data set", "trl-lib/tldr", "columns"]),
        (tldr_file(tldr_rows(range(60))), ["data.sft=trl-lib/tldr-preference"], ["choose one of", "tatsu-lab/alpaca"]),
        (tldr_file(tldr_rows(range(60))), ["data.limit=-1"], ["data.limit=-1", "0 or more"]),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_end_in_one_sentence(prepare, arguments, expected, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    prepare(folder)
    code = main(["sft", "--recipe", "tldr-gpt2", "--scale", "smoke", "--data-dir", str(folder), "--output-dir",
                 str(tmp_path), "--set", "policy=tiny:small", *arguments])  # fmt: skip
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    for word in expected:
        assert word in err


def test_pairs_that_the_recipes_template_cannot_tell_are_refused(tmp_path):
    write(tmp_path, "tldr", tldr_rows(range(9)))
    write(tmp_path, "SHP", [shp()])
    with pytest.raises(UsageError, match="SHP cannot be told in the template of trl-lib/tldr"):
        corpora.load(config(tmp_path, "trl-lib/tldr", "stanfordnlp/SHP"))
    write(tmp_path, "SHP", [shp(labels=2)])
    with pytest.raises(UsageError, match=r"labels is 2 .* expected 1 \(A preferred\) or 0"):
        corpora.load(config(tmp_path, "stanfordnlp/SHP", "stanfordnlp/SHP"))


@pytest.mark.parametrize("limit", ["0", "5"])
def test_a_data_set_that_cannot_be_fetched_is_one_sentence(limit, tmp_path, capsys, monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nafter 5 attempts")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    code = main(["sft", "--recipe", "tldr-gpt2", "--scale", "smoke", "--output-dir", str(tmp_path), "--limit", limit,
                 "--set", "policy=tiny:small"])  # fmt: skip
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    for word in (
        "cannot fetch split train of data set trl-lib/tldr",
        "Couldn't reach",
        "network",
        "hf auth login",
        "--data-dir",
    ):
        assert word in err


def test_a_gated_model_is_one_sentence_that_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    from rlhf_lib import models

    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.\nMake sure to have access to it at ...")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", refuse)
    code = main(["sft", "--recipe", "tldr-llama-1b", "--scale", "smoke", "--output-dir", str(tmp_path)])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    for word in ("meta-llama/Llama-3.2-1B", "gated", "https://huggingface.co/meta-llama/Llama-3.2-1B", "hf auth login"):
        assert word in err


@pytest.mark.parametrize("arguments", [["--data-dir", "x"], ["--limit", "5"], ["--set", "data.test_share=0.1"]])
def test_the_embedded_world_has_no_data_to_choose(arguments, capsys):
    assert main(["sft", "--recipe", "tiny", *arguments]) == 2
    assert "recipe tiny, which writes its own data" in capsys.readouterr().err
