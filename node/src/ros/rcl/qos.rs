//! Qualities of service in rcl's terms.

use r2r_rcl::{
    rmw_qos_durability_policy_e, rmw_qos_history_policy_e, rmw_qos_profile_t, rmw_qos_reliability_policy_e,
};

use crate::ros::transport::{Durability, Qos, Reliability};

/// Requests that wait for the dispatcher, and replies for their clients: as many as calls may be in flight. rcl's 10 lose some of a burst.
const SERVICE_DEPTH: usize = 1024;

/// `default`, of a service or a client, with room for every call.
pub(super) fn service_profile(default: rmw_qos_profile_t) -> rmw_qos_profile_t {
    rmw_qos_profile_t { depth: SERVICE_DEPTH, ..default }
}

/// `default` with what `qos` says.
pub(super) fn profile(default: rmw_qos_profile_t, qos: Qos) -> rmw_qos_profile_t {
    rmw_qos_profile_t {
        history: rmw_qos_history_policy_e::RMW_QOS_POLICY_HISTORY_KEEP_LAST,
        depth: qos.depth.into(),
        reliability: match qos.reliability {
            Reliability::Reliable => rmw_qos_reliability_policy_e::RMW_QOS_POLICY_RELIABILITY_RELIABLE,
            Reliability::BestEffort => rmw_qos_reliability_policy_e::RMW_QOS_POLICY_RELIABILITY_BEST_EFFORT,
        },
        durability: match qos.durability {
            Durability::Volatile => rmw_qos_durability_policy_e::RMW_QOS_POLICY_DURABILITY_VOLATILE,
            Durability::TransientLocal => {
                rmw_qos_durability_policy_e::RMW_QOS_POLICY_DURABILITY_TRANSIENT_LOCAL
            }
        },
        ..default
    }
}
