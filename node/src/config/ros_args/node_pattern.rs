//! Which nodes a group of parameters is for: `/ns/node`, `node`, `/**`, `/*/node`.

use std::fmt;

use crate::ros::NodeName;

/// Longest pattern that is read; node names are shorter.
const MAX_LEN: usize = 512;

/// A node's full name, or a pattern of such names. A name without a leading slash is in the root namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePattern {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Name(String),
    /// `*`: exactly one part of a name.
    One,
    /// `**`: any number of parts, also none.
    Any,
}

impl NodePattern {
    /// `/**`: every node.
    #[must_use]
    pub fn every() -> Self {
        Self { tokens: vec![Token::Any] }
    }

    /// Reads a pattern.
    ///
    /// # Errors
    /// The rule of ROS 2's that it breaks.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LEN {
            return Err(format!("a node name of {} characters, at most {MAX_LEN} expected", text.len()));
        }
        let token = |token: &str| match token {
            "*" => Ok(Token::One),
            "**" => Ok(Token::Any),
            "" => Err(format!("node name {text:?}: a name expected on each side of /")),
            partial if partial.contains('*') => {
                Err(format!("node name {text:?}: * and ** stand for whole parts of a name only"))
            }
            name => match NodeName::new("/", name) {
                Ok(_) => Ok(Token::Name(name.to_owned())),
                Err(error) => Err(error.to_string()),
            },
        };
        let parts = text.strip_prefix('/').unwrap_or(text).split('/');
        Ok(Self { tokens: parts.map(token).collect::<Result<_, _>>()? })
    }

    /// Whether it stands for one node only.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.tokens.iter().all(|token| matches!(token, Token::Name(_)))
    }

    /// Whether `node` is one of those it stands for.
    #[must_use]
    pub fn matches(&self, node: &NodeName) -> bool {
        let full = node.to_string();
        let parts: Vec<&str> = full.split('/').skip(1).collect();
        // Whether the tokens so far match the first `n` parts, for every n: linear in both, however many `**` there are.
        let mut reached = vec![false; parts.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; parts.len() + 1];
            match token {
                Token::Any => {
                    let first = reached.iter().position(|is_reached| *is_reached);
                    next.iter_mut().skip(first.unwrap_or(usize::MAX)).for_each(|n| *n = true);
                }
                Token::One | Token::Name(_) => {
                    for (i, part) in parts.iter().enumerate() {
                        let fits = !matches!(token, Token::Name(name) if name != part);
                        next[i + 1] = reached[i] && fits;
                    }
                }
            }
            reached = next;
        }
        reached.last().is_some_and(|is_reached| *is_reached)
    }
}

impl fmt::Display for NodePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for token in &self.tokens {
            match token {
                Token::Name(name) => write!(f, "/{name}")?,
                Token::One => f.write_str("/*")?,
                Token::Any => f.write_str("/**")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_the_nodes_rclcpp_says() {
        let nodes = [("/", "node"), ("/a", "node"), ("/a/b", "node"), ("/a", "other")];
        for (pattern, expected) in [
            ("/**", [true, true, true, true]),
            ("/*", [true, false, false, false]),
            ("node", [true, false, false, false]),
            ("/node", [true, false, false, false]),
            ("/a/node", [false, true, false, false]),
            ("a/node", [false, true, false, false]),
            ("/**/node", [true, true, true, false]),
            ("/*/node", [false, true, false, false]),
            ("/a/**", [false, true, true, true]),
            ("/a/*", [false, true, false, true]),
            ("/**/b/**", [false, false, true, false]),
            ("/a/*/node", [false, false, true, false]),
            ("/**/**/**", [true, true, true, true]),
        ] {
            let parsed = NodePattern::parse(pattern).unwrap();
            let found = nodes.map(|(ns, name)| parsed.matches(&NodeName::new(ns, name).unwrap()));
            assert_eq!(found, expected, "{pattern}");
            assert_eq!(parsed.is_exact(), !pattern.contains('*'));
        }
        assert_eq!(NodePattern::parse("a/*/b").unwrap().to_string(), "/a/*/b");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (pattern, part) in [
            ("", "each side of /"),
            ("/", "each side of /"),
            ("/foo//bar", "each side of /"),
            ("/foo/", "each side of /"),
            ("/foo**", "whole parts"),
            ("/*foo", "whole parts"),
            ("/**/n*ode", "whole parts"),
            ("/***", "whole parts"),
            ("/1a", "digit"),
            ("/a-b", "letters"),
        ] {
            let fault = NodePattern::parse(pattern).unwrap_err();
            assert!(fault.contains(part), "{pattern}: {fault}");
        }
        assert!(NodePattern::parse(&"a/".repeat(300)).is_err());
    }

    #[test]
    fn many_wildcards_take_no_longer_than_few() {
        let pattern = NodePattern::parse(&"/**/a".repeat(80)).unwrap();
        assert!(!pattern.matches(&NodeName::new(&"/a".repeat(70), "b").unwrap()));
    }
}
