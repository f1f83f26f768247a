//! The plans of `engine.json`: those that this takt understands, and those that it keeps as they are.

use std::ops::Deref;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::PlanEntry;

/// TensorRT plans of an engine. Derefs to those that this takt understands, of which there is one for each machine; all of them hold.
///
/// An engine directory is carried between machines, and its plans are for each of them: an entry that a newer takt wrote, or that does not hold, is no
/// reason not to run the engine elsewhere. It is kept as it is, and written back.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PlanList {
    entries: Vec<PlanEntry>,
    foreign: Vec<ForeignPlan>,
}

/// An entry that this takt does not understand.
#[derive(Debug, Clone, PartialEq)]
pub struct ForeignPlan {
    /// As it was read.
    pub value: Value,
    /// Why it is not understood.
    pub reason: String,
}

impl PlanList {
    /// What is not understood.
    #[must_use]
    pub fn foreign(&self) -> &[ForeignPlan] {
        &self.foreign
    }

    /// Whether some entry, understood or not, is about `file`.
    #[must_use]
    pub fn names(&self, file: &str) -> bool {
        self.entries.iter().any(|plan| plan.file == file)
            || self.foreign.iter().any(|plan| plan.value["file"] == file)
    }

    /// Puts `new` into the list, in the place of those for the same TensorRT, GPU and model.
    pub fn replace(&mut self, new: &[PlanEntry]) {
        self.entries.retain(|old| !new.iter().any(|new| new.is_for(old.tensorrt, &old.sm, old.role)));
        self.foreign.retain(|old| !new.iter().any(|new| is_for_the_same(&old.value, new)));
        self.entries.extend_from_slice(new);
        self.entries.sort_by(|a, b| a.file.cmp(&b.file));
    }

    /// Moves entries whose features come from layers that the model does not have to those that are not understood.
    pub(super) fn check_layers(&mut self, num_layers: usize) {
        let (entries, beyond) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|plan| plan.captured.iter().all(|&layer| layer <= num_layers));
        self.entries = entries;
        self.foreign.extend(beyond.into_iter().map(|plan: PlanEntry| ForeignPlan {
            reason: format!(
                "plan {:?} puts out features of layers {:?}, and the model has {num_layers}",
                plan.file, plan.captured
            ),
            value: serde_json::to_value(&plan).unwrap_or_default(),
        }));
    }

    fn understand(&self, value: &Value) -> Result<PlanEntry, String> {
        let plan = PlanEntry::deserialize(value).map_err(|error| error.to_string())?;
        plan.validate()?;
        match self.entries.iter().find(|other| other.is_for(plan.tensorrt, &plan.sm, plan.role)) {
            Some(other) => Err(format!(
                "plans {:?} and {:?} are both the {}'s for TensorRT {} on {}: one is expected",
                other.file, plan.file, plan.role, plan.tensorrt, plan.sm
            )),
            None => Ok(plan),
        }
    }

    pub(super) fn has_none(&self) -> bool {
        self.entries.is_empty() && self.foreign.is_empty()
    }
}

fn is_for_the_same(value: &Value, plan: &PlanEntry) -> bool {
    serde_json::to_value(plan)
        .is_ok_and(|plan| ["tensorrt", "sm", "role"].into_iter().all(|key| plan[key] == value[key]))
}

impl Deref for PlanList {
    type Target = [PlanEntry];

    fn deref(&self) -> &[PlanEntry] {
        &self.entries
    }
}

impl Serialize for PlanList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(untagged)]
        enum Either<'a> {
            Entry(&'a PlanEntry),
            Foreign(&'a Value),
        }
        let entries = self.entries.iter().map(Either::Entry);
        serializer.collect_seq(entries.chain(self.foreign.iter().map(|plan| Either::Foreign(&plan.value))))
    }
}

impl<'de> Deserialize<'de> for PlanList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut list = Self::default();
        for value in Vec::<Value>::deserialize(deserializer)? {
            match list.understand(&value) {
                Ok(plan) => list.entries.push(plan),
                Err(reason) => list.foreign.push(ForeignPlan { value, reason }),
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::{PlanRole, plans::tests::entry},
        *,
    };

    fn read(values: &[Value]) -> PlanList {
        serde_json::from_value(json!(values)).unwrap()
    }

    #[test]
    fn what_another_takt_wrote_is_kept_as_it_is_beside_what_is_understood() {
        let plan = json!(entry(PlanRole::Decoder));
        let changed = |key: &str, value: Value| {
            let mut plan = plan.clone();
            plan["sm"] = json!("sm_87");
            plan["file"] = json!("plans/trt-10.16-sm_87.plan");
            plan[key] = value;
            plan
        };
        for (foreign, words) in [
            (changed("form", json!("spirals")), "unknown variant"),
            (changed("role", json!("critic")), "unknown variant"),
            (changed("sm", json!("gfx942")), "expected one as in sm_110a"),
            (changed("tensorrt", json!("twelve")), "two numbers"),
            (changed("halves", json!(2)), "unknown field"),
            (changed("num_lanes", json!(65)), "65 lanes"),
            (plan.clone(), "one is expected"),
            (json!(7), "invalid type"),
        ] {
            let list = read(&[plan.clone(), foreign.clone()]);
            assert_eq!((list.len(), list.foreign().len()), (1, 1), "{foreign}");
            let reason = &list.foreign()[0].reason;
            assert!(reason.contains(words), "{reason}");
            assert_eq!(json!(list), json!([plan, foreign]));
        }
    }

    #[test]
    fn a_new_plan_takes_the_place_of_whatever_was_there_for_its_machine() {
        let plan = entry(PlanRole::Decoder);
        let mut unknown = json!(plan);
        (unknown["halves"], unknown["file"]) = (json!(2), json!("plans/trt-of another.plan"));
        let mut other = unknown.clone();
        (other["sm"], other["file"]) = (json!("sm_87"), json!("plans/trt-of a third.plan"));
        let mut list = read(&[unknown, other.clone()]);
        assert!(list.is_empty() && list.names("plans/trt-of another.plan"));
        list.replace(std::slice::from_ref(&plan));
        assert_eq!(json!(list), json!([plan, other]));
        assert!(list.names(&plan.file) && list.names("plans/trt-of a third.plan"));
        assert!(!list.names("plans/trt-of another.plan"));
        list.check_layers(2);
        assert!(list.is_empty() && list.foreign()[1].reason.contains("layers [1, 2, 3]"));
    }
}
