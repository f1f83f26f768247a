//! The boards kernels are compiled for.

use std::{fmt, str::FromStr};

use crate::CudaVersion;

/// A GPU architecture the kernels are compiled for. A cubin runs on its own architecture only.
///
/// The `a` in `sm_90a`, `sm_110a` and `sm_120a` turns on what the plain architecture compiles to slow software: conversion of
/// E2M1 on Thor, for instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Jetson Orin: `sm_87`.
    Orin,
    /// H100, H200, GH200: `sm_90a`.
    Hopper,
    /// Jetson Thor: `sm_110a`.
    Thor,
    /// GeForce RTX 50 and RTX PRO Blackwell: `sm_120a`.
    Blackwell,
}

impl Target {
    /// All targets, oldest first.
    pub const ALL: [Self; 4] = [Self::Orin, Self::Hopper, Self::Thor, Self::Blackwell];

    /// The name compilers and files use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Orin => "sm_87",
            Self::Hopper => "sm_90a",
            Self::Thor => "sm_110a",
            Self::Blackwell => "sm_120a",
        }
    }

    /// Major and minor compute capability of the devices it runs on.
    #[must_use]
    pub fn compute_capability(self) -> (u32, u32) {
        match self {
            Self::Orin => (8, 7),
            Self::Hopper => (9, 0),
            Self::Thor => (11, 0),
            Self::Blackwell => (12, 0),
        }
    }

    /// The target of a device, or `None` when there are no kernels for it. Nearby capabilities do not count: cubins with an `a` run
    /// on exactly one, and those of Tegra boards on no other GPU.
    #[must_use]
    pub fn of_compute_capability(major: u32, minor: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.compute_capability() == (major, minor))
    }

    /// The number in the name: 87, 90, 110, 120.
    #[must_use]
    pub fn sm(self) -> u32 {
        let (major, minor) = self.compute_capability();
        major * 10 + minor
    }

    /// The first release of CUDA whose compiler makes its cubins, of those that are in use: NVRTC 12.6 for JetPack 6, 12.8, 13.0.
    #[must_use]
    pub fn first_compiler(self) -> CudaVersion {
        match self {
            Self::Orin | Self::Hopper => CudaVersion::new(12, 6),
            Self::Thor => CudaVersion::new(13, 0),
            Self::Blackwell => CudaVersion::new(12, 8),
        }
    }

    /// What a cubin counts to each block's shared memory for the system itself, in bytes; not part of [`Self::max_shared_bytes`]. Orin's
    /// cubins do not count it.
    #[must_use]
    pub fn reserved_shared_bytes(self) -> u32 {
        match self {
            Self::Orin => 0,
            Self::Hopper | Self::Thor | Self::Blackwell => 1024,
        }
    }

    /// Shared memory one block can be given, static and dynamic, in bytes.
    #[must_use]
    pub fn max_shared_bytes(self) -> u32 {
        match self {
            Self::Orin => 163 * 1024,
            Self::Hopper | Self::Thor => 227 * 1024,
            Self::Blackwell => 99 * 1024,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A name that is no target's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no kernels for {0:?}; targets are sm_87 (Orin), sm_90a (Hopper), sm_110a (Thor), sm_120a (Blackwell)"
)]
pub struct UnknownTarget(pub String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Self, UnknownTarget> {
        let found = Self::ALL.into_iter().find(|target| target.name() == name);
        found.ok_or_else(|| UnknownTarget(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_capabilities_lead_back_to_the_target() {
        for target in Target::ALL {
            assert_eq!(target.name().parse(), Ok(target));
            let (major, minor) = target.compute_capability();
            assert_eq!(Target::of_compute_capability(major, minor), Some(target));
            assert_eq!(
                target.name().trim_start_matches("sm_").trim_end_matches('a'),
                target.sm().to_string()
            );
        }
    }

    #[test]
    fn a_device_without_kernels_has_no_target() {
        for (major, minor) in [(8, 6), (8, 9), (12, 1), (10, 0), (7, 2)] {
            assert_eq!(Target::of_compute_capability(major, minor), None);
        }
        assert!("sm_110".parse::<Target>().unwrap_err().to_string().contains("sm_110a"));
    }
}
