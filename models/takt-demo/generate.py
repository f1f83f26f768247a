"""Draw situations, sentences and their one right answer.

`python generate.py` writes the held-out sets to eval/heldout.jsonl and eval/fresh.jsonl; training draws its
examples from the same `Sampler` on the fly.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import skills
from skills import Request, State, Thing
from splits import PAIRS, Pair, Splits, make_fresh_splits, make_splits
from templates import (ADDRESSES, ALTERNATION, ARTICLES, CLOSINGS, CONTRACTIONS, ENDINGS, OBJECT_ARTICLES,
                       QUESTION_ENDINGS, QUESTION_WORDS, REQUESTS, SPEED_PHRASES)

GROUP_WEIGHTS = {
    "goto": 9, "goto_open": 2, "pick": 8, "place": 5, "place_here": 4, "bring": 5, "bring_person": 4, "bring_open": 2,
    "hand_over": 5, "hand_over_open": 2, "dock": 3, "follow": 4, "follow_open": 1.5, "stop": 3, "inspect": 3,
    "inspect_count": 3, "inspect_open": 1.5, "report_battery": 3, "report_place": 3, "report_gripper": 3,
    "report_people": 2, "wait": 4, "wait_open": 1.5, "open": 2.5, "close": 2.5, "open_open": 2,
    "say": 2.5, "say_person": 3, "say_open": 1.5, "unsafe": 4, "unsupported": 4,
}
EMPHASIS = {
    "goto": 3.0, "pick": 1.8, "place": 2.5, "place_here": 1.8, "bring": 3.8, "bring_person": 3.4, "hand_over": 4.0,
    "report_gripper": 1.6, "report_battery": 0.6, "report_place": 0.6, "report_people": 1.0, "follow": 0.6,
    "goto_open": 0.4, "bring_open": 0.4, "hand_over_open": 0.4, "dock": 0.4, "follow_open": 0.4, "inspect": 0.4,
    "inspect_count": 0.3, "inspect_open": 0.4, "wait": 0.4, "wait_open": 0.4, "open": 0.4, "close": 0.4,
    "open_open": 0.4, "say": 0.4, "say_person": 0.6, "say_open": 0.4, "stop": 1.0, "unsafe": 0.8, "unsupported": 0.8,
}
"""How much more often training, but not the held-out set, draws a kind of sentence: what is hard, more often."""
KNOWN_SHARE, TRAINING_KNOWN_SHARE = 0.78, 0.6
"""How often a sentence names what the state lists; training sees more that it does not list."""
BARE_SHARE, TRAINING_BARE_SHARE = 0.45, 0.6
"""How often a sentence names a thing without its colour."""
INVENTED_SHARE = 0.45
"""How many training situations speak of invented things and places, so that the model copies what
it reads instead of learning by heart which words go together."""
MISSING = {"goto_open": ("goto", "place"), "bring_open": ("bring", "place"), "hand_over_open": ("hand_over", "person"),
           "follow_open": ("follow", "person"), "inspect_open": ("inspect", "object"), "wait_open": ("wait", "count"),
           "open_open": ("open", "object"), "say_open": ("say", "text")}
INTENTS = {"place_here": "place", "bring_person": "bring", "inspect_count": "inspect", "say_person": "say"}


@dataclass(frozen=True)
class Example:
    """One exchange: system prompt (None: no system message), sentence, canonical JSON, and its slot pairs."""

    system: str | None
    user: str
    answer: str
    group: str
    pairs: frozenset[Pair]


class Sampler:
    """Draws examples; a training sampler sees neither held-out patterns nor held-out pairs."""

    def __init__(self, splits: Splits, rng: random.Random, held_out_patterns: bool = False,
                 held_out_pairs: bool = False, typo_rate: float = 0.12,
                 emphasis: dict[str, float] | None = None, known_share: float = KNOWN_SHARE,
                 bare_share: float = BARE_SHARE, invented_share: float = 0.0) -> None:
        self.known_share = known_share
        self.bare_share = bare_share
        self.invented_share = invented_share
        self.invents = False
        self.weights = {group: weight * (emphasis or {}).get(group, 1) for group, weight in GROUP_WEIGHTS.items()}
        self.typo_rate = typo_rate
        self.splits = splits
        self.rng = rng
        self.held_out_pairs = held_out_pairs
        self.patterns = {group: sorted(splits.patterns[group]) if held_out_patterns else splits.training(group)
                         for group in GROUP_WEIGHTS}

    def allowed(self, *pair: object) -> bool:
        return self.held_out_pairs or pair not in self.splits.pairs

    def invented(self) -> str | None:
        """An invented word, in half the places of a situation that has any."""
        return invented_word(self.rng) if self.invents and self.rng.random() < 0.5 else None

    def listed_places(self) -> list[str]:
        places = self.rng.sample(skills.PLACES, self.rng.randint(2, 5))
        return [self.invented() or place for place in places]

    def thing(self, noun: str | None = None) -> Thing:
        noun = noun or self.invented() or self.rng.choice(skills.NOUNS)
        if colour := self.invented():
            return Thing(noun, colour)
        colours = [colour for colour in skills.COLOURS if self.allowed("colour", colour, "noun", noun)]
        return Thing(noun, self.rng.choice(colours))

    def state(self) -> State:
        """A situation with every field known."""
        rng = self.rng
        sees = [self.thing() for _ in range(rng.choice([0, 1, 2, 2, 3, 3]))]
        if sees and rng.random() < 0.35:
            sees.append(self.thing(sees[0].noun))
        gripper: Thing | str = self.thing() if rng.random() < 0.5 else "empty"
        rng.shuffle(sees)
        return State(
            battery=rng.randint(1, 9) if rng.random() < 0.12 else rng.randint(10, 100),
            at=self.invented() or rng.choice(skills.PLACES),
            gripper=gripper,
            sees=tuple(thing for thing in dict.fromkeys(sees) if thing != gripper),
            places=tuple(self.listed_places()),
            people="near" if rng.random() < 0.4 else "none",
        )

    def situation(self) -> tuple[str | None, State]:
        """A system prompt and the state it tells; sometimes fields, or all of them, are left out."""
        self.invents = self.invented_share > 0 and self.rng.random() < self.invented_share
        if self.rng.random() < 0.08:
            return self.rng.choice(skills.DEFAULT_PROMPTS), State()
        state = self.state()
        if self.rng.random() < 0.1:
            fields = self.rng.sample(["battery", "at", "gripper", "sees", "places", "people"], self.rng.randint(1, 2))
            state = replace(state, **dict.fromkeys(fields))
        return state.render(), state

    def group(self, state: State) -> str:
        """A kind of sentence, less often one whose refusal the gripper already decides."""
        weights = dict(self.weights)
        busy = state.held is not None
        for name in ("pick", "bring", "bring_person"):
            weights[name] *= 0.4 if busy else 1
        for name in ("place", "place_here", "hand_over"):
            weights[name] *= 1 if busy else 0.4
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def object(self, state: State, group: str) -> tuple[Thing | str, str]:
        """What the sentence asks for, and its wording."""
        rng = self.rng
        if rng.random() < (0.2 if group in ("place", "place_here", "bring", "hand_over", "pick") else 0.05):
            return "it", rng.choice(["it", "it", "that", "this", "that thing"])
        releases = group in ("place", "place_here", "hand_over")
        known = [state.held] if releases and state.held else list(state.sees or ())
        if group.startswith("bring") and state.held and rng.random() < 0.5:
            known = [state.held]
        thing = rng.choice(known) if known and rng.random() < self.known_share else self.thing()
        wanted = Thing(thing.noun) if rng.random() < self.bare_share else thing
        return wanted, rng.choice(OBJECT_ARTICLES) + str(wanted)

    def place(self, state: State) -> str:
        if state.places and self.rng.random() < self.known_share:
            return self.rng.choice(state.places)
        if word := self.invented():
            return word
        unlisted = self.rng.random() < 0.15
        return self.rng.choice(skills.UNLISTED_PLACES if unlisted else skills.PLACES)

    def person(self, group: str) -> tuple[str, str]:
        takes_me = group in ("bring_person", "hand_over", "follow", "say_person")
        if takes_me and self.rng.random() < 0.2:
            return "operator", "me"
        name = self.rng.choice(skills.PERSONS)
        return name, name

    def fill(self, group: str, pattern: str, state: State) -> tuple[str, dict[str, object]]:
        """The sentence of `pattern` with its slots filled, and their JSON values."""
        rng = self.rng
        text = ALTERNATION.sub(lambda match: rng.choice(match[1].split("|")), pattern.removeprefix("="))
        slots: dict[str, object] = {}
        wording: dict[str, str] = {}
        for name in re.findall(r"\{(\w+)\}", text):
            kind = name.rstrip("2")
            if kind == "object":
                slots[name], wording[name] = self.object(state, group)
            elif kind == "place":
                slots[name] = self.place(state)
                wording[name] = rng.choice(ARTICLES) + slots[name]
            elif kind == "person":
                slots[name], wording[name] = self.person(group)
            elif kind in ("machine", "fixture"):
                slots[name] = rng.choice(skills.MACHINES if kind == "machine" else skills.FIXTURES)
                wording[name] = rng.choice(ARTICLES) + slots[name]
            elif kind == "count":
                slots[name] = rng.choice(skills.PHOTO_COUNTS if group == "inspect_count" else skills.WAIT_COUNTS)
                in_words = slots[name] in skills.COUNT_WORDS and rng.random() < 0.4
                wording[name] = skills.COUNT_WORDS[slots[name]] if in_words else str(slots[name])
            else:
                values = {"unit": skills.UNITS, "text": skills.TEXTS, "number": list(range(2, 50))}[kind]
                slots[name] = rng.choice(values)
                quoted = kind == "text" and rng.random() < 0.2
                wording[name] = f'"{slots[name]}"' if quoted else str(slots[name])
        return re.sub(r"\ba (?=[aeiou])", "an ", text.format(**wording)), slots

    def decorate(self, text: str, pattern: str, group: str) -> str:
        """Politeness, capitals, punctuation and typos around a bare sentence."""
        rng = self.rng
        closing = "" if group.startswith("say") else rng.choice(CLOSINGS)
        request = "" if pattern.startswith("=") else rng.choice(REQUESTS)
        asks = request.startswith(("can", "could", "would")) or text.startswith(QUESTION_WORDS)
        for full, short in CONTRACTIONS:
            if rng.random() < 0.4:
                text = re.sub(full, short, text)
        text = " ".join(f"{rng.choice(ADDRESSES)}{request}{text}{closing}".split())
        if rng.random() < self.typo_rate:
            text = misspell(text, rng)
        if rng.random() < 0.15:
            text = text.lower()
        elif rng.random() < 0.5:
            text = text[0].upper() + text[1:]
        return text + rng.choice(QUESTION_ENDINGS if asks else ENDINGS)

    def example(self, system: str | None, state: State) -> Example:
        """One exchange about the situation, redrawn until its slot pairs are allowed."""
        while True:
            group = self.group(state)
            pattern = self.rng.choice(self.patterns[group])
            text, slots = self.fill(group, pattern, state)
            slots = {name.replace("machine", "object").replace("fixture", "object"): v for name, v in slots.items()}
            if group in ("goto", "follow") and self.rng.random() < 0.35:
                slots["speed"] = self.rng.choice(skills.SPEEDS)
                phrase = self.rng.choice(SPEED_PHRASES[slots["speed"]])
                text = f"{phrase} {text}" if self.rng.random() < 0.2 else f"{text} {phrase}"
            pairs = slot_pairs(slots, group)
            if not self.held_out_pairs and pairs & self.splits.pairs:
                continue
            answer = skills.answer(request_of(group, slots), state)
            text = self.decorate(text, pattern, group)
            return Example(system, text, skills.to_json(answer), group, pairs | answer_pairs(answer))


def request_of(group: str, slots: dict[str, object]) -> Request:
    """The meaning behind a filled pattern."""
    if group in ("unsafe", "unsupported"):
        return Request(group)
    if group in MISSING:
        return Request(MISSING[group][0], slots, MISSING[group][1])
    if group.startswith("report_"):
        return Request("report", {"topic": group.removeprefix("report_")})
    return Request(INTENTS.get(group, group), slots)


def slot_pairs(slots: dict[str, object], group: str) -> frozenset[Pair]:
    """The pairs of slot values a sentence combines, in the vocabulary of `splits.PAIRS`."""
    values = dict(slots)
    thing = values.pop("object", None)
    if isinstance(thing, Thing):
        values |= {"noun": thing.noun, "colour": thing.colour}
    elif group.startswith("inspect"):
        values["machine"] = thing
    count = "photos" if group == "inspect_count" else "wait"
    values[count] = values.pop("count", None)
    return frozenset((first, values[first], second, values[second]) for first, second in PAIRS
                     if values.get(first) is not None and values.get(second) is not None)


def answer_pairs(answer: dict[str, object]) -> frozenset[Pair]:
    """The colour and noun an answer copies from the state."""
    copied = str(answer.get("object") or answer.get("value") or "")
    found = re.findall(rf"\b({'|'.join(skills.COLOURS)}) ({'|'.join(skills.NOUNS)})\b", copied)
    return frozenset(("colour", colour, "noun", noun) for colour, noun in found)


def invented_word(rng: random.Random) -> str:
    """A word that no vocabulary has: two or three syllables."""
    syllables = ("".join(rng.choice(part) for part in ("bdfgklmnprstvz", "aeiou", ["", "", "l", "n", "r", "s"]))
                 for _ in range(rng.choice([2, 2, 3])))
    return "".join(syllables)


def misspell(text: str, rng: random.Random) -> str:
    """Swap, drop or double one inner letter of a word with at least four letters."""
    candidates = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not candidates:
        return text
    word = rng.choice(candidates)
    idx = rng.randrange(word.start() + 1, word.end() - 1)
    edits = [text[:idx] + text[idx + 1] + text[idx] + text[idx + 2:], text[:idx] + text[idx + 1:],
             text[:idx] + text[idx] + text[idx:]]
    return rng.choice(edits)


def held_out_set(splits: Splits, num_per_split: int, seed: int) -> list[dict[str, object]]:
    """Distinct held-out lines: new patterns, new pairs, and both at once."""
    lines: list[dict[str, object]] = []
    for split in ("template", "combination", "both"):
        sampler = Sampler(splits, random.Random(f"{seed} {split}"), split != "combination", split != "template")
        seen: set[tuple] = set()
        while len(seen) < num_per_split:
            example = sampler.example(*sampler.situation())
            key = (example.system, example.user)
            if key in seen or (split != "template" and not example.pairs & splits.pairs):
                continue
            seen.add(key)
            lines.append({"system": example.system, "user": example.user, "answer": example.answer, "split": split,
                          "skill": json.loads(example.answer)["skill"], "group": example.group})
    return lines


def fresh_set(num_lines: int, seed: int) -> list[dict[str, object]]:
    """Distinct lines of patterns that nothing was chosen by, with all pairs of slot values."""
    sampler = Sampler(make_fresh_splits(), random.Random(f"{seed} fresh"), held_out_patterns=True, held_out_pairs=True)
    lines: dict[tuple, dict[str, object]] = {}
    while len(lines) < num_lines:
        example = sampler.example(*sampler.situation())
        lines[example.system, example.user] = {
            "system": example.system, "user": example.user, "answer": example.answer, "split": "fresh",
            "skill": json.loads(example.answer)["skill"], "group": example.group}
    return list(lines.values())


def write_lines(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines)} lines, {dict(Counter(line['skill'] for line in lines).most_common())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "eval")
    parser.add_argument("--num-per-split", type=int, default=800)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    write_lines(args.out / "heldout.jsonl", held_out_set(make_splits(), args.num_per_split, args.seed))
    write_lines(args.out / "fresh.jsonl", fresh_set(args.num_per_split, args.seed))


if __name__ == "__main__":
    main()
