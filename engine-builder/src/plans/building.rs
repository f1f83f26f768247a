//! Engine → ONNX models in a hidden folder → plans in it.

use std::{
    collections::BTreeSet,
    fs,
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use takt_engine::{
    dir::{Manifest, PlanEntry, PlanForm, PlanKv, PlanRole, blake3_hex},
    draft::{DRAFT_MANIFEST_FILE, DraftManifest},
    engine::DEFAULT_STEP_TOKENS,
};
use takt_tensorrt::{
    TensorRtError,
    build::{BuildProgress, PlanFlags, PlanRequest},
};

use super::{
    DevicePlans,
    compiler::Compiled,
    device::PADDING_ROWS,
    failure::{At, Failed},
    green::Green,
    place::Place,
    profiles::Extents,
    refit::Pattern,
    timing_cache::TimingCache,
    weights::ModelWeights,
};
use crate::{
    BuildError, Progress, Result, Stage,
    export::{Contract, ExportProgress, Form, KvType, Model, export},
    report::{PlanReport, TimingCacheUse},
    staging::io_error,
};

/// The models, in the hidden folder.
const MODELS_FOLDER: &str = "onnx";
/// Of what TensorRT warns of, which may be a line a layer.
const MAX_WARNINGS: usize = 20;

/// Plans in the hidden folder.
pub(super) struct Built {
    pub plans: Vec<(PlanEntry, PlanReport)>,
    pub warnings: Vec<String>,
}

/// Writes the models and builds a plan of each; all of it below `place`'s hidden folder.
pub(super) fn build_all(
    plans: &DevicePlans,
    manifest: &Manifest,
    place: &Place,
    cancelled: Option<&AtomicBool>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Built> {
    let folder = place.staging().join(MODELS_FOLDER);
    let captured = captured(place.engine(), manifest)?;
    if let Some(pattern) = &plans.pattern {
        pattern.check_captured(&captured)?;
    }
    let mut options = plans.export_options(&manifest.spec, manifest.quantization.kv)?;
    options.cancelled = cancelled;
    let mut report = |at: ExportProgress<'_>| {
        let item = format!("{}: {}", at.file, at.item);
        progress(Progress {
            stage: Stage::Models,
            item: &item,
            done: at.done,
            total: at.total,
            bytes: at.bytes,
        });
    };
    let exported = export(place.engine(), &folder, &options, &mut report)?;
    let cache = TimingCache::new(plans.timing_folder.as_deref(), plans.version(), &plans.timed_on());
    let mut site = Site {
        plans,
        manifest,
        place,
        folder: &folder,
        contract: &exported.contract,
        captured,
        cache,
        cancelled,
    };
    let note = plans.cache_note(&manifest.spec, manifest.quantization.kv)?;
    let warnings = exported.warnings.into_iter().chain(note).collect();
    let mut built = Built { plans: Vec::new(), warnings };
    for model in &exported.contract.models {
        built.plans.push(site.build(model, progress)?);
    }
    Ok(built)
}

/// Where plans are built, and of what.
struct Site<'a> {
    plans: &'a DevicePlans,
    manifest: &'a Manifest,
    place: &'a Place,
    /// The models.
    folder: &'a Path,
    contract: &'a Contract,
    /// Layers whose inputs the decoder's plan puts out.
    captured: Vec<usize>,
    cache: TimingCache,
    cancelled: Option<&'a AtomicBool>,
}

