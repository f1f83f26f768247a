//! Whether a message in a bag has the fields of ours: the bag brings the text of its definition.

use crate::ros::message::{Answer, ChatMessage, Message, Question, RosDuration, Sampling, Time, Token};

/// Type and name of a field.
type Fields = Vec<(String, String)>;

/// Interfaces that a Takt node publishes or reads, with those that their fields are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `takt_msgs/msg/Reply`.
    Reply,
    /// `takt_msgs/msg/Prompt`.
    Prompt,
    /// `takt_msgs/msg/Token`.
    Token,
}

impl Kind {
    /// The kind of a type, by its full name.
    pub fn of(type_name: &str) -> Option<Self> {
        [Self::Reply, Self::Prompt, Self::Token].into_iter().find(|kind| kind.type_name() == type_name)
    }

    /// As bags name the type.
    pub fn type_name(self) -> String {
        match self {
            Self::Reply => Answer::TYPE,
            Self::Prompt => Question::TYPE,
            Self::Token => Token::TYPE,
        }
        .to_string()
    }

    /// Ours: the type itself first.
    fn definitions(self) -> Vec<(String, Fields)> {
        match self {
            Self::Reply => vec![own::<Answer>(), own::<Time>()],
            Self::Token => vec![own::<Token>(), own::<Time>()],
            Self::Prompt => vec![
                own::<Question>(),
                own::<Time>(),
                own::<RosDuration>(),
                own::<ChatMessage>(),
                own::<Sampling>(),
            ],
        }
    }

    /// The first field in which `text`, a definition in the language of `.msg` files, differs from ours; `None` if none does.
    pub fn difference(self, text: &str) -> Option<String> {
        let theirs = definitions(text, &self.type_name());
        self.definitions().into_iter().find_map(|(name, ours)| {
            // Some writers leave out the types of fields: nothing to compare, and decoding will tell.
            let (_, theirs) = theirs.iter().find(|(found, _)| *found == name)?;
            let difference = first_difference(theirs, &ours)?;
            Some(if name == self.type_name() { difference } else { format!("{name}: {difference}") })
        })
    }
}

fn own<M: Message>() -> (String, Fields) {
    let fields = M::fields().into_iter().map(|(ty, name)| (ty, name.to_owned())).collect();
    (M::TYPE.to_string(), fields)
}

fn first_difference(theirs: &Fields, ours: &Fields) -> Option<String> {
    let len = theirs.len().max(ours.len());
    (0..len).find_map(|idx| match (theirs.get(idx), ours.get(idx)) {
        (Some(theirs), Some(ours)) if theirs == ours => None,
        (Some((their_type, theirs)), Some((our_type, ours))) => {
            Some(format!("field {} is `{their_type} {theirs}` in the bag, `{our_type} {ours}` here", idx + 1))
        }
        (Some((ty, name)), None) => {
            Some(format!("field {} of the bag, `{ty} {name}`, is unknown here", idx + 1))
        }
        (None, Some((ty, name))) => Some(format!("field {}, `{ty} {name}`, is missing in the bag", idx + 1)),
        (None, None) => None,
    })
}

/// The definitions in a schema's text: the root's, then, after lines of `=`, those of its fields' types.
fn definitions(text: &str, root: &str) -> Vec<(String, Fields)> {
    let mut all = vec![(root.to_owned(), Fields::new())];
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("MSG:") {
            all.push((full_name(name.trim(), ""), Fields::new()));
        } else if let Some((name, fields)) = all.last_mut() {
            fields.extend(field(line, name.split('/').next().unwrap_or_default()));
        }
    }
    all
}

/// A line's field, unless it is empty, a comment, a rule or a constant.
fn field(line: &str, package: &str) -> Option<(String, String)> {
    let code = line.split('#').next().unwrap_or_default();
    let mut words = code.split_whitespace();
    let (ty, name) = (words.next()?, words.next()?);
    let is_constant = name.contains('=') || words.next().is_some_and(|word| word.starts_with('='));
    (!is_constant).then(|| (full_name(ty, package), name.to_owned()))
}

/// `Time` of the package `a`, `a/Time` and `a/msg/Time` are all `a/msg/Time`.
fn full_name(ty: &str, package: &str) -> String {
    match ty.split_once('/') {
        Some((_, name)) if name.starts_with("msg/") => ty.to_owned(),
        Some((package, name)) => format!("{package}/msg/{name}"),
        // Types of messages begin with a capital, those of values do not.
        None if ty.starts_with(|c: char| c.is_ascii_uppercase()) => format!("{package}/msg/{ty}"),
        None => ty.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLY: &str = include_str!("../../../launch/takt_msgs/msg/Reply.msg");
    const PROMPT: &str = include_str!("../../../launch/takt_msgs/msg/Prompt.msg");
    const TOKEN: &str = include_str!("../../../launch/takt_msgs/msg/Token.msg");

    #[test]
    fn our_own_interface_files_do_not_differ() {
        assert_eq!(Kind::Reply.difference(REPLY), None);
        assert_eq!(Kind::Token.difference(TOKEN), None);
        let with_nested = format!(
            "{}\n{}\nMSG: takt_msgs/ChatMessage\nstring role\nstring content\n{}\nMSG: builtin_interfaces/msg/Time\nint32 sec\nuint32 nanosec\n",
            PROMPT.replace("takt_msgs/ChatMessage[]", "ChatMessage[]"),
            "=".repeat(80),
            "=".repeat(80),
        );
        assert_eq!(Kind::Prompt.difference(&with_nested), None);
    }

    #[test]
    fn the_first_field_that_differs_is_named() {
        let difference = |text: &str| Kind::Reply.difference(text).unwrap();
        assert_eq!(
            difference(&REPLY.replace("float64 ttft_ms", "float32 ttft_ms")),
            "field 9 is `float32 ttft_ms` in the bag, `float64 ttft_ms` here"
        );
        assert_eq!(
            difference(&REPLY.replace("string[] cut_fields", "")),
            "field 22, `string[] cut_fields`, is missing in the bag"
        );
        let longer = format!("{REPLY}\nuint8 LIMIT=3\nstring<=9 device  # which\n");
        assert_eq!(difference(&longer), "field 23 of the bag, `string<=9 device`, is unknown here");
        let nested = format!("{REPLY}\n====\nMSG: builtin_interfaces/Time\nint32 sec\nint32 nanosec\n");
        assert_eq!(
            difference(&nested),
            "builtin_interfaces/msg/Time: field 2 is `int32 nanosec` in the bag, `uint32 nanosec` here"
        );
    }
}
