//! `takt bench --backend cuda` and `tensorrt`: every kind of step beside what the device's memory gives.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use takt_engine::{
    backend::Backend,
    dir::Manifest,
    engine::{BackendKind, EngineOptions},
    shapes,
};

use super::{CliError, interrupt::Interrupt, paint};
use crate::bench::gpu::{
    bandwidth::{self, DeviceBandwidth},
    kinds::{self, Kind, Kinds, Timed},
};

/// What is measured of a GPU besides what is measured of every backend.
#[derive(Debug, clap::Args)]
pub(super) struct GpuBenchArgs {
    /// On a GPU: lengths of prompts that are read [default: 256,2048]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prefill_lens: Vec<u32>,
    /// On a GPU: sizes of trees that are verified [default: 8,16,32,60]
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=4096))]
    verify_sizes: Vec<u32>,
}

/// What was measured.
pub(super) struct GpuFigures {
    pub bandwidth: DeviceBandwidth,
    kinds: Vec<Timed>,
}

/// What the memory gives, measured before the model takes its part of it.
pub(super) fn device_bandwidth(options: &EngineOptions) -> Result<DeviceBandwidth, CliError> {
    Ok(bandwidth::measure(&options.gpu)?)
}

impl GpuBenchArgs {
    /// That they are not said where they have no effect.
    pub fn check(&self, backend: BackendKind) -> Result<(), CliError> {
        let is_said = !(self.prefill_lens.is_empty() && self.verify_sizes.is_empty());
        if is_said && !backend.is_gpu() {
            let fact = "--prefill-lens and --verify-sizes belong to --backend cuda or tensorrt";
            return Err(CliError::Usage(fact.into()));
        }
        Ok(())
    }

    fn kinds(&self, context_len: usize, num_samples: usize) -> Kinds {
        let or = |given: &[u32], usual: &[u32]| -> Vec<usize> {
            let chosen = if given.is_empty() { usual } else { given };
            chosen.iter().map(|&number| number as usize).collect()
        };
        Kinds {
            context_len,
            num_samples,
            prefill_lens: or(&self.prefill_lens, &[256, 2048]),
            verify_sizes: or(&self.verify_sizes, &[8, 16, 32, 60]),
        }
    }

    /// Tokens of a lane in which all kinds fit, as far as the model was made for as many.
    pub fn lane_capacity(
        &self,
        least: usize,
        context_len: usize,
        dir: Option<&Path>,
        shape: Option<&str>,
    ) -> Result<usize, CliError> {
        let max_context = match (dir, shape) {
            (_, Some(shape)) => shapes::decoder_spec(shape)?.max_context,
            // What cannot be read is refused with more to say when it is opened.
            (Some(dir), None) => Manifest::read(dir).map_or(least, |manifest| manifest.spec.max_context),
            (None, None) => least,
        };
        let kinds = self.kinds(context_len, 1);
        let largest = kinds.verify_sizes.iter().max().copied().unwrap_or(0);
        let trees = context_len.checked_add(largest).ok_or_else(|| {
            CliError::Usage(format!(
                "--prompt-len {context_len}: no lane holds it and a tree of {largest} tokens"
            ))
        })?;
        let wished = kinds.prefill_lens.iter().copied().chain([trees, least]).max().unwrap_or(least);
        Ok(wished.min(max_context).max(least))
    }

    pub fn measure(
        &self,
        backend: &mut dyn Backend,
        bandwidth: DeviceBandwidth,
        (context_len, num_samples): (usize, usize),
        interrupt: &Interrupt,
    ) -> Result<GpuFigures, CliError> {
        let kinds = kinds::measure(backend, &self.kinds(context_len, num_samples), interrupt.flag())?;
        Ok(GpuFigures { bandwidth, kinds })
    }
}

impl GpuFigures {
    /// How many times a decode step a tree's verification takes.
    fn over_decode(&self, timed: &Timed) -> Option<f64> {
        let decode = self.kinds.iter().find(|other| other.kind == Kind::Decode)?;
        let ratio = timed.within(0.5).as_secs_f64() / decode.within(0.5).as_secs_f64().max(1e-9);
        (timed.kind == Kind::Verify).then_some(ratio)
    }

    /// Of what a copy moves: the share of decoding, weights and cache together.
    pub fn share(&self) -> Option<f64> {
        let decode = self.kinds.iter().find(|timed| timed.kind == Kind::Decode)?;
        Some(decode.bytes_s() / self.bandwidth.copy)
    }

    pub fn as_json(&self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let kinds: Vec<Value> = self
            .kinds
            .iter()
            .map(|timed| {
                json!({
                    "kind": timed.kind.name(), "tokens": timed.num_tokens, "samples": timed.times.len(),
                    "ms": {"p50": ms(timed.within(0.5)), "p99": ms(timed.within(0.99)), "max": ms(timed.within(1.0))},
                    "tok_s": timed.tok_s(), "bytes": timed.num_bytes, "gb_s": timed.bytes_s() / 1e9,
                    "copy_share": timed.bytes_s() / self.bandwidth.copy, "read_share": timed.bytes_s() / self.bandwidth.read,
                    "over_decode": self.over_decode(timed),
                })
            })
            .collect();
        let DeviceBandwidth { read, copy, num_bytes, l2_bytes } = self.bandwidth;
        json!({
            "copy_gb_s": copy / 1e9, "read_gb_s": read / 1e9, "buffer_bytes": num_bytes, "l2_bytes": l2_bytes, "kinds": kinds,
        })
    }

    /// The table under the usual lines.
    pub fn as_text(&self) -> String {
        let DeviceBandwidth { read, copy, num_bytes, l2_bytes } = self.bandwidth;
        let mut text = format!(
            "  memory, with nobody else at work: copied at {:.1} GB/s (cuMemcpyDtoD, read and written counted), read at {:.1} GB/s (a kernel), over {} and {} of cache\n\n",
            copy / 1e9,
            read / 1e9,
            paint::bytes(num_bytes as u64),
            paint::bytes(l2_bytes)
        );
        let header = format!(
            "  {:<14}{:>10}{:>10}{:>12}{:>12}{:>10}{:>10}{:>11}",
            "kind", "p50 ms", "p99 ms", "tokens/s", "GB/s", "of copy", "of read", "of decode"
        );
        text += &format!("{}\n", paint::dim(&header));
        for timed in &self.kinds {
            let label = if timed.kind == Kind::Decode {
                timed.kind.name().to_owned()
            } else {
                format!("{} {}", timed.kind.name(), timed.num_tokens)
            };
            let over = self.over_decode(timed).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let percent = |of: f64| format!("{:.0} %", timed.bytes_s() / of * 100.0);
            text += &format!(
                "  {label:<14}{:>10.3}{:>10.3}{:>12.1}{:>12.1}{:>10}{:>10}{over:>11}\n",
                timed.within(0.5).as_secs_f64() * 1e3,
                timed.within(0.99).as_secs_f64() * 1e3,
                timed.tok_s(),
                timed.bytes_s() / 1e9,
                percent(copy),
                percent(read),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_longer_than_can_be_counted_is_refused() {
        let args = GpuBenchArgs { prefill_lens: Vec::new(), verify_sizes: vec![8] };
        assert_eq!(args.lane_capacity(10, 5, None, None).unwrap(), 10);
        let error = args.lane_capacity(usize::MAX, usize::MAX - 7, None, None).unwrap_err();
        assert!(
            matches!(error, CliError::Usage(message) if message.contains("--prompt-len 18446744073709551608"))
        );
    }
}
