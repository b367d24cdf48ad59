//! The Python peers, where Python is at hand.

use std::path::PathBuf;
use std::process::Command;

use crate::{root, skip};

/// A Python that can import what a test needs.
pub struct Python {
    program: PathBuf,
}

/// A Python (`$LIMBECK_PYTHON`, else `python3`) that imports all of `modules`; `None`, with a word,
/// where there is none.
pub fn python(modules: &[&str], test: &str) -> Option<Python> {
    let program =
        std::env::var_os("LIMBECK_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let imports = format!("import {}", modules.join(", "));
    let found = Command::new(&program).args(["-c", &imports]).output();
    match found {
        Ok(output) if output.status.success() => Some(Python { program }),
        _ => {
            let wanted = modules.join(" and ");
            skip(
                test,
                &format!("{} cannot import {wanted} (set LIMBECK_PYTHON)", program.display()),
            );
            None
        }
    }
}

impl Python {
    /// The interpreter itself.
    pub fn program(&self) -> &std::path::Path {
        &self.program
    }

    /// A command that runs a script of `tests/python`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(root().join("tests/python").join(name));
        command
    }
}
