//! With the feature `r2r`: says what to source before the bindings' own build stops. Nothing else.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=AMENT_PREFIX_PATH");
    println!("cargo::rerun-if-env-changed=ROS_DISTRO");
    let has = |feature| std::env::var_os(feature).is_some();
    if !has("CARGO_FEATURE_R2R") || has("CARGO_FEATURE_R2R_DOC_ONLY") {
        return;
    }
    if !(has("AMENT_PREFIX_PATH") && has("ROS_DISTRO")) {
        println!(
            "cargo::error=the feature r2r links the ROS 2 of this machine, and none is sourced: `source /opt/ros/<distro>/setup.bash`, then build \
             again. Without ROS 2, leave the feature out, or type-check alone: `cargo check -p takt-node --features r2r-doc-only`."
        );
        std::process::exit(1);
    }
}
