"""The embedded world: splits that never meet, an honest judge that no obvious trick fools, noise that is known."""

import csv
import math
import random
import re
from statistics import mean

import pytest

from rlhf_lib.models import ASSETS, load_policy, load_tokenizer
from rlhf_lib.tiny import (
    annotate,
    annotator_agreement,
    corpus,
    demonstration,
    edited_summaries,
    explain,
    gold_score,
    make_posts,
    preference_probability,
    reference_summary,
    world,
)
from rlhf_lib.tiny import phrases as W
from rlhf_lib.tiny.judge import parse_sentence
from rlhf_lib.tiny.world import EDITS, _edit

POSTS = make_posts(400, seed=3, split="test") + make_posts(400, seed=3, split="train")


def test_same_seed_same_posts_and_a_longer_stream_starts_with_the_shorter():
    assert make_posts(20, seed=5) == make_posts(20, seed=5)
    assert make_posts(40, seed=5)[:20] == make_posts(20, seed=5)
    assert make_posts(20, seed=5) != make_posts(20, seed=6)


def test_splits_share_neither_prompts_nor_sets_of_facts():
    splits = {s: make_posts(3000, seed=1, split=s) for s in ("train", "validation", "test")}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not {p.facts for p in splits[a]} & {p.facts for p in splits[b]}
        assert not {p.prompt for p in splits[a]} & {p.prompt for p in splits[b]}


def test_a_quarter_of_test_posts_hold_a_problem_or_phrasing_new_to_every_training():
    test = make_posts(1500, seed=0, split="test")
    assert sum(bool({"problem", "phrasing"} & set(p.unseen)) for p in test) / len(test) >= 0.25
    assert {kind for p in test for kind in p.unseen} == {"name", "problem", "phrasing"}
    read = make_posts(3000, seed=0) + make_posts(500, split="validation")
    documents = corpus(6000, seed=1) + corpus(6000, seed=1, checked=1.0)  # these train the base model
    text = " ".join([p.prompt for p in read] + documents)
    tables = (*W.PROBLEMS.values(), *W.TRIED.values(), *W.QUESTIONS.values())
    new_frames = [pattern(options[-1]) for options in (*(spec["post"] for spec in tables), W.INTROS, W.ASK)]
    assert not any(frame.search(text) for frame in new_frames)
    for spec in W.PROBLEMS.values():
        new_thing = spec["things"][-1]
        assert new_thing in text
        assert not any(pattern(f.replace("{t}", new_thing)).search(text) for f in spec["summary"] + spec["post"])
    for post in test:
        assert any(frame.search(post.body) for frame in new_frames) == ("phrasing" in post.unseen)
        spec = W.PROBLEMS[post.action]
        assert (post.thing == spec["things"][-1]) == ("problem" in post.unseen)


def pattern(frame: str) -> re.Pattern:
    """A frame with any words in its slots, from its first literal word on."""
    return re.compile(r"[\w ]*".join(re.escape(part) for part in re.split(r"\{\w+\}", frame) if part))


def test_new_names_are_new_to_every_stage_of_fine_tuning():
    new = set(W.TEST_WOMEN + W.TEST_MEN)
    assert not new & set(W.WOMEN + W.MEN)
    posts = make_posts(1500, seed=0) + make_posts(500, split="validation")
    written = " ".join([p.prompt + demonstration(p, 1) + "".join(edited_summaries(p, 1, 5)) for p in posts])
    assert not new & set(re.findall(r"\w+", written))
    assert all((p.name in new) == ("name" in p.unseen) for p in make_posts(1500, seed=0, split="test"))


