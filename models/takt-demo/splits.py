"""What training never sees: held-out sentence patterns and held-out pairs of slot values.

The patterns, about a tenth of each group, were drawn at random among those whose words training
uses elsewhere, and are marked in patterns.txt; the pairs are drawn here.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import skills
from templates import FRESH, HELD_OUT, PATTERNS, expansions, words

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


def hold_out_pairs() -> frozenset[Pair]:
    """A tenth of every kind of pair; "me" as a person is always trained."""
    rng = random.Random(SPLIT_SEED)
    held_out: list[Pair] = []
    for first, second in PAIRS:
        pairs = list(itertools.product([first], VALUES[first], [second], VALUES[second]))
        held_out += rng.sample(pairs, round(HELD_OUT_SHARE * len(pairs)))
    return frozenset(held_out)


def make_splits(held_out_patterns: dict[str, frozenset[str]] = HELD_OUT) -> Splits:
    """Split, and prove that held-out sentence skeletons are new, but built from words of training."""
    training = Splits(HELD_OUT, hold_out_pairs())
    splits = Splits(held_out_patterns, training.pairs)
    vocabulary = {word for group in PATTERNS for pattern in training.training(group) for word in words(pattern)}
    for pattern in itertools.chain.from_iterable(held_out_patterns.values()):
        assert words(pattern) <= vocabulary, (pattern, words(pattern) - vocabulary)
    trained = {text for group in PATTERNS for pattern in training.training(group) for text in expansions(pattern)}
    held_out = {text for group in PATTERNS for pattern in splits.patterns[group] for text in expansions(pattern)}
    assert not trained & held_out, trained & held_out
    assert all(splits.patterns[group] for group in PATTERNS), "a group has no held-out pattern"
    return splits


def make_fresh_splits() -> Splits:
    """The second held-out set's patterns, which nothing was chosen by."""
    return make_splits(FRESH)
