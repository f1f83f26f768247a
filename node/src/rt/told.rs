//! What has been said once is not said again.

use std::collections::HashSet;

/// Remembers what was told, so that an engine that is opened again and again does not repeat it.
#[derive(Debug, Default)]
pub struct Told(HashSet<String>);

impl Told {
    /// Of `facts` those that have not been told; from now on they have.
    pub fn news(&mut self, facts: impl IntoIterator<Item = String>) -> Vec<String> {
        facts.into_iter().filter(|fact| self.0.insert(fact.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_news_once() {
        let mut told = Told::default();
        let facts = |all: &[&str]| all.iter().map(|fact| (*fact).to_owned()).collect::<Vec<_>>();
        assert_eq!(told.news(facts(&["cores [9]", "lock_memory: EPERM"])).len(), 2);
        assert_eq!(told.news(facts(&["cores [9]", "lock_memory: EPERM"])), Vec::<String>::new());
        assert_eq!(told.news(facts(&["cores [8]", "lock_memory: EPERM"])), ["cores [8]"]);
    }
}
