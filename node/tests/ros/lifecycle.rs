use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, bounded};
use takt_node::request::{RequestSender, Status};
use takt_node::ros::lifecycle::{Change, State};
use takt_node::ros::message::{
    ASK, Answer, ChangeStateRequest, ChangeStateResponse, ENGINE_INFO, EngineInfo, EngineInfoRequest,
    GetAvailableStatesResponse, GetAvailableTransitionsResponse, GetStateRequest, GetStateResponse, Message,
    Question, TransitionEvent,
};
use takt_node::ros::transport::Qos;
use takt_node::ros::{AskDefaults, Engine, NodeSettings, Ready, RosNode, RosOptions, TypeName};

use super::client::{Peer, Service};
use super::{EchoWorker, PATIENCE, private_options, send_reply, user_text};

/// An engine that notes what is done to it, and fails to open when told to.
struct NotingEngine {
    requests: RequestSender,
    log: Arc<Mutex<Vec<&'static str>>>,
    refuses: Arc<Mutex<Option<String>>>,
}

impl Engine for NotingEngine {
    fn open(&mut self) -> Result<Ready, String> {
        self.log.lock().unwrap().push("open");
        match self.refuses.lock().unwrap().clone() {
            Some(reason) => Err(reason),
            None => {
                let info = EngineInfo { architecture: "echo".to_owned(), ..EngineInfo::default() };
                Ok(Ready::new(self.requests.clone(), info))
            }
        }
    }

    fn close(&mut self) {
        self.log.lock().unwrap().push("close");
    }
}

struct Managed {
    node: RosNode,
    peer: Peer,
    change: Service,
    log: Arc<Mutex<Vec<&'static str>>>,
    refuses: Arc<Mutex<Option<String>>>,
}

impl Managed {
    fn start(options: &RosOptions, worker: &EchoWorker) -> Self {
        let transport = takt_node::ros::join(options).unwrap();
        let (log, refuses) = (Arc::default(), Arc::default());
        let engine = NotingEngine {
            requests: worker.sender.clone(),
            log: Arc::clone(&log),
            refuses: Arc::clone(&refuses),
        };
        let settings = NodeSettings::new(transport.as_ref(), Box::new(engine), AskDefaults::default());
        let node = RosNode::start(transport, settings).unwrap();
        let peer = Peer::of(options);
        let change = peer.service("change_state", TypeName::srv("lifecycle_msgs", "ChangeState"));
        Self { node, peer, change, log, refuses }
    }

    fn change(&self, label: &str) -> bool {
        let mut request = ChangeStateRequest::default();
        request.transition.label = label.to_owned();
        self.change.call::<ChangeStateResponse>(&request).success
    }

    fn ask(&self, prompt: &str) -> Answer {
        let ask = self.peer.service("ask", ASK);
        ask.call(&Question { prompt: prompt.to_owned(), ..Question::default() })
    }
}

#[test]
fn a_node_is_driven_through_its_life_by_the_services_of_ros_2() {
    let options = private_options();
    let worker = EchoWorker::start();
    let managed = Managed::start(&options, &worker);
    let state = managed.peer.service("get_state", TypeName::srv("lifecycle_msgs", "GetState"));
    let label = || state.call::<GetStateResponse>(&GetStateRequest::default()).current_state.label;
    let events = managed.peer.listen::<TransitionEvent>("transition_event", Qos::DEFAULT);
    assert_eq!(label(), "unconfigured");
    let answer = managed.ask("anyone?");
    assert_eq!(answer.status, "rejected");
    assert!(answer.reason.contains("the node is not active"), "{}", answer.reason);

    assert!(managed.change("configure"));
    assert_eq!(label(), "inactive");
    assert_eq!(managed.ask("anyone?").status, "rejected");
    assert!(managed.change("activate"));
    assert_eq!(label(), "active");
    assert_eq!(managed.ask("hello").text, "echo: hello");
    assert!(!managed.change("configure"), "it is configured");

    assert!(managed.change("deactivate"));
    assert_eq!(managed.ask("anyone?").status, "rejected");
    assert!(managed.change("activate"));
    assert_eq!(managed.ask("again").text, "echo: again");
    assert!(managed.change("deactivate") && managed.change("cleanup"));
    assert_eq!(label(), "unconfigured");
    assert!(managed.change("shutdown"));
    assert_eq!(label(), "finalized");
    assert!(!managed.change("configure"), "nothing leads out of finalized");
    assert_eq!(*managed.log.lock().unwrap(), ["open", "close", "close"]);

    let told = events.until(|event| event.goal_state.label == "finalized");
    let ends: Vec<&str> = told.iter().map(|event| event.goal_state.label.as_str()).collect();
    assert_eq!(ends[..4], ["configuring", "inactive", "activating", "active"]);
    assert!(told.windows(2).all(|two| two[0].goal_state == two[1].start_state), "{told:?}");
    managed.node.close();
}

