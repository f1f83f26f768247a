//! The ROS 2 installation and its environment. None is needed: the node speaks DDS itself.

use super::Finding;

pub(super) fn examine(lookup: &impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
    let mut findings = vec![distribution(set("ROS_DISTRO")), rmw(set("RMW_IMPLEMENTATION"))];
    let domain = set("ROS_DOMAIN_ID").unwrap_or_else(|| "0 (ROS_DOMAIN_ID is not set)".into());
    let range = set("ROS_AUTOMATIC_DISCOVERY_RANGE")
        .or_else(|| set("ROS_LOCALHOST_ONLY").filter(|value| value == "1").map(|_| "LOCALHOST".into()))
        .unwrap_or_else(|| "SUBNET".into());
    findings.push(Finding::good("ros domain", format!("{domain}, discovery range {range}")));
    findings
}

fn distribution(distro: Option<String>) -> Finding {
    if let Some(distro) = distro {
        return Finding::good("ros 2", format!("{distro} is sourced"));
    }
    let mut installed: Vec<String> = std::fs::read_dir("/opt/ros")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    installed.sort();
    if installed.is_empty() {
        return Finding::note(
            "ros 2",
            "not installed",
            "takt needs none; `ros2 topic`, `ros2 service` are not at hand here",
        );
    }
    Finding::note(
        "ros 2",
        format!("{} in /opt/ros, none sourced", installed.join(", ")),
        "takt needs none; source one to use `ros2 topic` and `ros2 service` against it",
    )
}

fn rmw(implementation: Option<String>) -> Finding {
    match implementation.as_deref() {
        None => Finding::good("rmw", "the distribution's default"),
        Some(
            name
            @ ("rmw_cyclonedds_cpp" | "rmw_fastrtps_cpp" | "rmw_fastrtps_dynamic_cpp" | "rmw_connextdds"),
        ) => Finding::good("rmw", format!("{name}: speaks DDS as takt does")),
        Some(name) => Finding::bad(
            "rmw",
            name,
            "not a DDS middleware: nodes that use it do not see takt; set RMW_IMPLEMENTATION=rmw_cyclonedds_cpp or rmw_fastrtps_cpp",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_middleware_that_is_no_dds_is_bad_news() {
        let findings =
            examine(&|name: &str| (name == "RMW_IMPLEMENTATION").then(|| "rmw_zenoh_cpp".to_owned()));
        assert!(findings.iter().any(|finding| finding.topic == "rmw" && finding.level == Level::Bad));
    }
}
