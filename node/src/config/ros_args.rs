//! `--ros-args -r __node:=NAME -r __ns:=/NS`: the part of ROS 2's command line that names the node. The rest of that grammar
//! (parameters, topic remapping, log levels) belongs to a later version and is refused, not ignored.

use std::ffi::OsString;

/// What `--ros-args` said.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RosArgs {
    /// `__node` or `__name`.
    pub node_name: Option<String>,
    /// `__ns`.
    pub namespace: Option<String>,
}

impl RosArgs {
    /// Takes the `--ros-args … [--]` blocks out of `args`; returns what they said and the other arguments.
    ///
    /// # Errors
    /// The first argument that is not understood, and what is.
    pub fn split(args: impl IntoIterator<Item = OsString>) -> Result<(Self, Vec<OsString>), String> {
        let (mut found, mut others, mut inside) = (Self::default(), Vec::new(), false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.to_str() {
                Some("--ros-args") => inside = true,
                Some("--") if inside => inside = false,
                _ if !inside => others.push(arg),
                Some(flag @ ("-r" | "--remap")) => {
                    let rule = args.next().and_then(|rule| rule.into_string().ok());
                    let rule =
                        rule.ok_or_else(|| format!("--ros-args: {flag} needs a rule, as __node:=name"))?;
                    found.remap(&rule)?;
                }
                _ => {
                    return Err(format!(
                        "--ros-args: {arg:?} is not yet in this version; it knows -r __node:=NAME and -r __ns:=/NAMESPACE"
                    ));
                }
            }
        }
        Ok((found, others))
    }

    fn remap(&mut self, rule: &str) -> Result<(), String> {
        match rule.split_once(":=") {
            Some(("__node" | "__name", name)) => self.node_name = Some(name.to_owned()),
            Some(("__ns", namespace)) => self.namespace = Some(namespace.to_owned()),
            Some((from, _)) => {
                return Err(format!("--ros-args -r {rule}: remapping {from:?} is not yet in this version"));
            }
            None => return Err(format!("--ros-args -r {rule}: a rule has the form FROM:=TO")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<(RosArgs, Vec<OsString>), String> {
        RosArgs::split(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_ros2_launch_passes_is_understood() {
        let (found, others) =
            split("takt serve --engine e --ros-args -r __node:=left --ros-args -r __ns:=/arm -- --lanes 2")
                .unwrap();
        assert_eq!((found.node_name.as_deref(), found.namespace.as_deref()), (Some("left"), Some("/arm")));
        assert_eq!(others, ["takt", "serve", "--engine", "e", "--lanes", "2"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for line in
            ["--ros-args -p a:=1", "--ros-args -r ask:=question", "--ros-args -r", "--ros-args -r __node"]
        {
            assert!(split(line).unwrap_err().contains("--ros-args"), "{line}");
        }
    }
}
