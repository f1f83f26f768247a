//! From an opener to a worker that is ready: an engine, its costs, its draft head.

use std::{sync::Arc, time::Duration};

use takt_eagle_spec::policy::ALARMING_SHARE;
use takt_engine::{
    EngineError,
    backend::{Backend, Capabilities},
    dir::Manifest,
    draft::{AcceptanceCheck, DraftManifest},
    kv::LaneId,
    text::{SpecialTokens, Text},
};
use takt_engine_builder::draft::measure_acceptance;

use super::{Desk, Drafting, Parts, WorkerCore, WorkerOptions};
use crate::{
    calibrate::{DeviceKey, Effort, grid_of, measure},
    clock::MonotonicClock,
    rt,
    scheduler::cost_table::{CostTable, SectionKind, SectionShape, StoredTable},
};

/// A decode step from which on asking the draft head for its record's prompt at the start would take too long.
const SLOW_STEP: Duration = Duration::from_millis(50);

/// An engine with everything the worker needs.
pub struct Opened {
    /// What runs it.
    pub backend: Box<dyn Backend>,
    /// Its tokenizer and chat template.
    pub text: Arc<Text>,
    /// What it is.
    pub manifest: Manifest,
    /// Its draft head, where it has one and it is loaded.
    pub draft: Option<DraftManifest>,
    /// Costs of this device that were measured before and still hold.
    pub costs: Option<StoredTable>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// Opens the engine, on the worker's thread so that the backend's threads inherit its settings; again after a failure.
pub type Opener = Box<dyn FnMut() -> Result<Opened, EngineError> + Send>;

/// Fixed facts about a running worker.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The backend's.
    pub capabilities: Capabilities,
    /// The engine's.
    pub manifest: Manifest,
    /// Tokenizer and chat template.
    pub text: Arc<Text>,
    /// Real-time settings that were refused, with their effect.
    pub refused: Vec<String>,
    /// What a decode step of one lane usually takes.
    pub decode_step: Duration,
    /// What sections cost, as of the start.
    pub costs: Arc<CostTable>,
    /// Whether the costs were measured before, by `takt calibrate`, or just now.
    pub has_stored_costs: bool,
    /// Whether a draft head is loaded.
    pub has_draft_head: bool,
    /// What the costs hold for.
    pub device_key: DeviceKey,
    /// Where requests are let in.
    pub desk: Arc<Desk>,
}

/// What a worker whose engine failed leaves to the one that takes its place.
pub(super) struct Leftover {
    desk: Arc<Desk>,
    /// How often promises had been withdrawn.
    num_withdrawals: u64,
    /// What sections cost, where that still holds, and on what device.
    costs: Option<(CostTable, DeviceKey)>,
}

impl Leftover {
    /// Where requests are let in.
    pub(super) fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Of a worker whose costs hold for `device_key`.
    pub(super) fn of(core: &WorkerCore, device_key: DeviceKey) -> Self {
        let desk = Arc::clone(core.desk());
        let num_withdrawals = desk.num_withdrawals();
        // What it learnt since may be of a device that was failing.
        let costs = desk.is_trusted().then(|| (core.costs().calibrated(), device_key));
        Self { desk, num_withdrawals, costs }
    }
}

