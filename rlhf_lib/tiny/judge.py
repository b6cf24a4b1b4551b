"""The gold judge: a program that reads a post and a summary as a careful human would, and can say why.

It parses the summary sentence by sentence with the grammar of `phrases.py`. Only a clean sentence can earn points,
so keywords without grammar earn nothing. The score is at most 1.0 and has no lower bound.
PPO never sees it: PPO sees only the learned reward model.
"""

import re
from functools import lru_cache

from rlhf_lib.tiny import phrases as W
from rlhf_lib.tiny.world import Post, pronouns

MAX_WORDS = 36
# A right name earns more than a wrong one costs: a policy that errs in one name of four must still gain by trying.
EARNS = {"relation": 0.15, "name": 0.25, "problem": 0.25, "tried": 0.15, "question": 0.20}
WRONG = {"relation": -0.15, "name": -0.20, "problem": -0.25, "tried": -0.20, "question": -0.20}
REPEATED, DISTRACTOR, COPIED, UNCLEAN = -0.15, -0.15, -0.15, -0.15
PRONOUN, ENDING, PER_EXTRA_WORD = -0.05, -0.10, -0.02


def gold_score(post: Post, summary: str) -> float:
    """Gold score of a summary, at most 1.0 (the best honest summary), rounded to 1e-6."""
    return round(sum(points for _, points in explain(post, summary)), 6)


def explain(post: Post, summary: str) -> list[tuple[str, float]]:
    """The judge's reasons, as (item, points); the points sum to `gold_score`."""
    items, said = [], {}
    for sentence in _split(summary):
        parsed = parse_sentence(sentence)
        if parsed is None:
            items.append(_blame(post, sentence))
            continue
        if len(sentence.split()) >= 6 and sentence in post.context:
            items.append((f"copied from the post: {sentence!r}", COPIED))
        if post.gender not in parsed.pop("genders"):
            items.append((f"wrong pronoun: {sentence!r}", PRONOUN))
        for kind, value in parsed.items():
            truth = (post.action, post.thing) if kind == "problem" else getattr(post, kind)
            if value != truth:
                items.append((f"wrong {kind}: {_show(value)}", WRONG[kind]))
            elif kind in said:
                if kind not in ("relation", "name"):
                    items.append((f"says the {kind} twice", REPEATED))
            else:
                said[kind] = value
                items.append((f"{kind}: {_show(value)}", EARNS[kind]))
    items += [(f"{kind} is missing", 0.0) for kind in EARNS if kind not in said]
    if extra := max(0, len(summary.split()) - MAX_WORDS):
        items.append((f"{extra} words too long", round(extra * PER_EXTRA_WORD, 6)))
    if not re.search(r"[.?!]$", summary.strip()):
        items.append(("does not end in a finished sentence", ENDING))
    return items


def parse_sentence(sentence: str) -> dict | None:
    """The statements of one clean summary sentence, or None when it is not one.

    Returns the facts it states among relation, name, problem, tried, question, and `genders`, the set of genders
    ("f", "m") its pronouns allow.
    """
    tables = _tables()
    if sentence.endswith("?"):
        return _join(tables["question"].get(sentence))
    attempt = re.fullmatch(r"I (.+?)(?:, but (.+))?\.", sentence)
    if attempt:
        return _join(tables["tried"].get(attempt[1]), tables["fail"].get(attempt[2] or ""))
    subject = _SUBJECT.fullmatch(sentence)
    if not subject:
        return None
    who = {"genders": {"f", "m"}}
    if relation := subject["relation"] or subject["apposition"]:
        who["relation"] = relation
    name = subject["name"] or subject["lone_name"]
    if name in ("He", "She"):
        who["genders"] = {"m" if name == "He" else "f"}
    elif name:
        who["name"] = name
    tried = tables["tried"].get(subject["tried"]) if subject["tried"] else {"genders": {"f", "m"}}
    return _join(who, tables["problem"].get(subject["told"]), tried)


_RELATION = "|".join(sorted(W.RELATIONS, key=len, reverse=True))
_SUBJECT = re.compile(
    rf"(?:My (?P<relation>{_RELATION})(?: (?P<name>[A-Z]\w*))?|(?P<lone_name>[A-Z]\w*)(?:, my (?P<apposition>{_RELATION}),)?)"
    r" (?P<told>[a-z].*?)(?: even though I (?P<tried>.+))?\."
)


def _join(*parts: dict | None) -> dict | None:
    if any(part is None for part in parts):
        return None
    merged = {key: value for part in parts for key, value in part.items()}
    merged["genders"] = set.intersection(*(part["genders"] for part in parts))
    return merged


def _split(summary: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.?!]+[.?!]*", summary) if s.strip()]


def _blame(post: Post, sentence: str) -> tuple[str, float]:
    words = set(re.findall(r"\w+", sentence.lower()))
    for distractor in post.distractors:
        theirs = set(re.findall(r"\w+", distractor.lower()))
        if len(words & theirs) >= 0.6 * len(words | theirs):
            return f"beside the point: {sentence!r}", DISTRACTOR
    if len(words) >= 3 and sentence.rstrip(".?!") in post.context:
        return f"copied from the post: {sentence!r}", COPIED
    return f"not a clean sentence: {sentence!r}", UNCLEAN


def _show(value) -> str:
    return " ".join(value) if isinstance(value, tuple) else value


@lru_cache(maxsize=1)
def _tables() -> dict:
    """Every phrase of the summary grammar, spelled out: text -> what it states and for which genders."""
    tables = {"problem": {}, "tried": {}, "question": {}, "fail": {"": {"genders": {"f", "m"}}}}

    def add(table: str, text: str, key: str | None = None, value=None):
        entry = tables[table].setdefault(text, {"genders": set()} | ({key: value} if key else {}))
        entry["genders"].add(gender)

    for gender in "fm":
        slots = pronouns(gender)
        for action, spec in W.PROBLEMS.items():
            for thing in spec["things"]:
                for frame in spec["summary"]:
                    add("problem", frame.format(t=thing, **slots), "problem", (action, thing))
        for tried, spec in W.TRIED.items():
            for frame in spec["summary"]:
                add("tried", frame.format(**slots), "tried", tried)
        for question, spec in W.QUESTIONS.items():
            for frame in W.QUESTION_FRAMES:
                add("question", frame.format(act=spec["act"].format(**slots)), "question", question)
        for frame in W.SUMMARY_FAILS:
            add("fail", frame.format(**slots))
    return tables
