//! TensorRT plans of an engine: what each is, and for which machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PLANS_FOLDER, manifest::is_blake3};
use crate::kv::KvKind;

/// Digits of a plan's BLAKE3 in its name.
const SHOWN_DIGITS: usize = 8;
/// Most lanes that anything in Takt has.
const MAX_LANES: usize = 64;
/// Rows of a lane that no device has room for. With these limits and a valid model no size that is reckoned from an entry is past 64 bits.
const MAX_ROWS: usize = 1 << 22;
/// Tokens of a lane in one step that no plan is built for.
const MAX_STEP: usize = 4096;
/// Layers whose inputs a draft head takes.
const MAX_CAPTURED: usize = 3;

/// One of `engine.json`'s plans. Its file is not among [`Manifest::files`](super::Manifest::files): it is read, and its size and hash are checked,
/// only where it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanEntry {
    /// Path inside the engine directory, with `/`: `plans/trt-10.16-sm_110a.5f2c81d0.plan`.
    pub file: String,
    /// Size.
    pub size_bytes: u64,
    /// BLAKE3, 64 lower-case hexadecimal digits.
    pub blake3: String,
    /// The model it runs.
    pub role: PlanRole,
    /// TensorRT that built it, and the only one that runs it.
    pub tensorrt: PlanVersion,
    /// The GPU it was built on, `sm_110a`, and the only one that runs it.
    pub sm: String,
    /// The device in words, as `takt doctor` names it.
    pub device: String,
    /// BLAKE3 of the weights it was made from, `weights.safetensors`.
    pub weights_blake3: String,
    /// How the cache goes in and out.
    pub form: PlanForm,
    /// The type of products, and of a plain cache.
    pub compute: PlanCompute,
    /// What quantized weights are multiplied with.
    #[serde(default, skip_serializing_if = "PlanActivations::is_plain")]
    pub activations: PlanActivations,
    /// What keys and values are stored as.
    #[serde(default, skip_serializing_if = "PlanKv::is_plain")]
    pub kv: PlanKv,
    /// Most lanes of a batch.
    pub num_lanes: usize,
    /// Tokens one lane holds.
    pub lane_capacity: usize,
    /// Rows of a lane's cache, S: the capacity, and for padding as many as a tree has at most.
    pub lane_rows: usize,
    /// Most tokens of a prefill slice; no more than the capacity.
    pub max_prefill: usize,
    /// Most nodes of a tree, its root included.
    pub max_tree: usize,
    /// The layers whose inputs it puts out as `features`; none without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captured: Vec<usize>,
    /// Its weights are not in it, but given when it is loaded.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stripped: bool,
    /// Its weights may stay in the host's memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub streams_weights: bool,
    /// Of a plan that takes other weights: BLAKE3 of the model it was built from but for the weights that it takes. `None` for one that takes none.
    /// Such a plan has one profile for everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refittable: Option<String>,
    /// Multiprocessors of the green context that its kernels were timed in; `None` for the whole device, without one. TensorRT's headers say that a
    /// plan may fail in a green context with fewer, and in any if it was timed in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timed_in_green_context: Option<u32>,
}

/// The model that a plan runs. A draft head runs beside a plan, by the kernels of another backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanRole {
    /// The engine's decoder; profiles 0 prefill, 1 decode, 2 verify, or one for all of them.
    Decoder,
}

impl fmt::Display for PlanRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decoder => "decoder",
        })
    }
}

/// How a plan takes the cache, see `takt export`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanForm {
    /// Updated in its place; `write_indices` say where.
    Operators,
    /// All rows go in, new rows come out.
    Primitives,
}

/// The type of a plan's products, and of a plain cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanCompute {
    /// 16-bit brain floats.
    Bf16,
    /// 16-bit floats.
    F16,
}

/// What a plan's quantized weights are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanActivations {
    /// 16 bits: W8A16, W4A16.
    #[default]
    Plain,
    /// As the weights are: FP8 with FP8, NVFP4 with NVFP4.
    Quantized,
}

impl PlanActivations {
    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// What a plan's cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlanKv {
    /// Values in the type of products, 16 bits.
    #[default]
    Plain,
    /// E4M3 codes; what they are multiplied by is in the plan. Form `primitives` alone has that.
    Fp8,
}

impl PlanKv {
    /// Bytes of a value.
    #[must_use]
    pub fn element_bytes(self) -> usize {
        match self {
            Self::Plain => 2,
            Self::Fp8 => 1,
        }
    }

    /// As engines name it.
    #[must_use]
    pub fn kind(self) -> KvKind {
        match self {
            Self::Plain => KvKind::Bf16,
            Self::Fp8 => KvKind::Fp8,
        }
    }

    fn is_plain(&self) -> bool {
        *self == Self::Plain
    }
}

/// A TensorRT release: plans are of one, whatever its patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PlanVersion {
    /// As in 10.16.
    pub major: u32,
    /// As in 10.16.
    pub minor: u32,
}

