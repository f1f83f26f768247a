"""Runs an exported decoder in onnx's reference evaluator on recorded inputs, and compares with recorded outputs.

    python evaluate.py EXPORT RECORD CHECKS

RECORD is a safetensors file: `N.in.NAME` and `N.out.NAME` for run N. CHECKS is the folder of `check.py`, which has the operator of TensorRT's own.
Prints one JSON object: of each output the largest difference over all runs, relative to its largest value.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64, "BOOL": np.bool_,
          "F8_E4M3": ml_dtypes.float8_e4m3fn}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    tensors = {}
    for name, facts in header.items():
        begin, end = facts["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], DTYPES[facts["dtype"]]).reshape(facts["shape"])
    return tensors


def main() -> None:
    export, record, checks = map(Path, sys.argv[1:4])
    sys.path.insert(0, str(checks))
    from check import TRT_FP4DynamicQuantize

    evaluator = ReferenceEvaluator(onnx.load(export / "model.onnx"), new_ops=[TRT_FP4DynamicQuantize])
    recorded, errors = read_safetensors(record), {}
    runs = sorted({int(name.split(".")[0]) for name in recorded})
    assert runs, "nothing was recorded"
    for run in runs:
        part = lambda kind: {name.split(".", 2)[2]: value for name, value in recorded.items() if name.startswith(f"{run}.{kind}.")}
        found = part("out")
        for name, expected in zip(found, evaluator.run(list(found), part("in"))):
            assert found[name].shape == expected.shape and found[name].dtype == expected.dtype, (name, expected.dtype)
            ours, theirs = found[name].astype(np.float64), expected.astype(np.float64)
            assert np.isfinite(theirs).all() and np.isfinite(ours).all(), f"{name} of run {run} is not finite"
            error = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))
            errors[name] = max(errors.get(name, 0.0), error)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
