//! Checked launches: shapes and device addresses in, a [`Launch`] out.
//!
//! Nothing here calls CUDA. A launch is a plain value: the driver layer runs it on a stream, the tests' emulator on the CPU, with the
//! same kernel name, grid, block and argument pointers.
//!
//! Whatever changes from step to step is read from device memory by the kernels, so a launch can be captured into a CUDA graph once
//! per shape and repeated.

pub mod accept;
pub mod attention;
pub mod bandwidth;
mod check;
pub mod embed;
mod error;
pub mod faults;
mod kv;
pub mod kv_append;
pub mod kv_compact;
pub mod linear;
pub mod logits;
pub mod perception;
pub mod rms_norm;
pub mod rope_kv;
pub mod rows;
pub mod swiglu;

use std::{ffi::c_void, ops::DerefMut, ptr};

use smallvec::SmallVec;

pub use check::{aligned, at_most, equal, multiple_of, non_zero, to_i32, to_u32};
pub use error::LaunchError;
pub use kv::{KvCache, KvFormat, MAX_HEAD_DIM};

/// Most threads of one block, on every target.
pub const MAX_THREADS: u32 = 1024;

/// Most blocks along `y` and `z` of a grid.
const MAX_GRID_YZ: u32 = 65_535;

/// Shared memory a block can be given on every target, in bytes: that of sm_120a, the smallest
/// ([`Target::max_shared_bytes`](crate::Target::max_shared_bytes)).
pub const MAX_SHARED_BYTES: u32 = 99 * 1024;

/// An address in device memory; on the emulator, in the host's. A number: that there is memory, and how much, is vouched for by whoever puts
/// work with it into a stream ([what the compiler does not check](crate::driver)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DeviceAddress(pub u64);

impl DeviceAddress {
    /// No memory: for an argument the kernel does not read in this variant.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    ///
    /// # Errors
    /// [`LaunchError::TooLarge`] past the end of the address space.
    pub fn offset(self, bytes: usize) -> Result<Self, LaunchError> {
        let too_large = LaunchError::TooLarge { what: "address offset", found: bytes, max: usize::MAX };
        let Ok(wide) = u64::try_from(bytes) else { return Err(too_large) };
        self.0.checked_add(wide).map(Self).ok_or(too_large)
    }
}

/// One argument of a kernel, as wide as the parameter it is for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(DeviceAddress),
    /// `int`.
    I32(i32),
    /// `unsigned`.
    U32(u32),
    /// `long long`.
    I64(i64),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

impl Argument {
    /// Where the value lies, as `cuLaunchKernel` takes it.
    #[must_use]
    pub fn as_ptr(&self) -> *const c_void {
        match self {
            Self::Address(value) => ptr::from_ref(value).cast(),
            Self::I32(value) => ptr::from_ref(value).cast(),
            Self::U32(value) => ptr::from_ref(value).cast(),
            Self::I64(value) => ptr::from_ref(value).cast(),
            Self::U64(value) => ptr::from_ref(value).cast(),
            Self::F32(value) => ptr::from_ref(value).cast(),
        }
    }

    /// How wide it is, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Address(_) | Self::I64(_) | Self::U64(_) => 8,
            Self::I32(_) | Self::U32(_) | Self::F32(_) => 4,
        }
    }
}

macro_rules! from_value {
    ($($variant:ident($value:ty)),*) => {$(
        impl From<$value> for Argument {
            fn from(value: $value) -> Self {
                Self::$variant(value)
            }
        }
    )*};
}
from_value!(Address(DeviceAddress), I32(i32), U32(u32), I64(i64), U64(u64), F32(f32));

/// How many blocks, how many threads each, and the shared memory of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}

impl Geometry {
    /// `blocks` blocks of `threads` threads in one row, without dynamic shared memory.
    #[must_use]
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
    }

    fn check(&self) -> Result<(), LaunchError> {
        for (what, blocks, max) in [
            ("grid x", self.grid[0], i32::MAX.unsigned_abs()),
            ("grid y", self.grid[1], MAX_GRID_YZ),
            ("grid z", self.grid[2], MAX_GRID_YZ),
        ] {
            let blocks = non_zero(what, widen(blocks))?;
            at_most(what, blocks, widen(max))?;
        }
        let threads = self.block.iter().try_fold(1_u32, |product, &side| product.checked_mul(side));
        let threads = non_zero("threads of a block", threads.map_or(usize::MAX, widen))?;
        at_most("threads of a block", threads, widen(MAX_THREADS))?;
        at_most("shared bytes", widen(self.shared_bytes), widen(MAX_SHARED_BYTES))?;
        Ok(())
    }
}

