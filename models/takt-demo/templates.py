"""The sentences of the operator: patterns.txt, and what goes around them.

`(a|b|)` chooses one alternative, `{slot}` is filled in by the generator. A leading `=` marks a
pattern that is no imperative, so "could you" does not fit before it; a `~` before that, one that
only the held-out set uses. Training and held-out
evaluation are split by whole patterns, never by alternatives within one.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path


def read_patterns(path: Path) -> dict[str, list[str]]:
    """The patterns of each `[group]` of the file, in its order."""
    patterns: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            patterns[line.strip("[]")] = group = []
        elif line and not line.startswith("#"):
            group.append(line)
    return patterns


MARKED = read_patterns(Path(__file__).parent / "patterns.txt")
PATTERNS = {group: [pattern.removeprefix("~") for pattern in patterns] for group, patterns in MARKED.items()}
HELD_OUT = {group: frozenset(pattern[1:] for pattern in patterns if pattern.startswith("~"))
            for group, patterns in MARKED.items()}
FRESH = {group: frozenset(patterns)
         for group, patterns in read_patterns(Path(__file__).parent / "patterns_fresh.txt").items()}
"""Patterns of the second held-out set."""

# REQUESTS go before imperatives only; "=" patterns take an address.
ADDRESSES = ["", "", "", "", "", "robot, ", "hey, ", "hey robot, ", "ok, ", "ok robot, ", "hi, ", "so, "]
REQUESTS = ["", "", "", "", "", "please ", "please ", "could you ", "can you ", "would you ", "could you please ",
            "can you please ", "kindly ", "go ahead and ", "would you please "]
CLOSINGS = ["", "", "", "", "", "", " please", ", please", " now", ", thanks", ", thank you", ", robot",
            " if you can", " right away"]
ENDINGS = ["", "", ".", ".", "!"]
QUESTION_ENDINGS = ["", "", "?", "?", "."]
QUESTION_WORDS = ("what ", "who ", "which ", "where ", "how ", "is ", "are ", "do ", "does ", "did ", "can ", "have ")
ARTICLES = ["the "] * 7 + [""]
OBJECT_ARTICLES = ["the "] * 6 + ["that "] * 2 + ["a ", ""]
CONTRACTIONS = [(r"\b(what|where|how|who) is\b", r"\1's"), (r"\blet us\b", "let's"), (r"\bI would\b", "I'd"),
                (r"\bit is\b", "it's")]

SPEED_PHRASES: dict[str, list[str]] = {
    "slow": ["slowly", "at low speed", "at a slow pace", "at slow speed", "carefully", "very slowly"],
    "normal": ["at normal speed", "at a normal pace", "with normal speed", "at medium speed"],
    "fast": ["fast", "quickly", "at full speed", "at high speed", "as fast as you can", "at a fast pace"],
}

ALTERNATION = re.compile(r"\(([^()]*)\)")


def expansions(pattern: str) -> list[str]:
    """Every sentence skeleton a pattern can produce, slots still unfilled."""
    parts = ALTERNATION.split(pattern.removeprefix("="))
    choices = [part.split("|") if idx % 2 else [part] for idx, part in enumerate(parts)]
    return [" ".join("".join(choice).split()) for choice in itertools.product(*choices)]


def words(pattern: str) -> set[str]:
    """The fixed words of a pattern, over all its alternatives."""
    return {word for text in expansions(pattern) for word in re.sub(r"\{\w+\}", " ", text).split()}
