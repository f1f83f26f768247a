//! The topics `~/prompt` and `~/reply`.

use std::time::Instant;

use crossbeam_channel::{Receiver, unbounded};

use super::{DISCOVERY, Door, PATIENCE, Trip, found};
use crate::ros::{
    Answer, Question, RosError, RosOptions,
    dds::DdsTransport,
    endpoints::{PROMPT, REPLY},
    message::Message as _,
    transport::{Publish, Subscription, Transport as _},
};

/// A publisher of questions that listens to all replies, and picks its own.
pub(super) struct TopicDoor {
    prompts: Box<dyn Publish>,
    replies: Receiver<Answer>,
    num_asked: u64,
    _subscription: Box<dyn Subscription>,
    _transport: DdsTransport,
}

impl TopicDoor {
    pub fn open(transport: DdsTransport, ros: &RosOptions) -> Result<Self, RosError> {
        let names = ros.names()?;
        let (arrived, replies) = unbounded();
        let on_reply = Box::new(move |message: &[u8]| {
            if let Ok(answer) = Answer::decode(message) {
                let _ = arrived.send(answer); // an asker that left has dropped the other end
            }
        });
        let prompts = transport.publisher(&names.resolve_topic(PROMPT.name)?, PROMPT.ty, PROMPT.qos)?;
        let subscription =
            transport.subscribe(&names.resolve_topic(REPLY.name)?, REPLY.ty, REPLY.qos, on_reply)?;
        transport.announce()?;
        let is_found = prompts.wait_for_subscriber(DISCOVERY) && subscription.wait_for_publisher(DISCOVERY);
        found(is_found, ros)?;
        Ok(Self { prompts, replies, num_asked: 0, _subscription: subscription, _transport: transport })
    }
}

impl Door for TopicDoor {
    fn ask(&mut self, question: &Question) -> Result<Option<Trip>, RosError> {
        let failed = |error| RosError::Message { what: "takt_msgs/msg/Prompt", error };
        self.num_asked += 1;
        let request_id = format!("bench {}", self.num_asked);
        let question = Question { request_id: request_id.clone(), ..question.clone() };
        let sent = Instant::now();
        self.prompts.publish(&question.encode().map_err(failed)?)?;
        let lost_at = sent + PATIENCE;
        loop {
            // Replies to others, and to what counts as lost, are passed over.
            match self.replies.recv_deadline(lost_at) {
                Ok(answer) if answer.request_id == request_id => {
                    return Ok(Some(Trip::of(&answer, sent.elapsed())));
                }
                Ok(_) => {}
                Err(_) => return Ok(None),
            }
        }
    }
}
