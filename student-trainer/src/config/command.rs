//! What an option is, and which commands have some of their own.

/// What every environment variable of this program begins with.
pub const VARIABLE_PREFIX: &str = "STUDENT_TRAINER_";

/// A command with options of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `student-trainer train`
    Train,
    /// `student-trainer eval`
    Eval,
    /// `student-trainer demo`
    Demo,
    /// `student-trainer cache build`
    CacheBuild,
    /// `student-trainer cache verify`
    CacheVerify,
    /// `student-trainer cache info`
    CacheInfo,
    /// `student-trainer cache export`
    CacheExport,
    /// `student-trainer cache import`
    CacheImport,
    /// `student-trainer signals`
    Signals,
    /// `student-trainer plan`
    Plan,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// Name without the two dashes.
    pub name: &'static str,
    /// What stands for the value in help.
    pub value: &'static str,
    /// The value where nobody gave one; None where there is none.
    pub default: Option<&'static str>,
    /// Heading in help.
    pub group: &'static str,
    /// Commands that take it.
    pub commands: &'static [Command],
    /// What it means: unit, range, effect.
    pub help: &'static str,
    /// Whether the flag alone, without a value, means true.
    pub switch: bool,
}

impl OptionSpec {
    /// Key in a configuration file.
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }

    /// Environment variable.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key().to_uppercase())
    }
}
