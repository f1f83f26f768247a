//! The action's three services; its two topics belong to [`Goals`].

use std::sync::Arc;

use super::{GET_RESULT, Goals, SEND_GOAL};
use crate::ros::RosError;
use crate::ros::answering::Intake;
use crate::ros::clock::RosClock;
use crate::ros::endpoints::{Endpoints, FEEDBACK};
use crate::ros::message::{
    CancelGoalRequest, GetResultRequest, GetResultResponse, GoalStatusArray, Message as _, SendGoalResponse,
};
use crate::ros::name::TypeName;
use crate::ros::service::{blank, send, serve};
use crate::ros::transport::{Durability, Qos, Respond, Transport};

/// As rcl offers an action's status.
const STATUS_QOS: Qos = Qos { durability: Durability::TransientLocal, depth: 1, ..Qos::DEFAULT };

impl Goals {
    /// Offers the action's topics under `name`.
    pub fn start(
        transport: &dyn Transport,
        endpoints: &Endpoints,
        clock: RosClock,
    ) -> Result<Self, RosError> {
        let action = endpoints.action()?;
        let feedback = endpoints.publisher(transport, FEEDBACK)?;
        let status =
            transport.publisher(&format!("{action}/_action/status"), GoalStatusArray::TYPE, STATUS_QOS)?;
        Ok(Self::new(feedback, status, clock))
    }
}

/// Offers the action's services.
pub(in crate::ros) fn offer(
    transport: &dyn Transport,
    endpoints: &Endpoints,
    goals: &Arc<Goals>,
    intake: &Arc<Intake>,
) -> Result<(), RosError> {
    let action = endpoints.action()?;
    let service = |name: &str| format!("{action}/_action/{name}");
    let pursue = Arc::clone(intake);
    let on_goal = Box::new(move |message: &[u8], respond: Box<dyn Respond>| pursue.pursue(message, respond));
    transport.serve(&service("send_goal"), SEND_GOAL, &blank::<SendGoalResponse>()?, on_goal)?;
    let cancel = Arc::clone(goals);
    let cancel_goal = TypeName::srv("action_msgs", "CancelGoal");
    serve(transport, &service("cancel_goal"), cancel_goal, move |request: CancelGoalRequest| {
        cancel.cancel(&request)
    })?;
    let results = Arc::clone(goals);
    let on_result =
        Box::new(move |message: &[u8], respond: Box<dyn Respond>| match GetResultRequest::decode(message) {
            Ok(request) => results.result_for(request.goal_id, respond),
            Err(error) => {
                tracing::warn!("not a request for a goal's result: {error}");
                send(respond, GET_RESULT, &GetResultResponse::default(), None);
            }
        });
    transport.serve(&service("get_result"), GET_RESULT, &blank::<GetResultResponse>()?, on_result)
}
