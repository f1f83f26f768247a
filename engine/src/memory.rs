//! How much memory an engine takes, known before it is opened; and how much the process has taken.

use std::fs;

use takt_kernels_cu::driver::context::Share;

use crate::{
    EngineError, Result,
    backend::{
        cpu::{CpuOptions, workspace_bytes},
        cuda::{DeviceMemory, placed_bytes, sms_at_hand},
    },
    dir::{DraftDir, Part, Quantization, lay_out, parts},
    draft::{DraftManifest, MAX_DRAFT_ROWS},
    engine::{BackendKind, EngineOptions},
    kv::kv_bytes,
    spec::DecoderSpec,
};

/// Memory that an engine takes once it is open, by part.
///
/// While it is opened its file is mapped, and what has been packed of it is given back piece by piece: a few MiB a thread come on top. On a GPU
/// what the driver takes for itself does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineMemory {
    /// Weights of the model and of the draft head in use.
    pub weight_bytes: u64,
    /// KV cache of all lanes, the head's included.
    pub kv_bytes: u64,
    /// As much again for prefix snapshots, each as long as a lane.
    pub snapshot_bytes: u64,
    /// Buffers of a step, position tables; on a GPU also the pinned memory through which tokens and logits travel.
    pub workspace_bytes: u64,
}

impl EngineMemory {
    /// What a model takes under `options`, of the memory of the GPU where `options` name the CUDA backend: on the one at hand, or at most where
    /// there is none. TensorRT's sizes are its plan's, and told when that is opened.
    ///
    /// # Errors
    /// [`EngineError::Input`] for a lane longer than the model's context, [`EngineError::Unsupported`] for a decoder that does not hold,
    /// [`EngineError::Capacity`] when sizes exceed 2^64.
    pub fn of(
        spec: &DecoderSpec,
        quantization: &Quantization,
        draft: Option<&DraftManifest>,
        options: &EngineOptions,
    ) -> Result<Self> {
        spec.validate()?;
        let mut cpu_options = options.cpu_options(spec, quantization.kv);
        let draft = draft.filter(|_| options.speculation);
        if draft.is_some() {
            cpu_options = options.with_draft_rows(cpu_options);
        }
        cpu_options.validate(spec)?;
        let CpuOptions { num_lanes, lane_capacity, kv, .. } = cpu_options;
        let heads_kv = |num_lanes| {
            draft.map_or(Some(0), |draft| {
                let positions = draft.spec.max_positions.min(lane_capacity) + MAX_DRAFT_ROWS;
                kv_bytes(&draft.spec.layer(), kv, num_lanes, positions)
            })
        };
        let kv_of = |num_lanes| {
            let own = kv_bytes(spec, kv, num_lanes, lane_capacity);
            own.zip(heads_kv(num_lanes)).and_then(|(own, head)| own.checked_add(head)).ok_or_else(|| {
                EngineError::Capacity(
                    "the KV cache would exceed 2^64 bytes: use fewer lanes or tokens".into(),
                )
            })
        };
        if options.backend == BackendKind::Cuda {
            // Sizes that exceed 2^64 were refused.
            let (_, _) = (kv_of(num_lanes)?, kv_of(options.num_snapshots)?);
            return Self::on_gpu(spec, quantization, draft, (options, &cpu_options));
        }
        let head_weights = draft.map_or(Ok(0), |draft| stored_bytes(&DraftDir::parts(draft)))?;
        Ok(Self {
            weight_bytes: stored_bytes(&parts(spec, quantization))? + head_weights,
            kv_bytes: kv_of(num_lanes)?,
            snapshot_bytes: kv_of(options.num_snapshots)?,
            workspace_bytes: workspace_bytes(spec, &cpu_options, draft.map(|draft| &draft.spec)),
        })
    }

