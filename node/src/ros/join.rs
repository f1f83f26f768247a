//! Which implementation of ROS 2 carries the node.

use super::dds::DdsTransport;
use super::options::TransportKind;
#[cfg(feature = "r2r")]
use super::rcl::RclTransport;
use super::transport::Transport;
use super::{RosError, RosOptions};

/// Joins the domain of `options` by the transport they name; the node's name is not claimed yet.
///
/// # Errors
/// [`RosError::Option`] for a transport that was not built in, [`RosError::Name`], [`RosError::Transport`].
pub fn join(options: &RosOptions) -> Result<Box<dyn Transport>, RosError> {
    match options.transport {
        TransportKind::Dds => Ok(Box::new(DdsTransport::join(options)?)),
        #[cfg(feature = "r2r")]
        TransportKind::Rcl => Ok(Box::new(RclTransport::join(options)?)),
        #[cfg(not(feature = "r2r"))]
        TransportKind::Rcl => Err(RosError::Option {
            name: "transport",
            value: "rcl".to_owned(),
            expected: "this takt was built without it: `source /opt/ros/<distro>/setup.bash`, then `cargo build --release --features r2r`",
        }),
    }
}
