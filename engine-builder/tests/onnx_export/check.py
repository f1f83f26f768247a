"""Runs exported models step by step, and compares what comes out with what the CPU backend gave.

    python check.py EXPORT CASE reference|onnxruntime
    python check.py EXPORT - file
    python check.py EXPORT PLAIN codes

EXPORT is a folder of `takt export`; CASE has `case.json` (the steps) and `expected.safetensors` (the CPU backend's numbers). Prints one JSON object:
the largest relative error of each quantity, or `{"unsupported": …}` when the runtime has no kernel for an operator. With `file` nothing is run, the files alone are looked at. With `codes` the keys
and values that EXPORT stores in 8 bits are held, code by code, against those of PLAIN, an export of the same engine with a cache in 32 bits; then with scales
that are far too small, so that most saturate.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f8e4m3": ml_dtypes.float8_e4m3fn}
PAGE = 4096


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    tensors = {}
    for name, facts in header.items():
        begin, end = facts["data_offsets"]
        tensors[name] = np.frombuffer(data[begin:end], np.float32).reshape(facts["shape"])
    return tensors


class TRT_FP4DynamicQuantize(OpRun):
    """TensorRT's operator, after its documentation: blocks of 16 along the last axis, an E4M3 scale each."""

    op_domain = "trt"

    def _run(self, x, scale, axis=None, block_size=None, scale_type=None):
        assert axis in (-1, x.ndim - 1) and block_size == 16 and scale_type == onnx.TensorProto.FLOAT8E4M3FN
        blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, 16)
        steps = np.abs(blocks).max(axis=-1) / 6 / np.float32(scale)
        steps = np.clip(np.where(steps == 0, 1, steps), 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
        codes = np.clip(blocks / (steps.astype(np.float32) * np.float32(scale))[..., None], -6, 6)
        return codes.reshape(x.shape).astype(ml_dtypes.float4_e2m1fn), steps


class Runner:
    """One model in one runtime."""

    def __init__(self, folder: Path, facts: dict, runtime: str) -> None:
        self.facts, path = facts, folder / facts["file"]
        self.dims = {port["name"]: port for port in facts["inputs"]}
        if runtime == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            # Optimized, onnxruntime fuses FP8 Q/DQ with products into operators that it refuses itself.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            self.call, self.limits = lambda names, feeds: run_onnxruntime(session, names, feeds), {}
        else:
            model = onnx.load(path)
            self.limits = activation_limits(model)
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.limits)
            self.call = ReferenceEvaluator(model, new_ops=[TRT_FP4DynamicQuantize]).run
        self.shares: list[float] = []

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [port["name"] for port in self.facts["outputs"]] + list(self.limits)
        assert set(feeds) == set(self.dims), (sorted(set(feeds) ^ set(self.dims)))
        for name, value in feeds.items():
            port = self.dims[name]
            assert len(value.shape) == len(port["shape"]), (name, value.shape)
            for have, want in zip(value.shape, port["shape"]):
                assert isinstance(want, str) or have == want, (name, value.shape, port["shape"])
        outputs = dict(zip(names, self.call(names, feeds)))
        for name, limit in self.limits.items():
            self.shares.append(float(np.abs(outputs[name].astype(np.float32)).max()) / limit)
        return outputs


def run_onnxruntime(session, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """NumPy has no 8-bit floats: onnxruntime is given their codes, with what they are, and gives codes back."""
    import onnxruntime

    fp8 = onnx.TensorProto.FLOAT8E4M3FN
    if all(value.dtype != ml_dtypes.float8_e4m3fn for value in feeds.values()):
        return session.run(names, feeds)
    of = onnxruntime.OrtValue
    values = {
        name: of.ortvalue_from_numpy_with_onnx_type(value.view(np.uint8), fp8)
        if value.dtype == ml_dtypes.float8_e4m3fn
        else of.ortvalue_from_numpy(value)
        for name, value in feeds.items()
    }
    found = session.run_with_ort_values(names, values)
    return [
        value.numpy().view(ml_dtypes.float8_e4m3fn) if "float8e4m3fn" in value.data_type() else value.numpy()
        for value in found
    ]


def activation_limits(model: onnx.ModelProto) -> dict[str, float]:
    """What is quantized while running, and the largest value its scale takes."""
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    limits = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "TRT_FP4DynamicQuantize"):
            scale = float(onnx.numpy_helper.to_array(scales[node.input[1]]))
            limits[node.input[0]] = scale * 448 * (1 if node.op_type == "QuantizeLinear" else 6)
    return limits


