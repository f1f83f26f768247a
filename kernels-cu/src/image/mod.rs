//! A cubin, and what it says about its kernels.
//!
//! The compiler's figures decide whether a kernel is as it was meant to be: a kernel that spills registers or keeps an array in local
//! memory is many times slower than its design, silently. They stand in the cubin itself, an ELF file, so that checking them needs
//! no GPU and none of NVIDIA's tools.

mod elf;
mod info;

use crate::{
    Target,
    launch::{Launch, LaunchError},
};
use elf::Elf;
use info::FunctionInfo;

/// Bytes that are no cubin for the target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Something else.
    #[error("not a cubin: {reason}")]
    NotCubin {
        /// What it is.
        reason: &'static str,
    },
    /// The file ends inside something, or something points outside it.
    #[error("damaged cubin: {what} beyond the end of the file")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A cubin, for another architecture.
    #[error("cubin for sm_{found}, expected {expected}")]
    OtherTarget {
        /// The number in the file.
        found: u32,
        /// What was asked for.
        expected: Target,
    },
}

/// One kernel of a cubin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its `extern "C"` name.
    pub name: String,
    /// Registers a thread.
    pub registers: u32,
    /// Stack a thread, with that of the functions it calls: spilled registers and arrays that found no register.
    pub stack_bytes: u32,
    /// Local memory a thread that is not stack.
    pub local_bytes: u64,
    /// Static shared memory a block, with what the system reserves.
    pub shared_bytes: u64,
    /// Most threads of a block, from `__launch_bounds__`.
    pub max_threads: Option<u32>,
    /// Sizes of its parameters, in order.
    pub parameter_bytes: Vec<u32>,
}

impl Kernel {
    /// Whether threads keep anything in memory that was meant for registers.
    #[must_use]
    pub fn spills(&self) -> bool {
        self.stack_bytes > 0 || self.local_bytes > 0
    }

    /// Whether `launch` fits the kernel: number and sizes of arguments, threads, shared memory. The driver checks none of the
    /// arguments; it reads as many bytes as the kernel says from wherever they are.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, launch: &Launch, target: Target) -> Result<(), LaunchError> {
        let mismatch = |what, found, expected| Err(LaunchError::Mismatch { what, found, expected });
        let arguments = launch.arguments();
        if arguments.len() != self.parameter_bytes.len() {
            return mismatch("number of arguments", arguments.len(), self.parameter_bytes.len());
        }
        for (argument, &bytes) in arguments.iter().zip(&self.parameter_bytes) {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            if argument.size() != bytes {
                return mismatch("bytes of an argument", argument.size(), bytes);
            }
        }
        self.check_block(launch, target)
    }

    fn check_block(&self, launch: &Launch, target: Target) -> Result<(), LaunchError> {
        let too_large = |what, found: u64, max: u64| {
            let wide = |value| usize::try_from(value).unwrap_or(usize::MAX);
            Err(LaunchError::TooLarge { what, found: wide(found), max: wide(max) })
        };
        let geometry = launch.geometry();
        let threads: u64 = geometry.block.iter().map(|&side| u64::from(side)).product();
        let max_threads = u64::from(self.max_threads.unwrap_or(crate::launch::MAX_THREADS));
        if threads > max_threads {
            return too_large("threads of a block", threads, max_threads);
        }
        let static_bytes = self.shared_bytes.saturating_sub(target.reserved_shared_bytes().into());
        let shared_bytes = static_bytes.saturating_add(geometry.shared_bytes.into());
        let max_shared_bytes = u64::from(target.max_shared_bytes());
        if shared_bytes > max_shared_bytes {
            return too_large("static and dynamic shared bytes", shared_bytes, max_shared_bytes);
        }
        Ok(())
    }
}

/// A cubin for one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    target: Target,
    bytes: Vec<u8>,
    kernels: Vec<Kernel>,
}

impl Image {
    /// Reads the cubin `bytes`.
    ///
    /// # Errors
    /// Bytes that are no whole cubin, or one for another architecture.
    pub fn parse(bytes: Vec<u8>, target: Target) -> Result<Self, ImageError> {
        let elf = Elf::parse(&bytes)?;
        // CUDA 13 moved the architecture up by a byte.
        let found = if elf.abi_version >= 8 { (elf.flags >> 8) & 0xff } else { elf.flags & 0xff };
        if found != target.sm() {
            return Err(ImageError::OtherTarget { found, expected: target });
        }
        let kernels = kernels(&elf)?;
        Ok(Self { target, bytes, kernels })
    }

    /// What it runs on.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target
    }

    /// The cubin, as the driver loads it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its kernels, by name.
    #[must_use]
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

/// Every section `.nv.info.<name>` is a kernel's.
fn kernels(elf: &Elf<'_>) -> Result<Vec<Kernel>, ImageError> {
    let functions = elf.functions()?;
    let attributes = elf.section(".nv.info").map_or(&[][..], |section| section.bytes);
    let attributes = info::functions(attributes)?;
    let size_of =
        |prefix: &str, name: &str| elf.section(&format!("{prefix}{name}")).map_or(0, |section| section.size);
    let mut kernels = Vec::new();
    for section in &elf.sections {
        let Some(name) = section.name.strip_prefix(".nv.info.") else { continue };
        let launch = info::kernel(section.bytes)?;
        let (registers, stack_bytes) = registers_and_stack(name, &functions, &attributes);
        kernels.push(Kernel {
            name: name.to_owned(),
            registers,
            stack_bytes,
            local_bytes: size_of(".nv.local.", name),
            shared_bytes: size_of(".nv.shared.", name),
            max_threads: launch.max_threads,
            parameter_bytes: launch.parameter_bytes,
        });
    }
    kernels.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(kernels)
}

/// The largest of each that is said about the function `name`.
fn registers_and_stack(name: &str, functions: &[Option<&str>], attributes: &[FunctionInfo]) -> (u32, u32) {
    let is_named = |symbol: usize| functions.get(symbol).copied().flatten() == Some(name);
    let (mut registers, mut stack_bytes) = (0, 0);
    for attribute in attributes {
        match *attribute {
            FunctionInfo::Registers { symbol, count } if is_named(symbol) => registers = registers.max(count),
            FunctionInfo::Stack { symbol, bytes } if is_named(symbol) => stack_bytes = stack_bytes.max(bytes),
            _ => {}
        }
    }
    (registers, stack_bytes)
}

#[cfg(test)]
mod tests;
