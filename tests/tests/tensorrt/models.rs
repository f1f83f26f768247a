//! Small models as plans, and backends over them.

use std::{
    ops::ControlFlow,
    sync::{Arc, OnceLock},
    time::Duration,
};

use takt_engine::{
    Result, TokenId,
    backend::{
        cuda::{GpuOptions, kernels, usable_device},
        tensorrt::{SerializedPlan, TensorRtBackend, TensorRtOptions, kernel_sources},
    },
    dir::{PlanActivations, PlanCompute, PlanEntry, PlanForm, PlanKv, PlanRole, PlanVersion, Quantization},
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};
use takt_engine_builder::export::{
    Activations, Compute, Dim, ExportOptions, Form, KvType, Port, Source, Variant, export_source,
};
use takt_kernels_cu::driver::{
    context::{Context, Share},
    device,
};
use takt_tensorrt::{
    TensorRt, Version,
    build::{PlanFlags, PlanRequest, Profile, build_plan},
    tensor::ShapeRange,
};
use takt_tests::{
    memory_weights::{MemoryWeights, small_spec, uniform},
    onnx_run::executor::Executor,
};

use crate::{
    emulator::{
        device::is_required,
        driver::{Device, EmulatedDevice},
    },
    standin::{Standin, executor::Execute},
};

/// Tokens a lane holds.
pub const CAPACITY: usize = 140;
/// Most nodes of a tree, its root included.
pub const MAX_TREE: usize = 20;
/// Most tokens of a slice.
pub const MAX_PREFILL: usize = 32;
const NUM_LANES: usize = 3;

/// The kernels that run beside a plan.
pub const SOURCES: [&str; 4] = ["accept.cu", "kv_append.cu", "kv_compact.cu", "logits.cu"];

/// An Orin.
pub fn orin(test: &'static str) -> EmulatedDevice {
    EmulatedDevice::new(test).kernels(&SOURCES).sm(87)
}

/// A test over the emulated device and the stand-in, with what computes plans.
pub fn emulated(test: &'static str, body: impl FnOnce(&Device, &Standin, &'static Executor)) {
    on_the_stand_in(EmulatedDevice::new(test).kernels(&SOURCES), body);
}

/// The same over `device`.
pub fn on_the_stand_in(device: EmulatedDevice, body: impl FnOnce(&Device, &Standin, &'static Executor)) {
    // Made once, before the child that has the emulated driver.
    if crate::standin::Built::get().is_none() {
        return;
    }
    device.limit(Duration::from_secs(300)).run(|device| {
        let standin = Standin::load().unwrap();
        let executor = computing(&standin);
        body(device, &standin, executor);
        assert_eq!(standin.faults(), [""; 0]);
    });
}

/// Has the interpreter compute what the stand-in runs.
#[expect(unsafe_code, reason = "a function of C's signature is handed over")]
fn computing(standin: &Standin) -> &'static Executor {
    let executor: &'static Executor = Box::leak(Box::default());
    // SAFETY: both are `standin_execute` of executor.h, with the same structures written twice; the executor is never given back.
    unsafe {
        let function: Execute = std::mem::transmute(Executor::FUNCTION);
        standin.set_raw_executor(Some(function), std::ptr::from_ref(executor).cast_mut().cast());
    }
    executor
}

/// Has what the stand-in runs computed by nobody, for who counts allocations.
#[expect(unsafe_code, reason = "the stand-in takes a pointer")]
pub fn compute_nothing(standin: &Standin) {
    // SAFETY: no function is called.
    unsafe { standin.set_raw_executor(None, std::ptr::null_mut()) }
}

/// A model and the plan of it.
pub struct Planned {
    pub spec: DecoderSpec,
    pub weights: MemoryWeights,
    pub entry: PlanEntry,
    /// Of an E4M3 cache, as the contract tells them.
    pub cache_scales: Vec<[f32; 2]>,
    pub bytes: Vec<u8>,
    images: Vec<Vec<u8>>,
}

