//! Hands a backend's rows out as a GPU does: lists where those are enough, by a full sort, and whole rows only to who fetches them.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use takt_engine::{
    EngineError, Result, TokenId,
    backend::Backend,
    rows::{FetchPermit, Likeliest, RowSource},
    step::{Detail, StepOutput, StepPlan},
};

/// The rows of the last step.
#[derive(Debug, Default)]
pub struct Lister {
    /// Rows listed, and rows fetched after all.
    pub counts: Arc<[AtomicUsize; 2]>,
    plan: StepPlan,
    rows: Vec<Row>,
    first_row: Vec<usize>,
    features: Vec<f32>,
}

#[derive(Debug)]
struct Row {
    logits: Vec<f32>,
    detail: Detail,
    tokens: Vec<TokenId>,
    values: Vec<f32>,
}

impl Row {
    fn new(logits: &[f32], detail: Detail) -> Self {
        let len = if let Detail::Likeliest(len) = detail { len } else { 0 };
        let mut sorted: Vec<_> = (0..).zip(logits.iter().copied()).collect();
        let value = |logit: f32| if len == 1 { logit + 0.0 } else { logit };
        sorted.sort_by(|a: &(TokenId, f32), b| value(b.1).total_cmp(&value(a.1)).then(a.0.cmp(&b.0)));
        sorted.retain(|(_, logit)| logit.is_finite());
        sorted.truncate(len);
        let (tokens, values) = sorted.into_iter().unzip();
        Self { logits: logits.to_vec(), detail, tokens, values }
    }
}

impl Lister {
    /// Runs `plan` on `inner` and hands out no more of it than it asks for.
    ///
    /// # Errors
    /// Those of `inner`.
    ///
    /// # Panics
    /// When `inner` does not hand out whole rows.
    pub fn run(&mut self, inner: &mut dyn Backend, plan: &StepPlan) -> Result<StepOutput<'_>> {
        self.plan.clone_from(plan);
        self.plan.segments.iter_mut().for_each(|segment| segment.detail = Detail::Whole);
        let output = inner.run_step(&self.plan)?;
        self.rows.clear();
        self.first_row.clear();
        for (idx, segment) in plan.segments.iter().enumerate() {
            self.first_row.push(self.rows.len());
            let logits = output.segment_logits(idx).expect("whole rows");
            self.rows.extend(logits.chunks(output.vocab_size()).map(|row| Row::new(row, segment.detail)));
        }
        self.first_row.push(self.rows.len());
        let listed = self.rows.iter().filter(|row| matches!(row.detail, Detail::Likeliest(_))).count();
        self.counts[0].fetch_add(listed, Ordering::SeqCst);
        self.features = output.features().to_vec();
        let vocab_size = output.vocab_size();
        Ok(StepOutput::new(self, &self.first_row, vocab_size, &self.features))
    }
}

impl RowSource for Lister {
    fn here(&self, rows: Range<usize>) -> Option<&[f32]> {
        // Of several rows nobody asks here: they would have to be one after another.
        let [row] = self.rows.get(rows)? else { return None };
        (row.detail == Detail::Whole).then_some(&row.logits)
    }

    fn list(&self, row: usize) -> Option<Likeliest<'_>> {
        let row = self.rows.get(row)?;
        let Detail::Likeliest(len) = row.detail else { return None };
        let is_broken = row.logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
        (!is_broken).then(|| Likeliest::new(&row.tokens, &row.values, len))
    }

    fn fetch(&self, row: usize, _: FetchPermit) -> Result<&[f32]> {
        self.counts[1].fetch_add(1, Ordering::SeqCst);
        let row = self.rows.get(row).ok_or_else(|| EngineError::Input(format!("no row {row}")))?;
        Ok(&row.logits)
    }
}
