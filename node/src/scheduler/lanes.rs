//! Which lane a request gets. A free lane still holds the tokens of its last request: what the next prompt shares with them
//! need not be computed again.

use takt_engine::{TokenId, kv::LaneId};

use super::prefix::common_len;

/// All lanes of a backend: free ones with the tokens they still hold, used ones with their holder.
#[derive(Debug)]
pub struct Lanes<T> {
    slots: Vec<Slot<T>>,
    uses: u64,
}

#[derive(Debug)]
struct Slot<T> {
    holder: Option<T>,
    /// Tokens of the last holder whose KV is still in the lane; meaningful while the lane is free.
    resident: Vec<TokenId>,
    last_use: u64,
}

/// A free lane for a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The lane.
    pub lane: LaneId,
    /// Leading prompt tokens it already holds.
    pub shared_len: usize,
}

impl<T> Lanes<T> {
    /// `num_lanes` free lanes that hold nothing.
    #[must_use]
    pub fn new(num_lanes: usize) -> Self {
        let slots =
            (0..num_lanes).map(|_| Slot { holder: None, resident: Vec::new(), last_use: 0 }).collect();
        Self { slots, uses: 0 }
    }

    /// Lanes in use.
    #[must_use]
    pub fn num_used(&self) -> usize {
        self.slots.iter().filter(|slot| slot.holder.is_some()).count()
    }

    /// Lanes nobody holds.
    #[must_use]
    pub fn num_free(&self) -> usize {
        self.slots.len() - self.num_used()
    }

    /// The free lane that shares the most tokens with `prompt`; among equals the least recently used one.
    #[must_use]
    pub fn choose(&self, prompt: &[TokenId]) -> Option<Choice> {
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.holder.is_none());
        free.map(|(i, slot)| (common_len(&slot.resident, prompt), slot.last_use, i))
            .max_by_key(|&(shared_len, last_use, i)| (shared_len, std::cmp::Reverse((last_use, i))))
            .map(|(shared_len, _, i)| Choice { lane: LaneId(i), shared_len })
    }

    /// Gives `lane` to `holder`; a lane in use gives the new holder back.
    ///
    /// # Errors
    /// `holder`, when the lane does not exist or is in use.
    pub fn occupy(&mut self, lane: LaneId, holder: T) -> Result<(), T> {
        match self.slots.get_mut(lane.0) {
            Some(slot) if slot.holder.is_none() => {
                self.uses += 1;
                slot.last_use = self.uses;
                slot.resident.clear();
                slot.holder = Some(holder);
                Ok(())
            }
            _ => Err(holder),
        }
    }

    /// Takes the holder off `lane`.
    pub fn release(&mut self, lane: LaneId) -> Option<T> {
        self.slots.get_mut(lane.0)?.holder.take()
    }

    /// Says which tokens the free `lane` still holds.
    pub fn set_resident(&mut self, lane: LaneId, tokens: &[TokenId]) {
        if let Some(slot) = self.slots.get_mut(lane.0).filter(|slot| slot.holder.is_none()) {
            slot.resident.clear();
            slot.resident.extend_from_slice(tokens);
        }
    }

    /// Forgets what all free lanes hold.
    pub fn clear_residents(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.resident.clear());
    }

    /// Who holds `lane`.
    #[must_use]
    pub fn holder(&self, lane: LaneId) -> Option<&T> {
        self.slots.get(lane.0)?.holder.as_ref()
    }

    /// The holder of `lane`.
    pub fn holder_mut(&mut self, lane: LaneId) -> Option<&mut T> {
        self.slots.get_mut(lane.0)?.holder.as_mut()
    }

    /// All lanes in use with their holders.
    pub fn used(&self) -> impl Iterator<Item = (LaneId, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| Some((LaneId(i), slot.holder.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lane_that_shares_the_most_is_chosen_and_the_oldest_among_equals() {
        let mut lanes: Lanes<()> = Lanes::new(3);
        for i in 0..3 {
            lanes.occupy(LaneId(i), ()).unwrap();
        }
        assert_eq!(lanes.choose(&[1]), None);
        for (i, tokens) in [&[1, 2][..], &[1, 2, 3], &[5]].into_iter().enumerate() {
            lanes.release(LaneId(i));
            lanes.set_resident(LaneId(i), tokens);
        }
        assert_eq!(lanes.choose(&[1, 2, 3, 4]), Some(Choice { lane: LaneId(1), shared_len: 3 }));
        assert_eq!(lanes.choose(&[9]), Some(Choice { lane: LaneId(0), shared_len: 0 }));
        assert_eq!((lanes.num_free(), lanes.num_used()), (3, 0));
    }

    #[test]
    fn a_lane_in_use_is_not_given_twice() {
        let mut lanes = Lanes::new(1);
        assert_eq!(lanes.occupy(LaneId(0), 'a'), Ok(()));
        assert_eq!(lanes.occupy(LaneId(0), 'b'), Err('b'));
        assert_eq!(lanes.occupy(LaneId(7), 'c'), Err('c'));
        assert_eq!(lanes.release(LaneId(0)), Some('a'));
        assert_eq!(lanes.release(LaneId(0)), None);
    }
}
