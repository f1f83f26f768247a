//! What sections cost on this device: measured by calibration, kept current by every section, and what every promise rests on.
//!
//! A promise counts each section at its **bound**, 1.2 times the 99th percentile of its bucket, and once per request a
//! **stall**: by how much sections exceed their bounds now and then (one in 200). Stalls are the system's doing (another
//! process, a page fault): charging every section for one, or every promise for the longest ever seen, would refuse almost
//! everything on a machine that is not a real-time system. What is left of the risk is what `takt bench --deadlines` shows.
//!
//! The planner's thread records; bounds are published in atomics, so that admission reads them on other threads without a lock.

mod histogram;
mod shape;
mod stored;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use histogram::Histogram;
pub use shape::{Grid, SectionKind, SectionShape};
pub use stored::{StoredTable, StoredTableError};

/// Times the 99th percentile: what a promise counts for a section.
pub const BOUND_MARGIN: f64 = 1.2;
/// A median this many times the calibrated one ends all promises until the next calibration.
pub const DRIFT_FACTOR: f64 = 2.0;
/// Sections of one bucket before its median is compared.
const MIN_DRIFT_SAMPLES: u32 = 64;
/// Sections of one bucket before its 99th percentile says more than its largest outlier.
const MIN_TAIL_SAMPLES: u32 = 256;
/// A promise counts the excess that this share of sections stays below.
const STALL_SHARE: f64 = 0.995;
/// Sections before their own excess says more than the calibration.
const MIN_STALL_SAMPLES: u32 = 512;

/// Cost of one kind of section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Largest seen.
    pub worst: Duration,
}

impl Cost {
    /// Every section took exactly this long.
    #[must_use]
    pub fn exactly(cost: Duration) -> Self {
        Self { p50: cost, p99: cost, worst: cost }
    }

    /// From at least one sample. With fewer than a hundred, the 99th percentile would be the largest, which may be a stall: the 90th
    /// takes its place.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Option<Self> {
        let tail = if histogram.num_samples() < 100 { 0.9 } else { 0.99 };
        Some(Self { p50: histogram.quantile(0.5)?, p99: histogram.quantile(tail)?, worst: histogram.worst() })
    }
}

/// Why nothing is promised.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum NoPromise {
    /// Sections take longer than when they were measured.
    #[error(
        "{} sections of up to {size} tokens take {factor:.1} times as long as when they were measured (limit {DRIFT_FACTOR}): \
         something else is using the device, or its clocks dropped; recalibrating when idle",
        kind.name()
    )]
    Drift {
        /// The kind.
        kind: SectionKind,
        /// Its bucket's size.
        size: usize,
        /// Median now over median then.
        factor: f64,
    },
}

/// What one bucket knows.
#[derive(Debug, Clone)]
struct Cell {
    shape: SectionShape,
    calibrated: Cost,
    recent: Histogram,
    /// What it usually takes, kept at hand: a policy asks for many sizes before every section.
    typical: Duration,
}

/// Bounds that any thread can read: nanoseconds of every bucket, and of the stall at the end.
#[derive(Debug, Clone)]
pub struct Bounds {
    grid: Arc<Grid>,
    cells: Arc<[AtomicU64]>,
    stall: Arc<AtomicU64>,
    mask: Arc<AtomicU64>,
}

impl Bounds {
    /// What a promise counts for a section of `shape`.
    #[must_use]
    pub fn of(&self, shape: SectionShape) -> Duration {
        let (cell, factor) = self.grid.cell(shape);
        // SYNC POINT: the worker's thread publishes single values; which of two neighbours is newer does not matter.
        let ns = self.cells.get(cell).map_or(u64::MAX, |bound| bound.load(Ordering::Relaxed));
        Duration::from_nanos(ns.saturating_mul(u64::from(factor)))
    }

    /// Tokens of the largest decode step that was measured.
    #[must_use]
    pub fn max_decode_size(&self) -> usize {
        self.grid.decode_sizes.last().copied().unwrap_or(1)
    }

    /// What choosing a token within a form adds to a section, for each such token.
    #[must_use]
    pub fn mask(&self) -> Duration {
        Duration::from_nanos(self.mask.load(Ordering::Relaxed))
    }

    /// What is added once to every promise.
    #[must_use]
    pub fn stall(&self) -> Duration {
        Duration::from_nanos(self.stall.load(Ordering::Relaxed))
    }
}

/// Costs of all buckets.
#[derive(Debug)]
pub struct CostTable {
    grid: Arc<Grid>,
    cells: Vec<Cell>,
    bounds: Bounds,
    margin: f64,
    /// By how much sections exceeded their bounds; mostly not at all.
    excess: Histogram,
    /// What choosing a token within a form took.
    masks: Histogram,
    no_promise: Option<NoPromise>,
}

