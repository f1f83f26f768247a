//! Our own interfaces, as `launch/takt_msgs` defines them. [`Question`] and [`Answer`] serve all three ways to ask: the topic
//! (`Prompt.msg`, `Reply.msg`), the service (`Ask.srv`) and the action's goal and result (`Generate.action`).

use super::interface::message;
use super::{RosDuration, Time};
use crate::ros::name::{Kind, TypeName};

/// `takt_msgs/srv/Ask`.
pub const ASK: TypeName = TypeName::srv("takt_msgs", "Ask");
/// `takt_msgs/srv/EngineInfo`.
pub const ENGINE_INFO: TypeName = TypeName::srv("takt_msgs", "EngineInfo");
/// `takt_msgs/action/Generate`.
pub const GENERATE: TypeName = TypeName { package: "takt_msgs", kind: Kind::Action, name: "Generate" };
/// On `~/prompt`; the fields are [`Question`]'s.
pub const PROMPT: TypeName = TypeName::msg("takt_msgs", "Prompt");
/// On `~/reply`; the fields are [`Answer`]'s.
pub const REPLY: TypeName = TypeName::msg("takt_msgs", "Reply");

message! {
    /// One turn of a conversation.
    pub struct ChatMessage = "takt_msgs" Msg "ChatMessage" {
        /// `system`, `user` or `assistant`.
        pub role: String,
        /// What was said.
        pub content: String,
    }

    /// How tokens are chosen.
    pub struct Sampling = "takt_msgs" Msg "Sampling" {
        /// 0 takes the most likely token every time.
        pub temperature: f32,
        /// Keep the k most likely tokens; 0 keeps all.
        pub top_k: u32,
        /// Keep the smallest set whose probability reaches this; 0 and 1 keep all.
        pub top_p: f32,
        /// Keep tokens at least this fraction as likely as the most likely one.
        pub min_p: f32,
        /// Seed of the request's random stream.
        pub seed: u64,
    }

    /// What is asked: `Prompt.msg`, the request of `Ask.srv`, the goal of `Generate.action`.
    pub struct Question = "takt_msgs" Msg "Prompt" {
        /// When the asker sent it.
        pub stamp: Time,
        /// The asker's name for it; empty: the node makes one.
        pub request_id: String,
        /// What to answer; or `messages`.
        pub prompt: String,
        /// A conversation that ends with what to answer.
        pub messages: Vec<ChatMessage>,
        /// System prompt; empty for the node's default.
        pub system: String,
        /// A conversation that the node remembers; empty for none.
        pub session: String,
        /// Time allowed from arrival; zero for the node's default.
        pub deadline: RosDuration,
        /// `control`, `interactive`, `background`; empty: control if a deadline is named.
        pub priority_class: String,
        /// Most tokens of the answer; 0 for the node's default.
        pub max_tokens: u32,
        /// Texts that end the answer.
        pub stop: Vec<String>,
        /// How tokens are chosen; `None` for the node's default.
        pub sampling: Option<Sampling>,
        /// A JSON Schema as text that the answer must keep; empty for none.
        pub schema: String,
        /// A regex that the whole answer must match; empty for none.
        pub regex: String,
        /// Texts of which the answer must be one; empty for none.
        pub choices: Vec<String>,
        /// What may stand in for what the model had no time to write: `declared`, `minimal`; empty is `declared`.
        pub closing: String,
    }

    /// How it ended: `Reply.msg`, the response of `Ask.srv`, the result of `Generate.action`.
    pub struct Answer = "takt_msgs" Msg "Reply" {
        /// When the answer left the node.
        pub stamp: Time,
        /// When the request arrived.
        pub arrival: Time,
        /// The asker's name for the request, or the node's.
        pub request_id: String,
        /// A [`crate::request::Status`] by name.
        pub status: String,
        /// The answer, as far as it came.
        pub text: String,
        /// `stop`, `length`, `deadline`, `cancelled`, `rejected`, `failed`.
        pub finish_reason: String,
        /// For `rejected` and `failed`: what was wrong and what to do.
        pub reason: String,
        /// `control`, `interactive` or `background`.
        pub priority_class: String,
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
        /// Rounds of speculation in which something was verified.
        pub num_speculation_rounds: u32,
        /// Proposals verified in them.
        pub num_drafted: u32,
        /// Proposals accepted.
        pub num_accepted: u32,
        /// JSON pointers to values that stand in for what the model did not write.
        pub defaulted_fields: Vec<String>,
        /// JSON pointers to values that the model began and the closing ended.
        pub cut_fields: Vec<String>,
    }

    /// Part of an answer, on `~/stream` and `~/sentence`.
    pub struct Token = "takt_msgs" Msg "Token" {
        /// When it was sent.
        pub stamp: Time,
        /// The asker's name for the request, or the node's.
        pub request_id: String,
        /// Counts a request's messages on the topic from 0.
        pub index: u32,
        /// Where `text` starts in the answer, in bytes.
        pub offset: u32,
        /// Whole characters.
        pub text: String,
        /// Nothing follows for this request.
        pub is_last: bool,
    }

    /// Part of an answer, as a goal's feedback.
    pub struct Feedback = "takt_msgs" Action "Generate_Feedback" {
        /// When it was sent.
        pub stamp: Time,
        /// The asker's name for the request, or the node's.
        pub request_id: String,
        /// Counts a request's parts from 0.
        pub index: u32,
        /// Where `text` starts in the answer, in bytes.
        pub offset: u32,
        /// The new part.
        pub text: String,
        /// The answer so far, this part included.
        pub text_so_far: String,
    }

    /// Request of `EngineInfo.srv`.
    pub struct EngineInfoRequest = "takt_msgs" Srv "EngineInfo_Request" {
    }

    /// Response of `EngineInfo.srv`: what the node runs.
    pub struct EngineInfo = "takt_msgs" Srv "EngineInfo_Response" {
        /// Takt's version.
        pub takt_version: String,
        /// Lifecycle state by its label.
        pub lifecycle_state: String,
        /// Engine directory.
        pub engine_dir: String,
        /// `llama`, `qwen3`, …
        pub architecture: String,
        /// Format of the weights.
        pub weights: String,
        /// Format of the KV cache.
        pub kv_cache: String,
        /// What computes.
        pub backend: String,
        /// On which device.
        pub device: String,
        /// With which kernels.
        pub kernels: String,
        /// Transformer layers.
        pub num_layers: u32,
        /// Tokens of the vocabulary.
        pub vocab_size: u32,
        /// Requests that advance together.
        pub num_lanes: u32,
        /// Tokens each may hold, prompt and answer.
        pub max_context: u32,
        /// Bytes of the weights.
        pub weight_bytes: u64,
        /// Bytes of the KV cache.
        pub kv_cache_bytes: u64,
        /// Who proposes tokens that are verified together: `eagle3`, `lookup` or `off`.
        pub drafter: String,
        /// Bound of a decode step.
        pub decode_step_ms: f64,
        /// Whether a stored cost table holds for this device.
        pub has_stored_costs: bool,
        /// Why no deadline is promised at present; empty when they are.
        pub no_promises_because: String,
        /// Deadline of requests that name none; 0 for none.
        pub default_deadline_ms: f64,
    }
}
