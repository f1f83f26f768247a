//! Topics: bytes out, bytes in.

use std::sync::Arc;
use std::time::Duration;

use r2r_rcl::{
    RCL_RET_SUBSCRIPTION_TAKE_FAILED, RCL_RET_TIMEOUT, rcl_get_zero_initialized_publisher,
    rcl_get_zero_initialized_subscription, rcl_publish_serialized_message, rcl_publisher_fini,
    rcl_publisher_get_default_options, rcl_publisher_get_subscription_count, rcl_publisher_init,
    rcl_publisher_t, rcl_publisher_wait_for_all_acked, rcl_subscription_fini,
    rcl_subscription_get_default_options, rcl_subscription_get_publisher_count, rcl_subscription_init,
    rcl_subscription_t, rcl_take_serialized_message, rmw_message_info_t,
};

use super::context::Node;
use super::dispatcher::Source;
use super::graph::Graph;
use super::handle::{Handle, c_name, check, is, take_error};
use super::message::{Buffer, borrowed};
use super::qos::profile;
use super::type_support::message_support;
use super::wait_set::Waitable;
use crate::ros::transport::{OnMessage, Publish, Qos, Subscription};
use crate::ros::{RosError, TypeName};

/// The sending end.
pub(super) struct Publisher {
    handle: Handle<rcl_publisher_t>,
    topic: String,
    graph: Arc<Graph>,
    node: Arc<Node>,
}

impl Publisher {
    pub fn new(
        node: &Arc<Node>,
        graph: &Arc<Graph>,
        topic: &str,
        ty: TypeName,
        qos: Qos,
    ) -> Result<Self, RosError> {
        let (support, name) = (message_support(ty)?, c_name("topic", topic)?);
        // SAFETY: both take nothing and return a value.
        let (zero, mut options) =
            unsafe { (rcl_get_zero_initialized_publisher(), rcl_publisher_get_default_options()) };
        options.qos = profile(options.qos, qos);
        let handle = Handle::new(zero);
        // SAFETY: the publisher is zero, the node lives, the type is never freed, the rest is copied.
        let made = node.change(|node| unsafe {
            rcl_publisher_init(handle.ptr(), node, support, name.as_ptr(), &raw const options)
        });
        check(made, &format!("writing {topic}"))?;
        let (graph, node) = (Arc::clone(graph), Arc::clone(node));
        Ok(Self { handle, topic: topic.to_owned(), graph, node })
    }

    /// Waits until every subscriber has everything; `false` after `timeout`.
    pub fn wait_acknowledged(&self, timeout: Duration) -> bool {
        let timeout_ns = i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX);
        // SAFETY: initialized; rcl allows this beside publishing.
        let waited = unsafe { rcl_publisher_wait_for_all_acked(self.handle.ptr(), timeout_ns) };
        check(waited, "waiting for acknowledgements").is_ok()
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Publisher").field(&self.topic).finish()
    }
}

impl Publish for Arc<Publisher> {
    fn publish(&self, message: &[u8]) -> Result<(), RosError> {
        let (message, none) = (borrowed(message), std::ptr::null_mut());
        // SAFETY: initialized; rcl allows several threads to publish different messages, and only reads this one.
        let sent = unsafe { rcl_publish_serialized_message(self.handle.ptr(), &raw const *message, none) };
        if is(sent, RCL_RET_TIMEOUT) {
            take_error();
            return Err(RosError::Congested { topic: self.topic.clone() });
        }
        check(sent, &format!("sending on {}", self.topic))
    }

    fn wait_for_subscriber(&self, timeout: Duration) -> bool {
        self.graph.wait_for(timeout, || {
            let mut count = 0;
            // SAFETY: initialized; rcl allows this beside publishing.
            let counted = unsafe { rcl_publisher_get_subscription_count(self.handle.ptr(), &raw mut count) };
            check(counted, "counting subscribers").is_ok() && count > 0
        })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // SAFETY: initialized, of this node, and not used after.
        self.node.change(|node| unsafe { rcl_publisher_fini(self.handle.ptr(), node) });
    }
}

/// The hearing end, which the dispatcher takes from and its owner counts publishers at.
pub(super) struct Subscriber {
    handle: Handle<rcl_subscription_t>,
    topic: String,
    graph: Arc<Graph>,
    node: Arc<Node>,
}

impl Subscriber {
    pub fn new(
        node: &Arc<Node>,
        graph: &Arc<Graph>,
        topic: &str,
        ty: TypeName,
        qos: Qos,
    ) -> Result<Self, RosError> {
        let (support, name) = (message_support(ty)?, c_name("topic", topic)?);
        // SAFETY: both take nothing and return a value.
        let (zero, mut options) =
            unsafe { (rcl_get_zero_initialized_subscription(), rcl_subscription_get_default_options()) };
        options.qos = profile(options.qos, qos);
        let handle = Handle::new(zero);
        // SAFETY: the subscription is zero, the node lives, the type is never freed, the rest is copied.
        let made = node.change(|node| unsafe {
            rcl_subscription_init(handle.ptr(), node, support, name.as_ptr(), &raw const options)
        });
        check(made, &format!("reading {topic}"))?;
        let (graph, node) = (Arc::clone(graph), Arc::clone(node));
        Ok(Self { handle, topic: topic.to_owned(), graph, node })
    }
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Subscriber").field(&self.topic).finish()
    }
}

impl Subscription for Arc<Subscriber> {
    fn wait_for_publisher(&self, timeout: Duration) -> bool {
        self.graph.wait_for(timeout, || {
            let mut count = 0;
            // SAFETY: initialized; rcl allows this beside taking.
            let counted = unsafe { rcl_subscription_get_publisher_count(self.handle.ptr(), &raw mut count) };
            check(counted, "counting publishers").is_ok() && count > 0
        })
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // SAFETY: initialized, of this node, and not used after.
        self.node.change(|node| unsafe { rcl_subscription_fini(self.handle.ptr(), node) });
    }
}

/// A topic's messages, for the dispatcher.
pub(super) struct Messages {
    subscriber: Arc<Subscriber>,
    buffer: Buffer,
    on_message: OnMessage,
}

impl Messages {
    pub fn new(subscriber: Arc<Subscriber>, on_message: OnMessage) -> Result<Self, RosError> {
        Ok(Self { subscriber, buffer: Buffer::new()?, on_message })
    }
}

impl Source for Messages {
    fn waitable(&self) -> Waitable {
        Waitable::Subscription(self.subscriber.handle.ptr())
    }

    fn take(&mut self) -> bool {
        let (mut info, none) = (rmw_message_info_t::default(), std::ptr::null_mut());
        // SAFETY: initialized; only the dispatcher takes, and the buffer grows as the middleware needs it.
        let taken = unsafe {
            let subscription = self.subscriber.handle.ptr();
            rcl_take_serialized_message(subscription, self.buffer.ptr(), &raw mut info, none)
        };
        if is(taken, RCL_RET_SUBSCRIPTION_TAKE_FAILED) {
            take_error();
            return false;
        }
        match check(taken, &format!("taking from {}", self.subscriber.topic)) {
            Ok(()) => (self.on_message)(self.buffer.bytes()),
            Err(error) => tracing::warn!(%error, "a message is lost"),
        }
        true
    }
}
