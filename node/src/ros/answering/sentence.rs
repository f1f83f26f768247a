//! Cuts a growing answer into sentences, so that speech can begin before the answer ends.

/// Ends of sentences, where white space follows.
const ENDS: [char; 4] = ['.', '!', '?', '…'];
/// Ends of sentences whatever follows: scripts without spaces.
const FULL_ENDS: [char; 3] = ['。', '！', '？'];
/// What may stand between a sentence's end and the white space.
const CLOSERS: [char; 6] = ['"', '\'', ')', ']', '”', '’'];
/// Words whose full stop ends no sentence.
const ABBREVIATIONS: [&str; 10] =
    ["e.g.", "i.e.", "etc.", "vs.", "mr.", "mrs.", "ms.", "dr.", "no.", "approx."];

/// One whole sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// Where it starts in the answer, in bytes.
    pub offset: usize,
    pub text: String,
}

/// Collects text until a sentence is whole.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// What belongs to no whole sentence yet.
    pending: String,
    /// Where it starts in the answer.
    offset: usize,
}

impl Splitter {
    /// Adds `text`; gives the sentences that it made whole.
    pub fn push(&mut self, text: &str) -> Vec<Sentence> {
        self.pending.push_str(text);
        let mut sentences = Vec::new();
        while let Some(len) = sentence_len(&self.pending) {
            sentences.extend(self.take(len));
        }
        sentences
    }

    /// The rest, at the end of the answer.
    pub fn finish(&mut self) -> Option<Sentence> {
        self.take(self.pending.len())
    }

    /// Takes `len` bytes off; without the white space around them, unless they are nothing else.
    fn take(&mut self, len: usize) -> Option<Sentence> {
        let rest = self.pending.split_off(len);
        let taken = std::mem::replace(&mut self.pending, rest);
        let start = self.offset + (taken.len() - taken.trim_start().len());
        self.offset += taken.len();
        let text = taken.trim();
        (!text.is_empty()).then(|| Sentence { offset: start, text: text.to_owned() })
    }
}

/// Bytes of the first whole sentence of `text`, with the white space after it.
fn sentence_len(text: &str) -> Option<usize> {
    for (at, c) in text.char_indices() {
        let after = at + c.len_utf8();
        if c == '\n' || FULL_ENDS.contains(&c) {
            return Some(after);
        }
        if !ENDS.contains(&c) {
            continue;
        }
        // Whether it is an end is known once something other than a closing mark follows.
        let rest = text[after..].trim_start_matches(CLOSERS);
        let follows = rest.chars().next()?;
        if follows.is_whitespace() && !is_abbreviation(&text[..after]) {
            return Some(text.len() - rest.len() + follows.len_utf8());
        }
    }
    None
}

fn is_abbreviation(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or_default().to_lowercase();
    // An initial, as in "J. Doe", or the number of a list, as in "2. Turn left".
    let is_short = word.strip_suffix('.').is_some_and(|stem| {
        (stem.chars().count() == 1 && stem.chars().all(char::is_alphabetic))
            || (!stem.is_empty() && stem.chars().all(|c| c.is_ascii_digit()) && text.trim() == word)
    });
    is_short || ABBREVIATIONS.contains(&word.trim_start_matches(['(', '"', '“']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(sentences: impl IntoIterator<Item = Sentence>) -> Vec<String> {
        sentences.into_iter().map(|sentence| sentence.text).collect()
    }

    fn split(text: &str) -> Vec<String> {
        let mut splitter = Splitter::default();
        let mut sentences = splitter.push(text);
        sentences.extend(splitter.finish());
        texts(sentences)
    }

    #[test]
    fn sentences_end_where_people_pause() {
        assert_eq!(
            split("I see a cup. It is 3.5 cm high! Shall I?"),
            ["I see a cup.", "It is 3.5 cm high!", "Shall I?"]
        );
        assert_eq!(
            split("He said \"stop.\" Then he left.\nBye"),
            ["He said \"stop.\"", "Then he left.", "Bye"]
        );
        assert_eq!(split("杯子在桌上。我去拿。"), ["杯子在桌上。", "我去拿。"]);
        assert_eq!(
            split("Use tools, e.g. a wrench. Ask Dr. J. Doe."),
            ["Use tools, e.g. a wrench.", "Ask Dr. J. Doe."]
        );
        assert_eq!(split("1. Turn left. 2. Stop."), ["1. Turn left.", "2. Stop."]);
        assert_eq!(split(r#"{"a": 1.5}"#), [r#"{"a": 1.5}"#]);
        assert!(split(" \n ").is_empty());
    }

    #[test]
    fn it_makes_no_difference_how_the_text_comes() {
        let text = "  One. Two… (three?) Vier, fünf. 六。 Sieben";
        let whole = split(text);
        for step in 1..6 {
            let chars: Vec<char> = text.chars().collect();
            let mut splitter = Splitter::default();
            let mut sentences = Vec::new();
            for piece in chars.chunks(step) {
                sentences.extend(splitter.push(&piece.iter().collect::<String>()));
            }
            sentences.extend(splitter.finish());
            for sentence in &sentences {
                assert_eq!(&text[sentence.offset..][..sentence.text.len()], sentence.text);
            }
            assert_eq!(texts(sentences), whole, "{step} characters at a time");
        }
    }
}
