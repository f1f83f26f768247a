//! What every part of a model is written with: the graph, the weights, the types, and how far it is.

use std::sync::atomic::{AtomicBool, Ordering};

use takt_engine::spec::DecoderSpec;

use super::{
    ExportProgress,
    graph::{Attribute, Graph, Placed, Value},
    kv::KvType,
    options::{Activations, Compute},
    target::{Form, Target},
    tensors::Tensors,
};
use crate::{BuildError, Result};

/// A model being written.
pub(super) struct Writer<'a> {
    pub graph: Graph,
    pub tensors: &'a dyn Tensors,
    /// The decoder, or a draft head's layer as one.
    pub spec: &'a DecoderSpec,
    pub target: Target,
    pub form: Form,
    pub compute: Compute,
    pub activations: Activations,
    /// What keys and values are stored as.
    pub kv: KvType,
    /// Of each layer's keys and values in a cache of 8 bits; none otherwise.
    pub cache_scales: Vec<[f32; 2]>,
    /// Tokens a lane of the cache holds.
    pub capacity: usize,
    /// The output head is the embedding's own tensor.
    pub head_is_embedding: bool,
    /// The embedding lies in the data of the model beside this one.
    pub embedding_beside: Option<Placed>,
    pub report: Report<'a>,
}

/// How far an export is, and whether it is to go on.
pub(super) struct Report<'a> {
    pub file: &'static str,
    pub done: usize,
    pub total: usize,
    pub cancelled: Option<&'a AtomicBool>,
    pub progress: &'a mut dyn FnMut(ExportProgress<'_>),
}

impl Writer<'_> {
    /// A tensor has been written.
    pub(super) fn advanced(&mut self, name: &str) -> Result<()> {
        if self.report.cancelled.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Err(BuildError::Cancelled);
        }
        self.report.done += 1;
        let (file, done, bytes) = (self.report.file, self.report.done, self.graph.data_bytes());
        let total = self.report.total.max(done);
        (self.report.progress)(ExportProgress { file, item: name, done, total, bytes });
        Ok(())
    }

    /// `x`, which is in the type that is computed in, in 32 bits.
    pub(super) fn widened(&mut self, x: &str) -> Value {
        if self.compute == Compute::F32 {
            return x.to_owned();
        }
        self.cast(&format!("{x}.f32"), x, 1)
    }

    /// `x`, which has 32 bits, in the type that is computed in.
    pub(super) fn narrowed(&mut self, x: &str) -> Value {
        if self.compute == Compute::F32 {
            return x.to_owned();
        }
        self.cast(&format!("{x}.{}", self.compute.name()), x, self.compute.element() as i64)
    }

    /// A cast that is made once, however often it is asked for.
    fn cast(&mut self, name: &str, x: &str, to: i64) -> Value {
        if self.graph.knows(name) {
            return name.to_owned();
        }
        self.graph.op("Cast", name, &[x], &[("to", Attribute::Int(to))])
    }

    pub(super) fn reshape(&mut self, name: &str, x: &str, shape: &[i64]) -> Result<Value> {
        let shape = self.graph.ints(shape)?;
        Ok(self.graph.op("Reshape", name, &[x, &shape], &[]))
    }

    pub(super) fn transpose(&mut self, name: &str, x: &str, perm: &[i64]) -> Value {
        self.graph.op("Transpose", name, &[x], &[("perm", Attribute::Ints(perm.to_vec()))])
    }

    pub(super) fn unsqueeze(&mut self, name: &str, x: &str, axis: i64) -> Result<Value> {
        let axes = self.graph.ints(&[axis])?;
        Ok(self.graph.op("Unsqueeze", name, &[x, &axes], &[]))
    }

    /// `x[…, from..until, …]` along `axis`; `until` is a value.
    pub(super) fn slice_to(&mut self, name: &str, x: &str, axis: i64, until: &str) -> Result<Value> {
        let (zero, axes) = (self.graph.ints(&[0])?, self.graph.ints(&[axis])?);
        Ok(self.graph.op("Slice", name, &[x, &zero, until, &axes], &[]))
    }

    /// `x[…, from..until, …]` along `axis`.
    pub(super) fn slice(
        &mut self,
        name: &str,
        x: &str,
        axis: i64,
        [from, until]: [usize; 2],
    ) -> Result<Value> {
        let (from, until, axes) =
            (self.graph.ints(&[from as i64])?, self.graph.ints(&[until as i64])?, self.graph.ints(&[axis])?);
        Ok(self.graph.op("Slice", name, &[x, &from, &until, &axes], &[]))
    }

    /// One dimension of `x`, as a vector of one value.
    pub(super) fn dim(&mut self, name: &str, x: &str, axis: i64) -> Value {
        let attributes = [("start", Attribute::Int(axis)), ("end", Attribute::Int(axis + 1))];
        self.graph.op("Shape", name, &[x], &attributes)
    }
}
