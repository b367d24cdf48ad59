//! What the environment says of the hub: the variables Python's `huggingface_hub` reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A hub token. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Wraps a token; surrounding white space goes, and an empty one is none.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    /// The value of an `Authorization` header.
    pub(crate) fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// How downloads show themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// A bar on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// A bar.
    Bar,
    /// A line at the start and end of each file, and every ten seconds.
    Plain,
    /// Nothing.
    None,
}

/// Where the cache is, which hub is asked, as whom, and whether at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// The cache's folder, shared with Python.
    pub cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Who asks.
    pub token: Option<Token>,
    /// The variable that forbids downloads, if one does.
    pub offline: Option<&'static str>,
    /// How long to wait for a connection and for the head of an answer.
    pub answer_timeout: Duration,
    /// How long a download may stand still.
    pub stall_timeout: Duration,
    /// How downloads show themselves.
    pub progress: Progress,
}

impl HubSettings {
    /// Settings from this process's environment.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// Settings from variables given by name. Read are `HF_HUB_CACHE` (or
    /// `HUGGINGFACE_HUB_CACHE`), `HF_HOME`, `XDG_CACHE_HOME`, `HOME`; `HF_ENDPOINT`; `HF_TOKEN`
    /// (or `HUGGING_FACE_HUB_TOKEN`), `HF_TOKEN_PATH`; `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`;
    /// `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT` (seconds, 10 each);
    /// `HF_HUB_DISABLE_PROGRESS_BARS`. An empty variable counts as unset.
    pub fn from_vars(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| set(name).map(|value| expand_home(&value, set("HOME").as_deref()));
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            caches.unwrap_or_else(|| PathBuf::from(".cache")).join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN"));
        let seconds = |name: &str| {
            let seconds = set(name).and_then(|value| value.trim().parse().ok());
            Duration::from_secs(seconds.filter(|&s| s > 0).unwrap_or(10))
        };
        let hidden = is_true(set("HF_HUB_DISABLE_PROGRESS_BARS"));
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: set("HF_ENDPOINT")
                .map_or(DEFAULT_ENDPOINT.to_owned(), |e| e.trim().trim_end_matches('/').to_owned()),
            token: token.and_then(|t| Token::new(&t)).or_else(|| token_of_file(&token_file)),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .into_iter()
                .find(|name| is_true(set(name))),
            answer_timeout: seconds("HF_HUB_ETAG_TIMEOUT"),
            stall_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT"),
            progress: if hidden { Progress::None } else { Progress::Auto },
        }
    }
}

/// Where this project keeps what it can fetch or make again: `limbeck` in `$XDG_CACHE_HOME` or `~/.cache`;
/// nowhere where neither variable is set. An empty variable counts as unset.
pub fn own_cache() -> Option<PathBuf> {
    own_cache_by(|name| std::env::var_os(name).map(PathBuf::from))
}

fn own_cache_by(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|path| !path.as_os_str().is_empty());
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    caches.map(|caches| caches.join("limbeck"))
}

/// What Python's library takes for true.
fn is_true(value: Option<String>) -> bool {
    value.is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.trim().to_uppercase().as_str()))
}

fn token_of_file(file: &Path) -> Option<Token> {
    Token::new(&std::fs::read_to_string(file).ok()?)
}

fn expand_home(path: &str, home: Option<&str>) -> PathBuf {
    match (path.strip_prefix('~'), home) {
        (Some(""), Some(home)) => PathBuf::from(home),
        (Some(rest), Some(home)) if rest.starts_with('/') => Path::new(home).join(&rest[1..]),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_vars(|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_where_python_looks() {
        let cache = |vars: &[_]| settings(vars).cache;
        assert_eq!(cache(&[("HOME", "/h")]), Path::new("/h/.cache/huggingface/hub"));
        let xdg = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(cache(&xdg), Path::new("/x/huggingface/hub"));
        let home = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "~/hf")];
        assert_eq!(cache(&home), Path::new("/h/hf/hub"));
        let old = [("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")];
        assert_eq!(cache(&old), Path::new("/old"));
        let both = [("HF_HUB_CACHE", "/new"), ("HUGGINGFACE_HUB_CACHE", "/old")];
        assert_eq!(cache(&both), Path::new("/new"));
    }

    #[test]
    fn what_is_our_own_is_kept_beside_other_caches() {
        let kept = |vars: &[(&str, &str)]| {
            own_cache_by(|name| Some(vars.iter().find(|(n, _)| *n == name)?.1.into()))
        };
        assert_eq!(kept(&[("HOME", "/h")]), Some("/h/.cache/limbeck".into()));
        assert_eq!(kept(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/limbeck".into()));
        let empty = [("HOME", "/h"), ("XDG_CACHE_HOME", "")];
        assert_eq!(kept(&empty), Some("/h/.cache/limbeck".into()));
        assert_eq!(kept(&[]), None);
    }

    #[test]
    fn offline_names_the_variable_that_says_so() {
        assert_eq!(settings(&[("HF_HUB_OFFLINE", "1")]).offline, Some("HF_HUB_OFFLINE"));
        assert_eq!(
            settings(&[("TRANSFORMERS_OFFLINE", "yes")]).offline,
            Some("TRANSFORMERS_OFFLINE")
        );
        assert_eq!(settings(&[("HF_HUB_OFFLINE", "0")]).offline, None);
        assert_eq!(settings(&[("HF_HUB_OFFLINE", "")]).offline, None);
    }

    #[test]
    fn the_token_comes_from_the_variable_then_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_of_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let of_file = settings(&[("HF_HOME", home)]);
        assert_eq!(of_file.token, Token::new("hf_of_file"));
        let of_variable = settings(&[("HF_HOME", home), ("HF_TOKEN", " hf_of_variable ")]);
        assert_eq!(of_variable.token, Token::new("hf_of_variable"));
        assert!(!format!("{of_variable:?}").contains("hf_of"), "{of_variable:?}");
    }

    #[test]
    fn the_endpoint_loses_its_last_slash() {
        assert_eq!(settings(&[]).endpoint, DEFAULT_ENDPOINT);
        assert_eq!(settings(&[("HF_ENDPOINT", "http://m:1/")]).endpoint, "http://m:1");
    }
}
