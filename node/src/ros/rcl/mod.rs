//! The robot's own middleware, through rcl (feature `r2r`): the same node where a vendor's RMW has to be used.
//!
//! Names come resolved, and actions, parameters, lifecycle and `/rosout` are the node's own here too: rcl carries bytes. Messages of
//! services pass through C structures, because rcl has no other way.

#![expect(unsafe_code, reason = "rcl is a C library")]

mod census;
mod claim;
mod client;
mod context;
mod dispatcher;
mod graph;
mod handle;
mod message;
mod name_watch;
mod outbox;
mod qos;
mod server;
mod topic;
mod type_support;
mod wait_set;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::client::{Client, Replies};
use self::context::Node;
use self::dispatcher::Dispatcher;
use self::graph::Graph;
use self::name_watch::NameWatch;
use self::outbox::Postman;
use self::server::{Requests, Service};
use self::topic::{Messages, Publisher, Subscriber};
use super::transport::{Call, OnMessage, OnRequest, Publish, Qos, Subscription, Transport};
use super::{NodeName, RosError, RosOptions, TypeName};

/// One node in one domain.
pub struct RclTransport {
    // Dropped first: it owns what is listened to, and every callback.
    dispatcher: Dispatcher,
    postman: Postman,
    publishers: Mutex<Vec<Arc<Publisher>>>,
    graph: Arc<Graph>,
    node: Arc<Node>,
    /// Whether the name is this node's.
    is_claimed: Arc<AtomicBool>,
    domain_id: u16,
}

impl std::fmt::Debug for RclTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RclTransport").field("node", &self.node.name).finish_non_exhaustive()
    }
}

impl RclTransport {
    /// Joins the domain; the name is not claimed yet.
    ///
    /// # Errors
    /// [`RosError::Name`], [`RosError::Transport`].
    pub fn join(options: &RosOptions) -> Result<Self, RosError> {
        let node = Node::join(options)?;
        tracing::info!("ROS 2 through rcl and {}", context::middleware());
        let graph = Arc::new(Graph::default());
        let is_claimed = Arc::new(AtomicBool::new(false));
        let watch = NameWatch::new(Arc::clone(&node), Arc::clone(&is_claimed));
        let dispatcher = Dispatcher::start(&node, Arc::clone(&graph), watch)?;
        let postman = Postman::start()?;
        Ok(Self {
            dispatcher,
            postman,
            publishers: Mutex::default(),
            graph,
            node,
            is_claimed,
            domain_id: options.domain_id,
        })
    }
}

impl Transport for RclTransport {
    fn node(&self) -> &NodeName {
        &self.node.name
    }

    /// Of two that claim a name at once, the one that began first keeps it.
    fn claim_name(&self, window: Duration) -> Result<(), RosError> {
        if claim::claim(&self.node, &self.graph, window)? {
            self.is_claimed.store(true, Ordering::Release);
            return Ok(());
        }
        Err(RosError::NameTaken { node: self.node.name.to_string(), domain_id: self.domain_id })
    }

    fn publisher(&self, topic: &str, message: TypeName, qos: Qos) -> Result<Box<dyn Publish>, RosError> {
        let publisher = Arc::new(Publisher::new(&self.node, &self.graph, topic, message, qos)?);
        let mut publishers = self.publishers.lock().unwrap_or_else(PoisonError::into_inner);
        publishers.push(Arc::clone(&publisher));
        Ok(Box::new(publisher))
    }

    fn subscribe(
        &self,
        topic: &str,
        message: TypeName,
        qos: Qos,
        on_message: OnMessage,
    ) -> Result<Box<dyn Subscription>, RosError> {
        let subscriber = Arc::new(Subscriber::new(&self.node, &self.graph, topic, message, qos)?);
        self.dispatcher.listen(Box::new(Messages::new(Arc::clone(&subscriber), on_message)?))?;
        Ok(Box::new(subscriber))
    }

    fn serve(
        &self,
        service: &str,
        ty: TypeName,
        _blank: &[u8],
        on_request: OnRequest,
    ) -> Result<(), RosError> {
        let service = Service::new(&self.node, service, ty)?;
        let requests = Requests::new(service, Arc::clone(&self.postman.outbox), on_request)?;
        self.dispatcher.listen(Box::new(requests))
    }

    fn client(&self, service: &str, ty: TypeName) -> Result<Box<dyn Call>, RosError> {
        let client = Arc::new(Client::new(&self.node, &self.graph, service, ty)?);
        self.dispatcher.listen(Box::new(Replies::new(Arc::clone(&client))?))?;
        Ok(Box::new(client))
    }

    /// Nothing: rcl told each endpoint as it was made.
    fn announce(&self) -> Result<(), RosError> {
        Ok(())
    }

    fn wait_delivered(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let flushed = self.postman.outbox.wait_flushed(timeout);
        let publishers = self.publishers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let acknowledged = publishers
            .iter()
            .all(|publisher| publisher.wait_acknowledged(end.saturating_duration_since(Instant::now())));
        flushed && acknowledged
    }

    fn is_listening(&self) -> bool {
        self.dispatcher.is_running()
    }
}