impl CostTable {
    /// A table of calibrated `costs`, one for each of `grid.shapes()`; missing ones count as the last one known.
    #[must_use]
    pub fn new(grid: Grid, costs: &[Cost]) -> Self {
        Self::with_margin(grid, costs, BOUND_MARGIN)
    }

    /// [`Self::new`] with another margin than [`BOUND_MARGIN`]; 1 for simulations with exact costs.
    #[must_use]
    pub fn with_margin(grid: Grid, costs: &[Cost], margin: f64) -> Self {
        let fallback = costs.last().copied().unwrap_or_default();
        let cells: Vec<Cell> = grid
            .shapes()
            .enumerate()
            .map(|(i, shape)| Cell {
                shape,
                calibrated: costs.get(i).copied().unwrap_or(fallback),
                recent: Histogram::default(),
                typical: costs.get(i).copied().unwrap_or(fallback).p50,
            })
            .collect();
        let grid = Arc::new(grid);
        let bounds = Bounds {
            grid: Arc::clone(&grid),
            cells: cells.iter().map(|_| AtomicU64::new(0)).collect(),
            stall: Arc::default(),
            mask: Arc::default(),
        };
        let (excess, masks) = (Histogram::default(), Histogram::default());
        let mut table = Self { grid, cells, bounds, margin, excess, masks, no_promise: None };
        (0..table.cells.len()).for_each(|cell| table.publish(cell));
        table.publish_stall();
        table
    }

    /// The calibrated costs alone, for a table of its own.
    #[must_use]
    pub fn calibrated(&self) -> Self {
        let costs: Vec<Cost> = self.cells.iter().map(|cell| cell.calibrated).collect();
        Self::with_margin(self.grid().clone(), &costs, self.margin)
    }

    /// The buckets.
    #[must_use]
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// A handle for other threads.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// What a promise counts for a section of `shape`.
    #[must_use]
    pub fn bound(&self, shape: SectionShape) -> Duration {
        self.bounds.of(shape)
    }

    /// What a section of `shape` usually takes: the median of the newest, or the calibrated one.
    #[must_use]
    pub fn typical(&self, shape: SectionShape) -> Duration {
        let (cell, factor) = self.grid.cell(shape);
        self.cells.get(cell).map_or(Duration::MAX, |cell| cell.typical * factor)
    }

