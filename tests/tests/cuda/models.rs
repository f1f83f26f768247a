//! Small models with head sizes there are kernels for, and backends over them.

use std::time::Duration;

use takt_engine::{
    Result, TokenId,
    backend::cuda::{CudaBackend, CudaOptions, GpuWeights},
    kv::KvKind,
    spec::DecoderSpec,
    weights::WeightSource,
};
use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
};
use takt_tests::memory_weights::{small_spec, uniform};

use crate::emulator::driver::EmulatedDevice;

/// A device with all kernels.
pub fn emulated(test: &'static str) -> EmulatedDevice {
    EmulatedDevice::new(test).all_kernels().limit(Duration::from_secs(300))
}

/// [`small_spec`] with heads of 64.
pub fn spec() -> DecoderSpec {
    DecoderSpec {
        head_dim: 64,
        attention_scale: 0.125,
        rope: takt_engine::shapes::unscaled_rope(1e4, 64),
        ..small_spec()
    }
}

/// Three lanes of 200 tokens.
pub fn options(kv: KvKind) -> CudaOptions {
    CudaOptions {
        share: Share::GreenContext { num_sms: 16 },
        weights: GpuWeights::Auto,
        num_lanes: 3,
        lane_capacity: 200,
        kv,
        max_step_tokens: 96,
        max_logits_rows: 96,
        max_kv_bytes: None,
        step_limit: Duration::from_secs(60),
    }
}

/// A backend in a context of its own.
pub fn open(spec: &DecoderSpec, source: &dyn WeightSource, options: &CudaOptions) -> Result<CudaBackend> {
    let device = device::probe()?.remove(0);
    let (context, fallback) = Context::open(&device, options.share)?;
    assert_eq!(fallback, None);
    CudaBackend::new(spec, source, &context, [&image()[..]], options)
}

/// The least image that is one: an ELF header of no machine, in which the emulated device finds every kernel.
fn image() -> [u8; 64] {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image
}

pub fn tokens(spec: &DecoderSpec, len: usize) -> Vec<TokenId> {
    let mut state = 7;
    (0..len).map(|_| (uniform(&mut state).abs() * (spec.vocab_size - 1) as f32) as TokenId).collect()
}
