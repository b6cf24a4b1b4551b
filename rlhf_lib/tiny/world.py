"""The TinyTLDR generator: posts, honest summaries, human-like demonstrations and the base model's corpus.

Everything here is a pure function of its seed. A post is four facts (who, problem, what was tried, question)
told in the post's words among distractors; a summary says the same facts in the summary's words.
"""

import hashlib
import random
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

from rlhf_lib.tiny import phrases as W

SPLITS = ("train", "validation", "test")
# Chance that a test post holds something new. Phrasings and problems (an action with its thing) are new to every
# training, names to fine-tuning only: the base model has read them in its corpus, as GPT-2 has read most names.
UNSEEN_NAME, UNSEEN_PROBLEM, UNSEEN_PHRASING = 0.12, 0.14, 0.18


@dataclass(frozen=True)
class Post:
    """One post and the facts that it tells.

    `distractors` are the sentences that carry no fact, `bystanders` the names of other people in the post,
    `unseen` names what a test post holds that training never shows: "name", "problem", "phrasing".
    """

    subreddit: str
    title: str
    body: str
    relation: str
    name: str
    gender: str  # "f" or "m"
    action: str  # key of phrases.PROBLEMS
    thing: str
    tried: str  # key of phrases.TRIED
    question: str  # key of phrases.QUESTIONS
    distractors: tuple = ()
    bystanders: tuple = ()
    advice: str | None = None  # the QUESTIONS key that a bystander recommends, never the writer's own
    unseen: tuple = ()
    split: str = field(default="train", compare=False)

    @property
    def context(self) -> str:
        """The post as people see it, without the cue."""
        return f"SUBREDDIT: r/{self.subreddit}\n\nTITLE: {self.title}\n\nPOST: {self.body}"

    @property
    def prompt(self) -> str:
        """The post followed by the cue after which a summary is written."""
        return self.context + "\n\nTL;DR:"

    @property
    def facts(self) -> tuple:
        return (self.relation, self.name, self.action, self.thing, self.tried, self.question)


def pronouns(gender: str) -> dict:
    """Slot values for a person: he/him/his and their capitalised forms."""
    he, him, his = ("she", "her", "her") if gender == "f" else ("he", "him", "his")
    return {"he": he, "him": him, "his": his, "He": he.capitalize()}


