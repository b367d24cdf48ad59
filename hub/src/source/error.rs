//! Why a model or a dataset could not be had, and what to do about it.

use std::path::PathBuf;

/// Why a model or a dataset could not be had. Never holds a token.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor an id.
    #[error(
        "\"{spec}\" is not a directory on this machine, and it does not look like a hub id \
         (ORG/NAME) either"
    )]
    NotASource {
        /// What was given.
        spec: String,
    },
    /// A revision of something that has none.
    #[error("revision \"{revision}\" makes no sense for the directory {spec}; leave it out")]
    RevisionOfDirectory {
        /// The directory.
        spec: String,
        /// The revision asked for.
        revision: String,
    },
    /// No config.json.
    #[error("{id} has no config.json, so it is not a model; it holds {}", listing(.found))]
    NotAModel {
        /// Folder or hub id.
        id: String,
        /// The names found.
        found: Vec<String>,
    },
    /// Weights that would run code.
    #[error(
        "{id} has its weights only as {file}, a pickle file, which can run any code when read; \
         convert it to safetensors (save_pretrained in transformers does)"
    )]
    OnlyPickle {
        /// Folder or hub id.
        id: String,
        /// One such file.
        file: String,
    },
    /// The file system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
}

/// A short list of names.
pub(crate) fn listing(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0 => "nothing".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}
