//! Another engine's plan, given this engine's weights: no kernel is chosen again.

use std::path::{Path, PathBuf};

use takt_engine::{
    dir::{Manifest, PlanActivations, PlanEntry, PlanFile, PlanKv, PlanRole, PlanVersion, Quantization},
    spec::DecoderSpec,
};
use takt_tensorrt::{runtime::Weights, tensor::DataType};

use super::{PlanOptions, weights::ModelWeights};
use crate::{BuildError, Result};

/// A plan on the device whose weights can be given anew.
pub(super) trait LoadedPlan {
    /// Those it takes.
    fn weights(&self) -> takt_tensorrt::Result<Vec<Weights>>;

    /// Gives it all of them, and writes it.
    fn refit(&mut self, weights: &[(&str, DataType, &[u8])]) -> takt_tensorrt::Result<Box<dyn AsRef<[u8]>>>;
}

/// Loads a serialized plan onto the device.
pub(super) type Load<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Box<dyn LoadedPlan>>;

/// The plan that is given other weights, and the engine it is of.
#[derive(Debug)]
pub(super) struct Pattern {
    dir: PathBuf,
    pub entry: PlanEntry,
    spec: DecoderSpec,
    quantization: Quantization,
}

impl Pattern {
    /// The plan of the engine `dir` for this machine.
    ///
    /// # Errors
    /// [`BuildError::Engine`] for a folder that is no engine; [`BuildError::Unsupported`] where it has no such plan, or one that takes no other weights,
    /// with what builds one.
    pub fn find(dir: &Path, version: PlanVersion, sm: &str) -> Result<Self> {
        let manifest = Manifest::read(dir)?;
        let command = format!("`takt build {} --tensorrt --plans-only --plan-refit`", dir.display());
        let Some(entry) = manifest.plan(version, sm, PlanRole::Decoder) else {
            return Err(BuildError::Unsupported(format!(
                "a refit of the plan in {}: there is none for TensorRT {version} on {sm}; {command} builds one",
                dir.display()
            )));
        };
        if entry.refittable.is_none() {
            return Err(BuildError::Unsupported(format!(
                "a refit of plan {:?} of {}: it takes no other weights; {command} builds one that does",
                entry.file,
                dir.display()
            )));
        }
        if entry.streams_weights {
            return Err(BuildError::Unsupported(format!(
                "a refit of plan {:?} of {}: its weights are streamed, and taking others needs all of them on the GPU; {command} builds one that does not stream",
                entry.file,
                dir.display()
            )));
        }
        let entry = entry.clone();
        Ok(Self { dir: dir.into(), entry, spec: manifest.spec, quantization: manifest.quantization })
    }

    /// What its plan was built with.
    pub fn options(&self) -> PlanOptions {
        let entry = &self.entry;
        PlanOptions {
            num_lanes: entry.num_lanes,
            lane_capacity: Some(entry.lane_capacity),
            compute: entry.compute,
            activations: entry.activations,
            streams_weights: entry.streams_weights,
            form: Some(entry.form.into()),
            kv: Some(entry.kv.into()),
            is_refittable: true,
            ..PlanOptions::default()
        }
    }

    /// That a model of `spec` in these formats is one but for its weights, as far as can be told before it is written.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] with what differs.
    pub fn check(&self, spec: &DecoderSpec, quantization: &Quantization) -> Result<()> {
        let mut facts = Vec::new();
        // How long its contexts may be and where it came from is no part of what a plan computes.
        let like =
            DecoderSpec { max_context: spec.max_context, family: spec.family.clone(), ..self.spec.clone() };
        if like != *spec {
            facts.push("another architecture".to_owned());
        }
        let formats =
            |it: &Quantization| format!("layers in {} and an output head in {}", it.weights, it.lm_head);
        let (found, expected) = (formats(quantization), formats(&self.quantization));
        if found != expected {
            facts.push(format!("{found}, not {expected}"));
        }
        match facts.is_empty() {
            true => Ok(()),
            false => Err(self.refusal(&format!("the engine has {}", facts.join(" and ")))),
        }
    }

    /// That the plan puts out what a draft head takes which looks at the layers `captured`.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] with both.
    pub fn check_captured(&self, captured: &[usize]) -> Result<()> {
        if self.entry.captured == captured {
            return Ok(());
        }
        let layers = |of: &[usize]| match of {
            [] => "no draft head".to_owned(),
            of => format!("a draft head that looks at layers {of:?}"),
        };
        let (own, others) = (layers(captured), layers(&self.entry.captured));
        Err(self.refusal(&format!("the engine has {own}, the plan is for {others}")))
    }

    /// The plan with the weights of `model`.
    ///
    /// # Errors
    /// [`BuildError::Engine`] for a plan that is damaged; [`BuildError::Unsupported`] for a model that differs in more than the weights it takes; what
    /// `load` and TensorRT say, by `failure`.
    pub fn refit(
        &self,
        model: &ModelWeights,
        load: Load<'_>,
        failure: &dyn Fn(takt_tensorrt::TensorRtError) -> BuildError,
    ) -> Result<Box<dyn AsRef<[u8]>>> {
        let file = PlanFile::open(&self.dir, &self.entry)?;
        let mut plan = load(file.bytes())?;
        drop(file);
        let taken = plan.weights().map_err(failure)?;
        if self.entry.refittable.as_deref() != Some(&*model.rest_blake3(&taken)?) {
            let others = model.large_others(&taken);
            let fact = match others.first() {
                None => format!(
                    "the model differs in more than the weights it takes{}, or takt writes models otherwise than it did",
                    self.hint_of_scales()
                ),
                Some(first) => format!(
                    "the model differs in more than the weights it takes, which {} large constants are not among, as {first:?}",
                    others.len()
                ),
            };
            return Err(self.refusal(&fact));
        }
        let values = model.values(&taken).collect::<Result<Vec<_>>>()?;
        let given: Vec<_> =
            values.iter().map(|given| (given.name.as_str(), given.data_type, &given.bytes[..])).collect();
        plan.refit(&given).map_err(failure)
    }

    /// Where two models of the same architecture may differ in small constants.
    fn hint_of_scales(&self) -> &'static str {
        match (self.entry.activations, self.entry.kv) {
            (PlanActivations::Plain, PlanKv::Plain) => "",
            _ => {
                ", perhaps in scales of quantized activations or of an fp8 cache, which follow from the weights"
            }
        }
    }

    fn refusal(&self, fact: &str) -> BuildError {
        BuildError::Unsupported(format!(
            "a refit of plan {:?} of {}: {fact}; build a plan of its own, without --plan-refit-from",
            self.entry.file,
            self.dir.display()
        ))
    }
}
