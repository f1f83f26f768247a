//! Those who wait for a lane: promises first, then what else control loops want, then by deadline; background work when its share is
//! due, or when nobody else waits.

use std::time::Instant;

use super::{
    bandwidth_server::BandwidthServer,
    class::Class,
    edf::{EdfQueue, Rank},
    job::{Job, Phase},
};

/// Where a request waits; the first that is not empty goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Control loops' requests that are owed a first token.
    Promised,
    /// Control loops' requests that lost their lane after it.
    Optional,
    /// Requests with a deadline that is not promised.
    Interactive,
    /// Requests without a deadline.
    Background,
}

impl Line {
    const ALL: [Self; 4] = [Self::Promised, Self::Optional, Self::Interactive, Self::Background];

    /// Where `job` waits.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        match (job.class, job.phase) {
            (Class::Control, Phase::Prefill { .. }) => Self::Promised,
            (Class::Control, Phase::Decode) => Self::Optional,
            (Class::Interactive, _) => Self::Interactive,
            (Class::Background, _) => Self::Background,
        }
    }
}

/// The server's deadline if background work, which holds no lane, could be spared one of the free ones: see [`WaitingRoom::next_line`].
#[must_use]
pub fn background_due(
    server: &BandwidthServer,
    holds_lane: bool,
    num_lanes: usize,
    num_free: usize,
) -> Option<Instant> {
    server.busy_until().filter(|_| !holds_lane && num_lanes > 1 && num_free > 0)
}

/// Waiting requests of all classes, bounded together.
#[derive(Debug)]
pub struct WaitingRoom<T> {
    queues: [EdfQueue<T>; 4],
    capacity: usize,
}

impl<T> WaitingRoom<T> {
    /// An empty room for `capacity` requests.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { queues: Line::ALL.map(|_| EdfQueue::new(capacity)), capacity }
    }

    /// Requests waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queues.iter().map(EdfQueue::len).sum()
    }

    /// True when nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a request.
    ///
    /// # Errors
    /// Gives `item` back when the room is full.
    pub fn push(&mut self, line: Line, rank: Rank, item: T) -> Result<(), T> {
        if self.len() >= self.capacity {
            return Err(item);
        }
        let [promised, optional, interactive, background] = &mut self.queues;
        let queue = match line {
            Line::Promised => promised,
            Line::Optional => optional,
            Line::Interactive => interactive,
            Line::Background => background,
        };
        queue.push(rank, item)
    }

    /// Takes the next request of `line`.
    pub fn pop(&mut self, line: Line) -> Option<(Rank, T)> {
        self.queues.get_mut(line as usize)?.pop()
    }

    /// Whose next request should get a lane. `background_due` is the server's deadline when background work holds no lane and one
    /// could be spared for it.
    #[must_use]
    pub fn next_line(&self, background_due: Option<Instant>) -> Option<Line> {
        let first = Line::ALL.into_iter().find(|&line| self.head(line).is_some())?;
        let is_ahead = |due: Instant| match self.head(first) {
            Some(Rank { deadline: Some(deadline), .. }) => due < deadline,
            _ => true,
        };
        let is_due = self.head(Line::Background).is_some() && background_due.is_some_and(is_ahead);
        Some(if is_due { Line::Background } else { first })
    }

    /// All who wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Rank, &T)> {
        self.queues.iter().flat_map(EdfQueue::iter)
    }

    /// Takes everybody for whom `leaves` holds; the others keep their order.
    pub fn take_if(&mut self, mut leaves: impl FnMut(Rank, &T) -> bool) -> Vec<T> {
        self.queues.iter_mut().flat_map(|queue| queue.take_if(&mut leaves)).collect()
    }

    fn head(&self, line: Line) -> Option<Rank> {
        self.queues.get(line as usize)?.peek().map(|(rank, _)| rank)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn promises_go_first_then_interactive_and_background_when_its_share_is_due() {
        let now = Instant::now();
        let rank = |deadline_ms: Option<u64>| Rank {
            deadline: deadline_ms.map(|ms| now + Duration::from_millis(ms)),
            ticket: 0,
        };
        let mut room = WaitingRoom::new(3);
        assert_eq!(room.next_line(None), None);
        room.push(Line::Background, rank(None), 'b').unwrap();
        assert_eq!(room.next_line(None), Some(Line::Background));
        room.push(Line::Interactive, rank(Some(10)), 'i').unwrap();
        assert_eq!(room.next_line(None), Some(Line::Interactive));
        room.push(Line::Promised, rank(Some(50)), 'c').unwrap();
        assert_eq!(room.next_line(None), Some(Line::Promised));
        assert_eq!(room.next_line(Some(now + Duration::from_millis(60))), Some(Line::Promised));
        assert_eq!(room.next_line(Some(now + Duration::from_millis(40))), Some(Line::Background));
        assert_eq!(room.push(Line::Promised, rank(Some(1)), 'x'), Err('x'));
        assert_eq!(room.pop(Line::Promised).map(|(_, item)| item), Some('c'));
        assert_eq!(room.take_if(|rank, _| rank.deadline.is_none()), ['b']);
        assert_eq!((room.len(), room.iter().count()), (1, 1));
    }
}
