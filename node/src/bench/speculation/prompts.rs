//! What is answered: a file of one's own, or a few prompts of several kinds.

use std::{fs, path::Path};

use serde::Deserialize;
use takt_engine::{
    TokenId,
    text::{ChatOptions, Message, SpecialTokens, Text},
};

use super::SpeculationError;

const COMMAND: &str = "Battery: 62%. At: hallway. Gripper: empty. Sees: blue cup, red box. Places: lab, kitchen, workshop. People: near.";

/// Asked when there is no file: (task, system prompt, prompt).
const BUILT_IN: [(&str, Option<&str>, &str); 12] = [
    ("command", Some(COMMAND), "Please drive to the workshop."),
    ("command", Some(COMMAND), "Pick up the blue cup, thanks."),
    ("question", Some(COMMAND), "What is the charge of your battery?"),
    ("question", Some(COMMAND), "Where are you?"),
    ("copy", None, "Repeat word for word: The gripper holds the red box and the door of the lab is open."),
    (
        "copy",
        None,
        "Spell these places again in the same order: lab, kitchen, workshop, hallway, garage, entrance.",
    ),
    ("json", None, "Write a JSON list of three objects, each with the fields name, place and weight_kg."),
    ("json", None, "Turn this into JSON: the pump in hall 4 runs at 1450 rpm and draws 3.2 kW."),
    ("prose", None, "Describe in a few sentences how a robot finds its way through a building."),
    ("prose", None, "Why do batteries last shorter in the cold?"),
    ("code", None, "Write a Python function that returns the median of a list."),
    ("code", None, "Write a shell command that counts the lines of all log files in a folder."),
];

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptText {
    /// What kind of work it is.
    pub task: String,
    /// System prompt; `None` for no system message.
    pub system: Option<String>,
    /// What is asked.
    pub user: String,
}

/// A prompt as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPrompt {
    /// What kind of work it is.
    pub task: String,
    /// What is asked, for messages.
    pub label: String,
    /// Its tokens; at least one.
    pub tokens: Vec<TokenId>,
}

/// One line of a data file. Other fields are left alone.
#[derive(Debug, Deserialize)]
struct Line {
    system: Option<String>,
    user: String,
    task: Option<String>,
    skill: Option<String>,
}

/// The prompts of this program.
#[must_use]
pub fn built_in() -> Vec<PromptText> {
    let prompt = |&(task, system, user): &(&str, Option<&str>, &str)| PromptText {
        task: task.into(),
        system: system.map(Into::into),
        user: user.into(),
    };
    BUILT_IN.iter().map(prompt).collect()
}

/// The prompts of a JSONL file: a line is an object with `user`, and perhaps `system`, and `task` or `skill`.
///
/// # Errors
/// [`SpeculationError::Prompts`] when the file cannot be read, a line is not of that form, or there is none.
pub fn read(path: &Path) -> Result<Vec<PromptText>, SpeculationError> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| SpeculationError::Prompts(format!("cannot read {shown}: {error}")))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines
        .map(|(idx, line)| {
            let line: Line = serde_json::from_str(line).map_err(|error| {
                SpeculationError::Prompts(format!(
                    "{shown}, line {}: {error}; expected {{\"system\", \"user\", \"task\" or \"skill\"}}, of which \"user\" must be there",
                    idx + 1
                ))
            })?;
            let task = line.task.or(line.skill).unwrap_or_else(|| "all".into());
            Ok(PromptText { task, system: line.system, user: line.user })
        })
        .collect::<Result<Vec<_>, SpeculationError>>()?;
    if prompts.is_empty() {
        return Err(SpeculationError::Prompts(format!("{shown} has no lines: expected one prompt a line")));
    }
    Ok(prompts)
}

/// `num` of them, evenly spread, so that every part of a sorted file has its share; all where there are no more.
#[must_use]
pub fn spread(prompts: Vec<PromptText>, num: usize) -> Vec<PromptText> {
    let all = prompts.len();
    if num >= all {
        return prompts;
    }
    // As a line of slope num/all over a grid: where it steps up, one is taken.
    let is_chosen = |idx: usize| idx * num % all < num;
    prompts.into_iter().enumerate().filter(|&(idx, _)| is_chosen(idx)).map(|(_, prompt)| prompt).collect()
}

/// Through the model's chat template, or as they are for a model without one.
///
/// # Errors
/// Those of the text; [`SpeculationError::Prompts`] for a prompt without any token.
pub fn encode(prompts: &[PromptText], text: &Text) -> Result<Vec<TokenPrompt>, SpeculationError> {
    prompts
        .iter()
        .map(|prompt| {
            let tokens = if text.has_chat_template() {
                let system = prompt.system.iter().map(|system| Message::new("system", system));
                let messages: Vec<Message> =
                    system.chain([Message::new("user", prompt.user.as_str())]).collect();
                let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
                text.encode_chat(&messages, &options)?
            } else {
                let parts: Vec<&str> = prompt.system.as_deref().into_iter().chain([&*prompt.user]).collect();
                text.encode(&parts.join("\n"), SpecialTokens::Add)?
            };
            if tokens.is_empty() {
                return Err(SpeculationError::Prompts(format!("prompt {:?} has no tokens", prompt.user)));
            }
            Ok(TokenPrompt { task: prompt.task.clone(), label: prompt.user.clone(), tokens })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read_text(text: &str) -> Result<Vec<PromptText>, SpeculationError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read(file.path())
    }

    #[test]
    fn lines_are_prompts_and_task_or_skill_their_kind() {
        let found = read_text(
            "{\"system\": \"s\", \"user\": \"a\", \"skill\": \"goto\", \"answer\": \"{}\"}\n\n{\"user\": \"b\", \"task\": \"t\"}\n{\"user\": \"c\"}\n",
        )
        .unwrap();
        let tasks: Vec<&str> = found.iter().map(|prompt| prompt.task.as_str()).collect();
        assert_eq!(tasks, ["goto", "t", "all"]);
        assert_eq!((found[0].system.as_deref(), found[1].system.as_deref()), (Some("s"), None));
    }

    #[test]
    fn a_bad_line_is_named_with_what_was_expected() {
        let error = read_text("{\"user\": \"a\"}\n{\"usr\": \"b\"}\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("\"user\" must be there"), "{error}");
        assert!(read_text("\n").unwrap_err().to_string().contains("no lines"));
        assert!(read(Path::new("/nowhere.jsonl")).unwrap_err().to_string().contains("/nowhere.jsonl"));
    }

    #[test]
    fn a_part_is_spread_over_the_whole() {
        let prompt = |idx: usize| PromptText { task: idx.to_string(), system: None, user: String::new() };
        for (all, num) in [(12, 3), (10, 3), (7, 7), (5, 9), (2400, 200), (7, 1), (3, 0), (11, 10)] {
            let chosen = spread((0..all).map(prompt).collect(), num);
            assert_eq!(chosen.len(), num.min(all), "{num} of {all}");
        }
        let tasks: Vec<String> =
            spread((0..12).map(prompt).collect(), 3).into_iter().map(|prompt| prompt.task).collect();
        assert_eq!(tasks, ["0", "4", "8"]);
    }
}
