//! Weights read where their file is mapped, on boards whose GPU shares its memory with the processor: nothing is copied.

use std::{str::FromStr, sync::Arc};

use memmap2::Mmap;
use takt_kernels_cu::driver::{
    context::Context,
    device::Device,
    host_memory::{HostMemory, HostReach},
};

use crate::{Result, weights::WeightSource};

/// Where the GPU reads weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpuWeights {
    /// In the mapped file where the GPU has the processor's memory and its page tables, as on Thor; copied elsewhere.
    ///
    /// Orin is believed to read registered memory past its caches, so there it is copied. Neither has been measured.
    #[default]
    Auto,
    /// In memory of the device's own.
    Copied,
    /// In the mapped file wherever the device can; copied, with a warning, where it cannot.
    Mapped,
}

impl FromStr for GpuWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "copied" => Ok(Self::Copied),
            "mapped" => Ok(Self::Mapped),
            _ => Err(format!("unknown place of weights {text:?}: expected auto, copied or mapped")),
        }
    }
}

impl GpuWeights {
    /// Whether `device` is to read weights in the mapped file.
    #[must_use]
    pub fn are_mapped_on(self, device: &Device) -> bool {
        match self {
            Self::Auto => device.is_integrated && device.host_reach == HostReach::PageTables,
            Self::Copied => false,
            Self::Mapped => true,
        }
    }
}

/// A weights file of an engine, mapped, as the device reads it.
#[derive(Debug)]
pub(super) struct WeightsFile {
    memory: HostMemory,
    mapping: Arc<Mmap>,
    whose: Whose,
}

/// Whose weights a file holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    Model,
    DraftHead,
}

impl Whose {
    /// For a sentence about them.
    fn in_words(self) -> &'static str {
        match self {
            Self::Model => "weights",
            Self::DraftHead => "the draft head's weights",
        }
    }
}

impl WeightsFile {
    /// The model's file, of `source`, if the device of `context` is to read weights there and can; where it is to and cannot, the log says why.
    ///
    /// # Errors
    /// [`crate::EngineError::Backend`] when the device is lost.
    pub(super) fn open(
        context: &Context,
        source: &dyn WeightSource,
        wanted: GpuWeights,
    ) -> Result<Option<Self>> {
        Self::open_of(Whose::Model, context, source, wanted)
    }

    /// [`Self::open`] of the weights of whomever.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(super) fn open_of(
        whose: Whose,
        context: &Context,
        source: &dyn WeightSource,
        wanted: GpuWeights,
    ) -> Result<Option<Self>> {
        if !wanted.are_mapped_on(context.device()) {
            return Ok(None);
        }
        let copied = |reason: &str| tracing::warn!("{} are copied to the GPU: {reason}", whose.in_words());
        let Some(mapping) = source.mapping() else {
            copied("they are not of a mapped file");
            return Ok(None);
        };
        match HostMemory::new(context, Arc::clone(&mapping) as _) {
            Ok(memory) => Ok(Some(Self { memory, mapping, whose })),
            Err(error) if error.is_lost() => Err(error.into()),
            Err(error) => {
                copied(&format!("they cannot be read where their file is mapped ({error})"));
                Ok(None)
            }
        }
    }

    /// Whether it is worth keeping for `mapped` bytes that are read in it; where it is not, the log says why.
    pub(super) fn is_of_use(&self, mapped: usize) -> bool {
        if mapped == 0 {
            tracing::warn!(
                "{} are copied to the GPU: none begins where kernels can read it in the mapped file; a new build of the engine is laid out for \
                 that",
                self.whose.in_words()
            );
        }
        mapped > 0
    }

    /// Bytes of the whole file.
    pub(super) fn num_bytes(&self) -> usize {
        self.mapping.len()
    }

    /// As the device reads it.
    pub(super) fn memory(&self) -> &HostMemory {
        &self.memory
    }

    /// Keeps the file in memory, where nothing else does: a page that has to be read from the disk would be waited for in a step.
    pub(super) fn keep_in_memory(&self) {
        if self.memory.is_registered() {
            return;
        }
        if let Err(error) = self.mapping.lock() {
            tracing::warn!(
                "{}, {} bytes, cannot be locked in memory ({error}): under memory pressure steps may wait for the disk; raise the limit on locked \
                 memory, or set [gpu] weights = \"copied\"",
                self.whose.in_words(),
                self.mapping.len()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_read_and_others_refused() {
        let read = |text: &str| text.parse::<GpuWeights>();
        assert_eq!(read("auto"), Ok(GpuWeights::Auto));
        assert_eq!(read("copied"), Ok(GpuWeights::Copied));
        assert_eq!(read("mapped"), Ok(GpuWeights::Mapped));
        assert!(read("shared").unwrap_err().contains("auto, copied or mapped"));
    }
}
