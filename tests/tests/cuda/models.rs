//! Small models with head sizes there are kernels for, and backends over them.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use takt_engine::{
    Result, TokenId,
    backend::cuda::{CudaBackend, CudaOptions, GpuOptions, GpuWeights, kernels, usable_device},
    kv::KvKind,
    spec::DecoderSpec,
    weights::WeightSource,
};
use takt_kernels_cu::{
    CudaVersion,
    driver::{
        context::{Context, Share},
        device,
    },
    source::SOURCES,
};
use takt_tests::memory_weights::{small_spec, uniform};

use crate::emulator::{device::is_required, driver::EmulatedDevice};

/// A device with all kernels.
pub fn emulated(test: &'static str) -> EmulatedDevice {
    EmulatedDevice::new(test).all_kernels().limit(Duration::from_secs(300))
}

/// The same, for tests that ask nothing of the emulated device: they run on a real one where one is required.
pub fn on_device(test: &'static str) -> EmulatedDevice {
    emulated(test).or_any_device()
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
    let (device, images) = (device::probe()?.remove(0), images()?);
    let (context, fallback) = Context::open(&device, options.share)?;
    // Before CUDA 12.5 there are no green contexts.
    let is_older = device.driver_version < CudaVersion::new(12, 5);
    assert!(fallback.is_none() || is_older || is_required(), "{fallback:?}");
    CudaBackend::new(spec, source, &context, images.iter().map(Vec::as_slice), options)
}

/// What a device of the test loads: the kernels of its target, or on the emulated one anything.
fn images() -> Result<Vec<Vec<u8>>> {
    if !is_required() {
        return Ok(vec![image().to_vec()]);
    }
    let (device, target) = usable_device()?;
    let found = kernels(SOURCES, &device, target, None, &kernel_places())?;
    Ok(found.images().iter().map(|image| image.bytes().to_vec()).collect())
}

/// Where `cargo run -p xtask -- kernels` keeps cubins, and the compiler in `TAKT_CUDA_ROOT`.
pub fn kernel_places() -> GpuOptions {
    GpuOptions {
        kernel_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda/cubins")),
        cuda_roots: env::var_os("TAKT_CUDA_ROOT").map(PathBuf::from).into_iter().collect(),
        ..GpuOptions::default()
    }
}

/// The least image that is one: an ELF header of no machine, in which the emulated device finds every kernel.
pub fn image() -> [u8; 64] {
    let mut image = [0; 64];
    image[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
    image
}

pub fn tokens(spec: &DecoderSpec, len: usize) -> Vec<TokenId> {
    let mut state = 7;
    (0..len).map(|_| (uniform(&mut state).abs() * (spec.vocab_size - 1) as f32) as TokenId).collect()
}
