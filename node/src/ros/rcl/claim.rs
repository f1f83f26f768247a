//! A node's name for one node. ROS 2 lets several have it; rcl says how many do, but not who was first.
//!
//! So who claims a name publishes, as long as it claims, on a hidden topic below it whose own name tells when it began. Namesakes without
//! such a topic are up already; of those with one, the first keeps the name.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::census;
use super::context::Node;
use super::graph::Graph;
use super::topic::Publisher;
use crate::ros::RosError;
use crate::ros::message::STRING;
use crate::ros::transport::Qos;

/// Claims the name of `node` for `window`; `false` if it is taken.
pub(super) fn claim(node: &Arc<Node>, graph: &Arc<Graph>, window: Duration) -> Result<bool, RosError> {
    let claims = node.name.private("_claim/");
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Compared as text, of one length. The address tells two nodes of one process apart.
    let own =
        format!("{claims}t{:016x}_{:08x}_{:016x}", began.as_nanos(), std::process::id(), node.ptr().addr());
    let _claiming = Publisher::new(node, graph, &own, STRING, Qos::DEFAULT)?;
    graph.wait_for(window, || false);
    let claims = census::topics_under(node, &claims)?;
    let num_claiming = claims.iter().filter(|claim| **claim != own).count() + 1;
    let is_first = claims.iter().all(|claim| *claim >= own);
    Ok(is_first && census::num_namesakes(node)? <= num_claiming)
}
