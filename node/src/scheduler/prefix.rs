//! Which prompt prefixes are kept as snapshots: a small bounded set, least recently used first out.

use takt_engine::{TokenId, kv::SnapshotId};

/// Snapshots by their tokens.
#[derive(Debug)]
pub struct PrefixCache {
    entries: Vec<Entry>,
    capacity: usize,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    tokens: Box<[TokenId]>,
    snapshot: SnapshotId,
    last_use: u64,
}

/// Tokens two sequences share at their start.
#[must_use]
pub fn common_len(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixCache {
    /// An empty set of at most `capacity` snapshots; 0 keeps none.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { entries: Vec::with_capacity(capacity), capacity, uses: 0 }
    }

    /// True when snapshots are kept at all.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.capacity > 0
    }

    /// The snapshot that shares the most tokens with the start of `prompt`, and how many; `None` when none shares any.
    pub fn longest(&mut self, prompt: &[TokenId]) -> Option<(SnapshotId, usize)> {
        let best = self.entries.iter_mut().max_by_key(|entry| common_len(&entry.tokens, prompt))?;
        let shared_len = common_len(&best.tokens, prompt);
        if shared_len == 0 {
            return None;
        }
        self.uses += 1;
        best.last_use = self.uses;
        Some((best.snapshot, shared_len))
    }

    /// Whether exactly `tokens` are kept.
    #[must_use]
    pub fn contains(&self, tokens: &[TokenId]) -> bool {
        self.entries.iter().any(|entry| *entry.tokens == *tokens)
    }

    /// Keeps `snapshot` of `tokens`; returns the snapshot that has to go for it, which may be itself.
    #[must_use = "the returned snapshot must be dropped from the backend"]
    pub fn insert(&mut self, tokens: &[TokenId], snapshot: SnapshotId) -> Option<SnapshotId> {
        if self.capacity == 0 {
            return Some(snapshot);
        }
        let evicted = if self.entries.len() >= self.capacity { self.take_oldest() } else { None };
        self.uses += 1;
        self.entries.push(Entry { tokens: tokens.into(), snapshot, last_use: self.uses });
        evicted
    }

    /// Forgets the one whose last use is longest ago; the snapshot is to be dropped by the caller.
    pub fn take_oldest(&mut self) -> Option<SnapshotId> {
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.last_use)?.0;
        Some(self.entries.swap_remove(oldest).snapshot)
    }

    /// Forgets all; the snapshots are to be dropped by the caller.
    pub fn clear(&mut self) -> Vec<SnapshotId> {
        self.entries.drain(..).map(|entry| entry.snapshot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_shared_prefix_wins_and_the_least_recently_used_leaves() {
        let mut cache = PrefixCache::new(2);
        assert_eq!(cache.insert(&[1, 2, 3], SnapshotId(10)), None);
        assert_eq!(cache.insert(&[1, 2, 3, 4, 5], SnapshotId(11)), None);
        assert_eq!(cache.longest(&[1, 2, 3, 4, 9]), Some((SnapshotId(11), 4)));
        assert_eq!(cache.longest(&[9]), None);
        assert_eq!(cache.insert(&[7], SnapshotId(12)), Some(SnapshotId(10)));
        assert!(cache.contains(&[7]) && !cache.contains(&[1, 2, 3]));
        assert_eq!(cache.clear().len(), 2);
    }

    #[test]
    fn without_room_a_snapshot_is_given_back_at_once() {
        assert_eq!(PrefixCache::new(0).insert(&[1], SnapshotId(3)), Some(SnapshotId(3)));
    }
}