#[test]
fn an_engine_that_does_not_open_leaves_the_node_unconfigured_and_may_be_tried_again() {
    let options = private_options();
    let worker = EchoWorker::start();
    let managed = Managed::start(&options, &worker);
    *managed.refuses.lock().unwrap() = Some("no such folder".to_owned());
    assert!(!managed.change("configure"));
    assert_eq!(managed.node.state(), State::Unconfigured);
    assert_eq!(managed.node.bring_up(), Err("no such folder".to_owned()));
    *managed.refuses.lock().unwrap() = None;
    assert!(managed.change("configure") && managed.change("activate"));
    let info = managed.peer.service("engine_info", ENGINE_INFO);
    let info: EngineInfo = info.call(&EngineInfoRequest::default());
    assert_eq!((info.architecture.as_str(), info.lifecycle_state.as_str()), ("echo", "active"));
}

#[test]
fn deactivating_answers_what_is_open() {
    let options = private_options();
    let (cancels, cancelled) = crossbeam_channel::unbounded();
    let (queue, requests) = crossbeam_channel::bounded::<takt_node::request::Request>(8);
    // Answers a request only when it is cancelled.
    let work = std::thread::spawn(move || {
        let mut open = Vec::new();
        loop {
            crossbeam_channel::select! {
                recv(requests) -> request => match request {
                    Ok(request) => open.push(request),
                    Err(_) => return,
                },
                recv(cancelled) -> id => {
                    let Ok(id) = id else { continue };
                    let at = open.iter().position(|request| request.id == id).unwrap();
                    let request = open.remove(at);
                    send_reply(&request, Status::Cancelled, user_text(&request));
                }
            }
        }
    });
    let transport = takt_node::ros::join(&options).unwrap();
    let sender = RequestSender::new(queue).with_cancels(cancels);
    let settings = NodeSettings::new(transport.as_ref(), Box::new(sender), AskDefaults::default());
    let node = RosNode::start(transport, settings).unwrap();
    node.bring_up().unwrap();
    let peer = Peer::of(&options);
    let ask = peer.service("ask", ASK);
    let pending: Vec<_> = (0..3)
        .map(|i| ask.start(&Question { prompt: format!("question {i}"), ..Question::default() }))
        .collect();
    while node.num_open() < 3 {
        std::thread::yield_now();
    }
    node.change(takt_node::ros::lifecycle::Change::Deactivate).unwrap();
    assert_eq!((node.num_open(), node.state()), (0, State::Inactive));
    for (i, call) in pending.into_iter().enumerate() {
        let answer = Answer::decode(&call.wait(PATIENCE).unwrap()).unwrap();
        assert_eq!((answer.status.as_str(), answer.text), ("cancelled", format!("question {i}")));
    }
    node.close();
    work.join().unwrap();
}

#[test]
fn the_state_machine_is_told_whole() {
    let options = private_options();
    let worker = EchoWorker::start();
    let managed = Managed::start(&options, &worker);
    let transitions = |service: &str| {
        let service =
            managed.peer.service(service, TypeName::srv("lifecycle_msgs", "GetAvailableTransitions"));
        let response: GetAvailableTransitionsResponse = service.call(&GetStateRequest::default());
        response.available_transitions
    };
    let labels: Vec<String> =
        transitions("get_available_transitions").into_iter().map(|one| one.transition.label).collect();
    assert_eq!(labels, ["configure", "shutdown"]);
    assert_eq!(transitions("get_transition_graph").len(), 25);
    let states =
        managed.peer.service("get_available_states", TypeName::srv("lifecycle_msgs", "GetAvailableStates"));
    let states: GetAvailableStatesResponse = states.call(&GetStateRequest::default());
    assert_eq!(states.available_states.len(), 11);
}

/// An engine that is open only when `wanted` is closed, and then no longer wanted.
struct Endless {
    opening: Sender<()>,
    wanted: Receiver<()>,
}

impl Engine for Endless {
    fn open(&mut self) -> Result<Ready, String> {
        self.opening.send(()).unwrap();
        let _ = self.wanted.recv();
        Err("interrupted".to_owned())
    }

    fn close(&mut self) {}
}

#[test]
fn a_node_that_gives_opening_up_is_shut_down_in_order_and_who_asked_for_it_is_told() {
    let options = private_options();
    let transport = takt_node::ros::join(&options).unwrap();
    let (opening_in, opening) = bounded(1);
    let (end, wanted) = bounded::<()>(0);
    let engine = Endless { opening: opening_in, wanted };
    let settings = NodeSettings::new(transport.as_ref(), Box::new(engine), AskDefaults::default());
    let node = RosNode::start(transport, settings).unwrap();
    let peer = Peer::of(&options);
    let change = peer.service("change_state", TypeName::srv("lifecycle_msgs", "ChangeState"));
    std::thread::scope(|scope| {
        let configured = scope.spawn(|| {
            let mut request = ChangeStateRequest::default();
            request.transition.label = "configure".to_owned();
            change.call::<ChangeStateResponse>(&request).success
        });
        opening.recv().unwrap();
        drop(end);
        node.change(Change::ShutDown).unwrap();
        assert_eq!(node.state(), State::Finalized);
        assert!(!configured.join().unwrap());
    });
    node.close();
}
