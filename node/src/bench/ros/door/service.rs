//! The service `~/ask`.

use std::time::Instant;

use super::{Door, PATIENCE, Trip, found_server};
use crate::ros::{
    Answer, Question, RosError, RosOptions,
    dds::DdsTransport,
    message::{ASK, Message as _},
    transport::{Call, Transport as _},
};

/// A client of the service.
pub(super) struct ServiceDoor {
    call: Box<dyn Call>,
    _transport: DdsTransport,
}

impl ServiceDoor {
    pub fn open(transport: DdsTransport, ros: &RosOptions) -> Result<Self, RosError> {
        let call = transport.client(&ros.names()?.resolve_service("~/ask")?, ASK)?;
        transport.announce()?;
        found_server(&*call, ros)?;
        Ok(Self { call, _transport: transport })
    }
}

impl Door for ServiceDoor {
    fn ask(&mut self, question: &Question) -> Result<Option<Trip>, RosError> {
        const WHAT: &str = "takt_msgs/srv/Ask";
        let failed = |error| RosError::Message { what: WHAT, error };
        let sent = Instant::now();
        let pending = self.call.call(&question.encode().map_err(failed)?)?;
        let Some(message) = pending.wait(PATIENCE) else { return Ok(None) };
        let answer = Answer::decode(&message).map_err(failed)?;
        Ok(Some(Trip::of(&answer, sent.elapsed())))
    }
}
