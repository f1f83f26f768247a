//! The form of an answer, as a message demands it.

use takt_engine::grammar::{ClosingPolicy, GrammarSpec};

use crate::request::Form;
use crate::ros::message::Question;

/// The form `message` asks for, if any.
///
/// # Errors
/// What was wrong and what to do, for the reply. Whether the form can be had is found out when it is compiled.
pub(in crate::ros) fn form_of(message: &Question) -> Result<Option<Form>, String> {
    let closing = match message.closing.as_str() {
        "" | "declared" => ClosingPolicy::Declared,
        "minimal" => ClosingPolicy::Minimal,
        other => return Err(format!("closing is {other:?}: send declared, minimal or nothing")),
    };
    let Question { schema, regex, choices, .. } = message;
    let spec = match (schema.is_empty(), regex.is_empty(), choices.is_empty()) {
        (true, true, true) => return Ok(None),
        (false, true, true) => GrammarSpec::from_schema_text(schema).map_err(|error| error.to_string())?,
        (true, false, true) => GrammarSpec::Regex(regex.clone()),
        (true, true, false) => GrammarSpec::Choice(choices.clone()),
        _ => return Err("more than one of schema, regex and choices: send one".to_owned()),
    };
    Ok(Some(Form { spec, closing }))
}

impl Question {
    /// The same request for an answer of this form.
    #[must_use]
    pub fn with_form(self, form: Form) -> Self {
        let closing = match form.closing {
            ClosingPolicy::Declared => "declared",
            ClosingPolicy::Minimal => "minimal",
        };
        let asked = Self { closing: closing.to_owned(), ..self };
        match form.spec {
            GrammarSpec::JsonSchema(schema) => Self { schema: schema.to_string(), ..asked },
            GrammarSpec::Regex(regex) => Self { regex, ..asked },
            GrammarSpec::Choice(choices) => Self { choices, ..asked },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_survives_the_message() {
        let specs = [
            GrammarSpec::from_schema_text(r#"{"type": "object", "properties": {"b": {}, "a": {}}}"#).unwrap(),
            GrammarSpec::Regex("[a-z]+".to_owned()),
            GrammarSpec::Choice(vec!["left".to_owned(), "right".to_owned()]),
        ];
        for spec in specs {
            for closing in [ClosingPolicy::Declared, ClosingPolicy::Minimal] {
                let form = Form { spec: spec.clone(), closing };
                let message = Question::default().with_form(form.clone());
                assert_eq!(form_of(&message), Ok(Some(form)));
            }
        }
        assert_eq!(form_of(&Question::default()), Ok(None));
    }

    #[test]
    fn what_contradicts_itself_or_is_no_json_is_refused_in_words() {
        let with = |schema: &str, regex: &str, closing: &str| Question {
            schema: schema.to_owned(),
            regex: regex.to_owned(),
            closing: closing.to_owned(),
            ..Question::default()
        };
        for (message, word) in [
            (with("{}", "a", ""), "more than one"),
            (with("{", "", ""), "no JSON"),
            (with("", "a", "soon"), "\"soon\""),
        ] {
            let reason = form_of(&message).unwrap_err();
            assert!(reason.contains(word), "{reason}");
        }
    }
}