def test_every_name_and_thing_is_one_token_a_word_and_any_text_survives_the_tokenizer():
    tokenizer = load_tokenizer("tiny:small")
    things = [thing for spec in W.PROBLEMS.values() for thing in spec["things"]]
    for text in W.WOMEN + W.MEN + W.TEST_WOMEN + W.TEST_MEN + things:
        assert len(tokenizer(" " + text)["input_ids"]) == len(text.split())
    for text in ("Zyxomma naïve 日本 🙂\n\ttabs  and   spaces", POSTS[0].prompt, "TL;DR: <b>&amp;</b> it's 3.14!"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_posts_are_in_the_tldr_format_and_tell_their_facts():
    for post in POSTS:
        assert re.fullmatch(r"SUBREDDIT: r/\w+\n\nTITLE: .+\n\nPOST: .+\n\nTL;DR:", post.prompt)
        assert post.name in post.body and post.relation in post.body and post.thing in post.body
        assert "{" not in post.prompt


def test_no_post_of_the_corpus_is_followed_by_its_summary():
    for document in corpus(2000, seed=2) + corpus(2000, seed=2, checked=1.0):
        if "POST:" in document:
            assert "TL;DR" not in document


def test_the_marks_of_the_corpus_are_true():
    """Read by the judge's parser: a claim is marked TRUE exactly when it states the post's own fact."""
    marks = []
    for seed, post in enumerate(make_posts(400, seed=5) * 5):  # the same thing with another action is rare
        for sentence, said in claims(world._fact_check(post, random.Random(seed))):
            for word, mark in re.findall(r"(\w+) (TRUE|FALSE)\b", sentence):
                if len(re.findall(rf"\b{word}\b", sentence)) > 1:
                    continue  # "your best friend … help from a friend": which of them is marked?
                kind = kind_of(word, said, sentence)
                assert (said[kind] == truth(post, kind)) == (mark == "TRUE"), sentence
                marks.append((kind, mark))
    assert {kind for kind, _ in marks} == {"relation", "name", "problem", "tried", "question"}
    assert 0.3 < mean(mark == "TRUE" for _, mark in marks) < 0.7


def test_the_list_at_the_end_holds_exactly_the_words_of_the_wrong_facts():
    for seed, post in enumerate(make_posts(400, seed=5)):
        text, listed = world._fact_check(post, random.Random(seed), listed=1.0).split(" WRONG: ")
        assert "TRUE" not in text and "FALSE" not in text
        wrong = {kind: said[kind] for _, said in claims(text) for kind in set(said) - {"genders"}
                 if said[kind] != truth(post, kind)}  # fmt: skip
        listed = set(listed.strip(".").split()) - {"nothing"}
        assert len(listed) == len(wrong), text
        for kind, value in wrong.items():
            phrases = {"tried": W.TRIED.get(value, {}).get("summary"), "question": [W.QUESTIONS.get(value, {}).get("act")],
                       "problem": [value[1]]}.get(kind, [value])  # fmt: skip
            assert listed & set(" ".join(phrases).split()), text


def truth(post, kind: str):
    return (post.action, post.thing) if kind == "problem" else getattr(post, kind)


def claims(comment: str) -> list[tuple[str, dict]]:
    """The sentences of a checked comment, each with what it states."""
    read = []
    for sentence in re.findall(r"[^.?!]+[.?!]", comment.split(": ", 1)[1]):
        claim = first_person(re.sub(r" (TRUE|FALSE)\b", "", sentence.strip()))
        ours = (claim[: m.start()] + " our " + claim[m.end() :] for m in re.finditer(" my ", claim))
        read.append((sentence, next(filter(None, map(parse_sentence, (claim, *ours))))))
    return read


def first_person(claim: str) -> str:
    """A claim addressed to the writer, in the writer's own words."""
    for theirs, own in (("Your", "My"), ("your", "my"), ("You", "I"), ("though you", "though I"), ("Should you", "Should I"),
                        ("you", "me")):  # fmt: skip
        claim = re.sub(rf"\b{theirs}\b", own, claim)
    return claim


def kind_of(word: str, said: dict, sentence: str) -> str:
    if sentence.endswith("?"):
        return "question"
    for kind, words in (("name", said.get("name", "")), ("relation", said.get("relation", "")),
                        ("problem", said.get("problem", ("", ""))[1])):  # fmt: skip
        if word in words.split():
            return kind
    return "tried"


def test_the_marks_of_a_word_list_are_true():
    for seed in range(100):
        listed, asked = world._word_check(random.Random(seed)).removeprefix("LIST: ").split("\n\nCHECKED: ")
        claims = re.findall(r"(\w+) (TRUE|FALSE)", asked)
        assert len(claims) == 20
        for word, mark in claims:
            assert (word in listed.split()) == (mark == "TRUE")


def test_reference_summaries_are_perfect_and_say_every_fact():
    for post in POSTS:
        summary = reference_summary(post)
        assert gold_score(post, summary) == 1.0
        assert post.name in summary and post.relation in summary and post.thing in summary
        assert summary not in post.body


def test_explanations_add_up_to_the_score_and_the_score_never_exceeds_one():
    for post in POSTS:
        for summary in (demonstration(post, 1), demonstration(post, 2), post.body, "", reference_summary(post) * 2):
            items = explain(post, summary)
            assert gold_score(post, summary) == pytest.approx(sum(points for _, points in items), abs=1e-6)
            assert gold_score(post, summary) <= 1.0


TRICKS = {
    "empty": lambda p: "",
    "the whole post": lambda p: p.body,
    "the whole prompt": lambda p: p.context,
    "the title": lambda p: p.title,
    "the title as a sentence": lambda p: p.title + ".",
    "keywords without grammar": lambda p: f"{p.relation} {p.name} {p.thing} {p.tried} {p.question}.",
    "reference without grammar": lambda p: re.sub(r"[^\w ]", "", reference_summary(p)).lower(),
    "everything twice": lambda p: reference_summary(p) + " " + reference_summary(p),
    "a wrong name": lambda p: reference_summary(p).replace(p.name, "Ann" if p.name != "Ann" else "Bob"),
    "the first sentence of the post": lambda p: re.findall(r"[^.?!]+[.?!]", p.body)[0].strip(),
    "the last sentence of the post": lambda p: re.findall(r"[^.?!]+[.?!]", p.body)[-1].strip(),
    "another post's summary": lambda p: reference_summary(POSTS[(POSTS.index(p) + 1) % len(POSTS)]),
    "every question": lambda p: reference_summary(p) + " Should I move out? Should I quit my job? Should I go to HR?",
    "two people": lambda p: reference_summary(p) + " " + reference_summary(p).replace(p.name, "Ann"),
    "reference and then the post": lambda p: reference_summary(p) + " " + p.body,
    "one good sentence, over and over": lambda p: (reference_summary(p).split(".")[0] + ". ") * 3,
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_obvious_trick_comes_near_the_reference(trick):
    scores = [gold_score(post, TRICKS[trick](post)) for post in POSTS[:200]]
    assert mean(scores) <= 1.0 - 0.4


def test_each_kind_of_item_costs_or_earns_what_it_says():
    post = next(p for p in make_posts(500, seed=9) if p.gender == "f" and p.action == "borrow" and p.tried == "note"
                and p.question == "quiet" and p.relation == "sister" or p.relation == "sister" and p.action == "borrow")  # fmt: skip
    good = f"My sister {post.name} takes my {post.thing} without asking."
    assert gold_score(post, good) == pytest.approx(0.65)
    assert gold_score(post, f"My sister takes my {post.thing} without asking.") == pytest.approx(0.40)
    assert gold_score(post, f"She takes my {post.thing} without asking.") == pytest.approx(0.25)
    assert gold_score(post, f"He takes my {post.thing} without asking.") == pytest.approx(0.20)
    assert gold_score(post, good + " " + good) == pytest.approx(0.50)
    assert gold_score(post, good[:-1]) == pytest.approx(-0.25)  # unfinished: not a clean sentence, no ending
    assert gold_score(post, good.replace("sister", "brother")) == pytest.approx(0.35)
    assert gold_score(post, good + " Bananas are great.") == pytest.approx(0.50)


def test_parser_reads_what_the_generator_writes_and_refuses_the_rest():
    for post in POSTS[:200]:
        for sentence in re.findall(r"[^.?!]+[.?!]", reference_summary(post)):
            assert parse_sentence(sentence.strip()) is not None
    for text in (
        "Banana.",
        "my sister Anna eats my lunch all the time.",
        "I flew to the moon.",
        "Should I?",
        "My dragon Tom forgot my race.",
    ):
        assert parse_sentence(text) is None


def test_demonstrations_are_of_mixed_quality():
    scores = [gold_score(p, demonstration(p, 0)) for p in POSTS]
    assert 0.45 <= mean(scores) <= 0.75
    assert 0.02 <= sum(s == 1.0 for s in scores) / len(scores) <= 0.3
    items = " ".join(item for p in POSTS for item, _ in explain(p, demonstration(p, 0)))
    for fault in (
        "is missing",
        "wrong name",
        "wrong question",
        "wrong tried",
        "beside the point",
        "twice",
        "copied",
        "not a clean",
    ):
        assert fault in items, fault


def test_annotator_prefers_by_bradley_terry_on_gold():
    assert preference_probability(0.5, 0.5, 0.15) == 0.5
    assert preference_probability(0.9, 0.6, 0.15) == pytest.approx(1 / (1 + math.exp(-2)))
    assert (preference_probability(1, -1, 1e-3), preference_probability(-1, 1, 1e-3)) == (1, 0)  # no overflow
    post = POSTS[0]
    good, bad = reference_summary(post), post.title + "."
    gap = 1.0 - gold_score(post, bad)
    scale = gap / 1.5
    rng = random.Random(0)
    picks = [annotate(post, good, bad, scale, rng)["chosen"] == good for _ in range(4000)]
    expected = 1 / (1 + math.exp(-1.5))
    assert abs(mean(picks) - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)
    swapped = [annotate(post, bad, good, scale, rng)["chosen"] == good for _ in range(4000)]
    assert abs(mean(swapped) - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_annotator_agreement_by_simulation():
    posts = POSTS[:100]
    rng = random.Random(1)
    pairs = [annotate(p, demonstration(p, 1), demonstration(p, 2), 0.15, rng) for p in posts for _ in range(40)]
    again = [annotate(p, demonstration(p, 1), demonstration(p, 2), 0.15, rng) for p in posts for _ in range(40)]
    agree = mean(
        a["chosen"] == b["chosen"] if a["chosen"] != a["rejected"] else 0.5 for a, b in zip(pairs, again, strict=True)
    )
    assert abs(agree - annotator_agreement(pairs, 0.15)) < 0.03


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        make_posts(3, split="dev")
    with pytest.raises(ValueError, match="n must be 0 or more"):
        make_posts(-1)
    assert make_posts(0) == []


@pytest.mark.parametrize("kind, left", [("no name", 0.75), ("no relation", 0.85), ("name", 0.55), ("question", 0.6)])
def test_an_edit_gets_one_thing_wrong(kind, left):
    """Each costs what the judge asks for that fact, and what it charges for a wrong one, and nothing else."""
    edits = [_edit(post, kind, random.Random(i)) for i, post in enumerate(POSTS)]
    assert {round(gold_score(post, text), 6) for post, text in zip(POSTS, edits)} == {left}


@pytest.mark.parametrize("kind", EDITS)
def test_no_edit_is_as_good_as_the_honest_summary(kind):
    assert all(gold_score(post, _edit(post, kind, random.Random(i))) < 1 for i, post in enumerate(POSTS))


def test_the_shipped_base_models_are_one_to_three_in_size_and_the_larger_models_unseen_text_better():
    parameters, losses = [], []
    for size in ("small", "medium"):
        parameters.append(load_policy(f"tiny:{size}").num_parameters())
        with open(ASSETS / f"base-{size}" / "curve.csv", newline="") as file:
            losses.append(float(list(csv.DictReader(file))[-1]["validation_loss"]))
    assert 2.5 < parameters[1] / parameters[0] < 3.5
    assert losses[1] < losses[0]


def test_the_shipped_weights_stay_within_twelve_megabytes_in_half_precision():
    files = list(ASSETS.glob("*/*.safetensors"))
    assert len(files) == 4  # two base models, SFT, reward model
    assert sum(file.stat().st_size for file in files) < 12e6
