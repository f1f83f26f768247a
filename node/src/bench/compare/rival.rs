//! llama.cpp's own benchmark, `llama-bench`, as a child process.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use serde::Deserialize;

/// A `llama-bench` and the model it is to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LlamaBench {
    /// The program.
    pub program: PathBuf,
    /// A GGUF file.
    pub model: PathBuf,
}

/// Why the rival's figures are not there.
#[derive(Debug, thiserror::Error)]
pub enum RivalError {
    /// Not of the form.
    #[error("{spec:?}: expected llama-bench=PATH,model=FILE.gguf ({fact})")]
    Spec {
        /// What was given.
        spec: String,
        /// What is wrong with it.
        fact: &'static str,
    },
    /// A path that leads nowhere.
    #[error("{what} {}: no such file", path.display())]
    Missing {
        /// What it should be.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// It could not be run.
    #[error("cannot run {}: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        error: std::io::Error,
    },
    /// It ended with an error.
    #[error("{} ended with {status}: {last_words}", program.display())]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote on standard error.
        last_words: String,
    },
    /// It did not print what it should.
    #[error("{} printed no figures of the tests asked for: {fact}", program.display())]
    Output {
        /// The program.
        program: PathBuf,
        /// What is wrong with it.
        fact: String,
    },
}

/// What one run measured.
#[derive(Debug, Clone, PartialEq)]
pub struct RivalRun {
    /// As `qwen3 0.6B Q4_0`.
    pub model: String,
    /// Bytes of all its weights.
    pub model_bytes: u64,
    /// llama.cpp's commit.
    pub build: String,
    /// Prompt tokens a second.
    pub prefill_tok_s: f64,
    /// Tokens a second.
    pub decode_tok_s: f64,
}

/// One test of `llama-bench -o json`.
#[derive(Debug, Deserialize)]
struct Test {
    build_commit: String,
    model_type: String,
    model_size: u64,
    n_prompt: usize,
    n_gen: usize,
    avg_ts: f64,
}

impl LlamaBench {
    /// Of `llama-bench=PATH,model=FILE.gguf`, in either order.
    ///
    /// # Errors
    /// [`RivalError::Spec`], [`RivalError::Missing`].
    pub fn parse(spec: &str) -> Result<Self, RivalError> {
        let wrong = |fact| RivalError::Spec { spec: spec.to_owned(), fact };
        let (mut program, mut model) = (None, None);
        for part in spec.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| wrong("a part has no ="))?;
            let place = match name.trim() {
                "llama-bench" => &mut program,
                "model" => &mut model,
                _ => return Err(wrong("a part has another name")),
            };
            if place.replace(PathBuf::from(value.trim())).is_some() {
                return Err(wrong("a name comes twice"));
            }
        }
        let program = program.ok_or_else(|| wrong("llama-bench is missing"))?;
        let model = model.ok_or_else(|| wrong("model is missing"))?;
        for (what, path) in [("llama-bench", &program), ("model", &model)] {
            if !path.is_file() {
                return Err(RivalError::Missing { what, path: path.clone() });
            }
        }
        Ok(Self { program, model })
    }

    /// Reads a prompt of `prompt_len` tokens and decodes `num_tokens`, each once after llama-bench's own warm-up.
    ///
    /// # Errors
    /// [`RivalError::Start`], [`RivalError::Ended`], [`RivalError::Output`].
    pub fn run(
        &self,
        prompt_len: usize,
        num_tokens: usize,
        num_threads: usize,
    ) -> Result<RivalRun, RivalError> {
        let output = Command::new(&self.program)
            .arg("-m")
            .arg(&self.model)
            .args(["-p", &prompt_len.to_string(), "-n", &num_tokens.to_string()])
            .args(["-t", &num_threads.to_string(), "-r", "1", "-o", "json"])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| RivalError::Start { program: self.program.clone(), error })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<&str> = said.trim().lines().rev().take(3).collect();
            let last_words = last.into_iter().rev().collect::<Vec<_>>().join("; ");
            return Err(RivalError::Ended {
                program: self.program.clone(),
                status: output.status,
                last_words,
            });
        }
        figures(&String::from_utf8_lossy(&output.stdout), prompt_len, num_tokens)
            .map_err(|fact| RivalError::Output { program: self.program.clone(), fact })
    }
}

