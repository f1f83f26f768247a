//! Hands a backend's rows out as a GPU does: choices where it is to choose, lists where those are enough, by a full sort, and whole rows only to who fetches
//! them.

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
    rows::{Choice, FetchPermit, Likeliest, RowSource},
    step::{Detail, Segment, StepOutput, StepPlan},
};

/// The rows of the last step.
#[derive(Debug, Default)]
pub struct Lister {
    /// Rows listed, and rows fetched after all.
    pub counts: Arc<[AtomicUsize; 2]>,
    /// Chooses where that is asked for.
    chooses: bool,
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
    choice: Option<Choice>,
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
        Self { logits: logits.to_vec(), detail, tokens, values, choice: None }
    }
}

impl Lister {
    /// One that chooses as well, where that is asked for.
    #[must_use]
    pub fn choosing() -> Self {
        Self { chooses: true, ..Self::default() }
    }

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
            let first_row = self.rows.len();
            self.first_row.push(first_row);
            let logits = output.segment_logits(idx).expect("whole rows");
            let detail = handed_out(segment, output.vocab_size(), self.chooses);
            self.rows.extend(logits.chunks(output.vocab_size()).map(|row| Row::new(row, detail)));
            if self.chooses {
                choose(plan, segment, &mut self.rows[first_row..]);
            }
        }
        self.first_row.push(self.rows.len());
        let listed = self.rows.iter().filter(|row| matches!(row.detail, Detail::Likeliest(_))).count();
        self.counts[0].fetch_add(listed, Ordering::SeqCst);
        self.features = output.features().to_vec();
        let vocab_size = output.vocab_size();
        Ok(StepOutput::new(self, &self.first_row, vocab_size, &self.features))
    }
}

/// How much of a segment's rows comes with the step.
fn handed_out(segment: &Segment, vocab_size: usize, chooses: bool) -> Detail {
    match segment.detail {
        Detail::Chosen(_) if chooses => Detail::OnDemand,
        Detail::Chosen(sampler) => match sampler.detail(vocab_size) {
            Detail::Whole if segment.is_tree => Detail::OnDemand,
            detail => detail,
        },
        detail => detail,
    }
}

/// Walks down the tree of `segment`, or chooses by its last row.
fn choose(plan: &StepPlan, segment: &Segment, rows: &mut [Row]) {
    let (Detail::Chosen(state), false) = (segment.detail, rows.is_empty()) else { return };
    let (tokens, parents) = (&plan.tokens[segment.tokens.clone()], &plan.parents[segment.tokens.clone()]);
    let mut sampler = state.sampler();
    let mut node = if segment.is_tree { 0 } else { rows.len() - 1 };
    loop {
        let before = sampler.state();
        let Ok(token) = sampler.sample(&rows[node].logits) else { return };
        rows[node].choice = Some(Choice { token, sampler: before });
        let is_next = |&child: &usize| segment.is_tree && parents[child] == node && tokens[child] == token;
        let Some(child) = (node + 1..rows.len()).find(is_next) else { return };
        node = child;
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

    fn choice(&self, row: usize) -> Option<Choice> {
        self.rows.get(row)?.choice
    }

    fn fetch(&self, row: usize, _: FetchPermit) -> Result<&[f32]> {
        self.counts[1].fetch_add(1, Ordering::SeqCst);
        let row = self.rows.get(row).ok_or_else(|| EngineError::Input(format!("no row {row}")))?;
        Ok(&row.logits)
    }
}
