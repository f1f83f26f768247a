//! Every key there is: its section, what it accepts, its built-in value and one line of explanation.

use crate::ros::TransportKind;

/// One configuration key.
#[derive(Debug)]
pub struct Key {
    /// `[section]` of the file.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// What it accepts.
    pub accepts: Accepts,
    /// Value when nobody says otherwise.
    pub built_in: BuiltIn,
    /// One line for people.
    pub doc: &'static str,
}

/// What a key accepts.
#[derive(Debug, Clone, Copy)]
pub enum Accepts {
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A whole number in this closed interval.
    Whole(u64, u64),
    /// A number in this closed interval.
    Number(f64, f64),
    /// `true` or `false`.
    Flag,
    /// A list of whole numbers, each at most this.
    Wholes(u64),
    /// A list of texts.
    Texts,
}

/// A built-in value.
#[derive(Debug, Clone, Copy)]
pub enum BuiltIn {
    /// Text or word.
    Text(&'static str),
    /// Whole number.
    Whole(u64),
    /// Number.
    Number(f64),
    /// Flag.
    Flag(bool),
    /// The empty list of numbers.
    NoWholes,
    /// The empty list of texts.
    NoTexts,
}

/// Backends a configuration may name; those of later versions are refused by name when the engine is opened.
pub const BACKENDS: &[&str] = &["auto", "cpu", "cuda", "tensorrt"];
/// KV cache formats, and `auto` for the one the engine records.
pub const KV_KINDS: &[&str] = &["auto", "bf16", "fp8", "int8"];
/// The CPU's arithmetic.
pub const ACTIVATIONS: &[&str] = &["auto", "f32", "int8"];
/// Who proposes tokens that are verified together.
pub const DRAFTERS: &[&str] = &["auto", "eagle3", "lookup", "off"];
/// What requests with the default deadline are promised.
pub const CLASSES: &[&str] = &["control", "interactive"];
/// Scheduling policies of the worker thread.
pub const POLICIES: &[&str] = &["other", "fifo"];

/// Where the GPU reads weights.
pub const GPU_WEIGHTS: &[&str] = &["auto", "copied", "mapped"];
/// How the GPU is shared with perception.
pub const GPU_SHARES: &[&str] = &["green_context", "priority", "none"];

const MAX_MS: u64 = 86_400_000; // a day
const MAX_MIB: u64 = 1 << 22; // four tebibytes
const MAX_MHZ: u64 = 20_000;

/// All keys, in the order they are printed.
pub const KEYS: &[Key] = &[
    key("engine", "dir", Accepts::Text, BuiltIn::Text(""), "engine directory, written by `takt build`"),
    key("engine", "backend", Accepts::Word(BACKENDS), BuiltIn::Text("auto"), "what computes; auto: the CPU"),
    key(
        "engine",
        "threads",
        Accepts::Whole(0, 1024),
        BuiltIn::Whole(0),
        "computing threads; 0: one for each processor the system gives us",
    ),
    key("engine", "lanes", Accepts::Whole(1, 64), BuiltIn::Whole(4), "requests that advance together"),
    key(
        "engine",
        "max_context",
        Accepts::Whole(0, 1 << 24),
        BuiltIn::Whole(0),
        "tokens a lane holds, prompt and answer, at most the model's own limit; 0: that, at most 4096",
    ),
    key(
        "engine",
        "kv",
        Accepts::Word(KV_KINDS),
        BuiltIn::Text("auto"),
        "KV cache format; auto: the engine's",
    ),
    key("engine", "activations", Accepts::Word(ACTIVATIONS), BuiltIn::Text("auto"), "the CPU's arithmetic"),
    key(
        "engine",
        "drafter",
        Accepts::Word(DRAFTERS),
        BuiltIn::Text("auto"),
        "who proposes tokens that are verified together: auto and eagle3 the engine's draft head, lookup what was said before; answers are the same",
    ),
    key(
        "engine",
        "speculate",
        Accepts::Flag,
        BuiltIn::Flag(true),
        "whether the drafter is used; changes from one section to the next",
    ),
    key(
        "scheduler",
        "max_prefill_slice_tokens",
        Accepts::Whole(1, 1 << 16),
        BuiltIn::Whole(64),
        "most prompt tokens of one section: bounds how long anybody waits for a section to end",
    ),
    key(
        "scheduler",
        "max_section_ms",
        Accepts::Whole(1, 10_000),
        BuiltIn::Whole(20),
        "longest section by its measured bound, where a shorter prefill slice can help",
    ),
    key(
        "scheduler",
        "background_budget_ms",
        Accepts::Whole(0, 10_000),
        BuiltIn::Whole(5),
        "time in every background period that requests without a deadline may claim; 0: only what others leave",
    ),
    key(
        "scheduler",
        "background_period_ms",
        Accepts::Whole(1, 60_000),
        BuiltIn::Whole(100),
        "the background period",
    ),
    key(
        "scheduler",
        "default_class",
        Accepts::Word(CLASSES),
        BuiltIn::Text("interactive"),
        "what a request that names no deadline of its own is promised: control is refused when the default deadline cannot be kept",
    ),
    key(
        "scheduler",
        "queue_len",
        Accepts::Whole(1, 1 << 16),
        BuiltIn::Whole(32),
        "requests that may wait for a lane",
    ),
    key(
        "scheduler",
        "prefix_snapshots",
        Accepts::Whole(0, 64),
        BuiltIn::Whole(4),
        "system prompts whose KV is kept",
    ),
    key(
        "scheduler",
        "reply_margin_us",
        Accepts::Whole(0, 1_000_000),
        BuiltIn::Whole(500),
        "how long before its deadline a reply leaves the worker, for the way to the asker",
    ),
    key(
        "scheduler",
        "default_deadline_ms",
        Accepts::Whole(0, MAX_MS),
        BuiltIn::Whole(2000),
        "deadline of requests that name none; 0: none, they run as background work",
    ),
    key(
        "scheduler",
        "default_max_tokens",
        Accepts::Whole(1, 1 << 20),
        BuiltIn::Whole(256),
        "longest answer of requests that name no limit",
    ),
    key(
        "scheduler",
        "max_open_control",
        Accepts::Whole(0, 1 << 16),
        BuiltIn::Whole(0),
        "control requests that may be open at a time; 0: as many as there is room for",
    ),
    key(
        "scheduler",
        "max_open_interactive",
        Accepts::Whole(0, 1 << 16),
        BuiltIn::Whole(0),
        "interactive requests that may be open at a time; 0: as many as there is room for",
    ),
    key(
        "scheduler",
        "max_open_background",
        Accepts::Whole(0, 1 << 16),
        BuiltIn::Whole(0),
        "background requests that may be open at a time; 0: as many as there is room for",
    ),
    key(
        "sampling",
        "override_engine",
        Accepts::Flag,
        BuiltIn::Flag(false),
        "whether the next four hold for requests that bring no sampling of their own; false: the engine's defaults do",
    ),
    key(
        "sampling",
        "temperature",
        Accepts::Number(0.0, 10.0),
        BuiltIn::Number(0.0),
        "0: the most likely token every time; higher: more varied",
    ),
    key(
        "sampling",
        "top_k",
        Accepts::Whole(0, 1 << 20),
        BuiltIn::Whole(0),
        "only the k most likely tokens; 0: all",
    ),
    key(
        "sampling",
        "top_p",
        Accepts::Number(0.0, 1.0),
        BuiltIn::Number(1.0),
        "only the smallest set of tokens whose probability reaches this; 1: all",
    ),
    key(
        "sampling",
        "min_p",
        Accepts::Number(0.0, 1.0),
        BuiltIn::Number(0.0),
        "only tokens at least this fraction as likely as the most likely one; 0: all",
    ),
    key(
        "realtime",
        "policy",
        Accepts::Word(POLICIES),
        BuiltIn::Text("other"),
        "the worker's policy; fifo is SCHED_FIFO",
    ),
    key("realtime", "priority", Accepts::Whole(1, 99), BuiltIn::Whole(40), "SCHED_FIFO priority"),
    key(
        "realtime",
        "cores",
        Accepts::Wholes(1023),
        BuiltIn::NoWholes,
        "cores the worker may use; empty: all",
    ),
    key(
        "realtime",
        "lock_memory",
        Accepts::Flag,
        BuiltIn::Flag(false),
        "keep all memory resident (mlockall)",
    ),
    key("ros", "node_name", Accepts::Text, BuiltIn::Text("takt"), "node name"),
    key("ros", "namespace", Accepts::Text, BuiltIn::Text("/"), "namespace"),
    key("ros", "domain_id", Accepts::Whole(0, 232), BuiltIn::Whole(0), "DDS domain"),
    key("ros", "localhost_only", Accepts::Flag, BuiltIn::Flag(false), "only processes on this machine"),
    key(
        "ros",
        "transport",
        Accepts::Word(TransportKind::NAMES),
        BuiltIn::Text("dds"),
        "what carries the node: the built-in DDS, or the sourced ROS 2's rcl",
    ),
    key(
        "ros",
        "autostart",
        Accepts::Flag,
        BuiltIn::Flag(true),
        "configure and activate at the start; false: a lifecycle manager does",
    ),
    key(
        "ros",
        "use_sim_time",
        Accepts::Flag,
        BuiltIn::Flag(false),
        "stamp messages with what /clock says; deadlines run on the steady clock whatever this is",
    ),
    key(
        "ros",
        "system_prompt",
        Accepts::Text,
        BuiltIn::Text(""),
        "system prompt of requests that bring none",
    ),
    key(
        "ros",
        "schema",
        Accepts::Text,
        BuiltIn::Text(""),
        "file with a JSON Schema that answers to plain sentences keep, however little time they get; empty: any text",
    ),
    key(
        "gpu",
        "share",
        Accepts::Word(GPU_SHARES),
        BuiltIn::Text("green_context"),
        "how perception is protected: multiprocessors of our own, a low-priority stream, or not at all; no effect on the CPU",
    ),
    key(
        "gpu",
        "sm_share_percent",
        Accepts::Whole(1, 100),
        BuiltIn::Whole(50),
        "multiprocessors of a green context, rounded down to what the GPU splits off, which is at least 8, on Orin 4; no effect on the CPU",
    ),
    key(
        "gpu",
        "weights",
        Accepts::Word(GPU_WEIGHTS),
        BuiltIn::Text("auto"),
        "where the GPU reads weights: copied to its memory, mapped (in the engine's file), auto (mapped where it shares memory and page tables)",
    ),
    key(
        "gpu",
        "max_section_ms",
        Accepts::Whole(0, 10_000),
        BuiltIn::Whole(0),
        "longest section on a GPU by its measured bound, also if lanes, and prompts without a promise, must wait until those with earlier deadlines are done; 0: that of [scheduler]; no effect on the CPU",
    ),
    key(
        "gpu",
        "idle_gap_us",
        Accepts::Whole(0, 100_000),
        BuiltIn::Whole(0),
        "sleep after every section, so that other work gets the GPU; promises count it; no effect on the CPU",
    ),
    key(
        "memory",
        "budget_mib",
        Accepts::Whole(0, MAX_MIB),
        BuiltIn::Whole(0),
        "most memory of weights, KV cache, snapshots and workspace together: an engine that needs more is refused; 0: no limit",
    ),
    key("board", "name", Accepts::Text, BuiltIn::Text(""), "the board this file is for, in words"),
    key(
        "board",
        "model",
        Accepts::Text,
        BuiltIn::Text(""),
        "part of /proc/device-tree/model by which `takt doctor` and the installer choose this file; empty: never chosen",
    ),
    key(
        "board",
        "memory_gib",
        Accepts::Whole(0, 4096),
        BuiltIn::Whole(0),
        "memory soldered to the board, shared by CPU and GPU; 0: not compared",
    ),
    key(
        "board",
        "cuda_sm",
        Accepts::Text,
        BuiltIn::Text(""),
        "the GPU's architecture, as sm_87; empty: none",
    ),
    key(
        "board",
        "power_mode",
        Accepts::Text,
        BuiltIn::Text(""),
        "nvpmodel's name of the power mode the other values are for; empty: not compared",
    ),
    key(
        "board",
        "cpu_mhz",
        Accepts::Whole(0, MAX_MHZ),
        BuiltIn::Whole(0),
        "highest processor clock in that mode; 0: not compared",
    ),
    key(
        "board",
        "gpu_mhz",
        Accepts::Whole(0, MAX_MHZ),
        BuiltIn::Whole(0),
        "highest GPU clock in that mode; 0: not compared",
    ),
    key(
        "board",
        "emc_mhz",
        Accepts::Whole(0, MAX_MHZ),
        BuiltIn::Whole(0),
        "memory clock in that mode; 0: not compared",
    ),
    key(
        "board",
        "reserve_mib",
        Accepts::Whole(0, MAX_MIB),
        BuiltIn::Whole(0),
        "memory left to firmware, system and the robot's other software",
    ),
    key(
        "board",
        "engines",
        Accepts::Texts,
        BuiltIn::NoTexts,
        "recommended engines, as \"qwen3-1.7b nvfp4\": shape and weights; each fits the board with these values",
    ),
];

const fn key(
    section: &'static str,
    name: &'static str,
    accepts: Accepts,
    built_in: BuiltIn,
    doc: &'static str,
) -> Key {
    Key { section, name, accepts, built_in, doc }
}

/// Position of `section.name` in [`KEYS`].
#[must_use]
pub fn position(section: &str, name: &str) -> Option<usize> {
    KEYS.iter().position(|key| key.section == section && key.name == name)
}