class Cache:
    """Keys and values of several lanes as the contract describes them, filled with numbers that nobody may see."""

    def __init__(self, contract: dict, model: dict, num_lanes: int) -> None:
        self.in_place = contract["form"] == "operators"
        names = [port["name"] for port in model["inputs"] if port["name"].startswith("past_key_values.")]
        shapes = {port["name"]: port["shape"] for port in model["inputs"]}
        self.capacity = shapes[names[0]][2] if self.in_place else contract["capacity"] + 128
        types = {port["name"]: FLOATS[port["type"]] for port in model["inputs"] if port["name"] in names}
        assert set(types.values()) == {FLOATS["f8e4m3" if model.get("cache_scales") else contract["compute"]]}
        # The largest number of 8 bits is 448.
        self.rows = {
            name: np.full((num_lanes, shapes[name][1], self.capacity, shapes[name][3]), 448 if model.get("cache_scales") else 1000, dtype)
            for name, dtype in types.items()
        }
        self.lens = [0] * num_lanes

    def feeds(self, lanes: list[int]) -> dict[str, np.ndarray]:
        feeds = {}
        until = self.capacity if self.in_place else max(self.lens[lane] for lane in lanes)
        for name, rows in self.rows.items():
            feeds[name] = np.ascontiguousarray(rows[lanes, :, :until])
        if self.in_place:
            feeds["write_indices"] = np.array([self.lens[lane] for lane in lanes], np.int64)
        return feeds

    def take(self, lanes: list[int], outputs: dict[str, np.ndarray]) -> None:
        for name in self.rows:
            present = outputs[name.replace("past_key_values", "present")]
            for place, lane in enumerate(lanes):
                if self.in_place:
                    self.rows[name][lane] = present[place]
                else:
                    start = self.lens[lane]
                    self.rows[name][lane, :, start : start + present.shape[2]] = present[place]

    def keep(self, lane: int, path: list[int]) -> None:
        start = self.lens[lane]
        for rows in self.rows.values():
            rows[lane, :, start : start + len(path)] = rows[lane, :, [start + node for node in path]].transpose(1, 0, 2)
        self.lens[lane] = start + len(path)


def depths(parents: list[int]) -> list[int]:
    found: list[int] = []
    for node, parent in enumerate(parents):
        found.append(0 if node == parent else found[parent] + 1)
    return found


def tree_mask(parents: list[int]) -> np.ndarray:
    seen = np.zeros((len(parents), len(parents)), bool)
    for node, parent in enumerate(parents):
        if node != parent:
            seen[node] = seen[parent]
        seen[node, node] = True
    return seen