impl fmt::Display for PlanVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<PlanVersion> for String {
    fn from(version: PlanVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for PlanVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers =
            text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers
            .ok_or_else(|| format!("{text:?} is no TensorRT version: expected two numbers, as in 10.16"))?;
        Ok(Self { major, minor })
    }
}

impl PlanEntry {
    /// The file of a plan: `plans/trt-10.16-sm_110a.plan`.
    #[must_use]
    pub fn file_name(version: PlanVersion, sm: &str, role: PlanRole) -> String {
        format!("{}.plan", stem(version, sm, role))
    }

    /// The file of the plan with this BLAKE3: `plans/trt-10.16-sm_110a.5f2c81d0.plan`, so that another one never has to take its place.
    #[must_use]
    pub fn hashed_file_name(version: PlanVersion, sm: &str, role: PlanRole, blake3: &str) -> String {
        let shown = blake3.get(..SHOWN_DIGITS).unwrap_or(blake3);
        format!("{}.{shown}.plan", stem(version, sm, role))
    }

    /// Multiprocessors of the device it was built on, which the device's name ends with: `NVIDIA Thor sm_110 20 SMs`.
    #[must_use]
    pub fn device_num_sms(&self) -> Option<u32> {
        let (_, number) = self.device.strip_suffix(" SMs")?.rsplit_once(' ')?;
        number.parse().ok().filter(|number| *number > 0)
    }

    /// Checks that its name, hashes and extents hold.
    pub(super) fn validate(&self) -> Result<(), String> {
        let file = &self.file;
        let is_sm = |sm: &str| {
            let digits = sm.strip_prefix("sm_").map(|sm| sm.strip_suffix('a').unwrap_or(sm));
            digits.is_some_and(|sm| (2..=3).contains(&sm.len()) && sm.bytes().all(|b| b.is_ascii_digit()))
        };
        if !is_sm(&self.sm) {
            return Err(format!("plan {file:?} is for GPU {:?}: expected one as in sm_110a", self.sm));
        }
        let expected = Self::file_name(self.tensorrt, &self.sm, self.role);
        let hashed = Self::hashed_file_name(self.tensorrt, &self.sm, self.role, &self.blake3);
        if *file != expected && *file != hashed {
            return Err(format!(
                "plan {file:?}: its version, GPU, role and BLAKE3 make it {expected:?} or {hashed:?}"
            ));
        }
        let weights = [("BLAKE3", &self.blake3), ("BLAKE3 of the weights", &self.weights_blake3)];
        let model = self.refittable.iter().map(|hash| ("BLAKE3 of the model", hash));
        for (what, hash) in weights.into_iter().chain(model) {
            if !is_blake3(hash) {
                return Err(format!("{what} of plan {file:?} is not 64 lower-case hexadecimal digits"));
            }
        }
        self.check_sizes()
    }

    /// That nothing is computed with numbers that no plan has: whoever runs a plan reckons other sizes from them.
    pub(crate) fn check_sizes(&self) -> Result<(), String> {
        let file = &self.file;
        if self.kv == PlanKv::Fp8 && self.form == PlanForm::Operators {
            return Err(format!("plan {file:?} updates a cache of fp8 in its place: no plan does"));
        }
        let extents = [self.num_lanes, self.lane_capacity, self.lane_rows, self.max_prefill, self.max_tree];
        if self.size_bytes == 0 || extents.contains(&0) || self.timed_in_green_context == Some(0) {
            return Err(format!("plan {file:?} has a size of 0: no plan has"));
        }
        for (what, found, most) in [
            ("lanes", self.num_lanes, MAX_LANES),
            ("rows of a lane", self.lane_rows, MAX_ROWS),
            ("tokens of a lane", self.lane_capacity, MAX_ROWS),
            ("tokens of a slice", self.max_prefill, MAX_STEP),
            ("nodes of a tree", self.max_tree, MAX_STEP),
            ("layers with features", self.captured.len(), MAX_CAPTURED),
        ] {
            if found > most {
                return Err(format!("plan {file:?} has {found} {what}: expected at most {most}"));
            }
        }
        let needed = self.lane_capacity.checked_add(self.max_tree);
        if needed.is_none_or(|needed| needed > self.lane_rows) || self.max_prefill > self.lane_capacity {
            return Err(format!(
                "plan {file:?} has lanes of {} rows for {} tokens, slices of {} and trees of {}: expected rows for tokens and trees, and slices that fit",
                self.lane_rows, self.lane_capacity, self.max_prefill, self.max_tree
            ));
        }
        Ok(())
    }
}

