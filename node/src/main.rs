//! The binary `takt`.

use std::process::ExitCode;

use takt_node::cli::{self, CliError};

fn main() -> ExitCode {
    match cli::run(std::env::args_os().collect()) {
        Ok(code) => code,
        Err(error) => {
            let code = error.exit_code();
            if !matches!(error, CliError::Reported) {
                eprintln!("error: {:#}", anyhow::Error::new(error));
            }
            ExitCode::from(code)
        }
    }
}
