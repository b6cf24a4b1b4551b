"""TinyTLDR: a small world in which every stage of RLHF runs for real on a laptop, with a judge that knows the truth."""

from rlhf_lib.tiny.annotator import annotate, annotator_agreement, preference_probability
from rlhf_lib.tiny.judge import explain, gold_score
from rlhf_lib.tiny.world import Post, corpus, demonstration, edited_summaries, make_posts, reference_summary

__all__ = [
    "Post",
    "annotate",
    "annotator_agreement",
    "corpus",
    "demonstration",
    "edited_summaries",
    "explain",
    "gold_score",
    "make_posts",
    "preference_probability",
    "reference_summary",
]