impl Site<'_> {
    fn build(
        &mut self,
        model: &Model,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(PlanEntry, PlanReport)> {
        let started = Instant::now();
        let role = PlanRole::Decoder;
        let extents = self.extents()?;
        let profiles = extents.profiles(&model.inputs)?;
        let onnx = self.folder.join(model.file);
        if let Some(pattern) = &self.plans.pattern {
            let entry = self.refit(pattern, &onnx, progress)?;
            let seconds = started.elapsed().as_secs_f64();
            let timing_cache = TimingCacheUse::Refitted;
            return Ok((
                entry.clone(),
                PlanReport { entry, profiles, timing_cache, seconds, warnings: Vec::new() },
            ));
        }
        let (timings, note) = self.cache.read();
        let mut notes = Vec::from_iter(note);
        let options = &self.plans.options;
        let request = PlanRequest {
            onnx: &onnx,
            profiles: &profiles,
            flags: PlanFlags {
                refittable: options.is_refittable,
                weight_streaming: options.streams_weights,
                ..PlanFlags::default()
            },
            workspace_bytes: options.workspace_bytes,
            optimization_level: options.effort,
            timing_cache: &timings,
            stream: self.plans.green.as_ref().map(Green::stream),
        };
        let built = self.run(&request, role, progress)?;
        let timing_cache = timing_cache_use(&timings, &built, &mut notes);
        notes.extend(self.cache.write(&built.timing_cache));
        let mut entry = self.entry(role, &extents, &built)?;
        if options.is_refittable {
            let (rest, of_weights) = self.look_at_weights(role, &onnx, &built, progress)?;
            entry.refittable = Some(rest);
            notes.extend(of_weights);
        }
        self.place.write(&entry, (*built.plan).as_ref())?;
        let report = PlanReport {
            entry: entry.clone(),
            profiles,
            timing_cache,
            seconds: started.elapsed().as_secs_f64(),
            warnings: notes.into_iter().chain(shortened(built.warnings)).collect(),
        };
        Ok((entry, report))
    }

    /// TensorRT at work, which is asked to stop at its next step once the build is cancelled.
    fn run(
        &self,
        request: &PlanRequest<'_>,
        role: PlanRole,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Compiled> {
        let is_cancelled = || self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed));
        let mut report = |at: BuildProgress<'_>| {
            let phase =
                at.parent.map_or_else(|| at.phase.to_owned(), |parent| format!("{parent}: {}", at.phase));
            let item = format!("{role}: {phase}");
            progress(Progress { stage: Stage::Plans, item: &item, done: at.done, total: at.total, bytes: 0 });
            if is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        if is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let built = self.plans.compiler.build(request, &mut report).map_err(|e| self.failure(role, e))?;
        if is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        if (*built.plan).as_ref().is_empty() {
            let source =
                TensorRtError::Failed { call: "buildSerializedNetwork", reason: "an empty plan".into() };
            return Err(self.failure(role, source));
        }
        Ok(built)
    }

    /// BLAKE3 of what a plan that was just built does not take anew of its model, and notes of what it is not given. Its values are read as a refit
    /// reads them, so that one does not fail for what is known now.
    fn look_at_weights(
        &self,
        role: PlanRole,
        onnx: &Path,
        built: &Compiled,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(String, Vec<String>)> {
        let failure = |source| self.failure_at(role, source, At::Loading);
        self.step(role, "which weights it takes", (0, 1), progress)?;
        let plan = self.plans.compiler.load((*built.plan).as_ref()).map_err(failure)?;
        let (taken, model) = (plan.weights().map_err(failure)?, ModelWeights::open(onnx)?);
        let names = model.values(&taken).map(|given| given.map(|given| given.name));
        let given = names.collect::<Result<BTreeSet<String>>>()?;
        let own: Vec<_> = taken.iter().filter(|weights| !given.contains(&weights.name)).collect();
        let of_own = own.first().map(|first| {
            format!(
                "{} of the weights it takes are no constants of the model, as {:?}: a refit does not give them",
                own.len(),
                first.name
            )
        });
        let others = model.large_others(&taken);
        let note = others.first().map(|first| {
            format!(
                "of {} large constants TensorRT takes no other values, as of {first:?}: the plan is given no weights that differ in them",
                others.len()
            )
        });
        Ok((model.rest_blake3(&taken)?, note.into_iter().chain(of_own).collect()))
    }

    /// The plan of another engine with this one's weights, in the hidden folder.
    fn refit(
        &self,
        pattern: &Pattern,
        onnx: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PlanEntry> {
        let role = pattern.entry.role;
        let failure = |source| self.failure(role, source);
        self.step(role, "loading the plan of the other engine", (0, 2), progress)?;
        let mut load = |bytes: &[u8]| {
            let plan = self.plans.compiler.load(bytes).map_err(failure)?;
            self.step(role, "giving it weights", (1, 2), progress)?;
            Ok(plan)
        };
        let plan = pattern.refit(&ModelWeights::open(onnx)?, &mut load, &failure)?;
        self.step(role, "writing it", (2, 2), progress)?;
        let bytes = (*plan).as_ref();
        let blake3 = blake3_hex(bytes);
        let entry = PlanEntry {
            file: PlanEntry::hashed_file_name(pattern.entry.tensorrt, &pattern.entry.sm, role, &blake3),
            size_bytes: bytes.len() as u64,
            blake3,
            weights_blake3: self.weights_blake3(role)?,
            ..pattern.entry.clone()
        };
        self.place.write(&entry, bytes)?;
        Ok(entry)
    }

    /// Tells of a step, unless the build is cancelled.
    fn step(
        &self,
        role: PlanRole,
        what: &str,
        (done, total): (usize, usize),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let item = format!("{role}: {what}");
        progress(Progress { stage: Stage::Plans, item: &item, done, total, bytes: 0 });
        match self.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            true => Err(BuildError::Cancelled),
            false => Ok(()),
        }
    }

    /// Of the engine.
    fn weights_blake3(&self, role: PlanRole) -> Result<String> {
        let missing =
            || BuildError::Unsupported(format!("a plan of the {role}, which the engine does not list"));
        Ok(self.manifest.plan_weights(role).ok_or_else(missing)?.into())
    }

    /// An error with what to do about it.
    fn failure(&self, role: PlanRole, source: TensorRtError) -> BuildError {
        self.failure_at(role, source, At::Building)
    }

    fn failure_at(&self, role: PlanRole, source: TensorRtError, at: At) -> BuildError {
        let place = Failed { at, is_refit: self.plans.pattern.is_some(), contract: self.contract };
        place.told(role, source)
    }

    fn extents(&self) -> Result<Extents> {
        let capacity = self.plans.lane_capacity(&self.manifest.spec)?;
        Ok(Extents {
            form: self.contract.form,
            num_lanes: self.plans.options.num_lanes,
            lane_rows: self.contract.capacity,
            max_prefill: DEFAULT_STEP_TOKENS.min(capacity),
            max_tree: PADDING_ROWS,
            is_single: self.plans.options.is_refittable,
        })
    }

    fn entry(&self, role: PlanRole, extents: &Extents, built: &Compiled) -> Result<PlanEntry> {
        let plans = self.plans;
        let bytes = (*built.plan).as_ref();
        let blake3 = blake3_hex(bytes);
        let sm = plans.sm();
        Ok(PlanEntry {
            file: PlanEntry::hashed_file_name(plans.plan_version(), &sm, role, &blake3),
            size_bytes: bytes.len() as u64,
            blake3,
            role,
            tensorrt: plans.plan_version(),
            sm,
            device: plans.device(),
            weights_blake3: self.weights_blake3(role)?,
            form: match extents.form {
                Form::Operators => PlanForm::Operators,
                Form::Primitives => PlanForm::Primitives,
            },
            compute: plans.options.compute,
            activations: plans.options.activations,
            kv: match self.contract.kv {
                KvType::Plain => PlanKv::Plain,
                KvType::Fp8 => PlanKv::Fp8,
            },
            num_lanes: extents.num_lanes,
            lane_capacity: plans.lane_capacity(&self.manifest.spec)?,
            lane_rows: extents.lane_rows,
            max_prefill: extents.max_prefill,
            max_tree: extents.max_tree,
            captured: self.captured.clone(),
            stripped: false,
            streams_weights: plans.options.streams_weights,
            refittable: None,
            timed_in_green_context: plans.green.as_ref().map(Green::num_sms),
        })
    }
}

