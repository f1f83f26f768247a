//! What an export is for: which operators and number formats a TensorRT, or any ONNX runtime, takes.
//!
//! | TensorRT | what came with it (parser's changelog and operator table) |
//! |---|---|
//! | 10.0 | INT4 and FP8 weights, strongly typed networks; opset 20 |
//! | 10.8 | `FLOAT4E2M1`: NVFP4 |
//! | 10.14 | `Attention` |
//! | 10.15 | `RMSNormalization`, `RotaryEmbedding`, `TensorScatter`; opset 24 |

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};
use takt_engine::{dir::PlanForm, quant::WeightKind};

use crate::{BuildError, Result};

/// A TensorRT release; the ABI within a major version is append-only, and so is what its parser takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorRtVersion {
    /// 10 or 11.
    pub major: u32,
    /// Release of the major version.
    pub minor: u32,
}

impl TensorRtVersion {
    /// The first with strongly typed networks as they are now.
    pub const OLDEST: Self = Self { major: 10, minor: 0 };
    /// The first that reads 4-bit floats.
    pub const FIRST_FP4: Self = Self { major: 10, minor: 8 };
    /// The first that has all operators of [`Form::Operators`].
    pub const FIRST_OPERATORS: Self = Self { major: 10, minor: 15 };
    /// The newest whose documentation this version of the exporter was written after.
    const NEWEST_MAJOR: u32 = 11;
}

impl fmt::Display for TensorRtVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Who reads the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// TensorRT's parser of this version.
    TensorRt(TensorRtVersion),
    /// Any runtime of the ONNX standard: no operators or limits of TensorRT's own.
    Onnx,
}

/// Who reads the models, and on which GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The reader.
    pub runtime: Runtime,
    /// Compute capability of the GPU, 87 for Orin, 110 for Thor; `None` when it is not said, and then not checked.
    pub sm: Option<u32>,
}

/// How the parts of a decoder are written that newer standards have operators for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `Attention`, `RMSNormalization`, `RotaryEmbedding` and a cache that `TensorScatter` updates in its place: opset 24.
    Operators,
    /// Matrix products, sums and softmax; the cache comes in and its new rows go out.
    Primitives,
}

impl Form {
    /// Name on the command line and in the contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Operators => "operators",
            Self::Primitives => "primitives",
        }
    }

    /// The oldest opset that has everything the form needs with weights of `kinds`.
    #[must_use]
    pub fn opset(self, kinds: &[WeightKind]) -> i64 {
        match self {
            Self::Operators => 24,
            Self::Primitives if kinds.contains(&WeightKind::Nvfp4) => 23,
            Self::Primitives if kinds.contains(&WeightKind::Int4) => 21,
            Self::Primitives => 20,
        }
    }
}

impl From<PlanForm> for Form {
    fn from(form: PlanForm) -> Self {
        match form {
            PlanForm::Operators => Self::Operators,
            PlanForm::Primitives => Self::Primitives,
        }
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Operators, Self::Primitives]
            .into_iter()
            .find(|form| form.name() == text)
            .ok_or_else(|| format!("unknown form {text:?}: expected operators or primitives"))
    }
}

/// Weights of a model, as messages call them.
#[derive(Debug, Clone, Copy)]
pub struct NamedWeights<'a> {
    /// Their format.
    pub kind: WeightKind,
    /// Which weights.
    pub what: &'a str,
    /// The option of `takt build` that chooses their format.
    pub option: &'a str,
}

impl Default for Target {
    /// JetPack 7.2's TensorRT.
    fn default() -> Self {
        Self { runtime: Runtime::TensorRt(TensorRtVersion { major: 10, minor: 16 }), sm: None }
    }
}

impl Target {
    /// The newest form it takes.
    #[must_use]
    pub fn newest_form(&self) -> Form {
        match self.runtime {
            Runtime::TensorRt(version) if version < TensorRtVersion::FIRST_OPERATORS => Form::Primitives,
            _ => Form::Operators,
        }
    }

    /// Whether TensorRT reads it.
    #[must_use]
    pub fn is_tensorrt(&self) -> bool {
        matches!(self.runtime, Runtime::TensorRt(_))
    }

    /// Checks that it takes `form`.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] saying which TensorRT would, and what this one takes.
    pub fn check_form(&self, form: Form) -> Result<()> {
        match self.runtime {
            Runtime::TensorRt(version)
                if form == Form::Operators && version < TensorRtVersion::FIRST_OPERATORS =>
            {
                Err(BuildError::Unsupported(format!(
                    "opset 24 for TensorRT {version}: Attention, RMSNormalization, RotaryEmbedding and TensorScatter are in its parser from {} on; \
                     use --form primitives, or a newer TensorRT",
                    TensorRtVersion::FIRST_OPERATORS
                )))
            }
            _ => Ok(()),
        }
    }

