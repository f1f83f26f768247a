//! `takt_msgs/srv/Ask`.

use super::{RosDuration, millis};
use crate::{
    request::{Reply, Timings},
    ros::{
        cdr::{CdrError, CdrReader, CdrWriter},
        name::TypeName,
    },
};

/// `takt_msgs/srv/Ask`, defined in `launch/takt_msgs/srv/Ask.srv`.
pub const ASK: TypeName = TypeName { package: "takt_msgs", name: "Ask" };

/// Request part of `takt_msgs/srv/Ask`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskRequest {
    /// What to answer.
    pub prompt: String,
    /// System prompt; empty for the node's default.
    pub system: String,
    /// Time allowed from arrival; zero for the node's default.
    pub deadline: RosDuration,
    /// Most tokens of the answer; 0 for as many as there is room for.
    pub max_tokens: u32,
    /// A JSON Schema as text that the answer must keep; empty for none.
    pub schema: String,
    /// A regex that the whole answer must match; empty for none.
    pub regex: String,
    /// Texts of which the answer must be one; empty for none.
    pub choices: Vec<String>,
    /// What may stand in for what the model had no time to write: `declared`, `minimal`; empty is `declared`.
    pub closing: String,
}

impl AskRequest {
    /// As a message.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    pub fn encode(&self) -> Result<Vec<u8>, CdrError> {
        let mut writer = CdrWriter::default();
        writer.string(&self.prompt)?;
        writer.string(&self.system)?;
        writer.i32(self.deadline.sec);
        writer.u32(self.deadline.nanosec);
        writer.u32(self.max_tokens);
        writer.string(&self.schema)?;
        writer.string(&self.regex)?;
        writer.strings(&self.choices)?;
        writer.string(&self.closing)?;
        Ok(writer.finish())
    }

    /// From a message.
    ///
    /// # Errors
    /// [`CdrError`] for anything that is not one.
    pub fn decode(message: &[u8]) -> Result<Self, CdrError> {
        let mut reader = CdrReader::new(message)?;
        Ok(Self {
            prompt: reader.string()?.to_owned(),
            system: reader.string()?.to_owned(),
            deadline: RosDuration { sec: reader.i32()?, nanosec: reader.u32()? },
            max_tokens: reader.u32()?,
            schema: reader.string()?.to_owned(),
            regex: reader.string()?.to_owned(),
            choices: reader.strings()?,
            closing: reader.string()?.to_owned(),
        })
    }
}

/// Reply part of `takt_msgs/srv/Ask`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AskReply {
    /// A [`crate::request::Status`] by name.
    pub status: String,
    /// The answer, as far as it came.
    pub text: String,
    /// For `rejected` and `failed`: what was wrong and what to do.
    pub reason: String,
    /// Arrival to the first token; NaN when there was none.
    pub ttft_ms: f64,
    /// Arrival to this reply.
    pub total_ms: f64,
    /// Arrival to the first work on the request.
    pub queue_ms: f64,
    /// First work to the end of the prompt.
    pub prefill_ms: f64,
    /// Arrival to the deadline; NaN when there was none.
    pub deadline_ms: f64,
    /// Rejected for want of time: the shortest deadline that could have been promised; NaN otherwise.
    pub earliest_deadline_ms: f64,
    /// Whether the deadline was promised.
    pub is_promised: bool,
    /// Tokens of the prompt.
    pub num_prompt_tokens: u32,
    /// Tokens of the answer.
    pub num_tokens: u32,
    /// JSON pointers to values that stand in for what the model did not write.
    pub defaulted_fields: Vec<String>,
    /// JSON pointers to values that the model began and the closing ended.
    pub cut_fields: Vec<String>,
}

impl AskReply {
    /// As a message.
    ///
    /// # Errors
    /// [`CdrError::TooLong`] over 32 bits.
    pub fn encode(&self) -> Result<Vec<u8>, CdrError> {
        let mut writer = CdrWriter::default();
        writer.string(&self.status)?;
        writer.string(&self.text)?;
        writer.string(&self.reason)?;
        writer.f64(self.ttft_ms);
        writer.f64(self.total_ms);
        writer.f64(self.queue_ms);
        writer.f64(self.prefill_ms);
        writer.f64(self.deadline_ms);
        writer.f64(self.earliest_deadline_ms);
        writer.bool(self.is_promised);
        writer.u32(self.num_prompt_tokens);
        writer.u32(self.num_tokens);
        writer.strings(&self.defaulted_fields)?;
        writer.strings(&self.cut_fields)?;
        Ok(writer.finish())
    }

    /// From a message.
    ///
    /// # Errors
    /// [`CdrError`] for anything that is not one.
    pub fn decode(message: &[u8]) -> Result<Self, CdrError> {
        let mut reader = CdrReader::new(message)?;
        Ok(Self {
            status: reader.string()?.to_owned(),
            text: reader.string()?.to_owned(),
            reason: reader.string()?.to_owned(),
            ttft_ms: reader.f64()?,
            total_ms: reader.f64()?,
            queue_ms: reader.f64()?,
            prefill_ms: reader.f64()?,
            deadline_ms: reader.f64()?,
            earliest_deadline_ms: reader.f64()?,
            is_promised: reader.bool()?,
            num_prompt_tokens: reader.u32()?,
            num_tokens: reader.u32()?,
            defaulted_fields: reader.strings()?,
            cut_fields: reader.strings()?,
        })
    }
}

