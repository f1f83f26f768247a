//! Whatever is done to lanes, in whatever order: both backends say the same of what can be drafted after, and draft nearly the same; and what is
//! drafted has the bits of the same text read at once, as long as the head was not told of another next token than came.

use takt_engine::{
    TokenId,
    backend::{Backend, cpu::CpuBackend, cuda::CudaBackend},
    kv::{KvKind, LaneId, SnapshotId},
};
use takt_node::random::SplitMix64;
use takt_tests::eagle::{append, chain_logits, relative_error};

use super::{A, B, C, Fixture, on_cpu, step, step_tree};
use crate::models::{on_device, options};

const NUM_ROUNDS: usize = 160;
/// Random texts are farther apart than the golden files': 3.2 % was seen.
const BF16: f32 = 0.06;

/// What a lane holds.
#[derive(Debug, Clone, Default)]
struct Known {
    text: Vec<TokenId>,
    /// What the head may have read as the token after the last one: a draft's root, or what was cut off.
    told: Option<TokenId>,
    /// Whether another one came.
    is_misled: bool,
}

/// Two backends to which the same is done, and what their lanes hold.
struct Pair {
    device: CudaBackend,
    cpu: CpuBackend,
    lanes: [Known; 2],
    /// On the device, on the processor, and of what.
    snapshots: Vec<(SnapshotId, SnapshotId, Known)>,
    random: SplitMix64,
}

impl Known {
    fn push(&mut self, tokens: impl IntoIterator<Item = TokenId>) {
        for token in tokens {
            self.is_misled |= self.told.take().is_some_and(|told| told != token);
            self.text.push(token);
        }
    }

    /// Its first `len` tokens.
    fn cut(&self, len: usize) -> Self {
        let told = self.text.get(len).copied().or(self.told).filter(|_| len > 0);
        Self { text: self.text[..len].to_vec(), told, is_misled: self.is_misled && len > 0 }
    }
}

impl Pair {
    fn both(&mut self, mut work: impl FnMut(&mut dyn Backend)) {
        work(&mut self.device);
        work(&mut self.cpu);
    }

    /// Random ones, the first mostly as the head was told.
    fn tokens(&mut self, lane: LaneId, len: usize) -> Vec<TokenId> {
        let mut tokens: Vec<_> = (0..len).map(|_| u32::try_from(self.random.below(600)).unwrap()).collect();
        if let Some(told) = self.lanes[lane.0].told.filter(|_| self.random.below(8) > 0) {
            tokens[0] = told;
        }
        tokens
    }

    fn step(&mut self, lane: LaneId, len: usize) {
        let tokens = self.tokens(lane, len);
        self.both(|backend| step(backend, lane, &tokens));
        self.lanes[lane.0].push(tokens);
    }

    /// A chain with a sibling, of which some is kept.
    fn round(&mut self, lane: LaneId) {
        let tokens = self.tokens(lane, 5);
        let path = &[0, 2, 3, 4][..1 + self.random.below(4)];
        self.both(|backend| {
            step_tree(backend, lane, &tokens, &[0, 0, 0, 2, 3]);
            backend.keep(lane, path).unwrap();
        });
        self.lanes[lane.0].push(path.iter().map(|&node| tokens[node]));
    }

    fn truncate(&mut self, lane: LaneId, len: usize) {
        self.both(|backend| backend.truncate(lane, len).unwrap());
        self.lanes[lane.0] = self.lanes[lane.0].cut(len);
    }

    fn save(&mut self, lane: LaneId) {
        let held = self.lanes[lane.0].text.len();
        let len = held - self.random.below(held.min(4) + 1);
        let device = self.device.save_snapshot(lane, len).unwrap();
        let cpu = self.cpu.save_snapshot(lane, len).unwrap();
        self.snapshots.push((device, cpu, self.lanes[lane.0].cut(len)));
    }

    /// Restores one, and drops it now and then.
    fn restore(&mut self, lane: LaneId) {
        if self.snapshots.is_empty() {
            return;
        }
        let at = self.random.below(self.snapshots.len());
        let (device, cpu, known) = self.snapshots[at].clone();
        self.device.restore_snapshot(lane, device).unwrap();
        self.cpu.restore_snapshot(lane, cpu).unwrap();
        self.lanes[lane.0] = known;
        if self.random.below(2) == 0 {
            self.device.drop_snapshot(device);
            self.cpu.drop_snapshot(cpu);
            self.snapshots.remove(at);
        }
    }

    fn follow(&mut self, lane: LaneId) {
        let follows = self.random.below(4) > 0;
        self.both(|backend| backend.follow(lane, follows));
    }

    fn something(&mut self, lane: LaneId) -> usize {
        if self.lanes[lane.0].text.len() > 150 {
            self.truncate(lane, 0);
        }
        let what = self.random.below(16);
        match what {
            0..=4 => self.step(lane, 1),
            5 | 6 => {
                let len = 1 + self.random.below(20);
                self.step(lane, len);
            }
            7..=9 => self.round(lane),
            10 => {
                let len = self.random.below(self.lanes[lane.0].text.len() + 1);
                self.truncate(lane, len);
            }
            11 | 12 => self.save(lane),
            13 => self.restore(lane),
            14 => self.truncate(lane, 0),
            _ => self.follow(lane),
        }
        what
    }
}

#[test]
fn lanes_can_be_drafted_after_where_the_processors_can_with_the_bits_of_their_text() {
    let test =
        "draft::anything::lanes_can_be_drafted_after_where_the_processors_can_with_the_bits_of_their_text";
    on_device(test).run(|_| {
        let fixture = Fixture::new(0);
        let (device, cpu) = (fixture.with_head(&options(KvKind::Bf16)), on_cpu(&fixture.dir, KvKind::Bf16));
        let (lanes, snapshots, random) = (Default::default(), Vec::new(), SplitMix64(11));
        let mut pair = Pair { device, cpu, lanes, snapshots, random };
        let (mut num_warm, mut num_cold, mut num_same) = (0, 0, 0);
        for round in 0..NUM_ROUNDS {
            let lane = LaneId(pair.random.below(2));
            let what = pair.something(lane);
            for lane in [A, B] {
                assert_eq!(
                    pair.device.committed_len(lane),
                    pair.lanes[lane.0].text.len(),
                    "round {round}, {what}"
                );
                let can = [pair.device.can_draft(lane), pair.cpu.can_draft(lane)];
                assert_eq!(can[0], can[1], "round {round}, {what}, {lane:?}");
            }
            if !pair.device.can_draft(lane) {
                num_cold += 1;
                continue;
            }
            num_warm += 1;
            if round % 3 != 0 {
                continue;
            }
            let chain = pair.tokens(lane, 2);
            let drafted = chain_logits(&mut pair.device, lane, &chain);
            let on_cpu = chain_logits(&mut pair.cpu, lane, &chain);
            for (found, expected) in drafted.iter().zip(&on_cpu) {
                let error = relative_error(found, expected);
                assert!(error < BF16, "round {round}, {what}: {error:e}");
            }
            let known = &mut pair.lanes[lane.0];
            known.is_misled |= known.told.is_some_and(|told| told != chain[0]);
            known.told = Some(chain[0]);
            if !known.is_misled {
                num_same += 1;
                pair.device.truncate(C, 0).unwrap();
                append(&mut pair.device, C, &known.text);
                assert!(chain_logits(&mut pair.device, C, &chain) == drafted, "round {round}, {what}");
            }
        }
        let counts = format!("{num_warm} warm, {num_cold} cold, {num_same} as read at once");
        assert!(num_warm > 60 && num_cold > 10 && num_same > 15, "{counts}");
    });
}