/// `usize` is at least 32 bits wide wherever CUDA runs.
fn widen(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// As many arguments as a launch outside of a graph has: those allocate nothing.
const NUM_INLINE: usize = 12;

/// A kernel ready to run: the arguments of `cuLaunchKernel`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    kernel: &'static str,
    geometry: Geometry,
    arguments: SmallVec<[Argument; NUM_INLINE]>,
}

impl Launch {
    /// A launch of `kernel`, whose parameters are `arguments` in order.
    ///
    /// # Errors
    /// A grid, block or shared memory that no target can run.
    pub fn new(
        kernel: &'static str,
        geometry: Geometry,
        arguments: impl IntoIterator<Item = Argument>,
    ) -> Result<Self, LaunchError> {
        geometry.check()?;
        Ok(Self { kernel, geometry, arguments: arguments.into_iter().collect() })
    }

    /// Name of the `extern "C"` kernel.
    #[must_use]
    pub fn kernel(&self) -> &'static str {
        self.kernel
    }

    /// Grid, block and shared memory.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The arguments, in the order of the kernel's parameters.
    #[must_use]
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }

    /// One pointer an argument, for `cuLaunchKernel`'s `kernelParams`; valid as long as `self` stays where it is. The callee only
    /// reads through them.
    #[must_use]
    pub fn argument_pointers(&self) -> impl DerefMut<Target = [*mut c_void]> + use<> {
        let pointers = self.arguments.iter().map(|argument| argument.as_ptr().cast_mut());
        pointers.collect::<SmallVec<[_; NUM_INLINE]>>()
    }
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "reading arguments back through their pointers, as the driver does")]

    use super::*;

    #[test]
    fn argument_pointers_point_at_the_values() {
        let arguments =
            vec![DeviceAddress(0x1234_5678_9abc_def0).into(), 7_i32.into(), 0.5_f32.into(), u64::MAX.into()];
        let launch = Launch::new("k", Geometry::linear(1, 32), arguments).unwrap();
        let pointers = launch.argument_pointers();
        // SAFETY: each points at a value of that type inside `launch`.
        unsafe {
            assert_eq!(*pointers[0].cast::<u64>(), 0x1234_5678_9abc_def0);
            assert_eq!(*pointers[1].cast::<i32>(), 7);
            assert!((*pointers[2].cast::<f32>() - 0.5).abs() < f32::EPSILON);
            assert_eq!(*pointers[3].cast::<u64>(), u64::MAX);
        }
    }

    #[test]
    fn a_geometry_no_target_can_run_is_refused() {
        let launch = |grid, block, shared_bytes| {
            Launch::new("k", Geometry { grid, block, shared_bytes }, Vec::new()).unwrap_err()
        };
        assert_eq!(launch([0, 1, 1], [32, 1, 1], 0), LaunchError::Zero { what: "grid x" });
        assert_eq!(
            launch([1, 65_536, 1], [32, 1, 1], 0),
            LaunchError::TooLarge { what: "grid y", found: 65_536, max: 65_535 }
        );
        assert_eq!(
            launch([1, 1, 1], [33, 32, 1], 0),
            LaunchError::TooLarge { what: "threads of a block", found: 1056, max: 1024 }
        );
        assert!(matches!(launch([1, 1, 1], [u32::MAX, u32::MAX, 1], 0), LaunchError::TooLarge { .. }));
        assert!(matches!(launch([1, 1, 1], [32, 1, 1], 1 << 20), LaunchError::TooLarge { .. }));
    }

    #[test]
    fn an_address_does_not_wrap() {
        assert_eq!(DeviceAddress(16).offset(4), Ok(DeviceAddress(20)));
        assert!(DeviceAddress(u64::MAX).offset(1).is_err());
    }
}
