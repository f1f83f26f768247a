//! The values, and the rules by which they change.

use std::sync::{Arc, Mutex, PoisonError};

use super::Change;
use super::convert::{describe, from_key};
use crate::config::Config;
use crate::config::ros_parameters::{convert, key_of, name_of};
use crate::config::schema::KEYS;
use crate::ros::ParameterValue;
use crate::ros::message::{ListParametersResult, Parameter, ParameterDescriptor, SetParametersResult};

/// Longest name that is compared with known ones.
const MAX_HINTED_LEN: usize = 100;
/// Parameters that may be asked for, or set, at once.
pub(super) const MAX_AT_ONCE: usize = 512;

/// A parameter that is no configuration key and never changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Fixed {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: ParameterValue,
    /// In words.
    pub description: String,
}

/// Called with a configuration that is about to hold; refuses it with a reason, or takes it over.
pub type TakeOver = Box<dyn Fn(&Config) -> Result<(), String> + Send + Sync>;

/// The node's parameters.
pub struct ParameterStore {
    config: Arc<Mutex<Config>>,
    fixed: Vec<Fixed>,
    is_unconfigured: Box<dyn Fn() -> bool + Send + Sync>,
    take_over: TakeOver,
}

impl std::fmt::Debug for ParameterStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParameterStore").field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

impl ParameterStore {
    /// The keys of `config` and `fixed`; a change has to pass `take_over`.
    pub fn new(
        config: Arc<Mutex<Config>>,
        fixed: Vec<Fixed>,
        is_unconfigured: impl Fn() -> bool + Send + Sync + 'static,
        take_over: TakeOver,
    ) -> Self {
        Self { config, fixed, is_unconfigured: Box::new(is_unconfigured), take_over }
    }

    /// Every parameter's name.
    pub fn names(&self) -> Vec<String> {
        let keys = KEYS.iter().map(name_of);
        let mut names: Vec<String> = keys.chain(self.fixed.iter().map(|fixed| fixed.name.clone())).collect();
        names.sort();
        names
    }

    /// Its value; not set if there is no such parameter.
    #[must_use]
    pub fn value(&self, name: &str) -> ParameterValue {
        if let Some(fixed) = self.fixed(name) {
            return fixed.value.clone();
        }
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        key_idx(name).and_then(|i| config.value_at(i)).map(from_key).unwrap_or_default()
    }

    /// What it is; of the type 0 if there is no such parameter.
    #[must_use]
    pub fn descriptor(&self, name: &str) -> ParameterDescriptor {
        if let Some(i) = key_idx(name) {
            return describe(&KEYS[i]);
        }
        let fixed = self.fixed(name);
        ParameterDescriptor {
            name: name.to_owned(),
            r#type: fixed.map_or(0, |fixed| fixed.value.type_id()),
            description: fixed.map(|fixed| fixed.description.clone()).unwrap_or_default(),
            read_only: fixed.is_some(),
            ..ParameterDescriptor::default()
        }
    }

    /// Names below `prefixes` (all without any), at most `depth` dots deep (0: any), as rcl lists them.
    #[must_use]
    pub fn list(&self, prefixes: &[String], depth: u64) -> ListParametersResult {
        let mut result = ListParametersResult::default();
        for name in self.names() {
            let num_dots = |text: &str| u64::try_from(text.matches('.').count()).unwrap_or(u64::MAX);
            let is_listed = if prefixes.is_empty() {
                depth == 0 || num_dots(&name) < depth
            } else {
                prefixes.iter().any(|prefix| {
                    let below = name.strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
                    name == *prefix || below.is_some_and(|rest| depth == 0 || num_dots(rest) < depth)
                })
            };
            if !is_listed {
                continue;
            }
            if let Some((prefix, _)) = name.rsplit_once('.')
                && !result.prefixes.iter().any(|known| known == prefix)
            {
                result.prefixes.push(prefix.to_owned());
            }
            result.names.push(name);
        }
        result
    }

    /// Sets all of `parameters` or none; gives those that have another value now.
    ///
    /// # Errors
    /// The first that cannot be set, and why.
    pub fn set(&self, parameters: &[Parameter]) -> Result<Vec<Parameter>, String> {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = config.clone();
        for parameter in parameters {
            self.set_one(&mut changed, parameter)
                .map_err(|reason| format!("{}: {reason}", parameter.name))?;
        }
        (self.take_over)(&changed)?;
        let is_new = |i: &usize| config.value_at(*i) != changed.value_at(*i);
        let told = |i: usize| {
            let value = changed.value_at(i).map(from_key).unwrap_or_default();
            Parameter { name: name_of(&KEYS[i]), value: (&value).into() }
        };
        let mut set: Vec<usize> =
            parameters.iter().filter_map(|parameter| key_idx(&parameter.name)).collect();
        set.sort_unstable();
        set.dedup();
        let news = set.into_iter().filter(is_new).map(told).collect();
        *config = changed;
        Ok(news)
    }

    fn set_one(&self, config: &mut Config, parameter: &Parameter) -> Result<(), String> {
        if self.fixed(&parameter.name).is_some() {
            return Err("it is read-only: set it when the node starts".to_owned());
        }
        let Some(i) = key_idx(&parameter.name) else {
            return Err(format!("there is no such parameter{}", self.did_you_mean(&parameter.name)));
        };
        let key = &KEYS[i];
        match Change::of(key.section, key.name) {
            Change::Never => {
                return Err(
                    "it is read-only, the node joined the network with it: set it when the node starts"
                        .to_owned(),
                );
            }
            Change::Unconfigured if !(self.is_unconfigured)() => {
                return Err(
                    "it changes only while the node is unconfigured: `ros2 lifecycle set NODE deactivate`, \
                            `cleanup`, set it, `configure`, `activate`"
                        .to_owned(),
                );
            }
            Change::Live | Change::Unconfigured => {}
        }
        let value = ParameterValue::from(&parameter.value);
        if value == ParameterValue::NotSet {
            return Err(format!("it cannot be deleted: {} is expected", key.accepts));
        }
        config.set_parameter(i, convert(&value, key.accepts)?)
    }

    fn fixed(&self, name: &str) -> Option<&Fixed> {
        self.fixed.iter().find(|fixed| fixed.name == name)
    }

    fn did_you_mean(&self, name: &str) -> String {
        // Comparing takes time in the square of the length, and the network's thread waits for it.
        if name.len() > MAX_HINTED_LEN {
            return String::new();
        }
        let similarity = |known: &String| strsim::normalized_damerau_levenshtein(name, known);
        let nearest = self.names().into_iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        match nearest.filter(|nearest| similarity(nearest) >= 0.6) {
            Some(nearest) => format!(": did you mean {nearest}?"),
            None => String::new(),
        }
    }
}

/// Position of the key that a parameter is.
fn key_idx(name: &str) -> Option<usize> {
    key_of(name).map(|(i, _)| i)
}

/// Whether it worked, as a message.
pub(super) fn outcome(result: &Result<Vec<Parameter>, String>) -> SetParametersResult {
    SetParametersResult {
        successful: result.is_ok(),
        reason: result.as_ref().err().cloned().unwrap_or_default(),
    }
}
