//! Which file of a model folder holds its chat template.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ChatError;
use crate::files;

/// The template's file and text, in transformers' order of precedence.
pub(super) fn template_source(dir: &Path) -> Result<Option<(PathBuf, String)>, ChatError> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        let source = files::read_text(&jinja)?;
        return Ok(Some((jinja, source)));
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let file = dir.join(name);
        let Some(config) = files::read_json_if_any(&file)? else { continue };
        match &config["chat_template"] {
            Value::Null => {}
            Value::String(source) => return Ok(Some((file, source.clone()))),
            Value::Array(named) => return default_of(named, file).map(Some),
            other @ (Value::Bool(_) | Value::Number(_) | Value::Object(_)) => {
                let found = excerpt(&other.to_string());
                return Err(ChatError::Shape { file, found });
            }
        }
    }
    Ok(None)
}

fn default_of(named: &[Value], file: PathBuf) -> Result<(PathBuf, String), ChatError> {
    let default = named.iter().find(|entry| entry["name"] == "default");
    match default.and_then(|entry| entry["template"].as_str()) {
        Some(source) => Ok((file, source.to_owned())),
        None => {
            let names = named.iter().filter_map(|entry| entry["name"].as_str());
            let names: Vec<&str> = names.collect();
            let found = format!("a list named [{}]", excerpt(&names.join(", ")));
            Err(ChatError::Shape { file, found })
        }
    }
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

/// transformers marks the assistant's part of a template with `{% generation %}` … `{%
/// endgeneration %}`, which change no text: here they become a condition that always holds.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        out.push_str(
            &match tag[2..tag.len() - 2].trim_matches(['-', '+', ' ', '\t', '\n', '\r']) {
                "generation" => tag.replacen("generation", "if true", 1),
                "endgeneration" => tag.replacen("endgeneration", "endif", 1),
                _ => tag.to_owned(),
            },
        );
        rest = after;
    }
    out.push_str(rest);
    out
}
