//! Loading a model on several threads.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::{
    model::{Embedding, Layer, Model, bf16_rows, check_shape, vector},
    packed::PackedMatrix,
};
use crate::{
    EngineError, Result,
    quant::{MatrixData, MatrixView},
    spec::DecoderSpec,
    weights::WeightSource,
};

/// What a thread takes at a time. Long ones come first, so that no thread ends long after the others; and while they are loaded, little else is.
#[derive(Debug, Clone, Copy)]
enum Task {
    Embedding,
    Head,
    Layer(usize),
}

enum Part {
    Embedding(Embedding),
    Head(PackedMatrix),
    Layer(usize, Box<Layer>),
}

struct Loader<'a> {
    spec: &'a DecoderSpec,
    source: &'a dyn WeightSource,
    tasks: Vec<Task>,
    next: AtomicUsize,
}

impl Model {
    /// Packs every tensor that `spec` (validated) needs, on up to `num_threads` threads.
    pub(super) fn load(spec: &DecoderSpec, source: &dyn WeightSource, num_threads: usize) -> Result<Self> {
        let loader = Loader::new(spec, source)?;
        let num_others = num_threads.clamp(1, loader.tasks.len()) - 1;
        let parts = thread::scope(|scope| {
            let others: Vec<_> = (0..num_others).map(|_| scope.spawn(|| loader.run())).collect();
            let mut parts = loader.run();
            for thread in others {
                let found =
                    thread.join().unwrap_or_else(|_| Err(failed("a thread that packs weights failed")));
                parts = parts.and_then(|mut parts| {
                    parts.extend(found?);
                    Ok(parts)
                });
            }
            parts
        })?;
        Self::of(parts, vector(source, "model.norm.weight", spec.hidden_size)?)
    }

    fn of(parts: Vec<Part>, final_norm: Vec<f32>) -> Result<Self> {
        let (mut embedding, mut head, mut layers) = (None, None, Vec::new());
        for part in parts {
            match part {
                Part::Embedding(part) => embedding = Some(part),
                Part::Head(part) => head = Some(part),
                Part::Layer(idx, layer) => layers.push((idx, layer)),
            }
        }
        layers.sort_by_key(|(idx, _)| *idx);
        let layers = layers.into_iter().map(|(_, layer)| *layer).collect();
        let lm_head = head.ok_or_else(|| failed("no thread packed the output head"))?;
        let mut model = Self { embedding, layers, final_norm, lm_head };
        model.note_streaming();
        Ok(model)
    }
}

impl<'a> Loader<'a> {
    fn new(spec: &'a DecoderSpec, source: &'a dyn WeightSource) -> Result<Self> {
        let (embedding, head) = (source.embedding()?, source.lm_head()?);
        bf16_rows(spec, &embedding)?;
        check_shape("lm_head", &head, spec.vocab_size, spec.hidden_size)?;
        let mut tasks = Vec::new();
        if !is_same(&embedding, &head) {
            tasks.push(Task::Embedding);
        }
        tasks.push(Task::Head);
        tasks.extend((0..spec.num_layers).map(Task::Layer));
        Ok(Self { spec, source, tasks, next: AtomicUsize::new(0) })
    }

    /// Loads what no other thread has taken, until nothing is left or something fails.
    fn run(&self) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        while let Some(&task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let part =
                self.load(task).inspect_err(|_| self.next.store(self.tasks.len(), Ordering::Relaxed))?;
            parts.push(part);
        }
        Ok(parts)
    }

    fn load(&self, task: Task) -> Result<Part> {
        match task {
            Task::Embedding => Embedding::load(self.spec, self.source).map(Part::Embedding),
            Task::Head => {
                PackedMatrix::pack_watched(&[self.source.lm_head()?], self.source.watch()).map(Part::Head)
            }
            Task::Layer(idx) => {
                Layer::load(self.spec, self.source, idx).map(|layer| Part::Layer(idx, Box::new(layer)))
            }
        }
    }
}

/// Whether two bf16 matrices are one and the same memory.
fn is_same(a: &MatrixView<'_>, b: &MatrixView<'_>) -> bool {
    matches!((a.data, b.data), (MatrixData::Bf16(a), MatrixData::Bf16(b)) if std::ptr::eq(a, b))
}

fn failed(fact: &str) -> EngineError {
    EngineError::Backend(fact.into())
}
