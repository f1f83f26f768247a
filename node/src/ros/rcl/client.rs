//! The asking side of services.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use r2r_rcl::{
    RCL_RET_CLIENT_TAKE_FAILED, RCL_RET_TIMEOUT, rcl_client_fini, rcl_client_get_default_options,
    rcl_client_init, rcl_client_t, rcl_get_zero_initialized_client, rcl_send_request,
    rcl_service_server_is_available, rcl_take_response, rmw_request_id_t,
};

use super::context::Node;
use super::dispatcher::Source;
use super::graph::Graph;
use super::handle::{Handle, c_name, check, is, take_error};
use super::message::{Buffer, CMessage};
use super::qos::service_profile;
use super::type_support::{self, ServiceType};
use super::wait_set::Waitable;
use crate::ros::transport::{Call, PendingCall};
use crate::ros::{RosError, TypeName};

/// Calls in flight at a time.
const MAX_CALLS: usize = 1024;

/// Calls waiting for their reply, by their number.
type Waiting = Mutex<HashMap<i64, Sender<Vec<u8>>>>;

/// One client.
pub(super) struct Client {
    handle: Handle<rcl_client_t>,
    service: String,
    ty: ServiceType,
    waiting: Arc<Waiting>,
    graph: Arc<Graph>,
    node: Arc<Node>,
}

impl Client {
    pub fn new(node: &Arc<Node>, graph: &Arc<Graph>, service: &str, ty: TypeName) -> Result<Self, RosError> {
        let (ty, name) = (type_support::service(ty)?, c_name("service", service)?);
        // SAFETY: both take nothing and return a value.
        let (zero, mut options) =
            unsafe { (rcl_get_zero_initialized_client(), rcl_client_get_default_options()) };
        options.qos = service_profile(options.qos);
        let handle = Handle::new(zero);
        // SAFETY: the client is zero, the node lives, the type is never freed, the rest is copied.
        let made = node.change(|node| unsafe {
            rcl_client_init(handle.ptr(), node, ty.support, name.as_ptr(), &raw const options)
        });
        check(made, &format!("calling {service}"))?;
        let (graph, node) = (Arc::clone(graph), Arc::clone(node));
        Ok(Self { handle, service: service.to_owned(), ty, waiting: Arc::default(), graph, node })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("service", &self.service).finish_non_exhaustive()
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<i64, Sender<Vec<u8>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Call for Arc<Client> {
    fn wait_for_server(&self, timeout: Duration) -> bool {
        self.graph.wait_for(timeout, || {
            let mut is_there = false;
            // SAFETY: both are initialized; rcl allows this beside calls.
            let looked = unsafe {
                rcl_service_server_is_available(self.node.ptr(), self.handle.ptr(), &raw mut is_there)
            };
            check(looked, "looking for a server").is_ok() && is_there
        })
    }

    fn call(&self, message: &[u8]) -> Result<PendingCall, RosError> {
        let message = CMessage::from_cdr(self.ty.request, message)?;
        let (fill, reply) = crossbeam_channel::bounded(1);
        // Held until the call is in the table: its reply may come before rcl has said its number.
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= MAX_CALLS {
            return Err(RosError::TooManyCalls { in_flight: MAX_CALLS });
        }
        let mut number = 0;
        // SAFETY: initialized, and the message is one of its type; the lock lets one call be sent at a time.
        let sent = unsafe { rcl_send_request(self.handle.ptr(), message.ptr(), &raw mut number) };
        if is(sent, RCL_RET_TIMEOUT) {
            take_error();
            return Err(RosError::Congested { topic: self.service.clone() });
        }
        check(sent, &format!("calling {}", self.service))?;
        waiting.insert(number, fill);
        let entry = Entry { waiting: Arc::clone(&self.waiting), number };
        Ok(PendingCall { reply, _entry: Box::new(entry) })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: initialized, of this node, and not used after.
        self.node.change(|node| unsafe { rcl_client_fini(self.handle.ptr(), node) });
    }
}

/// Forgets the call when its asker no longer waits.
struct Entry {
    waiting: Arc<Waiting>,
    number: i64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.waiting).remove(&self.number);
    }
}

/// A client's replies, for the dispatcher.
pub(super) struct Replies {
    client: Arc<Client>,
    buffer: Buffer,
}

impl Replies {
    pub fn new(client: Arc<Client>) -> Result<Self, RosError> {
        Ok(Self { client, buffer: Buffer::new()? })
    }

    /// One reply's number; `None` if there is none.
    fn take_reply(&mut self) -> Result<Option<i64>, RosError> {
        let message = CMessage::new(self.client.ty.response)?;
        let mut id = rmw_request_id_t { writer_guid: [0; 16], sequence_number: 0 };
        // SAFETY: initialized, and the message is one of its type; only the dispatcher takes.
        let taken = unsafe { rcl_take_response(self.client.handle.ptr(), &raw mut id, message.ptr()) };
        if is(taken, RCL_RET_CLIENT_TAKE_FAILED) {
            take_error();
            return Ok(None);
        }
        check(taken, &format!("taking a reply of {}", self.client.service))?;
        message.to_cdr(&mut self.buffer)?;
        Ok(Some(id.sequence_number))
    }
}

impl Source for Replies {
    fn waitable(&self) -> Waitable {
        Waitable::Client(self.client.handle.ptr())
    }

    fn take(&mut self) -> bool {
        match self.take_reply() {
            Ok(None) => return false,
            Ok(Some(number)) => {
                let call = lock(&self.client.waiting).remove(&number);
                if let Some(call) = call {
                    // An asker that left has dropped the other end.
                    let _ = call.try_send(self.buffer.bytes().to_vec());
                }
            }
            Err(error) => tracing::warn!(%error, "a reply is lost"),
        }
        true
    }
}
