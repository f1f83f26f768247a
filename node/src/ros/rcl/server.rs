//! The answering side of services.

use std::sync::Arc;
use std::time::Instant;

use r2r_rcl::{
    RCL_RET_SERVICE_TAKE_FAILED, RCL_RET_TIMEOUT, rcl_get_zero_initialized_service, rcl_send_response,
    rcl_service_fini, rcl_service_get_default_options, rcl_service_init, rcl_service_t, rcl_take_request,
    rmw_request_id_t,
};

use super::context::Node;
use super::dispatcher::Source;
use super::handle::{Handle, c_name, check, is, take_error};
use super::message::{Buffer, CMessage};
use super::outbox::{Outbox, Reply};
use super::qos::service_profile;
use super::type_support::{self, ServiceType};
use super::wait_set::Waitable;
use crate::ros::transport::{OnRequest, Respond};
use crate::ros::{RosError, TypeName};

/// One service.
pub(super) struct Service {
    handle: Handle<rcl_service_t>,
    name: String,
    ty: ServiceType,
    node: Arc<Node>,
}

/// What became of a reply.
pub(super) enum Sent {
    /// It is on its way, or its client has left.
    Done,
    /// The client's reader is not known yet.
    NotYet,
}

impl Service {
    pub fn new(node: &Arc<Node>, service: &str, ty: TypeName) -> Result<Self, RosError> {
        let (ty, name) = (type_support::service(ty)?, c_name("service", service)?);
        // SAFETY: both take nothing and return a value.
        let (zero, mut options) =
            unsafe { (rcl_get_zero_initialized_service(), rcl_service_get_default_options()) };
        options.qos = service_profile(options.qos);
        let handle = Handle::new(zero);
        // SAFETY: the service is zero, the node lives, the type is never freed, the rest is copied.
        let made = node.change(|node| unsafe {
            rcl_service_init(handle.ptr(), node, ty.support, name.as_ptr(), &raw const options)
        });
        check(made, &format!("serving {service}"))?;
        Ok(Self { handle, name: service.to_owned(), ty, node: Arc::clone(node) })
    }

    /// Sends `message` to who asked as `request`; may wait 100 ms for the client's reader.
    pub fn send(&self, mut request: rmw_request_id_t, message: &[u8]) -> Result<Sent, RosError> {
        let message = CMessage::from_cdr(self.ty.response, message)?;
        // SAFETY: initialized, and the message is one of its type; only the outbox's thread sends.
        let sent = unsafe { rcl_send_response(self.handle.ptr(), &raw mut request, message.ptr()) };
        if is(sent, RCL_RET_TIMEOUT) {
            take_error();
            return Ok(Sent::NotYet);
        }
        check(sent, &format!("replying on {}", self.name)).map(|()| Sent::Done)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // SAFETY: initialized, of this node, and not used after.
        self.node.change(|node| unsafe { rcl_service_fini(self.handle.ptr(), node) });
    }
}

/// A service's requests, for the dispatcher.
pub(super) struct Requests {
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    buffer: Buffer,
    on_request: OnRequest,
}

impl Requests {
    pub fn new(service: Service, outbox: Arc<Outbox>, on_request: OnRequest) -> Result<Self, RosError> {
        Ok(Self { service: Arc::new(service), outbox, buffer: Buffer::new()?, on_request })
    }

    /// One request; `None` if there is none.
    fn take_request(&mut self) -> Result<Option<rmw_request_id_t>, RosError> {
        let message = CMessage::new(self.service.ty.request)?;
        let mut id = rmw_request_id_t { writer_guid: [0; 16], sequence_number: 0 };
        // SAFETY: initialized, and the message is one of its type; only the dispatcher takes.
        let taken = unsafe { rcl_take_request(self.service.handle.ptr(), &raw mut id, message.ptr()) };
        if is(taken, RCL_RET_SERVICE_TAKE_FAILED) {
            take_error();
            return Ok(None);
        }
        check(taken, &format!("taking from {}", self.service.name))?;
        message.to_cdr(&mut self.buffer)?;
        Ok(Some(id))
    }
}

impl Source for Requests {
    fn waitable(&self) -> Waitable {
        Waitable::Service(self.service.handle.ptr())
    }

    fn take(&mut self) -> bool {
        match self.take_request() {
            Ok(None) => return false,
            Ok(Some(request)) => {
                let (service, outbox) = (Arc::clone(&self.service), Arc::clone(&self.outbox));
                (self.on_request)(self.buffer.bytes(), Box::new(Return { service, outbox, request }));
            }
            Err(error) => tracing::warn!(%error, "a request is lost"),
        }
        true
    }
}

/// The way back to one request's client.
struct Return {
    service: Arc<Service>,
    outbox: Arc<Outbox>,
    request: rmw_request_id_t,
}

impl Respond for Return {
    fn respond(self: Box<Self>, message: &[u8], _instead: Option<&[u8]>) {
        let Self { service, outbox, request } = *self;
        outbox.post(Reply { service, request, message: message.to_vec(), given_at: Instant::now() });
    }
}
