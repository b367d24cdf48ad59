//! The special tokens a model folder names beside its tokenizer.json.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::TokenizerError;
use crate::files;

/// The roles transformers knows; a chat template may use each by its name.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Role (`eos_token`) to token (`<|im_end|>`), and the tokens with an id of their own in
/// tokenizer_config.json.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    by_role: BTreeMap<String, (String, &'static str)>,
    with_id: Vec<(u32, String)>,
}

impl SpecialTokens {
    /// Reads tokenizer_config.json, and special_tokens_map.json for roles the former leaves out.
    ///
    /// # Errors
    /// When a file exists and is not JSON.
    pub fn load(dir: &Path) -> Result<Self, files::FileError> {
        let mut tokens = Self::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(config) = files::read_json_if_any(&dir.join(name))? else { continue };
            for role in ROLES {
                if let Some(token) = token_text(&config[role]) {
                    let known = tokens.by_role.entry(role.to_owned());
                    known.or_insert_with(|| (token.to_owned(), name));
                }
            }
            let added = config["added_tokens_decoder"].as_object().into_iter().flatten();
            tokens.with_id.extend(
                added.filter_map(|(id, token)| {
                    Some((id.parse().ok()?, token_text(token)?.to_owned()))
                }),
            );
        }
        Ok(tokens)
    }

    /// The token of a role.
    pub fn get(&self, role: &str) -> Option<&str> {
        self.by_role.get(role).map(|(token, _)| token.as_str())
    }

    /// All roles that are named, with their tokens.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_role.iter().map(|(role, (token, _))| (role.as_str(), token.as_str()))
    }

    /// transformers would give a token that tokenizer.json lacks a new id of its own; the ids
    /// would then no longer be those of the file, so a disagreement is refused.
    pub(super) fn check_against(
        &self,
        dir: &Path,
        tokenizer: &tokenizers::Tokenizer,
    ) -> Result<(), TokenizerError> {
        let disagree = |config, token: &str, wanted: Option<u32>, found: Option<u32>| {
            TokenizerError::Disagree {
                dir: dir.to_owned(),
                config,
                token: token.to_owned(),
                wanted: wanted.map_or(String::new(), |id| format!(" with id {id}")),
                found: found.map_or("no id".to_owned(), |id| format!("id {id}")),
            }
        };
        for (id, token) in &self.with_id {
            let found = tokenizer.token_to_id(token);
            if found != Some(*id) {
                return Err(disagree("tokenizer_config.json", token, Some(*id), found));
            }
        }
        match self.by_role.get("eos_token") {
            Some((token, config)) if tokenizer.token_to_id(token).is_none() => {
                Err(disagree(config, token, None, None))
            }
            _ => Ok(()),
        }
    }
}

/// A token is written as a string or as an object with its `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}
