//! The engine behind the node, while there is one.

use std::sync::{Arc, PoisonError, RwLock};

use super::message::EngineInfo;
use crate::request::RequestSender;

/// An engine that is open and whose costs are known.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where its requests go.
    pub requests: RequestSender,
    /// What it is.
    pub info: EngineInfo,
    /// Real-time settings that the kernel refused, with their effect.
    pub refused: Vec<String>,
}

impl Ready {
    /// An engine that got every real-time setting it asked for.
    #[must_use]
    pub fn new(requests: RequestSender, info: EngineInfo) -> Self {
        Self { requests, info, refused: Vec::new() }
    }
}

/// Where everybody finds it.
#[derive(Debug, Clone, Default)]
pub(super) struct EngineSlot(Arc<RwLock<Option<Ready>>>);

impl EngineSlot {
    /// The engine, if one is open.
    pub fn get(&self) -> Option<Ready> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An engine is open, or none any more.
    pub fn set(&self, ready: Option<Ready>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = ready;
    }
}
