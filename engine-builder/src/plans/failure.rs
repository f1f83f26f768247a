//! What to do about a failure of TensorRT's.

use takt_engine::dir::PlanRole;
use takt_tensorrt::TensorRtError;

use crate::{
    BuildError,
    export::{Contract, Form},
};

/// What was done when something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Building,
    /// A plan that was just built.
    Loading,
}

/// What failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed<'a> {
    pub at: At,
    /// A plan of another engine was given this one's weights.
    pub is_refit: bool,
    /// Of the models.
    pub contract: &'a Contract,
}

impl Failed<'_> {
    /// `source`, which came of the plan of `role`, with what to do about it.
    pub fn told(&self, role: PlanRole, source: TensorRtError) -> BuildError {
        let advice = match &source {
            TensorRtError::Cancelled => return BuildError::Cancelled,
            TensorRtError::Failed { .. } | TensorRtError::OutOfMemory { .. } if self.at == At::Loading => {
                "TensorRT has built it; loading it to see which weights it takes needs as much of the GPU's memory again: end what else uses that, or leave out --plan-refit".into()
            }
            TensorRtError::Failed { .. } | TensorRtError::OutOfMemory { .. } if self.is_refit => {
                "build a plan of its own, without --plan-refit-from, or end what else uses the GPU's memory".into()
            }
            TensorRtError::OutOfMemory { .. } => {
                "ask for less with --plan-workspace, --plan-lanes or --plan-context, or end what else uses the memory".into()
            }
            TensorRtError::Failed { .. } => self.export_command(),
            _ => return source.into(),
        };
        BuildError::Plan { role, source, advice }
    }

    /// What writes the model that TensorRT would not take, and another form of it where there is one.
    fn export_command(&self) -> String {
        let contract = self.contract;
        let (form, target) = (contract.form.name(), &contract.target);
        let (dtype, activations) = (contract.compute.name(), contract.activations.name());
        let kv = contract.kv.name();
        let other = match contract.form {
            Form::Operators => "--plan-form primitives does without newer operators, if it is one of those; ",
            Form::Primitives => "",
        };
        format!(
            "{other}`takt export ENGINE -o DIR --for {target} --form {form} --dtype {dtype} --activations {activations} --kv {kv} --variant eagle3` writes the model that the plan is built from"
        )
    }
}
