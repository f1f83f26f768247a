//! Services that are answered at once.

use super::RosError;
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
        send(respond, ty, &response, None);
    });
    transport.serve(service, ty, &blank::<Response>()?, on_request)
}

/// Sends `response`, if it could be encoded; `instead` where that does not arrive.
pub(super) fn send<M: Message>(respond: Box<dyn Respond>, ty: TypeName, response: &M, instead: Option<&M>) {
    match (response.encode(), instead.map(M::encode).transpose()) {
        (Ok(message), Ok(instead)) => respond.respond(&message, instead.as_deref()),
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "a reply of {ty} cannot be encoded"),
    }
}
