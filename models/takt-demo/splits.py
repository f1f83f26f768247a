"""What training never sees: held-out sentence patterns and held-out pairs of slot values."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import skills
from templates import PATTERNS, expansions, words

SPLIT_SEED = 2026
HELD_OUT_SHARE = 0.1

VALUES: dict[str, list] = {
    "colour": skills.COLOURS, "noun": skills.NOUNS, "place": skills.PLACES + skills.UNLISTED_PLACES,
    "person": skills.PERSONS, "speed": skills.SPEEDS, "machine": skills.MACHINES,
    "photos": skills.PHOTO_COUNTS, "wait": skills.WAIT_COUNTS, "unit": skills.UNITS, "text": skills.TEXTS,
}
PAIRS = [("colour", "noun"), ("noun", "place"), ("noun", "person"), ("place", "speed"), ("person", "speed"),
         ("machine", "photos"), ("wait", "unit"), ("text", "person")]

Pair = tuple[str, object, str, object]


@dataclass(frozen=True)
class Splits:
    """The held-out patterns of each group, and the held-out slot pairs."""

    patterns: dict[str, frozenset[str]]
    pairs: frozenset[Pair]

    def training(self, group: str) -> list[str]:
        return [pattern for pattern in PATTERNS[group] if pattern not in self.patterns[group]]


def fair_to_hold_out(pattern: str, group: str, held_out: set[str]) -> bool:
    """Whether training still teaches every word of `pattern`: in its group, or in two other groups."""
    counts = {word: 0 for word in words(pattern)}
    for other, patterns in PATTERNS.items():
        kept = [text for text in patterns if text != pattern and text not in held_out]
        vocabulary = set().union(*map(words, kept))
        for word in counts:
            if word in vocabulary:
                counts[word] += 2 if other == group else 1
    return all(count >= 2 for count in counts.values())


def hold_out_patterns() -> dict[str, frozenset[str]]:
    """About a tenth of each group's patterns, at least one."""
    held_out: set[str] = set()
    chosen: dict[str, frozenset[str]] = {}
    for group, patterns in PATTERNS.items():
        order = random.Random(f"{SPLIT_SEED} {group}").sample(patterns, len(patterns))
        wanted = max(1, round(HELD_OUT_SHARE * len(patterns)))
        mine: list[str] = []
        for pattern in order:
            if len(mine) < wanted and fair_to_hold_out(pattern, group, held_out):
                mine.append(pattern)
                held_out.add(pattern)
        chosen[group] = frozenset(mine)
    return chosen


def hold_out_pairs() -> frozenset[Pair]:
    """A tenth of every kind of pair; "me" as a person is always trained."""
    rng = random.Random(SPLIT_SEED)
    held_out: list[Pair] = []
    for first, second in PAIRS:
        pairs = list(itertools.product([first], VALUES[first], [second], VALUES[second]))
        held_out += rng.sample(pairs, round(HELD_OUT_SHARE * len(pairs)))
    return frozenset(held_out)


def make_splits() -> Splits:
    """Split, and prove that no held-out sentence skeleton is also a training one."""
    splits = Splits(hold_out_patterns(), hold_out_pairs())
    trained = {text for group in PATTERNS for pattern in splits.training(group) for text in expansions(pattern)}
    held_out = {text for group in PATTERNS for pattern in splits.patterns[group] for text in expansions(pattern)}
    assert not trained & held_out, trained & held_out
    assert all(splits.patterns[group] for group in PATTERNS), "a group has no held-out pattern"
    return splits
