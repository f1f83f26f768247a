//! What goes wrong on purpose.

use super::{DeviceAddress, Geometry, Launch, LaunchError};

/// The longest a kernel spins: a machine is never stuck for good.
pub const MAX_SPIN_NS: u64 = 60_000_000_000;

/// A kernel that does not do well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It ends in a trap.
    Trap,
    /// It writes where nothing lies.
    WildWrite,
    /// It is busy for so many nanoseconds, at most [`MAX_SPIN_NS`], and then ends by itself.
    Spin {
        /// Nanoseconds.
        ns: u64,
    },
}

impl Fault {
    /// In the page at address 0, where nothing lies: of the device's, and of the process whose memory it may read.
    const NOWHERE: DeviceAddress = DeviceAddress(16);

    /// The launch: one thread.
    ///
    /// # Errors
    /// [`LaunchError::TooLarge`] for a spin of more than [`MAX_SPIN_NS`].
    pub fn launch(self) -> Result<Launch, LaunchError> {
        let (kernel, arguments) = match self {
            Self::Trap => ("fault_trap", Vec::new()),
            Self::WildWrite => ("fault_write", vec![Self::NOWHERE.into()]),
            Self::Spin { ns } if ns > MAX_SPIN_NS => {
                let or_most = |ns: u64| usize::try_from(ns).unwrap_or(usize::MAX);
                let (found, max) = (or_most(ns), or_most(MAX_SPIN_NS));
                return Err(LaunchError::TooLarge { what: "nanoseconds of a spin", found, max });
            }
            Self::Spin { ns } => ("fault_spin", vec![ns.into()]),
        };
        Launch::new(kernel, Geometry::linear(1, 1), arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_spins_longer_than_a_minute() {
        let spin = |ns| Fault::Spin { ns }.launch();
        assert_eq!(spin(MAX_SPIN_NS).unwrap().kernel(), "fault_spin");
        let error = spin(MAX_SPIN_NS + 1).unwrap_err().to_string();
        assert!(error.contains("nanoseconds of a spin") && error.contains("60000000000"), "{error}");
    }
}
