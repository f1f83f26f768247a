"""Train the demo model's EAGLE-3 head.

    python train_head.py --out runs/head --minutes 80

As `../train.py`: batches follow from the seed and the step, the learning rate from the budget, and
`--resume` continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from batches import Packer, scoring_batch  # noqa: E402
from dialogues import Lesson, frequent_answer_tokens, lesson  # noqa: E402
from head import DraftHead, HeadConfig  # noqa: E402
from model import ModelConfig, TaktDemo  # noqa: E402
from muon import Muon  # noqa: E402
from nvfp4 import decoder_weights, fake_quantize  # noqa: E402
from splits import make_splits  # noqa: E402
from threads import ThreadTuner  # noqa: E402
from tokenizer import END  # noqa: E402
from train import learning_rate_factor, quantized  # noqa: E402

STEP_DECAY = 0.9
"""Weight of a step's loss over the step before."""


def load_target(folder: Path, vocab_size: int, in_nvfp4: bool) -> TaktDemo:
    """The frozen target, its decoder's weights rounded to NVFP4 where asked."""
    target = TaktDemo(ModelConfig(vocab_size=vocab_size))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    target.load_state_dict(weights)
    with torch.no_grad():
        for weight in decoder_weights(target) if in_nvfp4 else []:
            weight.copy_(fake_quantize(weight))
    return target.eval().requires_grad_(False)


def step_loss(logits: Tensor, places: Tensor, taught: Lesson, draft_tokens: Tensor) -> Tensor:
    """Cross-entropy of one step's draft logits [B, A, Vd] to the target's distribution over the draft vocabulary,
    where the target's likeliest token is in it."""
    kept = places >= 0
    wanted = taught.logits[places[kept]]
    in_vocab = torch.zeros(wanted.size(-1), dtype=torch.bool).index_fill(0, draft_tokens, True)[wanted.argmax(-1)]
    soft = wanted[in_vocab][:, draft_tokens].softmax(-1)
    return F.cross_entropy(logits[kept][in_vocab], soft)


@torch.no_grad()
def accept_len(head: DraftHead, taught: Lesson, draft_tokens: Tensor) -> tuple[float, list[float]]:
    """Mean tokens a round emits with a chain of the unrolled length, over all anchors, and how often each step is right
    after all before it were. Chains that outlast the answer count what is left of it."""
    num_steps = taught.targets.size(-1)
    alive = torch.ones_like(taught.targets[..., 0], dtype=torch.bool)
    num_anchors = int((taught.targets[..., 0] >= 0).sum())
    accepted, shares = 0, []
    for step, logits in enumerate(head.unroll(taught.rows, num_steps)):
        places = taught.targets[..., step]
        possible = alive & (places >= 0)
        likeliest = taught.logits[places.clamp(min=0)].argmax(-1)
        alive = possible & (draft_tokens[logits.argmax(-1)] == likeliest)
        accepted += int(alive.sum())
        shares.append(int(alive.sum()) / max(1, int(possible.sum())))
    return 1 + accepted / num_anchors, shares


