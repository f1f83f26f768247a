"""`python -m pytest` in this folder; no weights are needed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer

from batches import Packer, Row, collate
from generate import Sampler
from model import ModelConfig, TaktDemo
from nvfp4 import fake_quantize
from skills import Request, State, Thing, answer, to_json
from splits import make_splits
from templates import expansions

HERE = Path(__file__).parent
FULL = State(62, "kitchen", Thing("cup", "red"), (Thing("box", "blue"), Thing("box", "green")), ("kitchen", "lab"), "near")


def test_training_draws_no_held_out_pair_or_skeleton() -> None:
    splits = make_splits()
    sampler = Sampler(splits, random.Random(3), typo_rate=0.0)
    held_out = {text for group in splits.patterns.values() for pattern in group for text in expansions(pattern)}
    fixed = {text.lower() for text in held_out if "{" not in text}
    for _ in range(2000):
        example = sampler.example(*sampler.situation())
        assert not example.pairs & splits.pairs, example
        assert example.user.lower().rstrip(".!?") not in fixed, example


def test_the_held_out_set_has_distinct_lines_in_three_splits() -> None:
    lines = [json.loads(line) for line in (HERE / "eval" / "heldout.jsonl").open(encoding="utf-8")]
    assert len({(line["system"], line["user"]) for line in lines if line["split"] == "both"}) == 800
    assert {line["split"] for line in lines} == {"template", "combination", "both"}


def test_rules_apply_in_order() -> None:
    def result(intent: str, missing: str | None = None, state: State = FULL, **slots: object) -> str:
        return to_json(answer(Request(intent, slots, missing), state))

    assert result("goto", place="lab", speed="fast") == '{"skill":"refuse","reason":"unsafe"}'
    assert result("goto", place="attic") == '{"skill":"refuse","reason":"unknown_place"}'
    assert result("place", object="it", place="lab") == '{"skill":"place","object":"red cup","place":"lab"}'
    assert result("pick", object=Thing("box")) == '{"skill":"refuse","reason":"gripper_full"}'
    free = State(5, "lab", "empty", FULL.sees, FULL.places, "none")
    assert result("pick", state=free, object=Thing("box")) == '{"skill":"clarify","missing":"object"}'
    assert result("goto", state=free, place="lab") == '{"skill":"refuse","reason":"battery_low"}'
    assert result("report", state=State(), topic="battery") == '{"skill":"refuse","reason":"unknown_state"}'


def test_an_exchange_in_a_shared_row_gets_the_logits_of_a_row_of_its_own() -> None:
    torch.manual_seed(0)
    model = TaktDemo(ModelConfig())
    rng = random.Random(0)
    prompt, exchanges = [rng.randrange(2048) for _ in range(9)], []
    shared = Row(prompt)
    for _ in range(3):
        exchanges.append(([rng.randrange(2048) for _ in range(5)], [rng.randrange(2048) for _ in range(4)]))
        shared.add(*exchanges[-1])

    def logits(row: Row) -> torch.Tensor:
        batch = collate([row], 48, pad_id=0)
        return model.head(model.hidden(batch.input_ids, batch.positions, batch.mask).flatten(0, 1)[batch.sources])

    alone = []
    for user, reply in exchanges:
        row = Row(prompt)
        row.add(user, reply)
        alone.append(logits(row))
    torch.testing.assert_close(logits(shared), torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_batch_depends_on_seed_and_step_only() -> None:
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    first, second = (Packer(tokenizer, make_splits(), 1, 2, 256).batch(7) for _ in range(2))
    assert torch.equal(first.input_ids, second.input_ids) and torch.equal(first.mask, second.mask)


def test_nvfp4_rounds_ties_to_even_and_keeps_its_own_values() -> None:
    block = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]])
    # amax 2688 in a second block makes the tensor scale 1 and the first block's scale 1.
    rounded = fake_quantize(torch.cat([block, block * 448]))[0]
    assert rounded.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]