    /// Every bucket's largest section with what was calibrated and, where sections ran since, what they took.
    pub fn rows(&self) -> impl Iterator<Item = (SectionShape, Cost, Option<Cost>)> + '_ {
        self.cells.iter().map(|cell| (cell.shape, cell.calibrated, Cost::of(&cell.recent)))
    }

    /// Why nothing is promised, if so.
    #[must_use]
    pub fn no_promise(&self) -> Option<NoPromise> {
        self.no_promise
    }

    /// Learns from a section that took `took`. Allocates nothing.
    pub fn record(&mut self, shape: SectionShape, took: Duration) {
        let (idx, factor) = self.grid.cell(shape);
        let Some(cell) = self.cells.get_mut(idx) else { return };
        let took = took / factor;
        let excess = took.saturating_sub(self.bounds.of(cell.shape));
        cell.recent.record(took);
        if cell.recent.num_samples() >= MIN_DRIFT_SAMPLES {
            cell.typical = cell.recent.quantile(0.5).unwrap_or(cell.typical);
        }
        self.publish(idx);
        // Promises rest on prompts and plain steps. A round is granted by its bound and has several parts: their excess would dilute the stall, and
        // their drift says nothing of what was promised.
        if !shape.kind.is_round() {
            self.excess.record(excess);
            self.publish_stall();
            self.watch_drift(idx);
        }
    }

    /// Learns from a token that was chosen within a form in `took`: mask, choice and commitment. Allocates nothing.
    pub fn record_mask(&mut self, took: Duration) {
        self.masks.record(took);
        let bound = self.masks.quantile(0.99).unwrap_or_default().mul_f64(self.margin);
        self.bounds.mask.store(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn publish(&mut self, idx: usize) {
        let Some(cell) = self.cells.get(idx) else { return };
        let enough = cell.recent.num_samples() >= MIN_TAIL_SAMPLES;
        let recent = enough.then(|| cell.recent.quantile(0.99)).flatten().unwrap_or_default();
        let bound = recent.max(cell.calibrated.p99).mul_f64(self.margin);
        if let Some(published) = self.bounds.cells.get(idx) {
            published.store(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    fn publish_stall(&self) {
        let enough = self.excess.num_samples() >= MIN_STALL_SAMPLES;
        let stall = match self.excess.quantile(STALL_SHARE).filter(|_| enough) {
            Some(stall) => stall,
            None => self.calibrated_stall(),
        };
        self.bounds.stall.store(u64::try_from(stall.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// By how much the worst section of a bucket exceeded its bound, in the middle one of all buckets.
    fn calibrated_stall(&self) -> Duration {
        let mut excesses: Vec<Duration> = self
            .cells
            .iter()
            .filter(|cell| !cell.shape.kind.is_round())
            .map(|cell| cell.calibrated.worst.saturating_sub(cell.calibrated.p99.mul_f64(self.margin)))
            .collect();
        excesses.sort_unstable();
        excesses.get(excesses.len() / 2).copied().unwrap_or_default()
    }

    fn watch_drift(&mut self, idx: usize) {
        let Some(cell) = self.cells.get(idx) else { return };
        if self.no_promise.is_some() || cell.recent.num_samples() < MIN_DRIFT_SAMPLES {
            return;
        }
        let (then, now) = (cell.calibrated.p50, cell.typical);
        let factor = now.as_secs_f64() / then.as_secs_f64().max(1e-9);
        if factor > DRIFT_FACTOR {
            self.no_promise = Some(NoPromise::Drift { kind: cell.shape.kind, size: cell.shape.size, factor });
        }
    }
}

/// One row of a stored table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The kind.
    pub kind: SectionKind,
    /// The bucket's largest size.
    pub size: usize,
    /// The bucket's largest context.
    pub context_len: usize,
    /// Median in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile in nanoseconds.
    pub p99_ns: u64,
    /// Largest in nanoseconds.
    pub worst_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const DECODE: SectionShape = SectionShape { kind: SectionKind::Decode, size: 1, context_len: 10 };

    fn table() -> CostTable {
        CostTable::new(Grid::of(64, 4, 1024), &[Cost::exactly(MS)])
    }

    #[test]
    fn a_promise_counts_the_99th_percentile_with_a_margin_and_a_larger_section_as_several() {
        let table = table();
        assert_eq!(table.bound(DECODE), MS.mul_f64(1.2));
        assert_eq!(
            table.bound(SectionShape { kind: SectionKind::Prefill, size: 130, context_len: 1 }),
            3 * MS.mul_f64(1.2)
        );
        assert_eq!(table.bounds().stall(), Duration::ZERO);
    }

    #[test]
    fn tokens_of_forms_are_charged_by_the_99th_percentile_of_what_they_took() {
        let mut table = table();
        assert_eq!(table.bounds().mask(), Duration::ZERO);
        for i in 0..1000 {
            table.record_mask(if i % 300 == 0 { 9 * MS } else { MS / 10 });
        }
        let mask = table.bounds().mask();
        assert!(mask >= (MS / 10).mul_f64(1.2) && mask < MS / 5, "{mask:?}");
    }

    #[test]
    fn one_outlier_changes_nothing_and_stalls_that_come_again_are_charged_once_a_promise() {
        let mut table = table();
        let before = table.bound(DECODE);
        table.record(DECODE, 50 * MS);
        for _ in 0..1000 {
            table.record(DECODE, MS);
            assert!(table.bound(DECODE) < before.mul_f64(1.07), "within the histogram's rounding");
            assert!(table.bounds().stall() < MS, "{:?}", table.bounds().stall());
        }
        for i in 0..2000 {
            table.record(DECODE, if i % 110 == 0 { 20 * MS } else { MS });
        }
        assert!(table.bounds().stall() > 15 * MS, "{:?}", table.bounds().stall());
        assert!(table.bound(DECODE) < before.mul_f64(1.07));
        assert_eq!(table.no_promise(), None);
    }

    #[test]
    fn sections_that_became_slower_are_charged_and_beyond_the_factor_nothing_is_promised() {
        let mut table = table();
        for _ in 0..600 {
            table.record(DECODE, MS.mul_f64(1.6));
        }
        assert_eq!(table.no_promise(), None);
        assert!(table.bound(DECODE) >= MS.mul_f64(1.6 * 1.2));
        assert!(table.typical(DECODE) >= MS.mul_f64(1.6));
        for _ in 0..2000 {
            table.record(DECODE, 3 * MS);
        }
        let reason = table.no_promise().unwrap();
        assert!(matches!(reason, NoPromise::Drift { kind: SectionKind::Decode, size: 1, .. }));
        assert!(reason.to_string().contains("decode sections"), "{reason}");
    }

    #[test]
    fn a_slow_section_by_itself_is_no_drift() {
        let mut table = table();
        for _ in 0..MIN_DRIFT_SAMPLES - 1 {
            table.record(DECODE, 10 * MS);
        }
        assert_eq!(table.no_promise(), None);
    }
}
