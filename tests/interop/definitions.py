"""Interface definitions: Takt's, read from its interface package, and ROS 2's own."""

import re
from dataclasses import dataclass
from pathlib import Path

import standard

PACKAGE = Path(__file__).resolve().parents[2] / "launch" / "takt_msgs"
# What rosidl gives an interface without fields.
FILLER = "uint8 structure_needs_at_least_one_member"


@dataclass(frozen=True)
class FieldType:
    """`base`, once or many times."""

    base: str
    # None: one value; "": any number; "N": exactly N; "<=N": at most N.
    bound: str = None


@dataclass(frozen=True)
class Definition:
    """One message, or one part of a service or action."""

    name: str
    fields: tuple

    @property
    def dds_name(self) -> str:
        package, kind, name = self.name.split("/")
        return f"{package}::{kind}::dds_::{name}_"


def parse_field(line: str) -> tuple:
    kind, name = line.split()[:2]
    base, bound = re.fullmatch(r"([\w/]+)(?:\[(.*)\])?", kind).groups()
    return name, FieldType(base, bound)


def parse(name: str, text: str) -> Definition:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return Definition(name, tuple(parse_field(line) for line in [line for line in lines if line] or [FILLER]))


def parse_interface(name: str, text: str) -> list:
    """All definitions that the file of an interface makes, by ROS 2's rules."""
    parts = re.split(r"^---$", text, flags=re.MULTILINE)
    if "/msg/" in name:
        return [parse(name, text)]
    if "/srv/" in name:
        return [parse(f"{name}_{part}", half) for part, half in zip(("Request", "Response"), parts)]
    own = [parse(f"{name}_{part}", third) for part, third in zip(("Goal", "Result", "Feedback"), parts)]
    goal_id, stamp = "unique_identifier_msgs/UUID goal_id", "builtin_interfaces/Time stamp"
    wrapped = {
        "SendGoal_Request": f"{goal_id}\n{name}_Goal goal",
        "SendGoal_Response": f"bool accepted\n{stamp}",
        "GetResult_Request": goal_id,
        "GetResult_Response": f"int8 status\n{name}_Result result",
        "FeedbackMessage": f"{goal_id}\n{name}_Feedback feedback",
    }
    return own + [parse(f"{name}_{part}", text) for part, text in wrapped.items()]


def read_all() -> dict:
    texts = dict(re.findall(r"^=== (\S+)\n(.*?)(?=^===|\Z)", standard.TEXT, flags=re.MULTILINE | re.DOTALL))
    for kind in ("msg", "srv", "action"):
        for path in sorted((PACKAGE / kind).glob(f"*.{kind}")):
            texts[f"takt_msgs/{kind}/{path.stem}"] = path.read_text()
    return {made.name: made for name, text in texts.items() for made in parse_interface(name, text)}


ALL = read_all()


def definition(name: str) -> Definition:
    """By full name, or as a field names a message: without `msg`."""
    return ALL[name if name.count("/") == 2 else name.replace("/", "/msg/")]
