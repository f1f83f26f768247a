"""Plain CDR (XCDR version 1), little endian, from the definitions alone: what Fast DDS carries is encoded by neither Takt nor CycloneDDS."""

import struct

from definitions import FieldType
from interfaces import interface

FORMATS = {
    "bool": "?",
    "byte": "B",
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
ENCAPSULATION = bytes([0, 1, 0, 0])


def encode(value) -> bytes:
    """A message with its encapsulation header; `value` is an instance of one of `interfaces`' structures."""
    body = bytearray()
    put_fields(body, value.definition, value)
    return ENCAPSULATION + bytes(body)


def put_fields(body: bytearray, definition, value):
    for name, kind in definition.fields:
        put(body, kind, getattr(value, name))


def put(body: bytearray, kind: FieldType, value):
    if kind.bound is not None:
        if not kind.bound.isdigit():
            put_primitive(body, "I", len(value))
        for element in value:
            put(body, FieldType(kind.base), element)
    elif kind.base == "string":
        # Surrogates stand for bytes that are no UTF-8.
        text = value.encode("utf-8", "surrogateescape") + b"\0"
        put_primitive(body, "I", len(text))
        body += text
    elif kind.base in FORMATS:
        put_primitive(body, FORMATS[kind.base], value)
    else:
        put_fields(body, value.definition, value)


def put_primitive(body: bytearray, format_: str, value):
    body += bytes(-len(body) % struct.calcsize(format_))
    body += struct.pack(f"<{format_}", value)


def decode(kind: type, message: bytes):
    """A value of the structure `kind`; fails unless `message` is exactly one, but for the padding at its end."""
    assert message[:2] == ENCAPSULATION[:2], f"encapsulation {message[:4].hex()}"
    reader = Reader(message[4:])
    value = reader.structure(kind)
    assert len(reader.body) - reader.at < 4, f"{len(reader.body) - reader.at} bytes after the last field of {kind.__name__}"
    return value


class Reader:
    """Takes values off a message's body."""

    def __init__(self, body: bytes):
        self.body, self.at = body, 0

    def structure(self, kind: type):
        return kind(**{name: self.field(field) for name, field in kind.definition.fields})

    def field(self, kind: FieldType):
        if kind.bound is not None:
            count = int(kind.bound) if kind.bound.isdigit() else self.primitive("I")
            return [self.field(FieldType(kind.base)) for _ in range(count)]
        if kind.base == "string":
            length = self.primitive("I")
            text = self.body[self.at : self.at + length]
            assert len(text) == length and text.endswith(b"\0"), f"string {text!r} of {length} bytes"
            self.at += length
            return text[:-1].decode()
        if kind.base in FORMATS:
            return self.primitive(FORMATS[kind.base])
        return self.structure(interface(kind.base))

    def primitive(self, format_: str):
        size = struct.calcsize(format_)
        self.at += -self.at % size
        (value,) = struct.unpack_from(f"<{format_}", self.body, self.at)
        self.at += size
        return value
