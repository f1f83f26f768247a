"""Interfaces as CycloneDDS structures; their values are what all cases handle, whichever vendor carries them."""

import functools
import types
from dataclasses import dataclass, field

from cyclonedds.idl import IdlStruct
from cyclonedds.idl import types as idl
from cyclonedds.idl.annotations import final

from definitions import Definition, FieldType, definition

# What rmw_cyclonedds puts before a service's fields: the client's identity and the call's number.
HEADER = [("client", FieldType("uint64")), ("sequence", FieldType("int64"))]
PRIMITIVES = {"string": str, "bool": bool} | {
    name: getattr(idl, name)
    for name in "byte int8 uint8 int16 uint16 int32 uint32 int64 uint64 float32 float64".split()
}


def idl_type(kind: FieldType):
    base = PRIMITIVES.get(kind.base) or interface(kind.base)
    if kind.bound is None:
        return base
    if kind.bound == "":
        return idl.sequence[base]
    if kind.bound.startswith("<="):
        return idl.sequence[base, int(kind.bound[2:])]
    return idl.array[base, int(kind.bound)]


def zero(kind: FieldType):
    if kind.bound is not None:
        return [zero(FieldType(kind.base)) for _ in range(int(kind.bound) if kind.bound.isdigit() else 0)]
    if kind.base == "string":
        return ""
    if kind.base in PRIMITIVES:
        return 0.0 if kind.base.startswith("float") else 0
    return interface(kind.base)()


def struct(made_of: Definition, fields: list) -> type:
    """A dataclass with `fields`, all of which are zero unless they are given."""

    def fill(namespace):
        namespace["__annotations__"] = {name: idl_type(kind) for name, kind in fields}
        namespace["__module__"] = __name__
        for name, kind in fields:
            namespace[name] = field(default_factory=functools.partial(zero, kind))

    name = made_of.name.replace("/", "_")
    made = types.new_class(name, (IdlStruct,), {"typename": made_of.dds_name.replace("::", ".")}, fill)
    made = dataclass(final(made))
    made.definition = made_of
    return made


@functools.cache
def interface(name: str) -> type:
    """The structure of `package/kind/Name`; of a service's part `package/srv/Name_Request`."""
    made_of = definition(name)
    return struct(made_of, list(made_of.fields))


@functools.cache
def with_header(name: str) -> type:
    """A service's part as rmw_cyclonedds writes it."""
    made_of = definition(name)
    return struct(made_of, HEADER + list(made_of.fields))


def question(prompt: str, name: str = "takt_msgs/msg/Prompt", deadline_s: float = 60.0, **demands):
    """A question in one of its three shapes: `takt_msgs/msg/Prompt`, `takt_msgs/srv/Ask_Request`, `takt_msgs/action/Generate_Goal`."""
    sec = int(deadline_s // 1)
    deadline = interface("builtin_interfaces/Duration")(sec=sec, nanosec=round((deadline_s - sec) * 1e9))
    return interface(name)(prompt=prompt, deadline=deadline, **demands)


# Demands that keep the demo model busy for a second: it has to fill 900 tokens.
LONG = {"regex": "[a-z ]{1500,}", "max_tokens": 900}
