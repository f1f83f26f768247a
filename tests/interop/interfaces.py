"""ROS 2 interfaces as CycloneDDS types, read from the package's own definitions."""

import sys
import types
from dataclasses import dataclass
from pathlib import Path

from cyclonedds.idl import IdlStruct
from cyclonedds.idl.annotations import final
from cyclonedds.idl.types import array, float64, int32, int64, sequence, uint8, uint32, uint64

SRV = Path(__file__).resolve().parents[2] / "launch" / "takt_msgs" / "srv" / "Ask.srv"


def struct(typename: str, fields: list) -> type:
    """A CycloneDDS structure of `typename` with `(name, type)` fields."""
    name = typename.rsplit(".", 1)[-1]

    def fill(namespace):
        namespace["__annotations__"] = dict(fields)
        namespace["__module__"] = __name__

    made = dataclass(final(types.new_class(name, (IdlStruct,), {"typename": typename}, fill)))
    setattr(sys.modules[__name__], name, made)
    return made


Text = struct("std_msgs.msg.dds_.String_", [("data", str)])
Duration = struct("builtin_interfaces.msg.dds_.Duration_", [("sec", int32), ("nanosec", uint32)])
# The same bytes as a string, but any bytes: to send what a string may not hold.
TextOfBytes = struct("std_msgs.msg.dds_.String_", [("data", sequence[uint8])])

ROS_TYPES = {"string": str, "string[]": sequence[str], "bool": bool, "uint32": uint32, "float64": float64, "builtin_interfaces/Duration": Duration}


def srv_fields() -> tuple:
    """Fields of the request and of the reply, in order."""
    halves = SRV.read_text().split("\n---\n")
    lines = [[line.split("#")[0].split() for line in half.splitlines()] for half in halves]
    request, reply = ([(name, ROS_TYPES[kind]) for kind, name in filter(None, half)] for half in lines)
    return request, reply


# rmw_cyclonedds puts the client's identity and the call's number before the fields.
HEADER = [("client", uint64), ("sequence", int64)]
REQUEST_FIELDS, REPLY_FIELDS = srv_fields()
AskRequest = struct("takt_msgs.srv.dds_.Ask_Request_", HEADER + REQUEST_FIELDS)
AskReply = struct("takt_msgs.srv.dds_.Ask_Response_", HEADER + REPLY_FIELDS)
# rmw_fastrtps puts nothing before them.
PlainAskRequest = struct("takt_msgs.srv.dds_.Ask_Request_Plain_", REQUEST_FIELDS)
PlainAskReply = struct("takt_msgs.srv.dds_.Ask_Response_Plain_", REPLY_FIELDS)

Gid = struct("rmw_dds_common.msg.dds_.Gid_", [("data", array[uint8, 16])])
NodeEntities = struct(
    "rmw_dds_common.msg.dds_.NodeEntitiesInfo_",
    [
        ("node_namespace", str),
        ("node_name", str),
        ("reader_gid_seq", sequence[Gid]),
        ("writer_gid_seq", sequence[Gid]),
    ],
)
ParticipantEntities = struct(
    "rmw_dds_common.msg.dds_.ParticipantEntitiesInfo_",
    [("gid", Gid), ("node_entities_info_seq", sequence[NodeEntities])],
)

Time = struct("builtin_interfaces.msg.dds_.Time_", [("sec", int32), ("nanosec", uint32)])
Header = struct("std_msgs.msg.dds_.Header_", [("stamp", Time), ("frame_id", str)])
KeyValue = struct("diagnostic_msgs.msg.dds_.KeyValue_", [("key", str), ("value", str)])
DiagnosticStatus = struct(
    "diagnostic_msgs.msg.dds_.DiagnosticStatus_",
    [("level", uint8), ("name", str), ("message", str), ("hardware_id", str), ("values", sequence[KeyValue])],
)
DiagnosticArray = struct(
    "diagnostic_msgs.msg.dds_.DiagnosticArray_", [("header", Header), ("status", sequence[DiagnosticStatus])]
)
