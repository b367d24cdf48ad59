//! Messages to text, through the model's own chat template.
//!
//! Templates come from strangers: they run with a budget of work and memory and a limit on
//! recursion, and see the messages and nothing else. The environment is the one transformers
//! builds (`trim_blocks`, `lstrip_blocks`, Python's string methods, its `tojson`,
//! `raise_exception`, `strftime_now`), so that both write the same text.

#[path = "chat/find.rs"]
mod find;
#[path = "chat/json.rs"]
mod json;

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use crate::files::FileError;
use crate::tokenizer::SpecialTokens;

/// Work one rendering may do: about one unit an instruction and one for each 64 bytes it makes, so
/// at most a tenth of a second or so and 128 MB. A real template on a long conversation uses a few
/// per cent.
const FUEL: u64 = 2_000_000;

/// Depth of calls and nested blocks of one rendering.
const RECURSION: usize = 200;

/// Longest template, in bytes. Real ones stay under half of it.
const MAX_SOURCE: usize = 1 << 16;

/// Stack for the engine, in bytes. It parses chains (`a.b.c…`, `not not …`, `elif … elif …`) and
/// drops nested values by recursion, which its own limit does not cover: this is some
/// times what the bounds above can need. Only the part touched is ever real memory.
const STACK: usize = 256 << 20;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, …
    pub role: String,
    /// What is said.
    pub content: String,
    /// Whatever else the turn carries (`reasoning_content`, `tool_calls`, …), for the template.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), extra: serde_json::Map::new() }
    }
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: PathBuf,
    special: SpecialTokens,
}

/// Why a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// A file is unreadable or not JSON.
    #[error(transparent)]
    File(#[from] FileError),
    /// A configuration whose `chat_template` is neither text nor a list of named texts.
    #[error("{file}: \"chat_template\" holds {found}; wanted text, or a list with one \"default\"")]
    Shape {
        /// The file.
        file: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The template cannot be compiled.
    #[error("chat template {file}, line {line}: {reason}")]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line within the template, from 1.
        line: usize,
        /// The engine's reason.
        reason: String,
    },
    /// A template beyond the bound.
    #[error("chat template {file} has {found} bytes; more than {MAX_SOURCE} are not accepted")]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its length in bytes.
        found: usize,
    },
    /// The template failed, or refused the conversation itself.
    #[error("chat template {file}, line {line}: {reason}")]
    Render {
        /// The file.
        file: PathBuf,
        /// Line within the template, from 1.
        line: usize,
        /// The engine's reason, or what the template said.
        reason: String,
    },
    /// The template used up its budget.
    #[error(
        "chat template {file}, line {line}: stopped after {FUEL} units of work; a real template \
         needs a small part of that, so it loops or the conversation is enormous"
    )]
    OutOfFuel {
        /// The file.
        file: PathBuf,
        /// Line within the template, from 1.
        line: usize,
    },
}

impl ChatTemplate {
    /// Loads a model folder's template: `chat_template.jinja`, else the `chat_template` of
    /// tokenizer_config.json (text, or the entry named `default` of a list), else that of
    /// chat_template.json; `None` when there is none.
    ///
    /// # Errors
    /// [`ChatError`], naming the file and line.
    pub fn load(dir: &Path) -> Result<Option<Self>, ChatError> {
        let Some((file, source)) = find::template_source(dir)? else { return Ok(None) };
        let special = SpecialTokens::load(dir)?;
        Self::compile(&source, file, special).map(Some)
    }

    /// Compiles a template; `file` is what errors call it.
    ///
    /// # Errors
    /// [`ChatError::Syntax`].
    pub fn compile(source: &str, file: PathBuf, special: SpecialTokens) -> Result<Self, ChatError> {
        let source = find::without_generation_tags(source);
        if source.len() > MAX_SOURCE {
            return Err(ChatError::TooLarge { file, found: source.len() });
        }
        let mut environment = new_environment();
        let added = stacker::grow(STACK, || environment.add_template_owned(TEMPLATE, source));
        if let Err(error) = added {
            let (line, reason) = place_and_reason(&error);
            return Err(ChatError::Syntax { file, line, reason });
        }
        Ok(Self { environment, file, special })
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where an answer would
    /// begin.
    ///
    /// # Errors
    /// [`ChatError`] when the template fails, refuses the messages or runs for too long.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", messages.iter().map(for_template).collect()),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        context.extend(self.special.iter().map(|(role, token)| (role, Value::from(token))));
        let context = Value::from_pairs(context);
        let rendered = stacker::grow(STACK, || {
            self.environment.get_template(TEMPLATE).and_then(|template| template.render(context))
        });
        rendered.map_err(|error| self.failure(&error))
    }

    /// The file the template came from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    fn failure(&self, error: &minijinja::Error) -> ChatError {
        let (line, reason) = place_and_reason(error);
        let file = self.file.clone();
        if error.kind() == ErrorKind::OutOfFuel {
            return ChatError::OutOfFuel { file, line };
        }
        ChatError::Render { file, line, reason }
    }
}

/// The one template's name inside the engine; its ending must not choose an escaping.
const TEMPLATE: &str = "chat";

fn new_environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the standard delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, _> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    // Read once: all rows of a run see the same date.
    let now = jiff::Zoned::now();
    environment.add_function("strftime_now", move |format: String, _rest: Rest<Value>| {
        jiff::fmt::strtime::format(&format, &now)
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    environment
}

/// A message as templates see it. Reasoning goes by several names; as in transformers it is given
/// under the two that templates read.
fn for_template(message: &Message) -> Value {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|name| message.extra.get(*name)) else {
        return Value::from(Serde(message));
    };
    let mut entries = vec![("thinking", Value::from(Serde(reasoning)))];
    entries.push(("role", Value::from(message.role.as_str())));
    entries.push(("content", Value::from(message.content.as_str())));
    entries.extend(message.extra.iter().map(|(name, value)| (&**name, Value::from(Serde(value)))));
    entries.push(("reasoning_content", Value::from(Serde(reasoning))));
    Value::from_pairs(entries)
}

/// Line (1 when unknown) and reason, with the reasons below it.
fn place_and_reason(error: &minijinja::Error) -> (usize, String) {
    let mut reason = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    (error.line().unwrap_or(1), reason)
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
