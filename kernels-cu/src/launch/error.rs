use super::DeviceAddress;

/// Why a kernel cannot be launched with what was asked: a mistake of the caller or a shape the kernel does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A size that must be at least one.
    #[error("{what}: 0, expected at least 1")]
    Zero {
        /// Which size.
        what: &'static str,
    },
    /// Two sizes that must agree do not.
    #[error("{what}: {found}, expected {expected}")]
    Mismatch {
        /// Which size.
        what: &'static str,
        /// As given.
        found: usize,
        /// As the other arguments demand.
        expected: usize,
    },
    /// A size that must come in whole blocks does not.
    #[error("{what}: {found}, expected a multiple of {multiple}")]
    NotMultiple {
        /// Which size.
        what: &'static str,
        /// As given.
        found: usize,
        /// The block's size.
        multiple: usize,
    },
    /// Over what the kernel, or a 32-bit argument, can take.
    #[error("{what}: {found}, expected at most {max}")]
    TooLarge {
        /// Which size.
        what: &'static str,
        /// As given.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A buffer that does not begin where the kernel's vector loads need it.
    #[error("{what}: address {:#x}, expected a multiple of {alignment} bytes", .address.0)]
    Misaligned {
        /// Which buffer.
        what: &'static str,
        /// Where it begins.
        address: DeviceAddress,
        /// In bytes.
        alignment: u64,
    },
    /// A combination there is no kernel for.
    #[error("{what}: no kernel for {found}; there is one for {expected}")]
    Unsupported {
        /// What has to be chosen: a format, a head size.
        what: &'static str,
        /// What was asked.
        found: String,
        /// What there is.
        expected: &'static str,
    },
}
