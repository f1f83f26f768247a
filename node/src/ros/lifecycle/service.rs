//! The five services by which `ros2 lifecycle`, launch files and lifecycle managers drive a node.

use std::sync::Arc;

use super::{Lifecycle, State, Transition};
use crate::ros::RosError;
use crate::ros::message::{
    ChangeStateRequest, ChangeStateResponse, GetAvailableStatesResponse, GetAvailableTransitionsResponse,
    GetStateRequest, GetStateResponse, LifecycleState, Message as _,
};
use crate::ros::name::TypeName;
use crate::ros::names::Names;
use crate::ros::service::{blank, serve};
use crate::ros::transport::{Respond, Transport};

const fn lifecycle(name: &'static str) -> TypeName {
    TypeName::srv("lifecycle_msgs", name)
}

/// Offers them under the node's name.
pub(in crate::ros) fn offer(
    transport: &dyn Transport,
    names: &Names,
    lifecycle_of: &Arc<Lifecycle>,
) -> Result<(), RosError> {
    let change_state = Arc::clone(lifecycle_of);
    transport.serve(
        &names.resolve_service("~/change_state")?,
        lifecycle("ChangeState"),
        &blank::<ChangeStateResponse>()?,
        Box::new(move |message: &[u8], respond: Box<dyn Respond>| {
            match ChangeStateRequest::decode(message) {
                Ok(request) => change_state.change_for(request, respond),
                Err(error) => {
                    tracing::warn!("not a lifecycle_msgs/srv/ChangeState request: {error}");
                    if let Ok(refusal) = blank::<ChangeStateResponse>() {
                        respond.respond(&refusal, None);
                    }
                }
            }
        }),
    )?;
    let state = Arc::clone(lifecycle_of);
    serve(
        transport,
        &names.resolve_service("~/get_state")?,
        lifecycle("GetState"),
        move |_: GetStateRequest| GetStateResponse { current_state: state.state().message() },
    )?;
    serve(
        transport,
        &names.resolve_service("~/get_available_states")?,
        lifecycle("GetAvailableStates"),
        |_: GetStateRequest| {
            let unknown = LifecycleState { id: 0, label: "unknown".to_owned() };
            let states = State::ALL.into_iter().map(State::message);
            GetAvailableStatesResponse { available_states: [unknown].into_iter().chain(states).collect() }
        },
    )?;
    let here = Arc::clone(lifecycle_of);
    serve(
        transport,
        &names.resolve_service("~/get_available_transitions")?,
        lifecycle("GetAvailableTransitions"),
        move |_: GetStateRequest| GetAvailableTransitionsResponse {
            available_transitions: Transition::available(here.state()).map(Transition::description).collect(),
        },
    )?;
    serve(
        transport,
        &names.resolve_service("~/get_transition_graph")?,
        lifecycle("GetAvailableTransitions"),
        |_: GetStateRequest| GetAvailableTransitionsResponse {
            available_transitions: Transition::all().map(Transition::description).collect(),
        },
    )
}