    /// As the CUDA backend lays it out.
    fn on_gpu(
        spec: &DecoderSpec,
        quantization: &Quantization,
        draft: Option<&DraftManifest>,
        (options, cpu_options): (&EngineOptions, &CpuOptions),
    ) -> Result<Self> {
        let share = options.gpu.share;
        let cuda_options = options.cuda_options(cpu_options, Share::None);
        let head = draft.map(|draft| &draft.spec);
        let told = DeviceMemory::of(spec, head, &cuda_options, sms_at_hand(share))?;
        let mut weights = lay_out(&parts(spec, quantization))?;
        if let Some(draft) = draft {
            weights.extend(lay_out(&draft.spec.parts(draft.weights, draft.lm_head))?);
        }
        let of_lane = told.kv / options.num_lanes as u64;
        Ok(Self {
            weight_bytes: weights.iter().map(|tensor| placed_bytes(tensor.byte_len) as u64).sum(),
            kv_bytes: told.kv,
            snapshot_bytes: of_lane.saturating_mul(options.num_snapshots as u64),
            workspace_bytes: told.workspace,
        })
    }

    /// Whether it stays within `max_bytes`.
    ///
    /// # Errors
    /// [`EngineError::Capacity`] with every part and what would fit.
    pub fn check(&self, max_bytes: u64, options: &EngineOptions) -> Result<()> {
        let total = self.total_bytes();
        if total <= max_bytes {
            return Ok(());
        }
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
        let fixed = self.weight_bytes.saturating_add(self.workspace_bytes);
        let (cached, room) =
            (self.kv_bytes.saturating_add(self.snapshot_bytes), max_bytes.saturating_sub(fixed));
        let way_out = if fixed >= max_bytes {
            "take a smaller model, weights of fewer bits, or no draft head".to_owned()
        } else {
            format!(
                "lanes and snapshots may take {} MiB, {:.0} % of what they are to: make lanes shorter by as much, use fewer of them or fewer \
                 snapshots, or a smaller KV format",
                mib(room),
                100.0 * room as f64 / cached.max(1) as f64
            )
        };
        Err(EngineError::Capacity(format!(
            "the engine takes {} MiB (weights {}, KV cache of {} lanes {}, {} snapshots {}, workspace {}), the memory budget is {} MiB: {way_out}, or \
             allow more",
            mib(total),
            mib(self.weight_bytes),
            options.num_lanes,
            mib(self.kv_bytes),
            options.num_snapshots,
            mib(self.snapshot_bytes),
            mib(self.workspace_bytes),
            mib(max_bytes),
        )))
    }

    /// All of it.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        [self.kv_bytes, self.snapshot_bytes, self.workspace_bytes]
            .iter()
            .fold(self.weight_bytes, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Largest resident size of this process so far; `None` where the kernel does not tell.
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    kib_of(&status, "VmHWM:")?.checked_mul(1024)
}

/// Bytes that the system could give without swapping, pages of files that give way among them; `None` where the kernel does not tell.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    kib_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?.checked_mul(1024)
}

