"""Train the demo model from scratch on examples drawn on the fly.

    python train.py --out runs/demo --minutes 90

The learning rate follows whichever of the step and the wall-clock budget is further spent, so a
run always ends annealed. `--resume` continues from the last checkpoint in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from contextlib import contextmanager, nullcontext
from collections.abc import Iterator
from pathlib import Path

import torch
import torch._inductor.config
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from batches import Batch, Packer, scoring_batch
from model import ModelConfig, TaktDemo
from muon import Muon
from nvfp4 import decoder_weights, fake_quantize
from splits import make_splits
from threads import ThreadTuner

HERE = Path(__file__).parent
WARMUP_SHARE, DECAY_SHARE = 0.02, 0.65


def learning_rate_factor(progress: float) -> float:
    """Warm up, hold, then fall linearly to zero at the end of the budget."""
    return max(0.0, min(1.0, progress / WARMUP_SHARE + 0.01, (1 - progress) / DECAY_SHARE))


@contextmanager
def quantized(weights: list[Tensor]) -> Iterator[None]:
    """Compute with NVFP4-rounded weights, gradients going straight through to the originals."""
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(fake_quantize(weight))
    yield
    with torch.no_grad():
        for weight, original in zip(weights, originals):
            weight.copy_(original)


class Trainer:
    """Model, optimizers and the budget."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        self.packer = Packer(self.tokenizer, make_splits(), args.seed, args.num_rows, args.row_len)
        self.model = TaktDemo(ModelConfig(vocab_size=self.tokenizer.get_vocab_size())).to(self.device)
        torch._inductor.config.cpp.dynamic_threads = True  # compiled loops follow ThreadTuner, too
        self.tuner = ThreadTuner(torch.get_num_threads())
        self.hidden = torch.compile(self.model.hidden) if args.compile else self.model.hidden
        self.matrices = decoder_weights(self.model)
        hidden_ids = {id(weight) for weight in self.matrices}
        others = [p for p in self.model.parameters() if id(p) not in hidden_ids]
        self.optimizers = [Muon(self.matrices, lr=args.muon_lr, weight_decay=0.01),
                           torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)]
        self.peaks = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.step, self.spent_s = 0, 0.0
        self.interrupted = False
        self.held_out = [json.loads(line) for line in (HERE / "eval" / "heldout.jsonl").open(encoding="utf-8")]

    def progress(self) -> float:
        return max(self.step / self.args.steps, self.spent_s / (60 * self.args.minutes))

    def autocast(self):
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def answer_logits(self, batch: Batch, hidden) -> Tensor:
        with self.autocast():
            states = hidden(batch.input_ids, batch.positions, batch.mask)
            return self.model.head(states.flatten(0, 1)[batch.sources]).float()

    def train_step(self) -> tuple[float, int]:
        """One update; returns the loss and the number of exchanges it saw."""
        progress = self.progress()
        for optimizer, peak in zip(self.optimizers, self.peaks):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_factor(progress)
        batch = self.packer.batch(self.step).to(self.device)
        # Every other late step sees rounded weights: the model learns both precisions.
        rounds = progress >= self.args.quantize_from and self.step % 2 == 1
        with quantized(self.matrices) if rounds else nullcontext():
            loss = F.cross_entropy(self.answer_logits(batch, self.hidden), batch.targets)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), int(batch.owners[-1]) + 1

    @torch.no_grad()
    def exact_match(self, stride: int) -> float:
        """Share of every `stride`-th held-out line that greedy decoding would reproduce exactly."""
        lines = self.held_out[::stride]
        num_right = 0
        for start in range(0, len(lines), 60):
            batch = scoring_batch(self.tokenizer, lines[start:start + 60]).to(self.device)
            right = self.answer_logits(batch, self.model.hidden).argmax(-1) == batch.targets
            wrong_owners = batch.owners[~right].unique()
            num_right += int(batch.owners[-1]) + 1 - len(wrong_owners)
        return num_right / len(lines)

    def save(self) -> None:
        """Write the checkpoint so that a crash leaves the old one or the new one."""
        state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                 "step": self.step, "spent_s": self.spent_s, "torch_rng": torch.get_rng_state()}
        partial = self.args.out / "checkpoint.partial"
        torch.save(state, partial)
        os.replace(partial, self.args.out / "checkpoint.pt")

    def load(self) -> None:
        state = torch.load(self.args.out / "checkpoint.pt", map_location=self.device)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.spent_s = state["step"], state["spent_s"]
        torch.set_rng_state(state["torch_rng"].cpu())

    def start_from(self, weights: Path) -> None:
        """Take the weights of an earlier model with this tokenizer; steps and budget begin anew."""
        state = {name: tensor.float() for name, tensor in load_file(weights).items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if missing or unexpected:
            raise SystemExit(f"{weights}: lacks {missing} and has unknown {unexpected}; expected the demo model's tensors")

    def interrupt(self, *_: object) -> None:
        """Stop after this step; the checkpoint makes --resume lose nothing."""
        self.interrupted = True

    def run(self) -> None:
        """Train to the end of the budget, printing progress and saving as it goes."""
        last_log = last_save = last_score = begin = time.monotonic()
        begin -= self.spent_s
        losses: list[float] = []
        num_exchanges = 0
        signal.signal(signal.SIGTERM, self.interrupt)
        while self.progress() < 1 and not self.interrupted:
            self.tuner.begin()
            started = time.monotonic()
            loss, seen = self.train_step()
            now = time.monotonic()
            self.tuner.end(now - started)
            self.spent_s = now - begin
            losses.append(loss)
            num_exchanges += seen
            if now - last_log > self.args.log_s:
                rate = len(losses) / (now - last_log)
                eta_min = self.spent_s * (1 / self.progress() - 1) / 60
                tokens_per_s = rate * self.args.num_rows * self.args.row_len
                print(f"step {self.step} loss {sum(losses) / len(losses):.4f} tokens/s {tokens_per_s:.0f} "
                      f"exchanges/s {num_exchanges / (now - last_log):.0f} threads {self.tuner.current} done {self.progress():.1%} "
                      f"eta {eta_min:.1f} min", flush=True)
                losses, num_exchanges, last_log = [], 0, now
            if now - last_score > self.args.score_s:
                print(f"step {self.step} held-out exact match {self.exact_match(stride=8):.1%}", flush=True)
                last_score = time.monotonic()
            if now - last_save > self.args.save_s:
                self.save()
                last_save = time.monotonic()
        self.save()
        if self.interrupted:
            return
        print(f"step {self.step} spent {self.spent_s / 60:.1f} min, "
              f"held-out exact match {self.exact_match(stride=1):.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init", type=Path, help="weights to start from, such as model.safetensors")
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget")
    parser.add_argument("--steps", type=int, default=8000, help="step budget")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num-rows", type=int, default=16)
    parser.add_argument("--row-len", type=int, default=256)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--quantize-from", type=float, default=0.75, help="progress at which NVFP4 rounding joins in")
    parser.add_argument("--compile", action="store_true", help="torch.compile the decoder")
    parser.add_argument("--log-s", type=float, default=20.0)
    parser.add_argument("--score-s", type=float, default=240.0)
    parser.add_argument("--save-s", type=float, default=180.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(args)
    if args.init:
        trainer.start_from(args.init)
    if args.resume:
        trainer.load()
    trainer.run()


if __name__ == "__main__":
    main()
