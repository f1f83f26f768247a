//! Versions of CUDA: of a driver, of a compiler, of what a cubin needs.

use std::{fmt, str::FromStr};

/// A release of CUDA: `12.6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CudaVersion {
    /// 12 of 12.6.
    pub major: u32,
    /// 6 of 12.6.
    pub minor: u32,
}

impl CudaVersion {
    /// The version `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// As the driver tells it: 12060 is 12.6.
    #[must_use]
    pub fn of_driver(number: i32) -> Self {
        let number = number.unsigned_abs();
        Self { major: number / 1000, minor: number % 1000 / 10 }
    }

    /// Whether a driver of this version takes cubins made by a compiler of `compiler`: those of its own major version, whatever the minor one,
    /// and of older ones.
    #[must_use]
    pub fn takes_cubins_of(self, compiler: Self) -> bool {
        compiler.major <= self.major
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// A text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of CUDA: expected two numbers, as 12.6 or 13.0")]
pub struct NotAVersion(pub String);

impl FromStr for CudaVersion {
    type Err = NotAVersion;

    fn from_str(text: &str) -> Result<Self, NotAVersion> {
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let number = |part: &str| if is_number(part) { part.parse().ok() } else { None };
        let parts = text.split_once('.').and_then(|(major, minor)| number(major).zip(number(minor)));
        parts.map(|(major, minor)| Self { major, minor }).ok_or_else(|| NotAVersion(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_the_drivers_numbers_are_read() {
        for (text, number, version) in [
            ("11.8", 11_080, CudaVersion::new(11, 8)),
            ("12.6", 12_060, CudaVersion::new(12, 6)),
            ("13.0", 13_000, CudaVersion::new(13, 0)),
            ("13.10", 13_100, CudaVersion::new(13, 10)),
        ] {
            assert_eq!(text.parse(), Ok(version));
            assert_eq!(version.to_string(), text);
            assert_eq!(CudaVersion::of_driver(number), version);
        }
        for text in ["", "13", "13.", ".6", "12.6.85", "12.x", "+12.6", "12.-6", "99999999999.0"] {
            let error = text.parse::<CudaVersion>().unwrap_err().to_string();
            assert!(error.contains("expected two numbers"), "{error}");
        }
    }

    #[test]
    fn cubins_load_on_drivers_of_their_major_version_and_later_ones() {
        let takes = |driver: (u32, u32), compiler: (u32, u32)| {
            CudaVersion::new(driver.0, driver.1).takes_cubins_of(CudaVersion::new(compiler.0, compiler.1))
        };
        assert!(takes((12, 6), (12, 6)) && takes((12, 2), (12, 6)) && takes((13, 0), (12, 6)));
        assert!(takes((13, 0), (13, 3)) && !takes((12, 9), (13, 0)));
    }
}