class Trainer:
    """Target, head, optimizers and the budget."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.tokenizer = Tokenizer.from_file(str(HERE.parent / "tokenizer.json"))
        vocab_size = self.tokenizer.get_vocab_size()
        self.packer = Packer(self.tokenizer, make_splits(), args.seed, args.num_rows, args.row_len)
        self.targets = [load_target(HERE.parent, vocab_size, in_nvfp4) for in_nvfp4 in (False, True)]
        config = HeadConfig(vocab_size=vocab_size, draft_vocab_size=args.draft_vocab_size)
        counted = [self.packer.batch(-1 - idx) for idx in range(200)]
        self.draft_tokens = frequent_answer_tokens(counted, vocab_size, config.draft_vocab_size,
                                                   [self.tokenizer.token_to_id(END)])
        self.head = DraftHead(config)
        self.head.start_from(self.targets[0], self.draft_tokens)
        self.matrices = [p for name, p in self.head.named_parameters() if p.dim() == 2 and name != "lm_head.weight"]
        chosen = {id(matrix) for matrix in self.matrices}
        others = [p for p in self.head.parameters() if id(p) not in chosen]
        self.optimizers = [Muon(self.matrices, lr=args.muon_lr, weight_decay=0.01),
                           torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.spent_s, self.interrupted = 0, 0.0, False
        lines = [json.loads(line) for line in (HERE.parent / "eval" / "heldout.jsonl").open(encoding="utf-8")]
        self.held_out = lesson(self.targets[1], scoring_batch(self.tokenizer, lines[::12]), args.num_unrolled)

    def progress(self) -> float:
        return max(self.step / self.args.steps, self.spent_s / (60 * self.args.minutes))

    def train_step(self) -> float:
        progress = self.progress()
        for optimizer, peak in zip(self.optimizers, self.peaks):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_factor(progress)
        # Both precisions of the target; late, every other step sees the head's own weights rounded as well.
        target = self.targets[self.step % 2]
        taught = lesson(target, self.packer.batch(self.step), self.args.num_unrolled)
        rounds = progress >= self.args.quantize_from and self.step % 4 < 2
        with quantized([*self.matrices, self.head.lm_head.weight]) if rounds else nullcontext():
            steps = self.head.unroll(taught.rows, self.args.num_unrolled)
            losses = [step_loss(logits, taught.targets[..., idx], taught, self.draft_tokens)
                      for idx, logits in enumerate(steps)]
            weights = [STEP_DECAY**idx for idx in range(len(losses))]
            loss = sum(weight * loss for weight, loss in zip(weights, losses)) / sum(weights)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()

    def save(self) -> None:
        state = {"head": self.head.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                 "draft_tokens": self.draft_tokens, "step": self.step, "spent_s": self.spent_s}
        partial = self.args.out / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.args.out / "checkpoint.pt")

    def load(self) -> None:
        state = torch.load(self.args.out / "checkpoint.pt")
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.spent_s = state["step"], state["spent_s"]

    def interrupt(self, *_: object) -> None:
        self.interrupted = True

    def score(self) -> str:
        mean, shares = accept_len(self.head, self.held_out, self.draft_tokens)
        return f"held-out accept_len {mean:.3f}, by step " + " ".join(f"{share:.3f}" for share in shares)

    def run(self) -> None:
        """Train to the end of the budget, printing progress and saving as it goes."""
        last_log = last_save = begin = time.monotonic()
        begin -= self.spent_s
        losses: list[float] = []
        signal.signal(signal.SIGTERM, self.interrupt)
        tuner = ThreadTuner(torch.get_num_threads())
        while self.progress() < 1 and not self.interrupted:
            tuner.begin()
            started = time.monotonic()
            losses.append(self.train_step())
            now = time.monotonic()
            tuner.end(now - started)
            self.spent_s = now - begin
            if now - last_log > self.args.log_s:
                print(f"step {self.step} loss {sum(losses) / len(losses):.4f} steps/s {len(losses) / (now - last_log):.2f} "
                      f"threads {tuner.current} done {self.progress():.1%} {self.score()}", flush=True)
                losses, last_log = [], time.monotonic()
            if now - last_save > self.args.save_s:
                self.save()
                last_save = now
        self.save()
        print(f"step {self.step} spent {self.spent_s / 60:.1f} min {self.score()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/head"), help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--minutes", type=float, default=80.0, help="wall-clock budget")
    parser.add_argument("--steps", type=int, default=20000, help="step budget")
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--num-rows", type=int, default=8)
    parser.add_argument("--row-len", type=int, default=256)
    parser.add_argument("--num-unrolled", type=int, default=6, help="steps the head runs on its own outputs")
    parser.add_argument("--draft-vocab-size", type=int, default=1024)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.002)
    parser.add_argument("--quantize-from", type=float, default=0.7, help="progress at which NVFP4 rounding joins in")
    parser.add_argument("--log-s", type=float, default=60.0)
    parser.add_argument("--save-s", type=float, default=180.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    if args.resume:
        trainer.load()
    trainer.run()


if __name__ == "__main__":
    main()