    /// Checks that it computes with all of `weights`.
    ///
    /// # Errors
    /// [`BuildError::Unsupported`] with all that it does not compute with, and which formats it does.
    pub fn check_weights(&self, weights: &[NamedWeights<'_>]) -> Result<()> {
        let (mut facts, mut options) = (Vec::new(), Vec::new());
        let works = self.working_kinds().join(" or ");
        for NamedWeights { kind, what, option } in weights {
            let Some(fact) = self.fault_of(*kind) else { continue };
            facts.push(format!("{what} in {kind} for {self}: {fact}"));
            let instead = format!("{option} {works}");
            if !options.contains(&instead) {
                options.push(instead);
            }
        }
        match facts.is_empty() {
            true => Ok(()),
            false => Err(BuildError::Unsupported(format!(
                "{}; build the engine with {}",
                facts.join("; "),
                options.join(" and ")
            ))),
        }
    }

    /// Why it does not compute with weights of `kind`.
    pub(crate) fn fault_of(&self, kind: WeightKind) -> Option<String> {
        let Runtime::TensorRt(version) = self.runtime else { return None };
        match (kind, self.sm) {
            (WeightKind::Nvfp4, _) if version < TensorRtVersion::FIRST_FP4 => {
                Some(format!("TensorRT has 4-bit floats from {} on", TensorRtVersion::FIRST_FP4))
            }
            (WeightKind::Nvfp4, Some(sm)) if sm < FIRST_FP4_SM => {
                Some(format!("GPUs have 4-bit floats from sm_{FIRST_FP4_SM} on"))
            }
            (WeightKind::Fp8, Some(sm)) if sm < FIRST_FP8_SM => {
                Some(format!("GPUs have 8-bit floats from sm_{FIRST_FP8_SM} on"))
            }
            _ => None,
        }
    }

    /// Formats of weights it computes with, smallest first.
    pub(super) fn working_kinds(&self) -> Vec<&'static str> {
        let (fp4, fp8) = match self.runtime {
            Runtime::Onnx => (true, true),
            Runtime::TensorRt(version) => (
                version >= TensorRtVersion::FIRST_FP4 && self.sm.is_none_or(|sm| sm >= FIRST_FP4_SM),
                self.sm.is_none_or(|sm| sm >= FIRST_FP8_SM),
            ),
        };
        let kinds = [(fp4, "nvfp4"), (true, "int4"), (fp8, "fp8"), (true, "bf16")];
        kinds.into_iter().filter_map(|(works, name)| works.then_some(name)).collect()
    }
}

/// The first GPUs with FP8 matrix products: Ada.
const FIRST_FP8_SM: u32 = 89;
/// The first GPUs with FP4 matrix products: Blackwell.
const FIRST_FP4_SM: u32 = 100;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.runtime {
            Runtime::TensorRt(version) => write!(f, "tensorrt-{version}")?,
            Runtime::Onnx => f.write_str("onnx")?,
        }
        self.sm.map_or(Ok(()), |sm| write!(f, ",sm_{sm}"))
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Target {
    type Err = String;

    /// `tensorrt-10.16`, `onnx`, either with `,sm_87` behind it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (runtime, sm) = text.split_once(',').map_or((text, None), |(runtime, sm)| (runtime, Some(sm)));
        let runtime = match runtime.strip_prefix("tensorrt-") {
            Some(version) => Runtime::TensorRt(version.parse()?),
            None if runtime == "onnx" => Runtime::Onnx,
            None => {
                return Err(format!(
                    "unknown target {text:?}: expected tensorrt-10.16, tensorrt-10.3,sm_87 or onnx"
                ));
            }
        };
        Ok(Self { runtime, sm: sm.map(parse_sm).transpose()? })
    }
}

/// `sm_87`, `sm_110a`.
fn parse_sm(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("sm_").map(|sm| sm.trim_end_matches('a'));
    digits
        .and_then(|sm| sm.parse().ok())
        .filter(|sm| (50..1000).contains(sm))
        .ok_or_else(|| format!("unknown GPU {text:?}: expected sm_87 (Orin), sm_90a (Hopper), sm_110a (Thor) or sm_120a (Blackwell)"))
}

