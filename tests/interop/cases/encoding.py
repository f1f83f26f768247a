"""The two encoders of this suite, CycloneDDS's and `cdr.py`, checked against each other for every interface."""

import cdr
from definitions import ALL, FieldType
from interfaces import PRIMITIVES, interface

SAMPLES = {"string": "größer", "bool": True, "float32": 0.5, "float64": -1.25}


def some(kind: FieldType):
    """A value that is not zero."""
    if kind.bound is not None:
        count = int(kind.bound) if kind.bound.isdigit() else 1
        values = [some(FieldType(kind.base)) for _ in range(count)]
        # CycloneDDS reads these as bytes.
        return bytes(values) if kind.base in ("byte", "uint8") else values
    if kind.base in PRIMITIVES:
        return SAMPLES.get(kind.base, 7)
    return filled(interface(kind.base))


def filled(kind: type):
    return kind(**{name: some(field) for name, field in kind.definition.fields})


def both_encoders_write_the_same_bytes_and_read_them_back(_stage):
    assert len(ALL) > 60
    for name in ALL:
        kind = interface(name)
        for value in (kind(), filled(kind)):
            own, other = cdr.encode(value), value.serialize(use_version_2=False)
            assert own.rstrip(b"\0") == other.rstrip(b"\0"), (name, own.hex(), other.hex())
            assert cdr.encode(cdr.decode(kind, other)) == cdr.encode(kind.deserialize(own)) == own, name


CASES = []
# Of the suite itself: once.
CYCLONEDDS_CASES = [both_encoders_write_the_same_bytes_and_read_them_back]
