//! What each lifecycle transition does to the node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::answering::{Command, Gate, OpenCounts};
use super::lifecycle::{Change, Managed};
use super::node::Engine;
use super::slot::EngineSlot;

/// How long open requests may take to be answered after they are cancelled: sections, of which the longest may be a slow board's.
const CANCEL_WAIT: Duration = Duration::from_secs(5);
/// How often they are cancelled meanwhile.
const CANCEL_AGAIN: Duration = Duration::from_millis(100);
/// How often they are counted.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The engine, and the way to it.
pub(super) struct Governed {
    pub engine: Box<dyn Engine>,
    pub slot: EngineSlot,
    pub gate: Arc<Gate>,
    pub open_counts: Arc<OpenCounts>,
    pub commands: Sender<Command>,
}

impl Managed for Governed {
    fn carry_out(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::Configure => {
                let ready = self.engine.open()?;
                self.slot.set(Some(ready));
                Ok(())
            }
            Change::Activate => {
                let ready = self.slot.get().ok_or("no engine is open")?;
                self.gate.open(ready.requests);
                Ok(())
            }
            Change::Deactivate => {
                self.gate.rest();
                let answered = self.cancel_open();
                // Still active then: as it says, so it does.
                if answered.is_err()
                    && let Some(ready) = self.slot.get()
                {
                    self.gate.open(ready.requests);
                }
                answered
            }
            Change::CleanUp => {
                self.slot.set(None);
                self.engine.close();
                Ok(())
            }
            Change::ShutDown => {
                self.gate.shut("the node is shutting down");
                self.slot.set(None);
                let _ = self.commands.try_send(Command::CancelAll);
                // Answers what is open.
                self.engine.close();
                self.cancel_open()
            }
        }
    }
}

impl Governed {
    /// Cancels what is open and waits until it is answered.
    fn cancel_open(&self) -> Result<(), String> {
        let end = Instant::now() + CANCEL_WAIT;
        let mut last_asked: Option<Instant> = None;
        while self.open_counts.total() > 0 {
            // Again and again: one may have been on its way to the worker.
            if last_asked.is_none_or(|at| at.elapsed() >= CANCEL_AGAIN) {
                last_asked = Some(Instant::now());
                // Full only when the same was just asked.
                let _ = self.commands.try_send(Command::CancelAll);
            }
            if Instant::now() >= end {
                let num_open = self.open_counts.total();
                return Err(format!(
                    "{num_open} requests are still open {CANCEL_WAIT:?} after they were cancelled"
                ));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}
