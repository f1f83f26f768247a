//! With what plans are built, and for which machine: found before anything is done, so that a machine that cannot build one is told at once.

use std::path::{Path, PathBuf};

use takt_engine::{
    backend::cuda::usable_device,
    dir::{PlanActivations, PlanEntry, PlanVersion, Quantization},
    engine::{DEFAULT_LANE_CAPACITY, MAX_TREE_NODES},
    kv::KvKind,
    quant::WeightKind,
    spec::DecoderSpec,
};
use takt_kernels_cu::{
    Target as Gpu,
    driver::device::{self, Device},
};
use takt_tensorrt::{TensorRt, TensorRtError, Version};

use super::{PlanOptions, compiler::PlanCompiler, green::Green, refit::Pattern};
use crate::{
    BuildError, Result,
    export::{
        ExportOptions, Form, KvType, Runtime, Target, TensorRtVersion, Variant, WantedCache, cache_note,
        check_formats, choose_cache,
    },
};

/// Rows of a lane beyond its tokens, for the tokens that pad shorter lanes and those between lanes: as many as a tree has nodes, its root included.
pub(super) const PADDING_ROWS: usize = 1 + MAX_TREE_NODES;
/// A lane's rows are a multiple of so many bytes: with heads of 16 and more a lane's keys then begin at a multiple of 256 bytes, as TensorRT wants addresses.
const ROW_STEP_BYTES: usize = 16;
/// The release that leaves biases out of refittable plans, by NVIDIA's list of its known issues.
const LOSES_BIASES: (u32, u32) = (11, 3);
/// Rows of a cache of 8 bits are moved in words of so many values.
const FP8_WORD: usize = 16;

/// Plans to be built for this machine: with its TensorRT, for its GPU. Made before the engine, so that a machine without either is told at once and not
/// after the weights were quantized.
#[derive(Debug)]
pub struct DevicePlans {
    pub(super) compiler: Box<dyn PlanCompiler>,
    pub(super) gpu: Gpu,
    pub(super) device: String,
    pub(super) options: PlanOptions,
    pub(super) timing_folder: Option<PathBuf>,
    /// What kernels are timed in, where plans share the GPU.
    pub(super) green: Option<Green>,
    /// The plan that is given other weights, instead of one that is built.
    pub(super) pattern: Option<Pattern>,
}

impl DevicePlans {
    /// Opens TensorRT and looks for its parser and a GPU. What is measured while plans are built is kept in `timing_folder`, and used again.
    ///
    /// # Errors
    /// [`BuildError::TensorRt`] without the library or its parser, with what to do; [`BuildError::Engine`] without a GPU that Takt knows;
    /// [`BuildError::Unsupported`] for a TensorRT that no models are written for, options out of range, or a share of the multiprocessors that this
    /// machine cannot give.
    pub fn open(options: PlanOptions, timing_folder: Option<PathBuf>) -> Result<Self> {
        options.check()?;
        let trt = TensorRt::open()?;
        takt_tensorrt::probe().parser.map_err(TensorRtError::Missing)?;
        let (gpu_facts, gpu) = first_device()?;
        let (device, version) = (gpu_facts.key(), trt.version());
        let mut plans = Self::of(Box::new(trt), gpu, device, options, timing_folder)?;
        plans.green =
            options.sm_share.map(|percent| Green::open(&gpu_facts, version, percent)).transpose()?;
        Ok(plans)
    }

    /// Opens TensorRT, and takes the plan that the engine directory `pattern` has for this machine: it is given the weights of an engine of the same
    /// architecture and formats. What it can do it can do with other weights.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`BuildError::Unsupported`] where the engine has no plan for this machine that takes other weights, with what builds one.
    pub fn open_refit(pattern: &Path) -> Result<Self> {
        let trt = TensorRt::open()?;
        let (gpu_facts, gpu) = first_device()?;
        Self::refit_of(Box::new(trt), gpu, gpu_facts.key(), pattern)
    }

    pub(super) fn refit_of(
        compiler: Box<dyn PlanCompiler>,
        gpu: Gpu,
        device: String,
        pattern: &Path,
    ) -> Result<Self> {
        let Version { major, minor, .. } = compiler.version();
        let pattern = Pattern::find(pattern, PlanVersion { major, minor }, gpu.name())?;
        let mut plans = Self::of(compiler, gpu, device, pattern.options(), None)?;
        plans.pattern = Some(pattern);
        Ok(plans)
    }

    pub(super) fn of(
        compiler: Box<dyn PlanCompiler>,
        gpu: Gpu,
        device: String,
        options: PlanOptions,
        timing_folder: Option<PathBuf>,
    ) -> Result<Self> {
        options.check()?;
        let plans = Self { compiler, gpu, device, options, timing_folder, green: None, pattern: None };
        plans.target()?;
        plans.cache(KvKind::Bf16)?;
        Ok(plans)
    }

