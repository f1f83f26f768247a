//! A client of any service and any topic, for the suites of this folder.

use crossbeam_channel::Receiver;
use takt_node::ros::message::Message;
use takt_node::ros::transport::{Call, Publish, Qos, Subscription, Transport};
use takt_node::ros::{NodeName, RosOptions, TypeName};

use super::{PATIENCE, next};

pub(crate) struct Peer {
    pub(crate) node: NodeName,
    transport: Box<dyn Transport>,
}

/// A service to call.
pub(crate) struct Service(Box<dyn Call>);

/// A topic to listen to.
pub(crate) struct Topic<M> {
    messages: Receiver<M>,
    _subscription: Box<dyn Subscription>,
}

impl Peer {
    /// Another participant in the domain of the node at `options`.
    pub(crate) fn of(options: &RosOptions) -> Self {
        let node = options.node().unwrap();
        let options = RosOptions { node_name: "peer".to_owned(), ..options.clone() };
        Self { node, transport: takt_node::ros::join(&options).unwrap() }
    }

    pub(crate) fn service(&self, name: &str, ty: TypeName) -> Service {
        let call = self.transport.client(&self.node.private(name), ty).unwrap();
        assert!(call.wait_for_server(PATIENCE), "no server of ~/{name}");
        Service(call)
    }

    pub(crate) fn listen<M: Message + Send + 'static>(&self, topic: &str, qos: Qos) -> Topic<M> {
        self.listen_as(topic, M::TYPE, qos)
    }

    /// For a topic whose type has another name than the structure.
    pub(crate) fn listen_as<M: Message + Send + 'static>(
        &self,
        topic: &str,
        ty: TypeName,
        qos: Qos,
    ) -> Topic<M> {
        let (sender, messages) = crossbeam_channel::unbounded();
        let on_message = Box::new(move |message: &[u8]| {
            let _ = sender.send(M::decode(message).unwrap());
        });
        let name = if topic.starts_with('/') { topic.to_owned() } else { self.node.private(topic) };
        let subscription = self.transport.subscribe(&name, ty, qos, on_message).unwrap();
        assert!(subscription.wait_for_publisher(PATIENCE), "no publisher on {name}");
        Topic { messages, _subscription: subscription }
    }

    pub(crate) fn publisher(&self, topic: &str, ty: TypeName) -> Box<dyn Publish> {
        let publisher = self.transport.publisher(&self.node.private(topic), ty, Qos::DEFAULT).unwrap();
        assert!(publisher.wait_for_subscriber(PATIENCE), "nobody listens on {topic}");
        publisher
    }
}

impl Service {
    #[track_caller]
    pub(crate) fn call<Response: Message>(&self, request: &impl Message) -> Response {
        let reply = self.0.call(&request.encode().unwrap()).unwrap().wait(PATIENCE);
        Response::decode(&reply.unwrap()).unwrap()
    }

    /// Sends `request` and gives what to wait on.
    pub(crate) fn start(&self, request: &impl Message) -> takt_node::ros::transport::PendingCall {
        self.0.call(&request.encode().unwrap()).unwrap()
    }
}

impl<M> Topic<M> {
    /// Messages until `is_last`; `None` if one of them does not come within `patience`.
    pub(crate) fn try_until(
        &self,
        patience: std::time::Duration,
        is_last: impl Fn(&M) -> bool,
    ) -> Option<Vec<M>> {
        let mut all = Vec::new();
        loop {
            all.push(self.messages.recv_timeout(patience).ok()?);
            if is_last(all.last()?) {
                return Some(all);
            }
        }
    }

    #[track_caller]
    pub(crate) fn next(&self) -> M {
        next(&self.messages)
    }

    /// Messages until `is_last`.
    #[track_caller]
    pub(crate) fn until(&self, is_last: impl Fn(&M) -> bool) -> Vec<M> {
        let mut all = Vec::new();
        loop {
            all.push(self.next());
            if is_last(all.last().unwrap()) {
                return all;
            }
        }
    }
}