/// The number of a line `NAME   123 kB`.
fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Bytes of tensors as the engine's files hold them.
fn stored_bytes(parts: &[Part]) -> Result<u64> {
    Ok(lay_out(parts)?.iter().map(|tensor| tensor.byte_len as u64).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Backend as _, cpu::CpuBackend},
        kv::KvKind,
        quant::WeightKind,
        shapes::{RandomWeights, decoder_spec},
    };

    #[test]
    fn the_kernels_numbers_are_read_and_other_lines_are_none() {
        let text = "MemTotal:       24611148 kB\nMemAvailable:   23000012 kB\nHugePages_Total:       0\n";
        assert_eq!(kib_of(text, "MemAvailable:"), Some(23_000_012));
        assert_eq!(kib_of(text, "MemTotal:"), Some(24_611_148));
        assert_eq!(kib_of(text, "HugePages_Total:"), None);
        assert_eq!(kib_of("MemAvailable: lots kB", "MemAvailable:"), None);
        assert_eq!(kib_of("", "MemAvailable:"), None);
    }

    #[test]
    fn what_is_told_before_is_what_a_backend_takes() {
        let spec = DecoderSpec {
            hidden_size: 256,
            intermediate_size: 640,
            num_layers: 2,
            vocab_size: 320,
            ..decoder_spec("llama-3.2-1b").unwrap()
        };
        let options = EngineOptions {
            num_lanes: 3,
            lane_capacity: Some(100),
            num_snapshots: 2,
            ..EngineOptions::default()
        };
        for (weights, lm_head) in [
            (WeightKind::Bf16, WeightKind::Bf16),
            (WeightKind::Nvfp4, WeightKind::Fp8),
            (WeightKind::Int4, WeightKind::Bf16),
        ] {
            let quantization = Quantization { weights, lm_head, kv: KvKind::Int8 };
            let told = EngineMemory::of(&spec, &quantization, None, &options).unwrap();
            let source = RandomWeights::new(&spec, weights, lm_head, 1).unwrap();
            let backend =
                CpuBackend::new(&spec, &source, &options.cpu_options(&spec, quantization.kv)).unwrap();
            let held = backend.capabilities();
            assert_eq!(told.kv_bytes, held.kv_bytes);
            assert_eq!(told.snapshot_bytes * 3, told.kv_bytes * 2);
            let norms = (2 * spec.num_layers + 1) * spec.hidden_size * 4;
            // A head that is the embedding is held once.
            let embedding =
                if lm_head == WeightKind::Bf16 { 0 } else { spec.vocab_size * spec.hidden_size * 2 };
            let taken = held.weight_bytes_per_step + (norms + embedding) as u64;
            let ratio = told.weight_bytes as f64 / taken as f64;
            assert!(
                (0.99..1.01).contains(&ratio),
                "{weights}, {lm_head}: {} told, {taken} taken",
                told.weight_bytes
            );
        }
    }

    #[test]
    fn a_gpu_is_told_its_own_numbers_and_not_the_processors() {
        let spec = decoder_spec("qwen3-0.6b").unwrap();
        let quantization =
            Quantization { weights: WeightKind::Nvfp4, lm_head: WeightKind::Fp8, kv: KvKind::Bf16 };
        let options = EngineOptions { num_lanes: 2, num_snapshots: 3, ..EngineOptions::default() };
        let of = |backend| {
            let options = EngineOptions { backend, ..options.clone() };
            EngineMemory::of(&spec, &quantization, None, &options).unwrap()
        };
        let (cpu, gpu) = (of(BackendKind::Cpu), of(BackendKind::Cuda));
        // The processor keeps a scale a row whatever the format.
        assert_eq!(gpu.kv_bytes, 2 * 4096 * 28 * 2 * 8 * 256);
        assert!(gpu.kv_bytes < cpu.kv_bytes);
        assert_eq!(gpu.snapshot_bytes * 2, gpu.kv_bytes * 3);
        // Logits of every node of a tree, on the device and in pinned memory.
        assert!(gpu.workspace_bytes > 2 * 66 * 151_936 * 4, "{}", gpu.workspace_bytes);
        assert!((0..100_000).contains(&(gpu.weight_bytes - cpu.weight_bytes)), "what each begins aligned by");
    }

    #[test]
    fn an_engine_over_its_budget_is_refused_with_the_numbers_and_the_way_out() {
        let spec = decoder_spec("qwen3-0.6b").unwrap();
        let quantization =
            Quantization { weights: WeightKind::Nvfp4, lm_head: WeightKind::Fp8, kv: KvKind::Int8 };
        let options = EngineOptions { num_lanes: 2, num_snapshots: 2, ..EngineOptions::default() };
        let needed = EngineMemory::of(&spec, &quantization, None, &options).unwrap();
        assert!(needed.check(needed.total_bytes(), &options).is_ok());
        let refused = |max_bytes| {
            let error = needed.check(max_bytes, &options).unwrap_err();
            assert!(error.is_capacity());
            error.to_string()
        };
        let text = refused(needed.total_bytes() - (needed.kv_bytes >> 1));
        for part in ["KV cache of 2 lanes 462.0", "2 snapshots 462.0", "75 % of what they are to", "shorter"]
        {
            assert!(text.contains(part), "{part:?} not in {text}");
        }
        assert!(refused(needed.weight_bytes).contains("take a smaller model"));
        assert!(refused(0).contains("the memory budget is 0.0 MiB"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_used_memory() {
        assert!(peak_rss_bytes().unwrap() > 1 << 20);
    }

    #[test]
    fn a_lane_longer_than_the_model_was_made_for_is_refused() {
        let spec = decoder_spec("qwen3-0.6b").unwrap();
        let quantization =
            Quantization { weights: WeightKind::Nvfp4, lm_head: WeightKind::Fp8, kv: KvKind::Bf16 };
        let options = EngineOptions { lane_capacity: Some(50_000), ..EngineOptions::default() };
        assert!(EngineMemory::of(&spec, &quantization, None, &options).is_err());
    }
}
