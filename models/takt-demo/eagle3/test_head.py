"""`python -m pytest` in this folder; no weights are needed."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from batches import Row, collate  # noqa: E402
from dialogues import lesson, own_answers, run_target  # noqa: E402
from export_head import vocabulary_maps  # noqa: E402
from head import DraftHead, HeadConfig  # noqa: E402
from model import ModelConfig, TaktDemo  # noqa: E402


def models() -> tuple[TaktDemo, DraftHead]:
    torch.manual_seed(1)
    target, head = TaktDemo(ModelConfig()), DraftHead(HeadConfig())
    head.start_from(target, torch.arange(1024) * 2)
    return target.eval(), head


def written_by(target: TaktDemo, prompt: list[int], user: list[int]) -> list[int]:
    """Six tokens that the target itself writes."""
    reply: list[int] = []
    for _ in range(6):
        row = Row(prompt)
        row.add(user, [*reply, 0])
        batch = collate([row], 48, pad_id=0)
        logits = run_target(target, batch)[1].flatten(0, 1)
        reply.append(int(logits[batch.sources[-1]].argmax()))
    return reply


def rows_of(seed: int, target: TaktDemo) -> tuple[Row, list[Row]]:
    """A row of three exchanges about one prompt, and each alone."""
    rng = random.Random(seed)
    prompt = [rng.randrange(2048) for _ in range(9)]
    shared, alone = Row(prompt), []
    for _ in range(3):
        # All exchanges begin alike, as a chat template makes them: the prompt's last row looks one token ahead.
        user = [7, *(rng.randrange(2048) for _ in range(4))]
        reply = written_by(target, prompt, user)
        shared.add(user, reply)
        alone.append(Row(prompt))
        alone[-1].add(user, reply)
    return shared, alone


def test_unrolled_steps_of_packed_exchanges_are_those_of_each_alone() -> None:
    target, head = models()
    shared, alone = rows_of(3, target)

    def logits(row: Row) -> list[torch.Tensor]:
        batch = collate([row], 48, pad_id=0)
        taught = lesson(target, batch, 4)
        # Beyond the answer's end nothing is taught, and what stands there differs.
        return [step[taught.targets[..., idx] >= 0] for idx, step in enumerate(head.unroll(taught.rows, 4))]

    separate = [logits(row) for row in alone]
    for idx, step in enumerate(logits(shared)):
        assert step.shape == (3 * (5 - idx), 1024), "five anchors in each answer of six tokens, and one step less for each"
        torch.testing.assert_close(step, torch.cat([part[idx] for part in separate]), atol=1e-4, rtol=1e-4)


def test_answers_end_where_the_target_would_have_written_something_else() -> None:
    target, _ = models()
    shared, _ = rows_of(5, target)
    batch = collate([shared], 48, pad_id=0)
    _, logits = run_target(target, batch)
    # Make the target agree with the first exchange whole, with the second for two tokens, with the third not at all.
    agreed = torch.tensor([place for owner, num in ((0, 6), (1, 2)) for place in
                           batch.sources[batch.owners == owner][:num].tolist()])
    flat = logits.flatten(0, 1)
    flat[batch.sources] = 0.0
    flat[agreed, batch.input_ids.flatten()[agreed + 1]] = 9.0
    flat[batch.sources, (batch.targets + 1) % 2048] += 1.0
    answers = own_answers(batch, flat.unflatten(0, logits.shape[:2]))
    assert [len(answer) for answer in answers] == [6, 3, 1]


def test_maps_lead_to_the_draft_tokens_and_mark_them() -> None:
    tokens = torch.tensor([0, 3, 4, 9])
    maps = vocabulary_maps(tokens, 12)
    assert (torch.arange(4) + maps["d2t"]).tolist() == tokens.tolist()
    assert maps["t2d"].nonzero().flatten().tolist() == tokens.tolist()
