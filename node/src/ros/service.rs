//! Services that are answered at once.

use super::RosError;
use super::cdr::CdrError;
use super::message::Message;
use super::name::TypeName;
use super::transport::{Respond, Transport};

/// The message that says nothing: what a transport sends to nobody, and what a request that cannot be read gets.
pub(super) fn blank<M: Message + Default>() -> Result<Vec<u8>, RosError> {
    M::default().encode().map_err(|error| RosError::Message { what: "an empty message", error })
}

/// Answers every request to `service` by `answer`, on the transport's thread.
pub(super) fn serve<Request, Response>(
    transport: &dyn Transport,
    service: &str,
    ty: TypeName,
    mut answer: impl FnMut(Request) -> Response + Send + 'static,
) -> Result<(), RosError>
where
    Request: Message,
    Response: Message + Default,
{
    let on_request = Box::new(move |message: &[u8], respond: Box<dyn Respond>| {
        let response = match Request::decode(message) {
            Ok(request) => answer(request),
            Err(error) => {
                tracing::warn!("not a request of {ty}: {error}");
                Response::default()
            }
        };
        let mut message = response.encode();
        let room = respond.max_len();
        if let Some(num_bytes) = message.as_ref().ok().map(Vec::len).filter(|num_bytes| *num_bytes > room) {
            tracing::warn!(
                "a reply of {ty} has {num_bytes} bytes, and {room} reach a client of its DDS vendor: it gets an empty one"
            );
            message = Response::default().encode();
        }
        send(respond, ty, message);
    });
    transport.serve(service, ty, &blank::<Response>()?, on_request)
}

/// Sends a reply, if it could be encoded.
pub(super) fn send(respond: Box<dyn Respond>, ty: TypeName, message: Result<Vec<u8>, CdrError>) {
    match message {
        Ok(message) => respond.respond(&message),
        Err(error) => tracing::error!(%error, "a reply of {ty} cannot be encoded"),
    }
}