/// Where plans are built and run.
#[derive(Debug)]
pub struct Place {
    /// As `takt export` takes it.
    target: String,
    sm: String,
    device: String,
    /// Of the kernels that run beside a plan.
    images: Vec<Vec<u8>>,
}

impl Place {
    /// The stand-in, which takes everything, over the emulated device.
    pub fn stand_in() -> Self {
        Self {
            target: "tensorrt-10.16".into(),
            sm: "sm_90a".into(),
            device: "the emulated device".into(),
            images: vec![image().to_vec()],
        }
    }

    /// This machine, with kernels from where `places` says.
    pub fn here(places: &GpuOptions) -> Self {
        let (device, gpu) = usable_device().unwrap();
        let version = TensorRt::open().unwrap().version();
        let found = kernels(&kernel_sources(), &device, gpu, None, places).unwrap();
        Self {
            target: format!("tensorrt-{}.{},{}", version.major, version.minor, gpu.name()),
            sm: gpu.name().into(),
            device: device.key(),
            images: found.images().iter().map(|image| image.bytes().to_vec()).collect(),
        }
    }
}

/// What to make a plan of.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub form: Form,
    pub compute: Compute,
    pub weights: WeightKind,
    pub activations: Activations,
    pub kv: KvType,
    pub has_windows: bool,
}

/// Keys and values in 8 bits, which is no weights' kind: a plan of its own.
pub const FP8_CACHE: Kind = Kind {
    form: Form::Primitives,
    compute: Compute::F16,
    weights: WeightKind::Bf16,
    activations: Activations::Plain,
    kv: KvType::Fp8,
    has_windows: true,
};

/// The same with products in BF16.
pub const FP8_CACHE_BF16: Kind = Kind { compute: Compute::Bf16, ..FP8_CACHE };

pub const KINDS: [Kind; 4] = [
    Kind {
        form: Form::Operators,
        compute: Compute::F16,
        weights: WeightKind::Fp8,
        activations: Activations::Plain,
        kv: KvType::Plain,
        has_windows: false,
    },
    Kind {
        form: Form::Primitives,
        compute: Compute::F16,
        weights: WeightKind::Bf16,
        activations: Activations::Plain,
        kv: KvType::Plain,
        has_windows: false,
    },
    Kind {
        form: Form::Operators,
        compute: Compute::Bf16,
        weights: WeightKind::Bf16,
        activations: Activations::Plain,
        kv: KvType::Plain,
        has_windows: true,
    },
    Kind {
        form: Form::Primitives,
        compute: Compute::F16,
        weights: WeightKind::Nvfp4,
        activations: Activations::Plain,
        kv: KvType::Plain,
        has_windows: true,
    },
];

/// Kinds whose activations are quantized as their weights are.
pub const QUANTIZED: [Kind; 2] = [
    Kind { activations: Activations::Quantized, ..KINDS[0] },
    Kind { activations: Activations::Quantized, has_windows: false, ..KINDS[3] },
];

impl Kind {
    /// The model: [`spec`], of one layer where activations have four bits, whose noise behind three would leave little to see.
    pub fn spec(self) -> DecoderSpec {
        let spec = spec(self.has_windows);
        match (self.activations, self.weights) {
            (Activations::Quantized, WeightKind::Nvfp4) => DecoderSpec { num_layers: 1, ..spec },
            _ => spec,
        }
    }
}

/// `form`, or the one that an older TensorRT reads.
pub fn form_here(form: Form) -> Form {
    let Version { major, minor, .. } = TensorRt::open().unwrap().version();
    if (major, minor) < (10, 15) { Form::Primitives } else { form }
}

/// [`small_spec`] with a layer that sees nine positions, where windows are wanted.
pub fn spec(has_windows: bool) -> DecoderSpec {
    let windows = if has_windows { vec![None, Some(9), None] } else { Vec::new() };
    DecoderSpec { windows, ..small_spec() }
}

impl Planned {
    /// Exports a random model and builds its plan, as whoever follows the contract would.
    pub fn new(kind: Kind) -> Self {
        let spec = kind.spec();
        let weights = MemoryWeights::random(&spec, kind.weights, WeightKind::Bf16, 1);
        Self::of(kind, spec, weights, PlanFlags::default())
    }

