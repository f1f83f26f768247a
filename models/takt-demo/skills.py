"""The robot's world: vocabularies, the state in the system prompt, and the one rule book.

`answer` is the only place where a request and a state become a skill call. Every label of
the data set comes from it, so that the same situation never has two answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

COLOURS = "red blue green yellow black white orange grey brown purple".split()
NOUNS = (
    "cup box bottle book hammer screwdriver wrench bowl plate bag "
    "tray crate jar folder brush towel marker phone remote helmet"
).split()
PLACES = (
    "kitchen lab office lobby hallway storage workshop garage entrance reception warehouse "
    "shelf table bench conveyor counter elevator library garden sink"
).split() + ["loading bay", "meeting room"]
UNLISTED_PLACES = "roof basement attic balcony canteen cellar".split()
"""Places that no state lists."""
PERSONS = (
    "Anna Ben Carla David Emma Felix Grace Hugo Ivan Julia Kevin Laura Marco Nina Oscar Paula "
    "Robert Sofia Thomas Victor"
).split()
MACHINES = "pump valve motor panel sensor tank fan pipe gauge fuse cable compressor".split()
FIXTURES = "door drawer gate window cabinet locker fridge shutter lid hatch blinds".split()
SPEEDS = ["slow", "normal", "fast"]
UNITS = ["seconds", "minutes"]
TEXTS = [
    "hello", "good morning", "good night", "welcome", "thank you", "lunch is ready", "please step back",
    "the delivery is here", "I am on my way", "the meeting starts soon", "watch your step", "well done",
]
DEFAULT_PROMPTS = [
    None,
    "You are a robot.",
    "You are a robot. Answer with one skill call as JSON.",
    "You control a robot. Turn the operator's sentence into one skill call as JSON.",
]
"""System prompts without a state; None is no system message at all."""
WAIT_COUNTS = [2, 3, 4, 5, 8, 10, 12, 15, 20, 25, 30, 40, 45, 60, 90]
PHOTO_COUNTS = [2, 3, 4, 5, 6, 7, 8, 9, 10]
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten",
               12: "twelve", 15: "fifteen", 20: "twenty", 30: "thirty"}

SKILLS = (
    "goto pick place bring hand_over dock follow stop inspect report wait open close say clarify refuse"
).split()
REASONS = (
    "unsafe unsupported battery_low gripper_full gripper_empty not_held not_seen unknown_place unknown_state"
).split()
KEYS = "skill object place person speed count unit text topic value missing reason".split()

LOW_BATTERY_PERCENT = 10
"""Below this the robot refuses to travel anywhere but to its dock."""


@dataclass(frozen=True)
class Thing:
    """An object: a noun, and a colour where one is known or was said."""

    noun: str
    colour: str | None = None

    def __str__(self) -> str:
        return f"{self.colour} {self.noun}" if self.colour else self.noun

    def matches(self, seen: "Thing") -> bool:
        """Whether this description fits the object `seen`."""
        return self.noun == seen.noun and self.colour in (None, seen.colour)


@dataclass(frozen=True)
class State:
    """What the robot knows. A field that is None is missing from the prompt, and its checks are skipped."""

    battery: int | None = None
    at: str | None = None
    gripper: Thing | str | None = None
    """A thing, the word "empty", or unknown."""
    sees: tuple[Thing, ...] | None = None
    places: tuple[str, ...] | None = None
    people: str | None = None
    """"near" or "none"."""

    @property
    def held(self) -> Thing | None:
        return self.gripper if isinstance(self.gripper, Thing) else None

    def render(self) -> str:
        """The system prompt, one short sentence per known field."""
        sees = None if self.sees is None else ", ".join(map(str, self.sees)) or "nothing"
        places = None if self.places is None else ", ".join(self.places)
        battery = None if self.battery is None else f"{self.battery}%"
        fields = [("Battery", battery), ("At", self.at), ("Gripper", self.gripper), ("Sees", sees),
                  ("Places", places), ("People", self.people)]
        return " ".join(f"{name}: {value}." for name, value in fields if value is not None)


@dataclass(frozen=True)
class Request:
    """What the operator means, before the state has its say."""

    intent: str
    """A skill, or "unsafe" or "unsupported"."""
    slots: dict[str, object] = field(default_factory=dict)
    """`object` is a Thing or the word "it"; the others are their JSON values."""
    missing: str | None = None
    """The slot the sentence itself leaves open ("go there", "wait a bit")."""


def call(skill: str, **slots: object) -> dict[str, object]:
    """A skill call with its keys in canonical order."""
    values = {"skill": skill, **{key: str(v) if isinstance(v, Thing) else v for key, v in slots.items()}}
    return {key: values[key] for key in KEYS if values.get(key) is not None}


def to_json(answer: dict[str, object]) -> str:
    """The compact form the model is trained to write."""
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=False)


def refuse(reason: str) -> dict[str, object]:
    return call("refuse", reason=reason)


def clarify(missing: str) -> dict[str, object]:
    return call("clarify", missing=missing)


def answer(request: Request, state: State) -> dict[str, object]:
    """The one right answer to `request` in `state`: the first rule that applies wins."""
    slots = request.slots
    if request.intent in ("unsafe", "unsupported"):
        return refuse(request.intent)
    if slots.get("speed") == "fast" and state.people == "near":
        return refuse("unsafe")
    if request.missing:
        return clarify(request.missing)
    if request.intent == "report":
        return report(str(slots["topic"]), state)
    travels = request.intent in ("goto", "bring", "follow")
    if travels and state.battery is not None and state.battery < LOW_BATTERY_PERCENT:
        return refuse("battery_low")
    if request.intent in HANDLING:
        return HANDLING[request.intent](request, state)
    return refuse_unknown_place(slots, state) or call(request.intent, **slots)


def report(topic: str, state: State) -> dict[str, object]:
    """Answer a question about the state by copying the field it asks for."""
    battery = None if state.battery is None else f"{state.battery}%"
    value = {"battery": battery, "place": state.at, "gripper": state.gripper, "people": state.people}[topic]
    return refuse("unknown_state") if value is None else call("report", topic=topic, value=str(value))


def refuse_unknown_place(slots: dict[str, object], state: State) -> dict[str, object] | None:
    place = slots.get("place")
    known = place is None or state.places is None or place in state.places
    return None if known else refuse("unknown_place")


def take(request: Request, state: State) -> dict[str, object]:
    """pick and bring: the gripper must be free and the object seen and unmistakable."""
    slots, wanted, held = request.slots, request.slots["object"], state.held
    carries_it = request.intent == "bring" and held is not None and (wanted == "it" or wanted.matches(held))
    if carries_it:
        return refuse_unknown_place(slots, state) or call("bring", **{**slots, "object": held})
    if wanted == "it":
        return clarify("object")
    if held is not None:
        return refuse("gripper_full")
    if state.sees is not None:
        candidates = [thing for thing in state.sees if wanted.matches(thing)]
        if not candidates:
            return refuse("not_seen")
        if len(candidates) > 1:
            return clarify("object")
        wanted = candidates[0]
    return refuse_unknown_place(slots, state) or call(request.intent, **{**slots, "object": wanted})


def release(request: Request, state: State) -> dict[str, object]:
    """place and hand_over: the gripper must hold the object that was named."""
    slots, wanted, held = request.slots, request.slots["object"], state.held
    if state.gripper == "empty":
        return refuse("gripper_empty")
    if held is None and wanted == "it":
        return clarify("object")
    if held is not None:
        if wanted != "it" and not wanted.matches(held):
            return refuse("not_held")
        wanted = held
    return refuse_unknown_place(slots, state) or call(request.intent, **{**slots, "object": wanted})


HANDLING = {"pick": take, "bring": take, "place": release, "hand_over": release}
