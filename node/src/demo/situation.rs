//! The script: what operators say, in which state of the robot, and the right answer.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::DemoError;

/// One exchange of the script, as in `situations.json`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Situation {
    /// The robot's state in words: the system prompt.
    pub system: String,
    /// What the operator says.
    pub user: String,
    /// The right answer, as JSON text.
    pub answer: String,
    /// Time allowed from asking to answer.
    pub deadline_ms: u64,
    /// What the exchange shows, for people.
    pub comment: String,
}

impl Situation {
    /// Reads `models/takt-demo/situations.json`.
    ///
    /// # Errors
    /// [`DemoError::NoModel`] with what is wrong.
    pub fn read_all(model: &Path) -> Result<Vec<Self>, DemoError> {
        let path = model.join("situations.json");
        let failed = |fact: String| DemoError::NoModel(format!("{}: {fact}", path.display()));
        let text =
            std::fs::read_to_string(&path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        let situations: Vec<Self> = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        if situations.is_empty() {
            return Err(failed("holds no situations".into()));
        }
        Ok(situations)
    }

    /// Time allowed from asking to answer.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }

    /// Whether `text` is the right answer: the same JSON, however it is spelled.
    #[must_use]
    pub fn is_answered_by(&self, text: &str) -> bool {
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        parse(text).is_some_and(|found| parse(&self.answer) == Some(found))
    }
}

/// The robot's state as the system prompt tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RobotState {
    /// Charge in percent.
    pub battery: u8,
    /// Where it is.
    pub at: String,
    /// What it holds; `None` for nothing.
    pub gripper: Option<String>,
    /// Whether somebody is close.
    pub people_near: bool,
}

impl RobotState {
    /// Reads `Battery: 84%. At: hallway. Gripper: empty. …`; what is missing keeps its default.
    #[must_use]
    pub fn parse(system: &str) -> Self {
        let field = |name: &str| {
            system.split(". ").find_map(|sentence| {
                let (key, value) = sentence.split_once(": ")?;
                (key == name).then(|| value.trim_end_matches('.'))
            })
        };
        Self {
            battery: field("Battery").and_then(|text| text.trim_end_matches('%').parse().ok()).unwrap_or(100),
            at: field("At").unwrap_or("hallway").to_owned(),
            gripper: field("Gripper").filter(|thing| *thing != "empty").map(str::to_owned),
            people_near: field("People") == Some("near"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_read_from_the_prompt() {
        let state = RobotState::parse(
            "Battery: 8%. At: loading bay. Gripper: green hammer. Sees: nothing. People: near.",
        );
        let expected = RobotState {
            battery: 8,
            at: "loading bay".into(),
            gripper: Some("green hammer".into()),
            people_near: true,
        };
        assert_eq!(state, expected);
        assert_eq!(RobotState::parse("Gripper: empty.").gripper, None);
    }

    #[test]
    fn the_shipped_script_is_readable_and_its_answers_are_json() {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
        for situation in Situation::read_all(&model).unwrap() {
            assert!(situation.is_answered_by(&situation.answer), "{situation:?}");
            assert!(situation.deadline_ms > 0 && !situation.user.is_empty());
        }
    }

    #[test]
    fn an_answer_counts_by_its_meaning_not_its_spelling() {
        let situation = Situation {
            system: String::new(),
            user: String::new(),
            answer: r#"{"skill":"goto","place":"lab"}"#.into(),
            deadline_ms: 1,
            comment: String::new(),
        };
        assert!(situation.is_answered_by(r#"{ "place": "lab", "skill": "goto" }"#));
        assert!(!situation.is_answered_by(r#"{"skill":"goto"}"#));
        assert!(!situation.is_answered_by(r#"{"skill":"goto","place":"lab""#));
    }
}
