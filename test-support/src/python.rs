//! The Python peers, where Python is at hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{root, skip};

/// A Python that can import what a test needs.
pub struct Python {
    program: PathBuf,
}

/// Prints the first of its arguments that is no module.
const FIRST_MISSING: &str = "import sys, importlib.util as i; \
    print(next((m for m in sys.argv[1:] if i.find_spec(m) is None), ''))";

/// A Python (`$LIMBECK_PYTHON`, else `python3`) that has all of `modules`; `None`, with a word,
/// where there is none.
///
/// # Panics
/// As [`skip`] for the first module that is missing.
pub fn python(modules: &[&str], test: &str) -> Option<Python> {
    let program =
        std::env::var_os("LIMBECK_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let asked = Command::new(&program).args(["-c", FIRST_MISSING]).args(modules).output();
    let missing = match asked {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        // No Python at all.
        _ => modules.first().map_or_else(String::new, |module| (*module).to_owned()),
    };
    if missing.is_empty() {
        return Some(Python { program });
    }
    let why = format!("{} has no module {missing} (set LIMBECK_PYTHON)", program.display());
    skip(test, &missing, &why);
    None
}

impl Python {
    /// The interpreter itself.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A command that runs a script of `tests/python`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(root().join("tests/python").join(name));
        command
    }
}
