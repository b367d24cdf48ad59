//! Why a model or a dataset could not be had, and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

/// Why a model or a dataset could not be had. Never holds a token.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Neither a folder nor an id.
    #[error(
        "\"{spec}\" is not a directory (or .gguf file) on this machine, and it does not look like a hub id \
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
    /// A revision that cannot be one.
    #[error("\"{revision}\" cannot be a branch, tag or commit")]
    BadRevision {
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
    /// A GGUF file without what a model needs beside its weights.
    #[error(
        "{id} has its weights as {file}, and {missing} is missing, as in most repositories of GGUF files: copy \
         config.json and tokenizer.json from the repository of the unquantised model into the directory of the file"
    )]
    GgufAlone {
        /// File, folder or hub id.
        id: String,
        /// The file.
        file: String,
        /// What is missing.
        missing: String,
    },
    /// Several GGUF files.
    #[error("{dir} holds several GGUF files; name the one that is meant: {}", listing(.files))]
    SeveralGguf {
        /// The folder.
        dir: PathBuf,
        /// Their names.
        files: Vec<String>,
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
    /// An index that names what is not there.
    #[error("{id}: {index} {reason}")]
    BadIndex {
        /// Folder or hub id.
        id: String,
        /// The index file.
        index: String,
        /// What is wrong with it.
        reason: String,
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
    /// Downloads are forbidden and the cache lacks something.
    #[error(
        "{id} (revision {revision}) is not complete in the cache {cache}: {missing} is missing, \
         and {variable} forbids downloading it; unset {variable}, or give a local directory"
    )]
    Offline {
        /// The hub id.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing.
        missing: String,
        /// The variable.
        variable: &'static str,
    },
    /// The hub does not know the id, or hides it.
    #[error(
        "{endpoint} has no {kind} \"{id}\" (status {status}), or it is private{}; check the \
         spelling", token_hint(*.token_sent)
    )]
    NoRepository {
        /// The hub.
        endpoint: String,
        /// `model` or `dataset`.
        kind: &'static str,
        /// The id.
        id: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub does not know the revision.
    #[error("{id} has no revision \"{revision}\" (branch, tag or commit) at {endpoint}")]
    NoRevision {
        /// The hub.
        endpoint: String,
        /// The id.
        id: String,
        /// The revision.
        revision: String,
    },
    /// The hub lists a file and does not give it.
    #[error("{url} does not exist (status 404) although the repository lists it")]
    NoFile {
        /// The address.
        url: String,
    },
    /// A licence has to be accepted first.
    #[error(
        "{id} is gated (status {status}): accept its terms at {page}{}", token_hint(*.token_sent)
    )]
    Gated {
        /// The id.
        id: String,
        /// The page where the terms are.
        page: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// Not allowed.
    #[error("{endpoint} refuses access to {id} (status {status}){}", token_hint(*.token_sent))]
    Refused {
        /// The hub.
        endpoint: String,
        /// The id.
        id: String,
        /// The HTTP status.
        status: u16,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// No answer at all.
    #[error(
        "cannot reach {url}: {reason}; check the network, or HF_ENDPOINT if you use another hub. \
         With HF_HUB_OFFLINE=1 only the cache is used"
    )]
    Unreachable {
        /// The address.
        url: String,
        /// The reason.
        reason: String,
    },
    /// Too late.
    #[error("{url} did not answer within {} s; raise {variable} (seconds)", .after.as_secs_f64())]
    TimedOut {
        /// The address.
        url: String,
        /// How long was waited.
        after: Duration,
        /// The variable that sets it.
        variable: &'static str,
    },
    /// Another status.
    #[error("{url} answered with status {status}{message}; try again later")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the hub said, ready to be read after the status.
        message: String,
    },
    /// An answer that makes no sense.
    #[error("{url} does not answer as a hub does: {reason}; is HF_ENDPOINT right?")]
    BadAnswer {
        /// The address.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A download that broke off again and again.
    #[error(
        "the download of {file} broke off at {have} of {want} bytes: {reason}; run the same \
         command again, it goes on from there"
    )]
    BrokenOff {
        /// The file's name in the repository.
        file: String,
        /// Bytes on disk.
        have: u64,
        /// Bytes wanted.
        want: u64,
        /// The last reason.
        reason: String,
    },
    /// A download that is not what was promised.
    #[error(
        "the download of {file} is damaged: its {what} is {found}, the hub promised {wanted}; it \
         was thrown away, run the same command again"
    )]
    Damaged {
        /// The file's name in the repository.
        file: String,
        /// `size` or `SHA-256`.
        what: &'static str,
        /// What came.
        found: String,
        /// What was promised.
        wanted: String,
    },
    /// A dataset name that is none.
    #[error("\"{spec}\" is not hf://datasets/ORG/NAME[@REV][/SPLIT]: {reason}")]
    DatasetName {
        /// What was given.
        spec: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No files of that split.
    #[error(
        "{id} has no split \"{split}\"{}; its data files are {}", offers(.splits), listing(.files)
    )]
    NoSplit {
        /// The id.
        id: String,
        /// The split asked for.
        split: String,
        /// What could be asked for.
        splits: Vec<String>,
        /// Its JSONL and Parquet files.
        files: Vec<String>,
    },
    /// Files of several subsets.
    #[error(
        "the split \"{split}\" of {id} exists in several subsets; ask for one: {}",
        listing(.choices)
    )]
    ManySubsets {
        /// The id.
        id: String,
        /// The split asked for.
        split: String,
        /// `SUBSET/SPLIT` of each.
        choices: Vec<String>,
    },
}

/// A short list of names.
pub(crate) fn listing(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names.len() {
        0 => "none".to_owned(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

fn offers(splits: &[String]) -> String {
    if splits.is_empty() { String::new() } else { format!(", but {}", splits.join(", ")) }
}

fn token_hint(token_sent: bool) -> &'static str {
    match token_sent {
        true => "; the token that was sent (HF_TOKEN or the token file) does not give access to it",
        false => "; no token was sent: set HF_TOKEN, or run `hf auth login` once",
    }
}