fn stem(version: PlanVersion, sm: &str, role: PlanRole) -> String {
    let suffix = match role {
        PlanRole::Decoder => "",
    };
    format!("{PLANS_FOLDER}/trt-{version}-{sm}{suffix}")
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn entry(role: PlanRole) -> PlanEntry {
        let (tensorrt, sm) = (PlanVersion { major: 10, minor: 16 }, "sm_110a".to_owned());
        PlanEntry {
            file: PlanEntry::file_name(tensorrt, &sm, role),
            size_bytes: 1,
            blake3: "0".repeat(64),
            role,
            tensorrt,
            sm,
            device: "NVIDIA Thor sm_110 20 SMs".into(),
            weights_blake3: "f".repeat(64),
            form: PlanForm::Operators,
            compute: PlanCompute::Bf16,
            activations: PlanActivations::Plain,
            kv: PlanKv::Plain,
            num_lanes: 2,
            lane_capacity: 100,
            lane_rows: 165,
            max_prefill: 100,
            max_tree: 65,
            captured: vec![1, 2, 3],
            stripped: false,
            streams_weights: false,
            refittable: None,
            timed_in_green_context: None,
        }
    }

    #[test]
    fn entries_are_read_back_as_they_were_written_and_versions_are_two_numbers() {
        let other = PlanEntry {
            file: "plans/trt-10.16-sm_87.plan".into(),
            sm: "sm_87".into(),
            ..entry(PlanRole::Decoder)
        };
        let both = [entry(PlanRole::Decoder), other];
        let json = serde_json::to_string(&both).unwrap();
        assert!(json.contains(r#""tensorrt":"10.16""#) && !json.contains("stripped"), "{json}");
        for absent in ["green", "activations", "kv"] {
            assert!(!json.contains(absent), "{json}");
        }
        assert_eq!(serde_json::from_str::<Vec<PlanEntry>>(&json).unwrap(), both);
        assert!(both.iter().all(|plan| plan.validate().is_ok()));
        for other in [
            PlanEntry { timed_in_green_context: Some(8), ..both[0].clone() },
            PlanEntry { activations: PlanActivations::Quantized, ..both[0].clone() },
            PlanEntry { refittable: Some("a".repeat(64)), ..both[0].clone() },
            PlanEntry { kv: PlanKv::Fp8, form: PlanForm::Primitives, ..both[0].clone() },
        ] {
            let told = serde_json::to_string(&other).unwrap();
            assert_eq!(told.contains(r#""kv":"fp8""#), other.kv == PlanKv::Fp8, "{told}");
            assert_eq!(serde_json::from_str::<PlanEntry>(&told).unwrap(), other);
            assert!(other.validate().is_ok());
        }
        let mut hashed = both.clone();
        hashed[0].file =
            PlanEntry::hashed_file_name(both[0].tensorrt, "sm_110a", PlanRole::Decoder, &both[0].blake3);
        hashed[0].validate().unwrap();
        assert_eq!(hashed[0].file, "plans/trt-10.16-sm_110a.00000000.plan");
        for version in ["10", "10.x", "10.16.1", ""] {
            let error = serde_json::from_str::<Vec<PlanEntry>>(&json.replace("10.16", version)).unwrap_err();
            assert!(error.to_string().contains("two numbers"), "{error}");
        }
        let unknown = json.replace(r#""num_lanes""#, r#""lanes""#);
        assert!(serde_json::from_str::<Vec<PlanEntry>>(&unknown).is_err());
    }

    #[test]
    fn an_entry_that_does_not_hold_is_named_with_what_is_wrong() {
        type Damage = fn(&mut PlanEntry);
        let damages: [(Damage, &str); 20] = [
            (|it| it.file = "plans/../engine.json".into(), "make it"),
            (|it| it.file = "weights.safetensors".into(), "make it"),
            (|it| it.sm = "sm_110a/../..".into(), "expected one as in sm_110a"),
            (|it| it.sm = "thor".into(), "expected one as in sm_110a"),
            (|it| it.sm = "sm_90a".into(), "plans/trt-10.16-sm_90a.plan"),
            (|it| it.blake3 = "A".repeat(64), "BLAKE3 of plan"),
            (|it| it.file = "plans/trt-10.16-sm_110a.00000001.plan".into(), "sm_110a.00000000.plan"),
            (|it| it.weights_blake3.truncate(63), "BLAKE3 of the weights"),
            (|it| it.refittable = Some(String::new()), "BLAKE3 of the model"),
            (|it| it.size_bytes = 0, "size of 0"),
            (|it| it.kv = PlanKv::Fp8, "updates a cache of fp8 in its place"),
            (|it| it.num_lanes = 0, "size of 0"),
            (|it| it.timed_in_green_context = Some(0), "size of 0"),
            (|it| it.lane_rows = 164, "rows for tokens and trees"),
            (|it| it.max_tree = usize::MAX, "nodes of a tree: expected at most 4096"),
            (|it| it.num_lanes = 65, "65 lanes: expected at most 64"),
            (|it| it.lane_rows = (1 << 22) + 1, "rows of a lane: expected at most 4194304"),
            (|it| it.lane_capacity = usize::MAX, "tokens of a lane"),
            (|it| it.captured = vec![0; 4], "4 layers with features: expected at most 3"),
            (|it| it.max_prefill = 101, "slices that fit"),
        ];
        for (idx, (damage, fact)) in damages.into_iter().enumerate() {
            let mut plan = entry(PlanRole::Decoder);
            damage(&mut plan);
            let message = plan.validate().unwrap_err();
            assert!(message.contains(fact), "{idx}: {message}");
        }
    }
}