/// Opens an engine and gets the worker ready for it: costs are measured, as long as the worker `is_wanted`, and the draft head is asked for its record.
/// In the place of another nothing is measured that it knew, so that requests wait for little more than the engine: each kind of section runs once.
/// Requests that wait at its desk go on to this one.
///
/// # Errors
/// Those of `opener`; [`EngineError::Interrupted`] where the worker is not wanted any more.
pub(super) fn open(
    opener: &mut Opener,
    options: &WorkerOptions,
    is_wanted: impl Fn() -> bool,
    leftover: Option<&Leftover>,
) -> Result<(WorkerCore, Facts), EngineError> {
    let Opened { mut backend, text, manifest, draft, costs } = opener()?;
    if options.realtime.lock_memory {
        rt::memory::settle_heap(); // what measuring allocates below is then kept for requests
    }
    text.check_vocab_size(manifest.spec.vocab_size)?;
    let clock = MonotonicClock;
    // The tokenizer compiles its patterns on first use.
    text.encode("Where are you? 42", SpecialTokens::Add)?;
    let facts = backend.capabilities().clone();
    let grid = grid_of(backend.as_ref(), options.max_prefill_slice_tokens);
    let costs = costs.filter(|costs| costs.grid == grid);
    let has_stored_costs = costs.is_some();
    // Before measuring: what changes meanwhile is noticed afterwards.
    let device_key = DeviceKey::new(&facts, &options.system_root);
    let (mut desk, mut known) = (None, costs.map(|costs| costs.table()));
    // Measured in any case: it touches every page a section uses.
    let mut effort = if has_stored_costs { Effort::LEAST } else { options.effort };
    if let Some(leftover) = leftover {
        let holds = |(costs, of): &&(CostTable, DeviceKey)| *costs.grid() == grid && *of == device_key;
        let still_known = leftover.costs.as_ref().filter(holds).map(|(costs, _)| costs.calibrated());
        let num_withdrawals = match still_known {
            Some(_) => leftover.num_withdrawals,
            None => leftover.desk.num_withdrawals(),
        };
        desk = Some((Arc::clone(&leftover.desk), num_withdrawals));
        if still_known.is_some() {
            (known, effort) = (still_known, Effort::TOUCH);
        }
    }
    let effort = Effort { idle_gap: options.gpu_manners(&facts).idle_gap, ..effort };
    let measured = measure(backend.as_mut(), &clock, &grid, effort, |_| is_wanted())?;
    let measured = measured.ok_or(EngineError::Interrupted)?;
    let table = known.unwrap_or_else(|| CostTable::new(grid, &measured));
    let decode = SectionShape { kind: SectionKind::Decode, size: 1, context_len: 1 };
    let decode_step = table.typical(decode);
    let shortest = table.bound(decode);
    if let Some(most) = options.limits(&facts).max_any_section.filter(|most| shortest > *most) {
        tracing::warn!(
            "a decode step of one lane takes up to {:.1} ms here, longer than the {:.1} ms of [gpu] max_section_ms: every lane goes alone; \
             use a smaller model, or allow longer sections",
            shortest.as_secs_f64() * 1e3,
            most.as_secs_f64() * 1e3
        );
    }
    if let Some(draft) = backend.draft_facts().filter(|draft| draft.max_positions < facts.lane_capacity) {
        let (known, all) = (draft.max_positions, facts.lane_capacity);
        tracing::warn!(
            "the draft head was trained for {known} positions, lanes hold {all}: longer texts come without speculation"
        );
    }
    let collapse = check_drafter(backend.as_mut(), options.drafting, draft.as_ref(), &manifest, decode_step)?;
    let costs = Arc::new(table.calibrated());
    let has_draft_head = backend.draft_facts().is_some();
    let parts = Parts { backend, text: Arc::clone(&text), table, draft, desk };
    let mut core = WorkerCore::new(parts, options, clock);
    if let Some(reason) = collapse {
        core.stop_drafting(&reason);
    }
    let desk = Arc::clone(core.desk());
    let facts = Facts {
        capabilities: facts,
        manifest,
        text,
        refused: Vec::new(),
        decode_step,
        costs,
        has_stored_costs,
        has_draft_head,
        device_key,
        desk,
    };
    Ok((core, facts))
}

/// Whether the head still proposes as it did when the engine was built, by the prompt on record; the reason if it does far worse. Not asked
/// where it would take seconds: there the first requests tell.
fn check_drafter(
    backend: &mut dyn Backend,
    drafting: Drafting,
    draft: Option<&DraftManifest>,
    manifest: &Manifest,
    decode_step: Duration,
) -> Result<Option<String>, EngineError> {
    let record = draft.and_then(|draft| draft.record.as_ref());
    let Some(record) = record.filter(|_| drafting == Drafting::Head && decode_step < SLOW_STEP) else {
        return Ok(None);
    };
    let AcceptanceCheck { prompt, accept_len: expected } = &record.check;
    let room = backend.capabilities().lane_capacity / 2;
    let measured = measure_acceptance(backend, std::slice::from_ref(prompt), &manifest.eos_token_ids);
    backend.truncate(LaneId(0), 0)?;
    let found = match measured {
        // Too small for the prompt, so that nothing was tried: the first requests tell.
        Ok(found) if found.num_chains == 0 || prompt.len() > room => return Ok(None),
        Ok(found) => found.accept_len(),
        Err(error) => {
            tracing::warn!("the draft head was not checked: {error}");
            return Ok(None);
        }
    };
    // As at run time: below this share of the accepted proposals on record, something is wrong.
    let has_collapsed = found - 1.0 < ALARMING_SHARE * (expected - 1.0);
    Ok(has_collapsed.then(|| {
        format!(
            "the draft head emits {found:.2} tokens a round after a prompt for which it emitted {expected:.2} when the engine was built: \
             build the engine again, or report it with the log"
        )
    }))
}
