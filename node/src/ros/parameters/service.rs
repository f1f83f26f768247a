//! The six services behind `ros2 param`, and `/parameter_events`.

use std::sync::Arc;

use super::ParameterStore;
use super::store::{MAX_AT_ONCE, outcome};
use crate::ros::RosError;
use crate::ros::clock::RosClock;
use crate::ros::message::{
    DescribeParametersResponse, GetParameterTypesResponse, GetParametersResponse, ListParametersRequest,
    ListParametersResponse, Message as _, NamesRequest, Parameter, ParameterEvent,
    SetParametersAtomicallyResponse, SetParametersRequest, SetParametersResponse,
};
use crate::ros::name::TypeName;
use crate::ros::names::Names;
use crate::ros::service::serve;
use crate::ros::transport::{Publish, Qos, Transport};

/// As rclcpp publishes its events.
const EVENTS_QOS: Qos = Qos { depth: 1000, ..Qos::DEFAULT };

const fn rcl(name: &'static str) -> TypeName {
    TypeName::srv("rcl_interfaces", name)
}

/// Tells changes to everybody.
struct Events {
    publisher: Box<dyn Publish>,
    node: String,
    clock: RosClock,
}

impl Events {
    fn tell(&self, event: ParameterEvent) {
        if event.new_parameters.is_empty() && event.changed_parameters.is_empty() {
            return;
        }
        let event = ParameterEvent { stamp: self.clock.now(), node: self.node.clone(), ..event };
        let sent = event
            .encode()
            .map_err(|error| RosError::Message { what: "rcl_interfaces/ParameterEvent", error })
            .and_then(|message| self.publisher.publish(&message));
        if let Err(error) = sent {
            tracing::debug!("{error}");
        }
    }
}

/// Offers them under the node's name.
pub(in crate::ros) fn offer(
    transport: &dyn Transport,
    names: &Names,
    store: &Arc<ParameterStore>,
    clock: &RosClock,
) -> Result<(), RosError> {
    let events = Arc::new(Events {
        publisher: transport.publisher(
            &names.resolve_topic("/parameter_events")?,
            ParameterEvent::TYPE,
            EVENTS_QOS,
        )?,
        node: transport.node().to_string(),
        clock: clock.clone(),
    });
    let service = |name: &str| names.resolve_service(&format!("~/{name}"));
    let of = Arc::clone(store);
    serve(transport, &service("get_parameters")?, rcl("GetParameters"), move |asked: NamesRequest| {
        GetParametersResponse {
            values: asked.names.iter().take(MAX_AT_ONCE).map(|name| (&of.value(name)).into()).collect(),
        }
    })?;
    let of = Arc::clone(store);
    serve(
        transport,
        &service("get_parameter_types")?,
        rcl("GetParameterTypes"),
        move |asked: NamesRequest| GetParameterTypesResponse {
            types: asked.names.iter().take(MAX_AT_ONCE).map(|name| of.value(name).type_id()).collect(),
        },
    )?;
    let of = Arc::clone(store);
    serve(
        transport,
        &service("describe_parameters")?,
        rcl("DescribeParameters"),
        move |asked: NamesRequest| DescribeParametersResponse {
            descriptors: asked.names.iter().take(MAX_AT_ONCE).map(|name| of.descriptor(name)).collect(),
        },
    )?;
    let of = Arc::clone(store);
    serve(
        transport,
        &service("list_parameters")?,
        rcl("ListParameters"),
        move |asked: ListParametersRequest| ListParametersResponse {
            result: of.list(&asked.prefixes, asked.depth),
        },
    )?;
    let (of, told) = (Arc::clone(store), Arc::clone(&events));
    serve(
        transport,
        &service("set_parameters")?,
        rcl("SetParameters"),
        move |asked: SetParametersRequest| {
            let results = asked.parameters.iter().take(MAX_AT_ONCE).map(|parameter| {
                let result = of.set(std::slice::from_ref(parameter));
                let response = outcome(&result);
                told.tell(ParameterEvent {
                    changed_parameters: result.unwrap_or_default(),
                    ..ParameterEvent::default()
                });
                response
            });
            SetParametersResponse { results: results.collect() }
        },
    )?;
    let (of, told) = (Arc::clone(store), Arc::clone(&events));
    serve(
        transport,
        &service("set_parameters_atomically")?,
        rcl("SetParametersAtomically"),
        move |asked: SetParametersRequest| {
            let result = match asked.parameters.len() {
                num if num > MAX_AT_ONCE => Err(format!("{num} parameters at once: at most {MAX_AT_ONCE}")),
                _ => of.set(&asked.parameters),
            };
            let response = SetParametersAtomicallyResponse { result: outcome(&result) };
            told.tell(ParameterEvent {
                changed_parameters: result.unwrap_or_default(),
                ..ParameterEvent::default()
            });
            response
        },
    )?;
    let declared =
        store.names().into_iter().map(|name| Parameter { value: (&store.value(&name)).into(), name });
    events.tell(ParameterEvent { new_parameters: declared.collect(), ..ParameterEvent::default() });
    Ok(())
}
