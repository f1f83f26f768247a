//! The action `~/generate`: its services `send_goal` and `get_result`.

use std::time::Instant;

use super::{Door, PATIENCE, Trip, found_server};
use crate::{
    request::Status,
    ros::{
        Question, RosError, RosOptions, TypeName,
        cdr::CdrError,
        dds::DdsTransport,
        message::{
            GENERATE, GetResultRequest, GetResultResponse, Message, SendGoalRequest, SendGoalResponse, Uuid,
        },
        transport::{Call, Transport as _},
    },
};

/// A client of the action, without its feedback.
pub(super) struct ActionDoor {
    send_goal: Box<dyn Call>,
    get_result: Box<dyn Call>,
    num_goals: u64,
    _transport: DdsTransport,
}

impl ActionDoor {
    pub fn open(transport: DdsTransport, ros: &RosOptions) -> Result<Self, RosError> {
        let action = ros.names()?.resolve_topic("~/generate")?;
        let client = |part: &str, name| {
            transport.client(&format!("{action}/_action/{part}"), TypeName { name, ..GENERATE })
        };
        let send_goal = client("send_goal", "Generate_SendGoal")?;
        let get_result = client("get_result", "Generate_GetResult")?;
        transport.announce()?;
        found_server(&*send_goal, ros)?;
        found_server(&*get_result, ros)?;
        Ok(Self { send_goal, get_result, num_goals: 0, _transport: transport })
    }

    /// Unlike those of all other clients, by the process and the clock.
    fn next_goal(&mut self) -> Uuid {
        self.num_goals += 1;
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = u64::try_from(since_1970.unwrap_or_default().as_nanos()).unwrap_or(0);
        let numbers = [nanos ^ u64::from(std::process::id()).rotate_right(20), self.num_goals];
        let mut uuid = [0; 16];
        uuid.iter_mut()
            .zip(numbers.iter().flat_map(|number| number.to_le_bytes()))
            .for_each(|(to, from)| *to = from);
        Uuid { uuid }
    }
}

impl Door for ActionDoor {
    fn ask(&mut self, question: &Question) -> Result<Option<Trip>, RosError> {
        let goal_id = self.next_goal();
        let request = SendGoalRequest { goal_id, goal: question.clone() };
        let sent = Instant::now();
        let Some(response) = call::<SendGoalResponse>(&*self.send_goal, &request)? else { return Ok(None) };
        let decided = Some(sent.elapsed());
        if !response.accepted {
            let status = Status::Rejected.name().to_owned();
            return Ok(Some(Trip { round_trip: sent.elapsed(), decided, status, in_node: None }));
        }
        let result = call::<GetResultResponse>(&*self.get_result, &GetResultRequest { goal_id })?;
        let trip = result.map(|result| Trip::of(&result.result, sent.elapsed()));
        Ok(trip.map(|trip| Trip { decided, ..trip }))
    }
}

fn call<Response: Message>(service: &dyn Call, request: &impl Message) -> Result<Option<Response>, RosError> {
    let failed = |error: CdrError| RosError::Message { what: "takt_msgs/action/Generate", error };
    let pending = service.call(&request.encode().map_err(failed)?)?;
    let Some(message) = pending.wait(PATIENCE) else { return Ok(None) };
    Response::decode(&message).map(Some).map_err(failed)
}
