//! How much memory there is for an engine on a device, and whether it fits.

use takt_kernels_cu::driver::context::Context;

use crate::{EngineError, Result, memory::available_bytes};

/// Device memory left to the driver for graphs and modules.
const DRIVER_BYTES: usize = 128 << 20;

/// Bytes of memory that an engine takes, by what they are for.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Needs {
    /// Weights in memory of the device's own.
    pub weights: usize,
    /// The whole mapped file, when weights are read in it; the device's memory where it is shared.
    pub mapped: usize,
    pub kv: usize,
    pub workspace: usize,
    /// Of the host's; the device's own where both share memory.
    pub pinned: usize,
}

/// What driver and system tell of memory.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct Room {
    /// Bytes the driver calls free, and all it has.
    pub free: usize,
    pub total: usize,
    /// On devices that share the processor's memory.
    pub shared: Option<SharedRoom>,
}

/// What the system tells of memory that a device shares.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend) struct SharedRoom {
    /// Bytes that it could give without swapping: free ones, and pages of files that give way. `None` where it does not tell.
    pub available: Option<usize>,
}

impl Room {
    /// On the device of `context`, now.
    pub(in crate::backend) fn of(context: &Context) -> Result<Self> {
        let (free, total) = context.memory_bytes()?;
        let available = || available_bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let shared = context.device().is_integrated.then(|| SharedRoom { available: available() });
        Ok(Self { free, total, shared })
    }

    /// Bytes that can be had. The driver does not count pages of files that give way, the system does; where it does not tell, they may be all.
    fn available(&self) -> usize {
        match self.shared {
            None => self.free,
            Some(SharedRoom { available: None }) => self.total,
            Some(SharedRoom { available: Some(available) }) => available.max(self.free).min(self.total),
        }
    }

    /// [`Self::available`] for more, of which `held` bytes of ours are taken already: what driver and system tell knows of them, what the board
    /// has does not.
    pub(in crate::backend) fn available_beside(&self, held: usize) -> usize {
        match self.shared {
            None => self.free,
            Some(_) => self.available().min(self.total.saturating_sub(held)),
        }
    }

    pub(in crate::backend) fn in_words(&self) -> String {
        let Self { free, total, shared } = self;
        match shared.map(|shared| shared.available) {
            None => format!("{free} of {total} are free"),
            Some(None) => format!("the board has {total} for everything"),
            Some(Some(available)) => format!(
                "of the {total} that processor and GPU share the driver has {free} free and the system {available} available"
            ),
        }
    }
}

impl Needs {
    /// What a device's memory holds of it, the driver's share included.
    pub(in crate::backend) fn of_device(&self, room: &Room) -> usize {
        let Self { weights, mapped, kv, workspace, pinned } = *self;
        let shared = if room.shared.is_some() { [mapped, pinned] } else { [0, 0] };
        let parts = [weights, kv, workspace, DRIVER_BYTES].into_iter().chain(shared);
        parts.fold(0_usize, usize::saturating_add)
    }

    /// That all of it fits.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] with every size.
    pub(in crate::backend) fn check(&self, room: &Room) -> Result<()> {
        let Self { weights, mapped, kv, workspace, pinned } = *self;
        let needed = self.of_device(room);
        if needed <= room.available() {
            return Ok(());
        }
        let room = room.in_words();
        Err(EngineError::Capacity(format!(
            "the engine takes {needed} bytes of device memory (weights {weights}, in the mapped file {mapped}; KV cache {kv}, workspace {workspace}, \
             driver {DRIVER_BYTES}; pinned {pinned}), {room}: use fewer or shorter lanes, a smaller format, or free memory"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;
    const NEEDS: Needs =
        Needs { weights: 300 * MIB, mapped: 1000 * MIB, kv: 50 * MIB, workspace: 20 * MIB, pinned: 2 * MIB };
    /// Weights, cache, workspace and the driver's own.
    const OWN: usize = 498 * MIB;
    const ALL: usize = 1500 * MIB;

    fn fits(room: Room) -> bool {
        NEEDS.check(&room).is_ok()
    }

    #[test]
    fn a_device_with_memory_of_its_own_needs_what_it_calls_free() {
        let room = |free| Room { free, total: 8000 * MIB, shared: None };
        assert!(fits(room(OWN)) && !fits(room(OWN - 1)));
    }

    #[test]
    fn shared_memory_counts_pinned_and_mapped_pages_and_what_gives_way() {
        let room = |free, available| Room { free, total: 8000 * MIB, shared: Some(SharedRoom { available }) };
        assert!(fits(room(0, Some(ALL))) && !fits(room(0, Some(ALL - 1))));
        assert!(fits(room(ALL, Some(0))) && !fits(room(ALL - 1, Some(0))));
        assert!(fits(room(0, None)), "all of it may give way");
        // A container may be told of more than the board has.
        let small = Room { total: ALL - 1, ..room(0, Some(2 * ALL)) };
        assert!(!fits(small));
    }

    #[test]
    fn what_comes_later_finds_what_is_left() {
        let own = Room { free: 300 * MIB, total: 8000 * MIB, shared: None };
        assert_eq!(own.available_beside(OWN), 300 * MIB);
        let shared = |available| Room { shared: Some(SharedRoom { available }), ..own };
        assert_eq!(shared(None).available_beside(ALL), 6500 * MIB);
        assert_eq!(shared(Some(700 * MIB)).available_beside(ALL), 700 * MIB);
        assert_eq!(shared(Some(7900 * MIB)).available_beside(ALL), 6500 * MIB);
    }

    #[test]
    fn a_refusal_has_every_number() {
        let shared = Some(SharedRoom { available: Some(700_000_001) });
        let room = Room { free: 5_000_003, total: 8_000_000_007, shared };
        let said = NEEDS.check(&room).unwrap_err().to_string();
        let numbers = [ALL, 300 * MIB, 1000 * MIB, 50 * MIB, 20 * MIB, 2 * MIB, DRIVER_BYTES];
        for number in numbers.into_iter().chain([5_000_003, 700_000_001, 8_000_000_007]) {
            assert!(said.contains(&number.to_string()), "{number} in {said}");
        }
        let own = NEEDS.check(&Room { shared: None, ..room }).unwrap_err().to_string();
        assert!(own.contains("5000003 of 8000000007 are free"), "{own}");
    }
}
