//! Earliest deadline first; background work last; first come first served among equals.

use std::{cmp::Ordering, collections::BinaryHeap, time::Instant};

/// A request's place in the order: smaller runs earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// Absolute deadline; `None` is background work, behind everybody who has one.
    pub deadline: Option<Instant>,
    /// Counts arrivals, so that equals keep their order.
    pub ticket: u64,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_deadline = match (self.deadline, other.deadline) {
            (Some(own), Some(others)) => own.cmp(&others),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        };
        by_deadline.then(self.ticket.cmp(&other.ticket))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Those who wait for a lane, bounded.
#[derive(Debug)]
pub struct EdfQueue<T> {
    heap: BinaryHeap<Entry<T>>,
    capacity: usize,
}

impl<T> EdfQueue<T> {
    /// An empty queue for at most `capacity` entries.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { heap: BinaryHeap::with_capacity(capacity), capacity }
    }

    /// Entries waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// True when nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// True when another entry would not fit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.heap.len() >= self.capacity
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// Gives `item` back when the queue is full.
    pub fn push(&mut self, rank: Rank, item: T) -> Result<(), T> {
        if self.is_full() {
            return Err(item);
        }
        self.heap.push(Entry { rank, item });
        Ok(())
    }

    /// The entry that runs next.
    #[must_use]
    pub fn peek(&self) -> Option<(Rank, &T)> {
        self.heap.peek().map(|entry| (entry.rank, &entry.item))
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Rank, &T)> {
        self.heap.iter().map(|entry| (entry.rank, &entry.item))
    }

    /// Takes the entry that runs next.
    pub fn pop(&mut self) -> Option<(Rank, T)> {
        self.heap.pop().map(|entry| (entry.rank, entry.item))
    }

    /// Takes every entry for which `leaves` holds; the others keep their order.
    pub fn take_if(&mut self, mut leaves: impl FnMut(Rank, &T) -> bool) -> Vec<T> {
        if !self.heap.iter().any(|entry| leaves(entry.rank, &entry.item)) {
            return Vec::new(); // the usual case must not rebuild the heap
        }
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.heap).into_iter().partition(|entry| leaves(entry.rank, &entry.item));
        self.heap.extend(kept);
        gone.into_iter().map(|entry| entry.item).collect()
    }
}

#[derive(Debug)]
struct Entry<T> {
    rank: Rank,
    item: T,
}

// Reversed: `BinaryHeap` gives the greatest, and the smallest rank runs first.
impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.rank.cmp(&self.rank)
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn rank(start: Instant, deadline_ms: Option<u64>, ticket: u64) -> Rank {
        Rank { deadline: deadline_ms.map(|ms| start + Duration::from_millis(ms)), ticket }
    }

    proptest! {
        #[test]
        fn leaves_in_the_order_of_a_stable_sort_by_deadline(
            deadlines in prop::collection::vec(prop::option::of(0_u64..50), 0..40),
        ) {
            let start = Instant::now();
            let mut queue = EdfQueue::new(deadlines.len());
            for (i, deadline) in deadlines.iter().enumerate() {
                queue.push(rank(start, *deadline, i as u64), i).unwrap();
            }
            let mut expected: Vec<usize> = (0..deadlines.len()).collect();
            expected.sort_by_key(|&i| deadlines[i].unwrap_or(u64::MAX)); // stable
            let left: Vec<usize> = std::iter::from_fn(|| queue.pop().map(|(_, i)| i)).collect();
            prop_assert_eq!(left, expected);
        }
    }

    #[test]
    fn a_full_queue_gives_the_entry_back() {
        let start = Instant::now();
        let mut queue = EdfQueue::new(1);
        assert_eq!(queue.push(rank(start, None, 0), 'a'), Ok(()));
        assert_eq!(queue.push(rank(start, Some(1), 1), 'b'), Err('b'));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn those_taken_out_leave_the_order_of_the_rest_alone() {
        let start = Instant::now();
        let mut queue = EdfQueue::new(8);
        for i in 0..6 {
            queue.push(rank(start, Some(10 - i), i), i).unwrap();
        }
        let mut gone = queue.take_if(|_, i| i % 2 == 0);
        gone.sort_unstable();
        assert_eq!(gone, [0, 2, 4]);
        assert_eq!(queue.pop().map(|(_, i)| i), Some(5));
        assert_eq!(queue.pop().map(|(_, i)| i), Some(3));
    }
}