    /// The same of a plan that takes other weights, and so has one profile.
    pub fn refittable(kind: Kind) -> Self {
        let spec = kind.spec();
        let weights = MemoryWeights::random(&spec, kind.weights, WeightKind::Bf16, 1);
        Self::of(kind, spec, weights, PlanFlags { refittable: true, ..PlanFlags::default() })
    }

    /// The same with lanes of `capacity` tokens.
    pub fn holding(kind: Kind, capacity: usize) -> Self {
        let spec = DecoderSpec { max_context: capacity, ..kind.spec() };
        let weights = MemoryWeights::random(&spec, kind.weights, WeightKind::Bf16, 1);
        Self::of(kind, spec, weights, PlanFlags::default())
    }

    /// The same of a model that is given, with lanes of [`CAPACITY`] or as many tokens as it takes if that is more, and of a plan that can do what `flags` say.
    pub fn of(kind: Kind, spec: DecoderSpec, weights: MemoryWeights, flags: PlanFlags) -> Self {
        let kind = Kind { form: form_here(kind.form), ..kind };
        Self::at(Place::stand_in(), kind, (spec, weights), flags).unwrap()
    }

    /// The same at `place`.
    ///
    /// # Errors
    /// What the place does not compute with.
    pub fn at(
        place: Place,
        kind: Kind,
        (spec, weights): (DecoderSpec, MemoryWeights),
        flags: PlanFlags,
    ) -> takt_engine_builder::Result<Self> {
        let capacity = if spec.max_context > 256 { spec.max_context } else { CAPACITY };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("export");
        let source = Source {
            spec: &spec,
            quantization: Quantization { weights: kind.weights, lm_head: WeightKind::Bf16, kv: KvKind::Bf16 },
            weights: &weights,
            draft: None,
            weights_hash: None,
        };
        let options = ExportOptions {
            target: place.target.parse().unwrap(),
            form: Some(kind.form),
            compute: kind.compute,
            activations: kind.activations,
            kv: Some(kind.kv),
            variant: Some(Variant::Eagle3),
            max_context: Some(capacity),
            padding_rows: MAX_TREE,
            ..ExportOptions::default()
        };
        let report = export_source(&source, &out, &options, &mut |_| {})?;
        let model = &report.contract.models[0];
        let trt = TensorRt::open().unwrap();
        let request = PlanRequest {
            onnx: &out.join(model.file),
            profiles: &profiles(&model.inputs, kind.form, capacity + MAX_TREE, flags.refittable),
            flags,
            workspace_bytes: None,
            optimization_level: None,
            timing_cache: &[],
            stream: None,
        };
        let bytes = build_plan(&trt, &request, &mut |_| ControlFlow::Continue(())).unwrap().plan.to_vec();
        let entry = PlanEntry {
            streams_weights: flags.weight_streaming,
            refittable: flags.refittable.then(|| "0".repeat(64)),
            sm: place.sm,
            device: place.device,
            ..entry(kind, capacity, &bytes, &trt)
        };
        let cache_scales = model.cache_scales.clone();
        Ok(Self { spec, weights, entry, cache_scales, bytes, images: place.images })
    }

    /// A backend in a context of its own.
    pub fn open(&self, options: &TensorRtOptions) -> Result<TensorRtBackend> {
        self.open_as(&self.entry, options)
    }

    /// The same of a plan that is said to be `entry`.
    pub fn open_as(&self, entry: &PlanEntry, options: &TensorRtOptions) -> Result<TensorRtBackend> {
        let device = device::probe()?.remove(0);
        let (context, fallback) = Context::open(&device, options.share)?;
        assert!(fallback.is_none() || is_required(), "{fallback:?}");
        let file = SerializedPlan { entry, bytes: &self.bytes, weight_bytes_per_step: 1 };
        let images = self.images.iter().map(Vec::as_slice);
        TensorRtBackend::new(&self.spec, file, (&TensorRt::open()?, &context), images, options)
    }
}

