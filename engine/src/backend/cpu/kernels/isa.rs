//! Which kernels this machine can run.

use std::{fmt, sync::OnceLock};

/// An instruction set whose kernels this machine can run: values exist only for what was found at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(pub(super) Level);

/// The levels, worst first. A level that this build's architecture lacks is never found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

impl Isa {
    /// The plain form; runs anywhere and is the oracle of the others.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// The best this machine has; looked up once.
    #[must_use]
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().unwrap_or(Self::SCALAR))
    }

    /// Everything this machine has, worst first.
    pub fn available() -> impl Iterator<Item = Self> {
        ALL.iter().copied().filter(|level| level.is_present()).map(Self)
    }

    /// `scalar`, `avx2`, `avx512-vnni`, `neon`, `neon-dotprod`, `neon-i8mm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotprod => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm => "neon-i8mm",
        }
    }

    /// Tokens that share one decoding of a weight: as many as the vector registers hold sums of.
    pub(crate) fn max_tokens(self) -> usize {
        match self.0 {
            Level::Scalar => 1,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => 4,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => 8,
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonDotprod | Level::NeonI8mm => 4,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
const ALL: &[Level] = &[Level::Scalar, Level::Avx2, Level::Avx512];
#[cfg(target_arch = "aarch64")]
const ALL: &[Level] = &[Level::Scalar, Level::Neon, Level::NeonDotprod, Level::NeonI8mm];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ALL: &[Level] = &[Level::Scalar];

impl Level {
    fn is_present(self) -> bool {
        #[cfg(target_arch = "aarch64")]
        use std::arch::is_aarch64_feature_detected as has;
        #[cfg(target_arch = "x86_64")]
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_present()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512vl")
                    && has!("avx512dq")
                    && has!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => has!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod => has!("neon") && has!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Self::NeonDotprod.is_present() && has!("i8mm"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_available_and_better_than_scalar_on_known_architectures() {
        let found: Vec<_> = Isa::available().map(Isa::name).collect();
        assert!(found.contains(&"scalar") && found.contains(&Isa::detect().name()));
        if cfg!(target_arch = "aarch64") {
            assert!(found.contains(&"neon"));
        }
        #[cfg(target_arch = "aarch64")]
        assert_eq!(found.contains(&"neon-i8mm"), std::arch::is_aarch64_feature_detected!("i8mm"));
    }
}
