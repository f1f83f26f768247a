//! A node's name for one node. ROS 2 lets several have it; rcl says how many do, but not who was first.
//!
//! So who claims a name publishes, as long as it claims, on a hidden topic below it whose own name tells when it began. Namesakes without
//! such a topic are up already; of those with one, the first keeps the name.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::census;
use super::context::Node;
use super::graph::Graph;
use super::topic::Publisher;
use crate::ros::RosError;
use crate::ros::message::STRING;
use crate::ros::transport::Qos;

/// Below the node's name; hidden from `ros2 topic list`.
const CLAIMS: &str = "_claim/";
/// How often the network is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Looks in a row that find the name taken: a node is heard of shortly before its topics are.
const LOOKS_TO_BE_SURE: u32 = 4;

/// The topics of those who claim the name of `node` now.
pub(super) fn all(node: &Node) -> Result<Vec<String>, RosError> {
    census::topics_under(node, &node.name.private(CLAIMS))
}

/// Claims the name of `node` for `window`; `false` if it is taken.
pub(super) fn claim(node: &Arc<Node>, graph: &Arc<Graph>, window: Duration) -> Result<bool, RosError> {
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Compared as text, of one length. The address tells two nodes of one process apart.
    let own =
        format!("{CLAIMS}t{:016x}_{:08x}_{:016x}", began.as_nanos(), std::process::id(), node.ptr().addr());
    let own = node.name.private(&own);
    let _claiming = Publisher::new(node, graph, &own, STRING, Qos::DEFAULT)?;
    let started = Instant::now();
    let mut num_looks_taken = 0;
    while num_looks_taken < LOOKS_TO_BE_SURE {
        let left = window.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(num_looks_taken == 0);
        }
        graph.wait_for(left.min(BETWEEN_LOOKS), || false);
        let claims = all(node)?;
        let num_claiming = claims.iter().filter(|claim| **claim != own).count() + 1;
        let is_first = claims.iter().all(|claim| *claim >= own);
        let is_taken = !is_first || census::num_namesakes(node)? > num_claiming;
        num_looks_taken = if is_taken { num_looks_taken + 1 } else { 0 };
    }
    Ok(false)
}