def inputs_of(runner: Runner, cache: Cache, lanes: list[int], tokens: list[list[int]], parents: list[list[int]]):
    """Feeds of one step: shorter lanes are padded behind, with tokens that nobody may see."""
    batch, sequence = len(lanes), max(map(len, tokens))
    ids = np.zeros((batch, sequence), np.int64)
    positions, feeds = np.zeros_like(ids), cache.feeds(lanes)
    past = 0 if cache.in_place else next(iter(v for k, v in feeds.items() if k.startswith("past"))).shape[2]
    longest = max(cache.lens[lane] for lane in lanes) + sequence
    kv_len = min(longest + 3, cache.capacity) if cache.in_place else past + sequence
    mask, kv_positions = np.zeros((batch, sequence, kv_len), bool), np.zeros((batch, kv_len), np.int64)
    for place, lane in enumerate(lanes):
        count, start = len(tokens[place]), cache.lens[lane]
        ids[place, :count] = tokens[place]
        chain = list(range(count, sequence))
        tree = parents[place] + [max(node - 1, 0) for node in chain]
        positions[place] = start + np.array(depths(tree))
        first = start if cache.in_place else past
        mask[place, :, :start] = True
        mask[place, :, first : first + sequence] = tree_mask(tree)
        kv_positions[place, :start] = np.arange(start)
        kv_positions[place, first : first + sequence] = positions[place]
        if cache.in_place and "attention_mask" not in runner.dims:
            # Rows tell the positions of keys here; the padding's own matter to nobody, not even the smallest.
            positions[place, count:] = 0
    feeds |= {"input_ids": ids, "position_ids": positions}
    if "attention_mask" in runner.dims:
        feeds["attention_mask"] = mask
    if "kv_positions" in runner.dims:
        plain = len(runner.dims["kv_positions"]["shape"]) == 1
        feeds["kv_positions"] = np.arange(kv_len, dtype=np.int64) if plain else kv_positions
    if "logits_rows" in runner.dims:
        feeds["logits_rows"] = np.tile(np.arange(sequence, dtype=np.int64), (batch, 1))
    return feeds


class Errors:
    """Largest difference of each quantity, relative to its largest expected value."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def add(self, name: str, found: np.ndarray, expected: np.ndarray) -> None:
        found = found.astype(np.float64)
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        assert np.isfinite(found).all(), f"{name} is not finite"
        error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
        self.found[name] = max(self.found.get(name, 0.0), error)


def check_steps(runner: Runner, contract: dict, case: dict, expected: dict[str, np.ndarray], errors: Errors) -> None:
    cache = Cache(contract, runner.facts, case["num_lanes"])
    num_hidden = sum(port["name"].startswith("hidden_states.") for port in runner.facts["outputs"])
    for number, step in enumerate(case["steps"]):
        lanes, tokens = step["lanes"], step["tokens"]
        chains = [[max(node - 1, 0) for node in range(len(ids))] for ids in tokens]
        parents = step.get("parents") or chains
        outputs = runner.run(inputs_of(runner, cache, lanes, tokens, parents))
        cache.take(lanes, outputs)
        for place, lane in enumerate(lanes):
            count = len(tokens[place])
            errors.add("logits", outputs["logits"][place, :count], expected[f"{number}.{lane}.logits"])
            hidden = expected[f"{number}.{lane}.hidden"].reshape(count, num_hidden, -1)
            for layer in range(num_hidden):
                found = outputs[f"hidden_states.{layer}"][place, :count]
                errors.add(f"hidden_states.{layer}", found, hidden[:, layer])
            path = (step.get("keep") or [None] * len(lanes))[place]
            cache.keep(lane, list(range(count)) if path is None else path)


def check_draft(models: list[Runner], contract: dict, case: dict, errors: Errors) -> None:
    decoder, draft = models
    for golden in case["draft"]:
        tokens, caches = golden["input_ids"], [Cache(contract, model.facts, 1) for model in models]
        chain = [[max(node - 1, 0) for node in range(len(tokens))]]
        outputs = decoder.run(inputs_of(decoder, caches[0], [0], [tokens], chain))
        features, following = outputs["features"], tokens[1:] + [golden["next_token"]]
        hidden = np.zeros((1, len(tokens), golden["hidden_size"]), np.float32)
        drafted, count = [], len(tokens)
        for _ in golden["chain"]:
            feeds = inputs_of(draft, caches[1], [0], [following], [[max(n - 1, 0) for n in range(count)]])
            outputs = draft.run(feeds | {"features": features, "hidden": hidden})
            caches[1].take([0], outputs)
            caches[1].keep(0, list(range(count)))
            logits = outputs["logits"][0, -1]
            if not drafted:
                errors.add("draft_logits", logits, np.array(golden["draft_logits_last"], np.float32))
            following, count = [golden["target_tokens"][int(np.argmax(logits))]], 1
            drafted += following
            hidden, features = outputs["next_hidden"][:, -1:], np.zeros((1, 1, features.shape[2]), np.float32)
        errors.found["draft_chain_wrong"] = float(drafted != golden["chain"])


def check_file(folder: Path, facts: dict) -> None:
    """The standard's own judgement, and where the data lies."""
    path = folder / facts["file"]
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    known = {value.name for value in [*inferred.graph.value_info, *inferred.graph.output]}
    unknown = [out for node in model.graph.node for out in node.output if out not in known]
    assert not unknown, f"no shape follows for {unknown[:5]}"
    assert (folder / facts["data_file"]).stat().st_size == facts["data_bytes"]
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            name, offset, length = place["location"], int(place["offset"]), int(place["length"])
            # The embedding may be the other model's.
            assert name == facts["data_file"] or tensor.name == "model.embed_tokens.weight", (tensor.name, name)
            assert offset % PAGE == 0 and offset >= ends.get(name, 0), tensor.name
            assert offset + length <= (folder / name).stat().st_size, tensor.name
            ends[name] = offset + length