    /// TensorRT that builds them.
    #[must_use]
    pub fn version(&self) -> Version {
        self.compiler.version()
    }

    /// The GPU, as plans name it: `sm_110a`.
    #[must_use]
    pub fn sm(&self) -> String {
        self.gpu.name().into()
    }

    /// The device in words.
    #[must_use]
    pub fn device(&self) -> String {
        self.device.clone()
    }

    /// What measurements are of: a kernel takes longer on fewer multiprocessors.
    pub(super) fn timed_on(&self) -> String {
        match &self.green {
            Some(green) => format!("{} of which {}", self.device, green.num_sms()),
            None => self.device.clone(),
        }
    }

    /// Checks that TensorRT and the GPU take the weights of a model in their formats, and that lanes are not longer than the model
    /// was made for.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] saying which formats it does take, or what the model was made for.
    pub fn check(&self, spec: &DecoderSpec, quantization: &Quantization) -> Result<()> {
        self.lane_capacity(spec)?;
        self.check_biases(spec)?;
        if let Some(pattern) = &self.pattern {
            pattern.check(spec, quantization)?;
        }
        check_formats(spec, quantization, None, &self.export_options(spec, quantization.kv)?)?;
        self.check_activations(quantization)
    }

    /// That a plan that takes other weights keeps the model's biases.
    fn check_biases(&self, spec: &DecoderSpec) -> Result<()> {
        let Version { major, minor, .. } = self.version();
        let has_some = spec.qkv_bias || spec.o_bias || spec.mlp_bias;
        if !(self.options.is_refittable && has_some && (major, minor) == LOSES_BIASES) {
            return Ok(());
        }
        Err(BuildError::Unsupported(format!(
            "a plan that takes other weights, of a model with biases, by TensorRT {}: this release may take such biases for zero; use another, or leave out --plan-refit or --plan-refit-from",
            self.version()
        )))
    }

    /// That quantized activations are asked for where weights are multiplied with such: minutes are not spent on a plan as any other.
    fn check_activations(&self, quantization: &Quantization) -> Result<()> {
        const QUANTIZED: [WeightKind; 2] = [WeightKind::Nvfp4, WeightKind::Fp8];
        let Quantization { weights, lm_head, .. } = quantization;
        let has_some = [weights, lm_head].into_iter().any(|kind| QUANTIZED.contains(kind));
        if self.options.activations == PlanActivations::Plain || has_some {
            return Ok(());
        }
        let works: Vec<_> = QUANTIZED.into_iter().filter(|kind| self.takes(*kind)).collect();
        let instead = match &works[..] {
            [] => "it takes neither here".to_owned(),
            works => {
                let names: Vec<_> = works.iter().map(ToString::to_string).collect();
                format!("build the engine with --weights {}", names.join(" or "))
            }
        };
        Err(BuildError::Unsupported(format!(
            "quantized activations beside layers in {weights} and an output head in {lm_head} for {}: TensorRT multiplies quantized activations with nvfp4 and fp8 weights alone; {instead}, or leave out --plan-activations",
            self.target()?
        )))
    }

    /// Whether TensorRT and the GPU take weights of `kind`.
    #[must_use]
    pub fn takes(&self, kind: WeightKind) -> bool {
        self.target().is_ok_and(|target| target.fault_of(kind).is_none())
    }

    /// Tokens a lane holds.
    pub(super) fn lane_capacity(&self, spec: &DecoderSpec) -> Result<usize> {
        let made_for = spec.max_context;
        let capacity = self.options.lane_capacity.unwrap_or(made_for.min(DEFAULT_LANE_CAPACITY));
        if capacity == 0 || capacity > made_for {
            let fact =
                format!("plans for lanes of {capacity} tokens: the model was made for 1 to {made_for}");
            return Err(BuildError::Unsupported(fact));
        }
        Ok(capacity)
    }

