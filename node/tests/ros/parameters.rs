use std::sync::{Arc, Mutex};
use std::time::Duration;

use takt_node::config::Config;
use takt_node::ros::message::{
    DescribeParametersResponse, GetParametersResponse, ListParametersRequest, ListParametersResponse,
    NamesRequest, Parameter, ParameterEvent, ParameterValue, SetParametersAtomicallyResponse,
    SetParametersRequest, SetParametersResponse,
};
use takt_node::ros::transport::Qos;
use takt_node::ros::{AskDefaults, NodeSettings, RosNode, TypeName};

use super::client::{Peer, Service};
use super::{EchoWorker, private_options};

struct Tuned {
    _node: RosNode,
    peer: Peer,
    deadline: Arc<Mutex<Option<Duration>>>,
    worker: EchoWorker,
}

impl Tuned {
    fn start(bring_up: bool) -> Self {
        let options = private_options();
        let worker = EchoWorker::start();
        let transport = takt_node::ros::join(&options).unwrap();
        let deadline = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&deadline);
        let settings = NodeSettings {
            derive: Box::new(move |config: &Config| {
                *noted.lock().unwrap() = config.default_deadline();
                Ok(AskDefaults { deadline: config.default_deadline(), ..AskDefaults::default() })
            }),
            ..NodeSettings::new(transport.as_ref(), Box::new(worker.sender.clone()), AskDefaults::default())
        };
        let node = RosNode::start(transport, settings).unwrap();
        if bring_up {
            node.bring_up().unwrap();
        }
        Self { _node: node, peer: Peer::of(&options), deadline, worker }
    }

    fn service(&self, name: &str, ty: &'static str) -> Service {
        self.peer.service(name, TypeName::srv("rcl_interfaces", ty))
    }

    fn set(&self, parameters: Vec<Parameter>) -> Vec<(bool, String)> {
        let service = self.service("set_parameters", "SetParameters");
        let response: SetParametersResponse = service.call(&SetParametersRequest { parameters });
        response.results.into_iter().map(|result| (result.successful, result.reason)).collect()
    }

    fn get(&self, name: &str) -> ParameterValue {
        let service = self.service("get_parameters", "GetParameters");
        let mut response: GetParametersResponse =
            service.call(&NamesRequest { names: vec![name.to_owned()] });
        response.values.remove(0)
    }
}

fn integer(name: &str, value: i64) -> Parameter {
    let value = ParameterValue { r#type: 2, integer_value: value, ..ParameterValue::default() };
    Parameter { name: name.to_owned(), value }
}

fn text(name: &str, value: &str) -> Parameter {
    let value = ParameterValue { r#type: 4, string_value: value.to_owned(), ..ParameterValue::default() };
    Parameter { name: name.to_owned(), value }
}

#[test]
fn every_key_of_the_configuration_is_a_described_parameter() {
    let tuned = Tuned::start(true);
    let list = tuned.service("list_parameters", "ListParameters");
    let all: ListParametersResponse = list.call(&ListParametersRequest::default());
    assert!(all.result.names.len() > 35, "{:?}", all.result.names);
    assert!(all.result.prefixes.contains(&"scheduler".to_owned()));
    let below: ListParametersResponse =
        list.call(&ListParametersRequest { prefixes: vec!["sampling".to_owned()], depth: 0 });
    assert!(below.result.names.iter().all(|name| name.starts_with("sampling.")), "{below:?}");
    assert_eq!(below.result.names.len(), 5);
    let describe = tuned.service("describe_parameters", "DescribeParameters");
    let described: DescribeParametersResponse = describe.call(&NamesRequest { names: all.result.names });
    for descriptor in &described.descriptors {
        assert!(descriptor.r#type != 0 && !descriptor.description.is_empty(), "{descriptor:?}");
    }
    let of = |name: &str| described.descriptors.iter().find(|descriptor| descriptor.name == name).unwrap();
    let range = of("scheduler.queue_len").integer_range.unwrap();
    assert_eq!((range.from_value, range.to_value), (1, 65536));
    let range = of("sampling.temperature").floating_point_range.unwrap();
    assert_eq!((range.from_value, range.to_value), (0.0, 10.0));
    assert!(of("ros.node_name").read_only && !of("engine.lanes").read_only);
    assert!(of("engine.backend").additional_constraints.contains("auto, cpu"));
    assert!(of("engine.lanes").additional_constraints.contains("unconfigured"));
}

#[test]
fn what_holds_for_requests_changes_at_once_and_everybody_is_told() {
    let tuned = Tuned::start(true);
    let events = tuned.peer.listen::<ParameterEvent>("/parameter_events", Qos::DEFAULT);
    assert_eq!(tuned.set(vec![integer("scheduler.default_deadline_ms", 250)]), [(true, String::new())]);
    assert_eq!(*tuned.deadline.lock().unwrap(), Some(Duration::from_millis(250)));
    assert_eq!(tuned.get("scheduler.default_deadline_ms").integer_value, 250);
    let event = events.next();
    assert_eq!(event.node, tuned.peer.node.to_string());
    assert_eq!(event.changed_parameters, [integer("scheduler.default_deadline_ms", 250)]);
    // `ros2 param set N sampling.temperature 1` sends an integer.
    assert_eq!(tuned.set(vec![integer("sampling.temperature", 1)]), [(true, String::new())]);
    assert_eq!(
        (tuned.get("sampling.temperature").r#type, tuned.get("sampling.temperature").double_value),
        (3, 1.0)
    );
    drop(tuned.worker);
}

#[test]
fn what_cannot_be_set_is_refused_with_the_reason_and_changes_nothing() {
    let tuned = Tuned::start(true);
    for (bad, word) in [
        (integer("scheduler.queue_len", 7), "only while the node is unconfigured"),
        (text("ros.node_name", "other"), "read-only"),
        (integer("scheduler.default_deadline_ms", -1), "a whole number from 0"),
        (integer("scheduler.default_max_tokens", 0), "a whole number from 1"),
        (text("scheduler.default_deadline_ms", "soon"), "(string) found, a whole number"),
        (text("scheduler.default_class", "urgent"), "one of control, interactive"),
        (integer("scheduler.default_deadlin_ms", 1), "did you mean scheduler.default_deadline_ms?"),
        (Parameter { name: "sampling.top_k".to_owned(), ..Parameter::default() }, "cannot be deleted"),
    ] {
        let result = tuned.set(vec![bad.clone()]).remove(0);
        assert!(!result.0 && result.1.contains(word), "{bad:?}: {result:?}");
    }
    assert_eq!(tuned.get("scheduler.queue_len").integer_value, 32);
    assert_eq!(tuned.get("no.such").r#type, 0);
    let atomically = tuned.service("set_parameters_atomically", "SetParametersAtomically");
    let both = vec![integer("scheduler.default_deadline_ms", 99), integer("scheduler.queue_len", 7)];
    let response: SetParametersAtomicallyResponse =
        atomically.call(&SetParametersRequest { parameters: both });
    assert!(!response.result.successful);
    assert_eq!(tuned.get("scheduler.default_deadline_ms").integer_value, 2000, "all or nothing");
}

#[test]
fn an_unconfigured_node_takes_what_its_engine_will_be_opened_with() {
    let tuned = Tuned::start(false);
    assert_eq!(tuned.set(vec![integer("engine.lanes", 2)]), [(true, String::new())]);
    assert_eq!(tuned.get("engine.lanes").integer_value, 2);
    assert!(!tuned.set(vec![text("ros.namespace", "/x")])[0].0);
}