fn entry(kind: Kind, capacity: usize, bytes: &[u8], trt: &TensorRt) -> PlanEntry {
    let version = trt.version();
    PlanEntry {
        file: "plans/of-a-test.plan".into(),
        size_bytes: bytes.len() as u64,
        blake3: takt_engine::dir::blake3_hex(bytes),
        role: PlanRole::Decoder,
        tensorrt: PlanVersion { major: version.major, minor: version.minor },
        sm: "sm_90a".into(),
        device: "the emulated device".into(),
        weights_blake3: "0".repeat(64),
        form: match kind.form {
            Form::Operators => PlanForm::Operators,
            Form::Primitives => PlanForm::Primitives,
        },
        compute: if kind.compute == Compute::F16 { PlanCompute::F16 } else { PlanCompute::Bf16 },
        activations: match kind.activations {
            Activations::Plain => PlanActivations::Plain,
            Activations::Quantized => PlanActivations::Quantized,
        },
        kv: if kind.kv == KvType::Fp8 { PlanKv::Fp8 } else { PlanKv::Plain },
        num_lanes: NUM_LANES,
        lane_capacity: capacity,
        lane_rows: capacity + MAX_TREE,
        max_prefill: MAX_PREFILL,
        max_tree: MAX_TREE,
        captured: Vec::new(),
        stripped: false,
        streams_weights: false,
        refittable: None,
        timed_in_green_context: None,
    }
}

/// Prefill, decode, verify; or one for all of them.
fn profiles(inputs: &[Port], form: Form, lane_rows: usize, is_single: bool) -> Vec<Profile> {
    let steps = match is_single {
        true => vec![("any", NUM_LANES, MAX_PREFILL, MAX_TREE)],
        false => vec![
            ("prefill", 1, MAX_PREFILL, 1),
            ("decode", NUM_LANES, 1, 1),
            ("verify", NUM_LANES, MAX_TREE, MAX_TREE),
        ],
    };
    let range = |port: &Port, (batch, sequence, logits): (usize, usize, usize)| {
        let at = |which: usize| {
            let of = |most: usize| if which == 0 { 1 } else { most };
            let size = |dim: &Dim| match dim {
                Dim::Fixed(len) => *len,
                Dim::Named(name) => match (name.as_str(), form) {
                    ("batch", _) => of(batch),
                    ("sequence", _) => of(sequence),
                    ("logits", _) => of(logits),
                    ("past", _) => lane_rows,
                    ("kv", Form::Operators) => of(lane_rows),
                    ("kv", Form::Primitives) => lane_rows + of(sequence),
                    _ => panic!("a dimension {name}"),
                },
            };
            port.shape.iter().map(size).collect()
        };
        (port.name.clone(), ShapeRange { min: at(0), opt: at(1), max: at(1) })
    };
    let is_dynamic = |port: &&Port| port.shape.iter().any(|dim| matches!(dim, Dim::Named(_)));
    let profile = |(name, batch, sequence, logits): (&str, usize, usize, usize)| {
        let inputs = inputs.iter().filter(is_dynamic);
        Profile {
            name: name.into(),
            inputs: inputs.map(|port| range(port, (batch, sequence, logits))).collect(),
        }
    };
    steps.into_iter().map(profile).collect()
}

/// Three lanes.
pub fn options() -> TensorRtOptions {
    TensorRtOptions {
        share: Share::GreenContext { num_sms: 16 },
        num_lanes: NUM_LANES,
        lane_capacity: None,
        max_step_tokens: 96,
        max_logits_rows: 96,
        max_kv_bytes: None,
        max_bytes: None,
        num_snapshots: 0,
        step_limit: Duration::from_secs(60),
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

/// The first kind's plan, made once.
pub fn usual() -> Arc<Planned> {
    static PLANNED: OnceLock<Arc<Planned>> = OnceLock::new();
    Arc::clone(PLANNED.get_or_init(|| Arc::new(Planned::new(KINDS[0]))))
}