impl From<&Reply> for AskReply {
    fn from(reply: &Reply) -> Self {
        let Timings { queue, prefill, ttft, total, deadline } = reply.timings;
        let closing = reply.closing.clone().unwrap_or_default();
        Self {
            status: reply.status.name().to_owned(),
            text: reply.text.clone(),
            reason: reply.reason.clone().unwrap_or_default(),
            ttft_ms: ttft.map_or(f64::NAN, millis),
            total_ms: millis(total),
            queue_ms: millis(queue),
            prefill_ms: millis(prefill),
            deadline_ms: deadline.map_or(f64::NAN, millis),
            earliest_deadline_ms: reply.earliest_deadline.map_or(f64::NAN, millis),
            is_promised: reply.is_promised,
            num_prompt_tokens: u32::try_from(reply.prompt_token_ids.len()).unwrap_or(u32::MAX),
            num_tokens: u32::try_from(reply.token_ids.len()).unwrap_or(u32::MAX),
            defaulted_fields: closing.defaulted_fields,
            cut_fields: closing.cut_fields,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ros::message::decode_string;

    /// `(type, name)` of every field of one half of a `.srv` file.
    type Fields<'a> = Vec<(&'a str, &'a str)>;

    fn fields(half: &str) -> Fields<'_> {
        half.lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .map(|line| line.split_once(' ').unwrap())
            .collect()
    }

    fn halves() -> (Fields<'static>, Fields<'static>) {
        let (request, reply) =
            include_str!("../../../../launch/takt_msgs/srv/Ask.srv").split_once("\n---\n").unwrap();
        (fields(request), fields(reply))
    }

    /// What a generic reader sees when it follows the `.srv` file's fields through our bytes.
    fn read_along(fields: &[(&str, &str)], message: &[u8]) -> Vec<(String, String)> {
        let mut reader = CdrReader::new(message).unwrap();
        let values = fields.iter().map(|(kind, name)| {
            let value = match *kind {
                "string" => reader.string().unwrap().to_owned(),
                "string[]" => reader.strings().unwrap().join("|"),
                "uint32" => reader.u32().unwrap().to_string(),
                "float64" => reader.f64().unwrap().to_string(),
                "bool" => reader.bool().unwrap().to_string(),
                "builtin_interfaces/Duration" => {
                    format!("{}s{}ns", reader.i32().unwrap(), reader.u32().unwrap())
                }
                other => panic!("field type {other} is not read here"),
            };
            ((*name).to_owned(), value)
        });
        let values: Vec<_> = values.collect();
        assert!(reader.bytes(1).is_err(), "bytes are left after the last field");
        values
    }

    fn pairs(values: &[(&str, &str)]) -> Vec<(String, String)> {
        values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_request_has_the_fields_of_the_srv_file_in_its_order() {
        let request = AskRequest {
            prompt: "what do you hold?".to_owned(),
            system: "s".to_owned(),
            deadline: RosDuration { sec: 1, nanosec: 2 },
            max_tokens: 3,
            schema: "{}".to_owned(),
            regex: "a+".to_owned(),
            choices: vec!["left".to_owned(), "right".to_owned()],
            closing: "minimal".to_owned(),
        };
        let message = request.encode().unwrap();
        assert_eq!(
            read_along(&halves().0, &message),
            pairs(&[
                ("prompt", "what do you hold?"),
                ("system", "s"),
                ("deadline", "1s2ns"),
                ("max_tokens", "3"),
                ("schema", "{}"),
                ("regex", "a+"),
                ("choices", "left|right"),
                ("closing", "minimal"),
            ])
        );
        assert_eq!(AskRequest::decode(&message).unwrap(), request);
    }

    #[test]
    fn the_reply_has_the_fields_of_the_srv_file_in_its_order() {
        let reply = AskReply {
            status: "complete".to_owned(),
            text: "a cup".to_owned(),
            reason: "r".to_owned(),
            ttft_ms: 1.5,
            total_ms: 2.5,
            queue_ms: 3.5,
            prefill_ms: 4.5,
            deadline_ms: 5.5,
            earliest_deadline_ms: 8.5,
            is_promised: true,
            num_prompt_tokens: 6,
            num_tokens: 7,
            defaulted_fields: vec!["/speed".to_owned(), "/n".to_owned()],
            cut_fields: Vec::new(),
        };
        let message = reply.encode().unwrap();
        assert_eq!(
            read_along(&halves().1, &message),
            pairs(&[
                ("status", "complete"),
                ("text", "a cup"),
                ("reason", "r"),
                ("ttft_ms", "1.5"),
                ("total_ms", "2.5"),
                ("queue_ms", "3.5"),
                ("prefill_ms", "4.5"),
                ("deadline_ms", "5.5"),
                ("earliest_deadline_ms", "8.5"),
                ("is_promised", "true"),
                ("num_prompt_tokens", "6"),
                ("num_tokens", "7"),
                ("defaulted_fields", "/speed|/n"),
                ("cut_fields", ""),
            ])
        );
        assert_eq!(AskReply::decode(&message).unwrap(), reply);
    }

    #[test]
    fn every_truncated_request_is_an_error() {
        let choices = vec!["a".to_owned(), "b".to_owned()];
        let request = AskRequest { prompt: "prompt".to_owned(), choices, ..AskRequest::default() };
        let message = request.encode().unwrap();
        for len in 0..message.len() {
            assert!(AskRequest::decode(&message[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn no_corrupted_byte_makes_decoding_panic_or_read_past_the_end() {
        let request =
            AskRequest { prompt: "größer".to_owned(), system: "s".to_owned(), ..AskRequest::default() };
        let message = request.encode().unwrap();
        for i in 0..message.len() {
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xc3, 0xff] {
                let mut corrupted = message.clone();
                corrupted[i] = byte;
                if let Ok(read) = AskRequest::decode(&corrupted) {
                    assert!(read.prompt.len() + read.system.len() < message.len());
                }
                let _ = AskReply::decode(&corrupted);
                let _ = decode_string(&corrupted);
            }
        }
    }
}