def check_codes(folder: Path, plain: Path, contract: dict) -> None:
    """What the first layer stores is the nearest code of each key and value, and the largest one beyond that."""
    facts, rng = contract["models"][0], np.random.default_rng(1)
    plain_facts = json.loads((plain / "export.json").read_text())["models"][0]
    ids = rng.integers(1, 40, (2, 9))
    for shrunk in (1, 64):
        model = onnx.load(folder / facts["file"], load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("past_key_values.") and tensor.name.endswith(".scale"):
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) / np.float32(shrunk)).tobytes()
        onnx.save(model, folder / "changed.onnx")
        for runtime in ("reference", "onnxruntime"):
            found = first_rows(Runner(folder, facts | {"file": "changed.onnx"}, runtime), contract, ids)
            expected = first_rows(Runner(plain, plain_facts, runtime), contract, ids)
            for name, scale in zip(("present.0.key", "present.0.value"), facts["cache_scales"][0]):
                values = expected[name] / np.float32(scale / shrunk)
                saturated = np.abs(values) > 448
                assert saturated.mean() > 0.3 if shrunk > 1 else not saturated.any(), (name, saturated.mean())
                codes = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
                assert (found[name].view(np.uint8) == codes.view(np.uint8)).all(), (name, runtime, shrunk)


def first_rows(runner: Runner, contract: dict, ids: np.ndarray) -> dict[str, np.ndarray]:
    cache = Cache(contract, runner.facts, len(ids))
    tokens, chain = [list(row) for row in ids], [max(node - 1, 0) for node in range(ids.shape[1])]
    return runner.run(inputs_of(runner, cache, list(range(len(ids))), tokens, [chain] * len(ids)))


def main() -> None:
    folder, case_folder, runtime = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    contract = json.loads((folder / "export.json").read_text())
    if runtime == "file":
        for facts in contract["models"]:
            check_file(folder, facts)
        print(json.dumps({}))
        return
    if runtime == "codes":
        check_codes(folder, case_folder, contract)
        print(json.dumps({}))
        return
    case = json.loads((case_folder / "case.json").read_text())
    expected, errors = read_safetensors(case_folder / "expected.safetensors"), Errors()
    try:
        models = [Runner(folder, facts, runtime) for facts in contract["models"]]
        if runtime == "reference":
            for facts in contract["models"]:
                check_file(folder, facts)
        check_steps(models[0], contract, case, expected, errors)
        if len(models) > 1:
            check_draft(models, contract, case, errors)
    except Exception as error:
        # onnxruntime says which operator it has no kernel for; anything else is a fault.
        if runtime == "onnxruntime" and "NOT_IMPLEMENTED" in str(error):
            print(json.dumps({"unsupported": str(error).splitlines()[0]}))
            return
        raise
    shares = [share for model in models for share in model.shares]
    if shares:
        print(f"quantized while running: {min(shares):.1e} to {max(shares):.1e} of what the scales take", file=sys.stderr)
        errors.found["saturated"] = float(max(shares) > 1)
    print(json.dumps(errors.found))


if __name__ == "__main__":
    main()
