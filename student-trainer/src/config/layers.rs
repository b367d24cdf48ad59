//! Flags over environment over file over defaults: what was written, and where.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::command::{Command, OptionSpec, VARIABLE_PREFIX};
use super::options::{OPTIONS, options_of};

/// The variable that stands for `--config`.
pub const CONFIG_VARIABLE: &str = "STUDENT_TRAINER_CONFIG";

/// Where a value was written. Later ones win.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// In the configuration file.
    File(PathBuf),
    /// In the environment.
    Environment,
    /// On the command line.
    Flag,
}

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The text of the value.
    pub text: String,
    /// Where it stands.
    pub origin: Origin,
}

/// What was written for each option of one command.
#[derive(Clone, Debug)]
pub struct Layers {
    written: BTreeMap<&'static str, Written>,
}

impl Layers {
    /// Lays flags over environment over file over defaults.
    ///
    /// `flags` holds the options named on the command line; `variable` looks up an environment
    /// variable; `file` is the text of the configuration file with its path.
    ///
    /// # Errors
    /// Every fault of the file: not TOML, an unknown key (with the nearest known one), a value
    /// that is a table.
    pub fn new(
        command: Command,
        flags: BTreeMap<&'static str, String>,
        variable: impl Fn(&str) -> Option<String>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, Vec<String>> {
        let mut in_file = match file {
            Some((path, text)) => read_file(path, text)?,
            None => BTreeMap::new(),
        };
        let mut flags = flags;
        let mut written = BTreeMap::new();
        for option in options_of(command) {
            let from_flag = flags.remove(option.name).map(|text| (text, Origin::Flag));
            let from_environment = || variable(&option.variable()).filter(|text| !text.is_empty());
            let found = from_flag
                .or_else(|| from_environment().map(|text| (text, Origin::Environment)))
                .or_else(|| in_file.remove(option.name))
                .or_else(|| option.default.map(|text| (text.to_owned(), Origin::Default)));
            if let Some((text, origin)) = found {
                written.insert(option.name, Written { text: text.trim().to_owned(), origin });
            }
        }
        Ok(Self { written })
    }

    /// What was written for an option, default included.
    pub fn get(&self, name: &str) -> Option<&Written> {
        self.written.get(name)
    }

    /// Where an option was given by somebody; None where only its default stands.
    pub fn given(&self, name: &str) -> Option<&Origin> {
        self.get(name).map(|w| &w.origin).filter(|origin| **origin != Origin::Default)
    }
}

/// The name a person knows an option by, after where they wrote it.
pub(super) fn spoken(option: &str, origin: &Origin) -> String {
    let spec = OPTIONS.iter().find(|o| o.name == option);
    match (origin, spec) {
        (Origin::File(path), Some(o)) => format!("`{}` in {}", o.key(), path.display()),
        (Origin::Environment, Some(o)) => o.variable(),
        (Origin::Default | Origin::Flag, _) | (_, None) => format!("--{option}"),
    }
}

type InFile = BTreeMap<&'static str, (String, Origin)>;

/// Reads a TOML file of flat keys. A key that only another command knows is no fault: one file
/// may serve `train` and `eval`.
fn read_file(path: &Path, text: &str) -> Result<InFile, Vec<String>> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        vec![format!("{}: not valid TOML: {}", path.display(), e.to_string().trim_end())]
    })?;
    let mut faults = Vec::new();
    let mut found = BTreeMap::new();
    for (key, value) in &table {
        let Some(option) = OPTIONS.iter().find(|o| o.key() == *key) else {
            faults.push(match holds_table(value) {
                true => table_fault(path, key),
                false => unknown_key(path, key),
            });
            continue;
        };
        match plain_text(value) {
            Some(text) => {
                found.insert(option.name, (text, Origin::File(path.to_owned())));
            }
            None if holds_table(value) => faults.push(table_fault(path, key)),
            None => faults.push(format!(
                "{}: `{key}` is a {}, but a plain value is wanted: {}",
                path.display(),
                value.type_str(),
                option.value
            )),
        }
    }
    if faults.is_empty() { Ok(found) } else { Err(faults) }
}

/// Whether a value is a table or a list of them: `[name]`, `[[name]]`, `name = { ... }`.
fn holds_table(value: &toml::Value) -> bool {
    value.is_table()
        || value.as_array().is_some_and(|items| items.iter().any(toml::Value::is_table))
}

fn table_fault(path: &Path, key: &str) -> String {
    let path = path.display();
    format!("{path}: `{key}` is a table; tables are not used: keys stand at the top level")
}

/// The text of a plain value, lists joined by commas; None for tables, dates and nested lists.
fn plain_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(items) => {
            let plain = |item: &toml::Value| if item.is_array() { None } else { plain_text(item) };
            Some(items.iter().map(plain).collect::<Option<Vec<_>>>()?.join(","))
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// The faults of these environment variables: names with this program's prefix that no option
/// has, each with the nearest one that exists. A variable of another command's option is no fault:
/// one environment may serve several commands.
pub fn unknown_variables<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let unknown = |name: &&str| {
        let own = name.strip_prefix(VARIABLE_PREFIX).filter(|rest| !is_of_a_service(rest));
        own.is_some()
            && *name != CONFIG_VARIABLE
            && OPTIONS.iter().all(|option| option.variable() != *name)
    };
    let fault = |name: &str| {
        let key = name[VARIABLE_PREFIX.len()..].to_lowercase();
        let advice = match nearest(known_keys().chain(["config".to_owned()]), &key) {
            Some(nearest) => format!("did you mean {VARIABLE_PREFIX}{}?", nearest.to_uppercase()),
            None => "`student-trainer train --help` lists the flags (here in capitals, with _ for \
                     -)"
            .to_owned(),
        };
        format!("unknown environment variable {name}; {advice}")
    };
    names.into_iter().filter(unknown).map(fault).collect()
}

/// Whether a variable, after its prefix, is one that Kubernetes sets in every container of a
/// namespace for a service of this program's name: nobody wrote it.
fn is_of_a_service(rest: &str) -> bool {
    let names = ["SERVICE_HOST", "SERVICE_PORT", "PORT"];
    names.contains(&rest) || rest.starts_with("SERVICE_PORT_") || rest.starts_with("PORT_")
}

fn unknown_key(path: &Path, key: &str) -> String {
    if key == "config" {
        let path = path.display();
        return format!(
            "{path}: `config` names this file and cannot stand in it; take it out (a file reads no \
             other one)"
        );
    }
    let advice = match nearest(known_keys(), &key.replace('-', "_")) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "`student-trainer train --help` lists the keys (with _ for -)".to_owned(),
    };
    format!("{}: unknown key `{key}`; {advice}", path.display())
}

fn known_keys() -> impl Iterator<Item = String> {
    OPTIONS.iter().map(OptionSpec::key)
}

/// The known name that a person may have meant, if one is near.
fn nearest(known: impl Iterator<Item = String>, key: &str) -> Option<String> {
    let distance = |name: &String| strsim::damerau_levenshtein(name, key);
    known.min_by_key(distance).filter(|nearest| distance(nearest) <= 2 + nearest.len() / 3)
}