/// The two tests of a JSON report.
fn figures(report: &str, prompt_len: usize, num_tokens: usize) -> Result<RivalRun, String> {
    let tests: Vec<Test> = serde_json::from_str(report).map_err(|error| error.to_string())?;
    let of = |n_prompt, n_gen| {
        let test = tests.iter().find(|test| (test.n_prompt, test.n_gen) == (n_prompt, n_gen));
        let test = test.ok_or_else(|| format!("no test with {n_prompt} prompt and {n_gen} new tokens"))?;
        if test.avg_ts.is_finite() && test.avg_ts > 0.0 {
            Ok(test)
        } else {
            Err(format!("{} tokens a second", test.avg_ts))
        }
    };
    let (prefill, decode) = (of(prompt_len, 0)?, of(0, num_tokens)?);
    Ok(RivalRun {
        model: decode.model_type.clone(),
        model_bytes: decode.model_size,
        build: decode.build_commit.clone(),
        prefill_tok_s: prefill.avg_ts,
        decode_tok_s: decode.avg_ts,
    })
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;

    const REPORT: &str = r#"[
        {"build_commit": "0c1e570", "model_type": "qwen3 0.6B Q4_0", "model_size": 375616512, "n_prompt": 256, "n_gen": 0, "avg_ts": 263.1, "extra": [1]},
        {"build_commit": "0c1e570", "model_type": "qwen3 0.6B Q4_0", "model_size": 375616512, "n_prompt": 0, "n_gen": 128, "avg_ts": 67.5}
    ]"#;

    #[test]
    fn both_tests_are_read_from_the_report() {
        let run = figures(REPORT, 256, 128).unwrap();
        assert_eq!((run.prefill_tok_s, run.decode_tok_s, run.model_bytes), (263.1, 67.5, 375_616_512));
        assert_eq!((run.build.as_str(), run.model.as_str()), ("0c1e570", "qwen3 0.6B Q4_0"));
        assert!(figures(REPORT, 512, 128).unwrap_err().contains("no test with 512 prompt"));
        assert!(figures("llama_model_load: error", 256, 128).is_err());
        assert!(figures(&REPORT.replace("67.5", "0.0"), 256, 128).unwrap_err().contains("0 tokens"));
    }

    /// A program that answers as llama-bench does, with what it was asked in `asked`.
    fn stand_in(folder: &Path, script: &str) -> LlamaBench {
        let (program, model) = (folder.join("llama-bench"), folder.join("model.gguf"));
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(&model, "GGUF").unwrap();
        LlamaBench::parse(&format!("model={},llama-bench={}", model.display(), program.display())).unwrap()
    }

    #[test]
    fn it_is_asked_for_the_same_work_and_its_failure_is_told_in_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let asked = folder.path().join("asked");
        let script = format!("echo \"$@\" > {}\ncat <<'END'\n{REPORT}\nEND", asked.display());
        let run = stand_in(folder.path(), &script).run(256, 128, 2).unwrap();
        assert_eq!(run.decode_tok_s, 67.5);
        let asked = std::fs::read_to_string(asked).unwrap();
        assert!(asked.contains("-p 256 -n 128 -t 2 -r 1 -o json"), "{asked}");
        let error = stand_in(folder.path(), "echo 'unknown model architecture' >&2; exit 3").run(1, 1, 1);
        let message = error.unwrap_err().to_string();
        assert!(message.contains("3") && message.contains("unknown model architecture"), "{message}");
    }

    #[test]
    fn what_is_no_rival_is_refused_with_what_is_expected() {
        for (spec, fact) in [
            ("llama-bench", "no ="),
            ("llama-bench=/bin/true", "model is missing"),
            ("model=/bin/true", "llama-bench is missing"),
            ("model=a,model=b", "twice"),
            ("vllm=/bin/true,model=x", "another name"),
        ] {
            let message = LlamaBench::parse(spec).unwrap_err().to_string();
            assert!(message.contains(fact) && message.contains("model=FILE.gguf"), "{message}");
        }
        let message = LlamaBench::parse("llama-bench=/no/such,model=/bin/true").unwrap_err().to_string();
        assert!(message.contains("/no/such: no such file"), "{message}");
    }
}
