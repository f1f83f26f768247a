//! A namesake that the claim missed: Fast DDS may take 3 s to find another participant of its machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::context::Node;
use super::{census, claim};

/// Time after a change of the graph: somebody who claims the name in vain has left by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Tells the log when a second node of the name is up.
pub(super) struct NameWatch {
    node: Arc<Node>,
    is_claimed: Arc<AtomicBool>,
    look_at: Option<Instant>,
    is_told: bool,
}

impl NameWatch {
    /// Watches once `is_claimed`.
    pub fn new(node: Arc<Node>, is_claimed: Arc<AtomicBool>) -> Self {
        Self { node, is_claimed, look_at: None, is_told: false }
    }

    /// Somebody came or left.
    pub fn note_change(&mut self) {
        self.look_at.get_or_insert_with(|| Instant::now() + SETTLE);
    }

    /// To be called once a second at least.
    pub fn look(&mut self) {
        if self.look_at.is_none_or(|look_at| Instant::now() < look_at) {
            return;
        }
        self.look_at = None;
        if !self.is_claimed.load(Ordering::Acquire) {
            return;
        }
        let num_claiming = claim::all(&self.node).map_or(0, |claims| claims.len());
        let has_namesake = census::num_namesakes(&self.node).is_ok_and(|count| count > 1 + num_claiming);
        if has_namesake && !self.is_told {
            tracing::error!(
                "a second node named {} is up: every question is answered twice; stop one or rename it",
                self.node.name
            );
        }
        self.is_told = has_namesake;
    }
}