impl FromStr for TensorRtVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut numbers = text.split('.');
        let mut number = || numbers.next().and_then(|part| part.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (number(), number()) else {
            return Err(format!(
                "unknown TensorRT version {text:?}: expected two numbers, as in tensorrt-10.16"
            ));
        };
        let version = Self { major, minor };
        if version < Self::OLDEST || major > Self::NEWEST_MAJOR {
            return Err(format!(
                "TensorRT {version}: models are written for {} to {}.x",
                Self::OLDEST,
                Self::NEWEST_MAJOR
            ));
        }
        Ok(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn targets_read_back_as_they_are_written() {
        for text in ["tensorrt-10.16", "tensorrt-10.3,sm_87", "onnx", "tensorrt-11.4,sm_110"] {
            assert_eq!(target(text).to_string(), text);
        }
        assert_eq!(target("tensorrt-10.13.3,sm_110a").to_string(), "tensorrt-10.13,sm_110");
    }

    #[test]
    fn what_is_no_target_is_refused_with_an_example() {
        for (text, fact) in [
            ("tensorrt", "tensorrt-10.16"),
            ("tensorrt-10", "two numbers"),
            ("tensorrt-x.y", "two numbers"),
            ("tensorrt-8.6", "10.0 to 11.x"),
            ("tensorrt-12.0", "10.0 to 11.x"),
            ("onnx,orin", "sm_87"),
            ("onnx,sm_7", "sm_87"),
            ("", "onnx"),
        ] {
            let message = text.parse::<Target>().unwrap_err();
            assert!(message.contains(fact), "{text}: {message}");
        }
    }

    fn layers(kind: WeightKind) -> NamedWeights<'static> {
        NamedWeights { kind, what: "layers", option: "--weights" }
    }

    #[test]
    fn formats_a_target_lacks_are_refused_with_those_it_has() {
        for (text, kind, fact, works) in [
            ("tensorrt-10.7", WeightKind::Nvfp4, "from 10.8 on", "with --weights int4 or fp8 or bf16"),
            (
                "tensorrt-10.16,sm_90a",
                WeightKind::Nvfp4,
                "from sm_100 on",
                "with --weights int4 or fp8 or bf16",
            ),
            ("tensorrt-10.3,sm_87", WeightKind::Fp8, "from sm_89 on", "with --weights int4 or bf16"),
            ("tensorrt-10.16,sm_87", WeightKind::Nvfp4, "from sm_100 on", "with --weights int4 or bf16"),
        ] {
            let message = target(text).check_weights(&[layers(kind)]).unwrap_err().to_string();
            assert!(message.contains(fact) && message.ends_with(works), "{text}: {message}");
        }
        for (text, kind) in [
            ("tensorrt-10.8", WeightKind::Nvfp4),
            ("tensorrt-10.16,sm_110a", WeightKind::Nvfp4),
            ("tensorrt-10.3", WeightKind::Fp8),
            ("tensorrt-10.3,sm_87", WeightKind::Int4),
            ("onnx,sm_87", WeightKind::Nvfp4),
        ] {
            target(text).check_weights(&[layers(kind)]).unwrap();
        }
    }

    #[test]
    fn all_formats_that_a_target_lacks_are_told_at_once_and_what_to_take_instead_once() {
        let head = |what| NamedWeights { kind: WeightKind::Fp8, what, option: "--lm-head" };
        let all = [layers(WeightKind::Nvfp4), head("the head"), head("the draft's head")];
        let message = target("tensorrt-10.16,sm_87").check_weights(&all).unwrap_err().to_string();
        let expected = "layers in nvfp4 for tensorrt-10.16,sm_87: GPUs have 4-bit floats from sm_100 on; \
                        the head in fp8 for tensorrt-10.16,sm_87: GPUs have 8-bit floats from sm_89 on; \
                        the draft's head in fp8 for tensorrt-10.16,sm_87: GPUs have 8-bit floats from sm_89 on; \
                        build the engine with --weights int4 or bf16 and --lm-head int4 or bf16";
        assert!(message.ends_with(expected), "{message}");
        // Of several, what is taken is not told of.
        let message = target("tensorrt-10.7").check_weights(&all).unwrap_err().to_string();
        assert!(message.ends_with("build the engine with --weights int4 or fp8 or bf16"), "{message}");
    }

    #[test]
    fn an_older_tensorrt_gets_primitives_and_refuses_operators() {
        for (text, form) in [
            ("tensorrt-10.3", Form::Primitives),
            ("tensorrt-10.14", Form::Primitives),
            ("tensorrt-10.15", Form::Operators),
            ("tensorrt-11.4", Form::Operators),
            ("onnx", Form::Operators),
        ] {
            assert_eq!(target(text).newest_form(), form, "{text}");
            target(text).check_form(Form::Primitives).unwrap();
        }
        let message = target("tensorrt-10.13").check_form(Form::Operators).unwrap_err().to_string();
        assert!(message.contains("10.15") && message.contains("--form primitives"), "{message}");
    }

    #[test]
    fn the_opset_is_the_oldest_that_has_the_types() {
        let of = |form: Form, kind| form.opset(&[WeightKind::Bf16, kind]);
        assert_eq!(of(Form::Primitives, WeightKind::Fp8), 20);
        assert_eq!(of(Form::Primitives, WeightKind::Int4), 21);
        assert_eq!(of(Form::Primitives, WeightKind::Nvfp4), 23);
        assert_eq!(of(Form::Operators, WeightKind::Bf16), 24);
    }
}
