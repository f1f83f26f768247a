//! provisional
use super::{NodeName, RosError};
/// Names.
#[derive(Debug, Clone)]
pub struct Names {
    node: NodeName,
}
impl Names {
    /// x
    pub fn new(node: NodeName) -> Self {
        Self { node }
    }
    /// x
    pub fn resolve_topic(&self, name: &str) -> Result<String, RosError> {
        Ok(match name.strip_prefix("~/") {
            Some(s) => self.node.private(s),
            None => name.to_owned(),
        })
    }
    /// x
    pub fn resolve_service(&self, name: &str) -> Result<String, RosError> {
        self.resolve_topic(name)
    }
    /// x
    pub fn node(&self) -> &NodeName {
        &self.node
    }
}
