//! The schemas that forms are tried on.

use serde_json::Value;
use takt_engine::grammar::{ClosingPolicy, GrammarSpec};

/// Families of schemas, as `schemas/make.py` writes them.
const FAMILIES: [(&str, &str); 16] = [
    ("ci_configs", include_str!("schemas/ci_configs.json")),
    ("conversations", include_str!("schemas/conversations.json")),
    ("geo", include_str!("schemas/geo.json")),
    ("invoices", include_str!("schemas/invoices.json")),
    ("manifests", include_str!("schemas/manifests.json")),
    ("missions", include_str!("schemas/missions.json")),
    ("motion", include_str!("schemas/motion.json")),
    ("navigation", include_str!("schemas/navigation.json")),
    ("numbers", include_str!("schemas/numbers.json")),
    ("people_and_hosts", include_str!("schemas/people_and_hosts.json")),
    ("perception", include_str!("schemas/perception.json")),
    ("sensor_reports", include_str!("schemas/sensor_reports.json")),
    ("services", include_str!("schemas/services.json")),
    ("skill_calls", include_str!("schemas/skill_calls.json")),
    ("tickets", include_str!("schemas/tickets.json")),
    ("unicode", include_str!("schemas/unicode.json")),
];

/// One schema.
#[derive(Debug, Clone)]
pub struct Case {
    /// `family/name`.
    pub name: String,
    /// The schema.
    pub schema: Value,
    /// What may stand in: robots' schemas declare it, others do not.
    pub policy: ClosingPolicy,
}

impl Case {
    /// The form to compile.
    #[must_use]
    pub fn spec(&self) -> GrammarSpec {
        GrammarSpec::JsonSchema(self.schema.clone())
    }
}

/// Every schema, in order.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, text) in FAMILIES {
        let parsed: Value = serde_json::from_str(text).unwrap_or_default(); // a test counts them
        let policy = match parsed["policy"].as_str() {
            Some("minimal") => ClosingPolicy::Minimal,
            _ => ClosingPolicy::Declared,
        };
        for (name, schema) in parsed["schemas"].as_object().into_iter().flatten() {
            cases.push(Case { name: format!("{family}/{name}"), schema: schema.clone(), policy });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_holds_schemas_and_there_are_more_than_two_hundred() {
        let cases = cases();
        assert!(cases.len() >= 200, "{}", cases.len());
        for (family, _) in FAMILIES {
            assert!(cases.iter().any(|case| case.name.starts_with(&format!("{family}/"))), "{family}");
        }
    }
}