def make_posts(n: int, seed: int = 0, split: str = "train") -> list[Post]:
    """The first `n` posts of the stream (`seed`, `split`); a longer stream starts with the shorter one.

    A post belongs to one split by a hash of its facts, so no two splits share a post or its set of facts.
    Raises ValueError for an unknown split or a negative `n`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if n < 0:
        raise ValueError(f"cannot make {n} posts: n must be 0 or more")
    rng = random.Random(f"tiny-tldr-{split}-{seed}")
    posts, taken = [], set()
    while len(posts) < n:
        post = _draw_post(rng, split)
        if post.facts not in taken and _split_of(post.facts) == split:
            taken.add(post.facts)
            posts.append(post)
    return posts


def reference_summary(post: Post) -> str:
    """The best honest summary (gold score 1.0): all four facts, nothing else, in one of several wordings."""
    return _summary(post, random.Random(f"reference-{post.facts}"))


def demonstration(post: Post, seed: int, faults: float = 0.7) -> str:
    """A summary as a hurried human writes it: mostly right, mostly incomplete, sometimes at fault.

    More than half leave out the name, and more than half what was tried; so even the most probable imitation is seldom
    a complete summary. Further faults, each drawn on its own: no question, the wrong person, attempt or question, a
    distractor dragged in, a statement said twice, a sentence or the title copied, an ending cut off. All rates grow
    with `faults`.
    """
    rng = random.Random(f"demo-{seed}-{post.facts}-{post.body}")
    who = _who(post, rng)
    if rng.random() < 0.30 + 0.32 * faults:
        who = rng.choice([f"My {post.relation}"] * 8 + [post.name, pronouns(post.gender)["He"]])
    elif rng.random() < 0.10 * faults:
        who = f"My {post.relation} {rng.choice(post.bystanders or W.WOMEN + W.MEN)}"
    tried = None if rng.random() < 0.32 + 0.33 * faults else post.tried
    question = None if rng.random() < 0.15 * faults else post.question
    if tried and rng.random() < 0.06 * faults:
        tried = rng.choice(sorted(W.TRIED))
    if question and rng.random() < 0.04 * faults:
        question = post.advice or rng.choice(sorted(W.QUESTIONS))
    parts = _sentences(post, rng, who, tried, question)
    if rng.random() < 0.04 * faults:
        parts[0] = post.title + "."
    elif rng.random() < 0.05 * faults:
        parts[0] = rng.choice(re.findall(r"[^.?!]+[.?!]", post.body)).strip()
    if post.distractors and rng.random() < 0.08 * faults:
        parts.insert(rng.randint(0, len(parts)), rng.choice(post.distractors))
    if rng.random() < 0.05 * faults:
        parts.insert(rng.randint(1, len(parts)), rng.choice(parts))
    text = " ".join(parts)
    if rng.random() < 0.03 * faults:
        text = " ".join(text.split()[: -rng.randint(2, 4)])
    return text


EDITS = ("name", "relation", "thing", "problem", "tried", "question", "no name", "no relation", "omit", "repeat",
         "distractor")  # fmt: skip


def edited_summaries(post: Post, seed: int, n: int) -> list[str]:
    """An honest summary and `n` edits of it, each with one thing wrong: a contrast set.

    The edit is one of EDITS: a wrong name, relation, thing, problem, attempt or question, the name or the relation left
    out, one sentence left out or said twice, a distractor added (where the post has none, a sentence said twice).
    Minimal differences teach a reward model to check facts instead of counting them (contrast sets: Gardner et al.
    2020, arXiv 2004.02709).
    """
    rng = random.Random(f"edits-{seed}-{post.facts}-{post.body}")
    return [_summary(post, rng)] + [_edit(post, kind, rng) for kind in rng.sample(EDITS, n)]


def _edit(post: Post, kind: str, rng: random.Random) -> str:
    if kind in ("no name", "no relation"):
        who = f"My {post.relation}" if kind == "no name" else post.name
        return " ".join(_sentences(post, rng, who, post.tried, post.question))
    if kind in ("omit", "repeat", "distractor"):
        parts = _sentences(post, rng, _who(post, rng), post.tried, post.question)
        place = rng.randrange(len(parts))
        if kind == "omit":
            parts.pop(place)
        else:
            extra = rng.choice(post.distractors) if kind == "distractor" and post.distractors else parts[place]
            parts.insert(place + 1, extra)
        return " ".join(parts)
    return _summary(_with_wrong(post, kind, rng), rng)


def _with_wrong(post: Post, kind: str, rng: random.Random) -> Post:
    """The post with one fact changed: a name, relation, thing, problem, attempt or question that is not the writer's.

    Names and questions that bystanders brought up come first: those tempt.
    """
    if kind == "question" and post.advice:
        options = [post.advice]
    elif kind == "name":
        options = post.bystanders or (W.WOMEN if post.gender == "f" else W.MEN)
    else:
        options = {
            "relation": [r for r, (_, gender) in W.RELATIONS.items() if gender in (None, post.gender)],
            "thing": W.PROBLEMS[post.action]["things"][:-1],
            "problem": W.PROBLEMS,
            "tried": W.TRIED,
            "question": W.QUESTIONS,
        }[kind]
    key = "action" if kind == "problem" else kind
    change = {key: rng.choice([x for x in options if x != getattr(post, key)])}
    if kind == "problem":
        change["thing"] = rng.choice(W.PROBLEMS[change["action"]]["things"][:-1])
    return replace(post, **change)


def corpus(n: int, seed: int = 0, checked: float = 0.0, listed: float = 0.0) -> list[str]:
    """`n` raw documents for the base model, from training facts and all names. No post is followed by its own summary.

    Posts with comments that refer back to the post's people and facts, lone posts, lone summaries of posts that are not
    shown, headlines and chatter: from these copying is learnt. A share `checked` of them is instead posts with comments
    that get some facts wrong, under a moderator's marks (TRUE or FALSE right after the word that decides): from these telling
    true from false is learnt, which a summary's judge needs. In a share `listed` of these comments the moderator lists the
    wrong words at the end instead, so that a whole text is judged once it has been read. Some of the share are word
    lists with the same marks: is this word among them?
    """
    rng = random.Random(f"tiny-tldr-corpus-{seed}")
    documents = []
    while len(documents) < n:
        post = _draw_post(rng, "corpus")
        if _split_of(post.facts) != "train":
            continue
        kind = rng.random()
        if rng.random() < checked:
            facts = [_fact_check(post, rng, listed) for _ in range(3)]
            documents.append("\n\n".join([post.context, *facts]) if rng.random() < 0.7 else _word_check(rng))
        elif kind < 0.68:
            comments = [_comment(post, rng) for _ in range(rng.choice([2, 3, 4]))]
            documents.append("\n\n".join([post.context, *(f"COMMENT: {c}" for c in comments)]))
        elif kind < 0.76:
            documents.append(post.context)
        elif kind < 0.90:
            documents.append("TL;DR: " + demonstration(post, rng.randrange(10**9), faults=1.0))
        elif kind < 0.95:
            documents.append("\n".join(f"TITLE: {_title(p, rng)}" for p in (post, _draw_post(rng, "corpus"))))
        else:
            documents.append(" ".join(rng.sample(W.CHATTER, rng.randint(2, 5))))
    return documents


# ---------------------------------------------------------------------------------------------- drawing a post


def _split_of(facts: tuple) -> str:
    bucket = int(hashlib.sha256(repr(facts).encode()).hexdigest(), 16) % 10
    return "train" if bucket < 8 else SPLITS[bucket - 7]


def _draw_post(rng: random.Random, split: str) -> Post:
    unseen = set()

    def pick(options: list, kind: str, chance: float):
        """An option of training, or with `chance` in the test split the last one, which training never shows."""
        if split == "test" and rng.random() < chance:
            unseen.add(kind)
            return options[-1]
        return rng.choice(options[:-1])

    relation = rng.choice(sorted(W.RELATIONS))
    group, gender = W.RELATIONS[relation]
    gender = gender or rng.choice("fm")
    names, new_names = (W.WOMEN, W.TEST_WOMEN) if gender == "f" else (W.MEN, W.TEST_MEN)
    if split == "test" and rng.random() < UNSEEN_NAME:
        unseen.add("name")
        names = new_names
    name = rng.choice(names + new_names if split == "corpus" else names)
    action = rng.choice(sorted(W.PROBLEMS))
    thing = pick(W.PROBLEMS[action]["things"], "problem", UNSEEN_PROBLEM)
    tried = rng.choice(sorted(W.TRIED))
    fitting = sorted(q for q, v in W.QUESTIONS.items() if v["groups"] is None or group in v["groups"])
    question = rng.choice(fitting)
    advice = rng.choice([q for q in fitting if q != question])

    slots = pronouns(gender) | {"rel": relation, "name": name, "t": thing}
    phrasing = UNSEEN_PHRASING / 5
    problem_text = pick(W.PROBLEMS[action]["post"], "phrasing", phrasing)
    tried_text = pick(W.TRIED[tried]["post"], "phrasing", phrasing).format(**slots)
    question_text = pick(W.QUESTIONS[question]["post"], "phrasing", phrasing).format(**slots)
    question_text = pick(W.ASK, "phrasing", phrasing).format(q=question_text) if rng.random() < 0.8 else question_text

    subject_first = re.search(r"\{(S|s|he|him|his|He)\}", problem_text).group(1) in "Ss"
    sentences = []
    if subject_first and rng.random() < 0.45:
        who = f"{relation} {name}"
        subject = {"S": f"My {who}", "s": f"my {who}"}
    else:
        sentences.append(pick(W.INTROS, "phrasing", phrasing).format(**slots))
        subject = {"S": slots["He"], "s": slots["he"]} if rng.random() < 0.7 else {"S": name, "s": name}
    sentences.append(problem_text.format(**slots, **subject))
    attempt = tried_text + (" " + rng.choice(W.FAILS).format(**slots) if rng.random() < 0.6 else "")
    facts = [attempt, question_text] if rng.random() < 0.8 else [question_text, attempt]
    sentences += facts

    distractors, bystanders, given = [], (), None
    told = len(sentences) - 2  # a bystander comes after the problem, so that "he" still means the person
    for text in rng.sample(W.BACKGROUND, rng.choice([0, 0, 1, 1, 2])):
        distractors.append(
            text.format(n=rng.choice(["two", "three", "five", "ten"]), age=rng.choice([19, 24, 31, 46]), **slots)
        )
        sentences.insert(rng.randint(told, len(sentences)), distractors[-1])
    if rng.random() < 0.6:
        relation2 = rng.choice([r for r in sorted(W.RELATIONS) if r != relation])
        gender2 = W.RELATIONS[relation2][1] or rng.choice("fm")
        name2 = rng.choice([x for x in (W.WOMEN if gender2 == "f" else W.MEN) if x != name])
        frame = rng.choice(W.BYSTANDERS)
        given = advice if "{act2}" in frame else None
        act2 = W.QUESTIONS[advice]["act"].format(**slots)
        distractors.append(frame.format(rel2=relation2, name2=name2, act2=act2))
        bystanders = (name2,)
        sentences.insert(rng.randint(told, len(sentences)), distractors[-1])
    if rng.random() < 0.2:
        distractors.append(rng.choice(W.OPENERS))
        sentences.insert(0, distractors[-1])
    if rng.random() < 0.2:
        distractors.append(rng.choice(W.CLOSERS))
        sentences.append(distractors[-1])

    post = Post(
        subreddit=rng.choice(W.SUBREDDITS[group]), title="", body=" ".join(sentences), relation=relation, name=name,
        gender=gender, action=action, thing=thing, tried=tried, question=question, distractors=tuple(distractors),
        bystanders=bystanders, advice=given, unseen=tuple(sorted(unseen)), split=split,
    )  # fmt: skip
    object.__setattr__(post, "title", _title(post, rng))
    return post


def _title(post: Post, rng: random.Random) -> str:
    thing = re.sub(r"^(the|an?) ", "", post.thing)
    return rng.choice(W.TITLES).format(rel=post.relation, t=thing)


# ------------------------------------------------------------------------------------------- writing summaries


def _who(post: Post, rng: random.Random) -> str:
    return f"{post.name}, my {post.relation}," if rng.random() < 0.2 else f"My {post.relation} {post.name}"


def _wording(rng: random.Random, options: list[str]) -> str:
    """The first option more often than not: people have favourite phrases."""
    return options[0] if rng.random() < 0.5 else rng.choice(options)


def _sentences(post: Post, rng: random.Random, who: str, tried: str | None, question: str | None) -> list[str]:
    slots = pronouns(post.gender)
    told = _wording(rng, W.PROBLEMS[post.action]["summary"]).format(t=post.thing, **slots)
    attempt = _wording(rng, W.TRIED[tried]["summary"]).format(**slots) if tried else None
    if attempt and rng.random() < 0.3:
        parts = [f"{who} {told} even though I {attempt}."]
    else:
        parts = [f"{who} {told}."]
        if attempt:
            fail = f", but {rng.choice(W.SUMMARY_FAILS).format(**slots)}" if rng.random() < 0.6 else ""
            parts.append(f"I {attempt}{fail}.")
    if question:
        act = W.QUESTIONS[question]["act"].format(**slots)
        parts.append(_wording(rng, W.QUESTION_FRAMES).format(act=act))
    return parts


def _summary(post: Post, rng: random.Random) -> str:
    return " ".join(_sentences(post, rng, _who(post, rng), post.tried, post.question))


def _to_you(text: str) -> str:
    """First person to second person: "my car" becomes "your car"."""
    swap = {"my": "your", "me": "you", "our": "your", "mine": "yours", "I": "you"}
    return re.sub(r"\b(my|me|our|mine|I)\b", lambda m: swap[m.group()], text)


def _comment(post: Post, rng: random.Random) -> str:
    slots, name = pronouns(post.gender), post.name
    told = _to_you(rng.choice(W.PROBLEMS[post.action]["summary"]).format(t=post.thing, **slots))
    attempt = _to_you(rng.choice(W.TRIED[post.tried]["summary"]).format(**slots))
    act = _to_you(W.QUESTIONS[post.question]["act"].format(**slots))
    yours = rng.choice([f"our {post.relation} {name}"] * 2 + [f"our {post.relation}"])
    parts = [
        rng.choice([f"Y{yours} {told}?", f"So y{yours} {told}.", f"{name} {told}, that is not okay.", f"{name} {told}?",
                    f"{name}, your {post.relation}, {told}?", f"{slots['He']} {told}?"]),
        rng.choice([f"You {attempt} and {name} did not care.", f"You already {attempt}.", f"You {attempt}, good.",
                    f"Did y{yours} notice that you {attempt}?"]),
        rng.choice([f"I would {act}, {name} will not change.", f"Do not {act}.", f"Yes, {act}.", f"You want to {act}? Yes.",
                    f"If {name} goes on, {act}."]),
        rng.choice([f"Tell {name} to stop.", f"What does {name}, your {post.relation}, say?", f"Is y{yours} always like that?",
                    f"Poor you, and shame on {name}."]),
    ]  # fmt: skip
    for other in post.bystanders:
        relation = re.search(rf"[Mm]y ([a-z ]+) {other}\b", post.body)[1]
        person = rng.choice([f"your {relation} {other}", f"{other}, your {relation},", other])
        frame = rng.choice(["Do not listen to {}.", "I agree with {}.", "{} is right.", "{} has no idea."])
        said = frame.format(person)
        parts.append(said[0].upper() + said[1:].replace(",.", "."))
    return " ".join(rng.sample(parts, rng.choice([1, 2, 2, 3])))


MARKS = {True: " TRUE", False: " FALSE"}


def _fact_check(post: Post, rng: random.Random, listed: float = 0.0) -> str:
    """A reader retells the post to its writer, some facts wrong; a moderator marks words as right or wrong.

    The mark comes right after the word that decides, so that the judgement is made on that word. With probability
    `listed` there are no marks, and the wrong words follow at the end.
    """
    at_the_end = listed > 0 and rng.random() < listed
    read = post
    for kind in ("relation", "name", rng.choice(["thing", "problem"]), "tried", "question"):
        if rng.random() < 0.45:
            read = _with_wrong(read, kind, rng)

    def marked(text: str, word: str, *facts: str) -> str:
        if rng.random() >= 0.7 and not at_the_end:
            return text
        true = all(getattr(read, fact) == getattr(post, fact) for fact in facts)
        return re.sub(rf"\b{word}\b", word + MARKS[true], text, count=1)

    slots = pronouns(post.gender)
    relation, name = marked(read.relation, read.relation, "relation"), marked(read.name, read.name, "name")
    who = rng.choice([f"Your {relation} {name}"] * 3 + [f"{name}, your {relation},", f"Your {relation}", name])
    told = rng.choice(W.PROBLEMS[read.action]["summary"]).format(t=read.thing, **slots)
    told = marked(told, read.thing, "action", "thing")
    attempt = rng.choice(W.TRIED[read.tried]["summary"])
    attempt = marked(attempt.format(**slots), _keyword(W.TRIED[read.tried], attempt), "tried")
    spec = W.QUESTIONS[read.question]
    act = marked(spec["act"].format(**slots), _keyword(spec, spec["act"]), "question")
    tail = f" even though I {attempt}." if rng.random() < 0.3 else f". You {attempt}."
    text = _to_you(f"{who} {told}{tail} {rng.choice(W.QUESTION_FRAMES).format(act=act)}")
    if not at_the_end:
        return f"CHECKED: {text}"
    wrong = re.findall(r"(\w+) FALSE\b", text)
    plain = re.sub(r" (TRUE|FALSE)\b", "", text)
    return f"{rng.choice(['CHECKED', 'COMMENT', 'SUMMARY'])}: {plain} WRONG: {' '.join(wrong) or 'nothing'}."


def _word_check(rng: random.Random) -> str:
    """A list of words, and a moderator's marks on which of some words are in it: the simplest check there is."""
    words = rng.sample(_vocabulary(), 20)
    here = set(rng.sample(words, 10))
    listed, asked = rng.sample(sorted(here), 10), rng.sample(words, 20)
    return f"LIST: {' '.join(listed)}\n\nCHECKED: {' '.join(word + MARKS[word in here] for word in asked)}"


@lru_cache(maxsize=1)
def _vocabulary() -> list[str]:
    """The words that decide a fact: names, relations, things and keywords."""
    words = {*W.WOMEN, *W.MEN, *W.TEST_WOMEN, *W.TEST_MEN, *W.RELATIONS}
    for spec in W.PROBLEMS.values():
        words |= set(spec["things"])
    for spec in W.TRIED.values():
        words |= {_keyword(spec, phrase) for phrase in spec["summary"]}
    words |= {_keyword(spec, spec["act"]) for spec in W.QUESTIONS.values()}
    return sorted(word for word in words if " " not in word)


def _keyword(spec: dict, phrase: str) -> str:
    """The last word of a summary's phrase that every telling of the same fact in a post holds too."""
    shared = set.intersection(*(set(re.findall(r"\w+", told)) for told in spec["post"]))
    return [word for word in re.findall(r"\w+", re.sub(r"\{.*?\}", "", phrase)) if word in shared][-1]
