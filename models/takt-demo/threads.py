"""Choose the number of CPU threads while training: on a machine shared with other work, a step
split over all cores waits for the core that is busy elsewhere, and fewer threads are faster.
"""

from __future__ import annotations

import torch


class ThreadTuner:
    """Keeps a running step time per thread count, and now and then tries the one not in use."""

    PROBE_EVERY = 12
    SMOOTHING = 0.5

    def __init__(self, max_threads: int) -> None:
        self.candidates = sorted({1, max_threads})
        self.step_s: dict[int, float] = {}
        self.current = max_threads
        self.num_steps = 0

    def begin(self) -> None:
        """Set the thread count of the coming step."""
        untried = [count for count in self.candidates if count not in self.step_s]
        fastest = untried[0] if untried else min(self.candidates, key=self.step_s.__getitem__)
        probing = self.num_steps % self.PROBE_EVERY < 2
        others = [count for count in self.candidates if count != fastest]
        self.current = others[0] if probing and others and not untried else fastest
        torch.set_num_threads(self.current)

    def end(self, step_s: float) -> None:
        """Record how long the step took."""
        known = self.step_s.get(self.current, step_s)
        self.step_s[self.current] = known + self.SMOOTHING * (step_s - known)
        self.num_steps += 1