/// Layers whose inputs the engine's head takes; none without a head.
fn captured(engine: &Path, manifest: &Manifest) -> Result<Vec<usize>> {
    if manifest.file(DRAFT_MANIFEST_FILE).is_none() {
        return Ok(Vec::new());
    }
    let path = engine.join(DRAFT_MANIFEST_FILE);
    let json = fs::read(&path).map_err(|e| io_error("read", &path, e))?;
    let draft: DraftManifest = serde_json::from_slice(&json)
        .map_err(|e| BuildError::Source { path, fact: format!("is no draft head's manifest: {e}") })?;
    Ok(draft.spec.captured.to_vec())
}

fn timing_cache_use(timings: &[u8], built: &Compiled, notes: &mut Vec<String>) -> TimingCacheUse {
    if built.used_timing_cache {
        return TimingCacheUse::Used;
    }
    if !timings.is_empty() {
        notes.push(
            "TensorRT did not take the measurements of earlier builds, which are of another device, driver or version; all was measured anew".into(),
        );
    }
    TimingCacheUse::New
}

/// Each once, and not too many.
fn shortened(warnings: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for warning in warnings {
        if !kept.contains(&warning) {
            kept.push(warning);
        }
    }
    let num_more = kept.len().saturating_sub(MAX_WARNINGS);
    kept.truncate(MAX_WARNINGS);
    if num_more > 0 {
        kept.push(format!("and {num_more} more warnings of TensorRT"));
    }
    kept
}