    /// How the models are written that plans are built from: with the mask as an input whatever the engine has, so that trees of any drafter can be
    /// verified.
    pub(super) fn export_options(
        &self,
        spec: &DecoderSpec,
        of_engine: KvKind,
    ) -> Result<ExportOptions<'static>> {
        let capacity = self.lane_capacity(spec)?;
        let (form, kv) = self.cache_of(spec, of_engine)?;
        let value_bytes = match kv {
            KvType::Plain => 2,
            KvType::Fp8 => 1,
        };
        let row_step = ROW_STEP_BYTES / value_bytes;
        Ok(ExportOptions {
            target: self.target()?,
            form: Some(form),
            kv: Some(kv),
            compute: self.options.export_compute(),
            activations: self.options.export_activations(),
            variant: Some(Variant::Eagle3),
            max_context: Some(capacity),
            padding_rows: (capacity + PADDING_ROWS).next_multiple_of(row_step) - capacity,
            num_lanes: Some(self.options.num_lanes),
            // The backend runs a head by its own kernels.
            decoder_only: true,
            ..ExportOptions::default()
        })
    }

    /// Who reads the models.
    pub(super) fn target(&self) -> Result<Target> {
        let Version { major, minor, .. } = self.version();
        let version: TensorRtVersion = format!("{major}.{minor}").parse().map_err(BuildError::Unsupported)?;
        Ok(Target { runtime: Runtime::TensorRt(version), sm: Some(self.gpu.sm()) })
    }

    /// The newest form that TensorRT takes and that its headers know: through older ones its attention layers cannot be told that they may be taken apart.
    fn newest_form(&self) -> Result<Form> {
        let Version { major, minor, .. } = self.compiler.header_version();
        match (TensorRtVersion { major, minor }) < TensorRtVersion::FIRST_OPERATORS {
            true => Ok(Form::Primitives),
            false => Ok(self.target()?.newest_form()),
        }
    }

    /// The form and the cache that are asked for, or those that are best of an engine whose own is `of_engine`.
    fn cache(&self, of_engine: KvKind) -> Result<(Form, KvType)> {
        let newest = self.newest_form()?;
        if (self.options.form, newest) == (Some(Form::Operators), Form::Primitives) {
            return Err(BuildError::Unsupported(format!(
                "plans of form operators: they take TensorRT {first} or later and a takt built with its headers, this is {} with the headers of {}; leave out --plan-form",
                self.version(),
                self.compiler.header_version(),
                first = TensorRtVersion::FIRST_OPERATORS
            )));
        }
        choose_cache(&self.target()?, newest, self.wanted_cache(of_engine))
    }

    /// [`cache`](Self::cache) for a model: one of 8 bits takes heads of whole words.
    fn cache_of(&self, spec: &DecoderSpec, of_engine: KvKind) -> Result<(Form, KvType)> {
        match self.cache(of_engine)? {
            (form, KvType::Fp8) if !has_whole_words(spec) => match self.options.kv {
                None => Ok((form, KvType::Plain)),
                Some(_) => Err(BuildError::Unsupported(format!(
                    "plans with an fp8 cache for heads of {}: their rows are moved {FP8_WORD} values at a time; use --plan-kv plain",
                    spec.head_dim
                ))),
            },
            cache => Ok(cache),
        }
    }

    fn wanted_cache(&self, of_engine: KvKind) -> WantedCache {
        WantedCache { kv: self.options.kv, form: self.options.form, of_engine }
    }

    /// What the user should know of a cache that is not the engine's.
    pub(super) fn cache_note(&self, spec: &DecoderSpec, of_engine: KvKind) -> Result<Option<String>> {
        let (best, own) = (self.cache(of_engine)?, self.cache_of(spec, of_engine)?);
        if best != own {
            return Ok(Some(format!(
                "the engine's cache is {of_engine}, the plan's has the type of products, which takes more memory: rows of 8 bits are moved {FP8_WORD} values at a time, and heads have {}",
                spec.head_dim
            )));
        }
        Ok(cache_note(&self.target()?, self.cache(of_engine)?, self.wanted_cache(of_engine)))
    }

    /// Whether it builds a plan for the machine that `plan` is for.
    #[must_use]
    pub fn is_for(&self, plan: &PlanEntry) -> bool {
        (plan.tensorrt, plan.sm.as_str()) == (self.plan_version(), self.gpu.name())
    }

    /// The release that its plans are of.
    pub(super) fn plan_version(&self) -> PlanVersion {
        let Version { major, minor, .. } = self.version();
        PlanVersion { major, minor }
    }
}

fn has_whole_words(spec: &DecoderSpec) -> bool {
    spec.head_dim.is_multiple_of(FP8_WORD)
}

/// The GPU that plans are for.
fn first_device() -> Result<(Device, Gpu)> {
    let (gpu_facts, gpu) = usable_device()?;
    let device = gpu_facts.key();
    // TensorRT builds for the first device, and is asked for no other.
    let first = device::probe().map_err(TensorRtError::Driver)?.first().map(device::Device::key);
    if let Some(first) = first.filter(|first| *first != device) {
        let fact = format!(
            "plans for {device}: TensorRT builds on the first GPU, which is {first}; make the other the first with CUDA_VISIBLE_DEVICES"
        );
        return Err(BuildError::Unsupported(fact));
    }
    Ok((gpu_facts, gpu))
}
