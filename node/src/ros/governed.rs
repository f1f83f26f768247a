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
/// How often they are counted meanwhile.
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
                self.cancel_open()
            }
            Change::CleanUp => {
                self.slot.set(None);
                self.engine.close();
                Ok(())
            }
            Change::ShutDown => {
                self.gate.shut("the node is shutting down");
                self.slot.set(None);
                // Answers what is open.
                self.engine.close();
                self.wait_until_answered()
            }
        }
    }
}

impl Governed {
    /// Cancels what is open and waits until it is answered.
    fn cancel_open(&self) -> Result<(), String> {
        // Full only when the same was just asked.
        let _ = self.commands.try_send(Command::CancelAll);
        self.wait_until_answered()
    }

    fn wait_until_answered(&self) -> Result<(), String> {
        let end = Instant::now() + CANCEL_WAIT;
        while self.open_counts.total() > 0 {
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
