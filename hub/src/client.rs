//! Questions to the hub's HTTP interface, and what its answers mean.
//!
//! Names, addresses and cache paths come from the `hf-hub` crate; the requests themselves do not,
//! because its own neither time out, nor tell a gated repository from a missing one, nor keep the
//! token from the storage server a large file is redirected to.

use std::time::Duration;

use hf_hub::api::RepoInfo;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

use crate::settings::HubSettings;
use crate::source::HubError;

/// How often an overloaded hub is asked again.
const RETRIES: u32 = 3;

/// Largest description of a repository, in bytes.
const MAX_INFO: u64 = 64 << 20;

/// A repository of the hub at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) revision: String,
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

impl Repository {
    /// The same in the words of `hf-hub`, which knows addresses and folder names.
    pub(crate) fn named(&self) -> hf_hub::Repo {
        let kind = match self.kind {
            Kind::Model => hf_hub::RepoType::Model,
            Kind::Dataset => hf_hub::RepoType::Dataset,
        };
        hf_hub::Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }
}

/// What the hub says of a file before it is downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// The blob's name in the cache: SHA-256 of a large file, git's hash of a small one.
    pub(crate) etag: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Asks one hub.
pub(crate) struct Client<'a> {
    settings: &'a HubSettings,
    /// Redirects are answers: they carry what is to be known of a file.
    asking: Agent,
    /// Redirects are followed, the token only to the same host.
    fetching: Agent,
}

impl<'a> Client<'a> {
    pub(crate) fn new(settings: &'a HubSettings) -> Self {
        let config = || {
            Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(concat!("limbeck/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(settings.answer_timeout))
                .timeout_connect(Some(settings.answer_timeout))
                .timeout_recv_response(Some(settings.answer_timeout))
                .timeout_per_read(Some(settings.stall_timeout))
        };
        let same_host = ureq::config::RedirectAuthHeaders::SameHost;
        Self {
            settings,
            asking: config().max_redirects(0).max_redirects_will_error(false).build().into(),
            fetching: config().redirect_auth_headers(same_host).build().into(),
        }
    }

    /// The commit a revision stands for, and the names of its files.
    pub(crate) fn info(&self, repo: &Repository) -> Result<RepoInfo, HubError> {
        let url = format!("{}/api/{}", self.settings.endpoint, repo.named().api_url());
        let answer = self.ask(|| self.with_token(self.fetching.get(&url)).call(), &url)?;
        let mut answer = self.expect_success(answer, repo, &url, false)?;
        let bad = |reason: String| HubError::BadAnswer { url: url.clone(), reason };
        let text = answer.body_mut().with_config().limit(MAX_INFO).read_to_vec();
        let text = text.map_err(|e| bad(e.to_string()))?;
        let info: RepoInfo = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
        if !is_plain_name(&info.sha) {
            return Err(bad(format!("commit \"{}\"", info.sha.escape_debug())));
        }
        match info.siblings.iter().find(|file| !is_safe_path(&file.rfilename)) {
            Some(file) => Err(bad(format!("file name \"{}\"", file.rfilename.escape_debug()))),
            None => Ok(info),
        }
    }

    /// What the hub says of a file.
    pub(crate) fn file_facts(&self, repo: &Repository, file: &str) -> Result<FileFacts, HubError> {
        let mut url = self.file_url(repo, file);
        // A moved repository is redirected within the hub; only what leads elsewhere is storage.
        for _ in 0..5 {
            let request = || {
                let request = self.asking.head(&url).header("Accept-Encoding", "identity");
                self.with_token(request).call()
            };
            let answer = self.ask(request, &url)?;
            match self.relative_redirect(&answer) {
                Some(next) => url = next,
                None => {
                    let answer = self.expect_success(answer, repo, &url, true)?;
                    return facts_of(answer.headers(), answer.status().is_redirection(), &url);
                }
            }
        }
        Err(HubError::BadAnswer { url, reason: "it redirects in circles".to_owned() })
    }

    /// The content of a file from byte `from` on; the status says whether the hub obeyed (206).
    pub(crate) fn content(
        &self,
        repo: &Repository,
        file: &str,
        from: u64,
    ) -> Result<Response<Body>, HubError> {
        let url = self.file_url(repo, file);
        let request = || {
            let mut request = self.fetching.get(&url).header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            self.with_token(request).call()
        };
        let answer = self.ask(request, &url)?;
        // The part on disk is as long as the file, or longer: the caller starts anew.
        if answer.status().as_u16() == 416 {
            return Ok(answer);
        }
        self.expect_success(answer, repo, &url, true)
    }

    fn file_url(&self, repo: &Repository, file: &str) -> String {
        let named = repo.named();
        let path: Vec<String> = file.split('/').map(percent_encoded).collect();
        let (endpoint, path) = (&self.settings.endpoint, path.join("/"));
        format!("{endpoint}/{}/resolve/{}/{path}", named.url(), named.url_revision())
    }

    fn with_token<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.settings.token {
            Some(token) => request.header("Authorization", token.authorization()),
            None => request,
        }
    }

    /// Sends a request, again when the hub is overloaded.
    fn ask(
        &self,
        request: impl Fn() -> Result<Response<Body>, ureq::Error>,
        url: &str,
    ) -> Result<Response<Body>, HubError> {
        for attempt in 0.. {
            match request() {
                Ok(answer) if is_overload(answer.status().as_u16()) && attempt < RETRIES => {
                    std::thread::sleep(Duration::from_millis(300 << attempt));
                }
                Ok(answer) => return Ok(answer),
                Err(error) => return Err(self.failure(error, url)),
            }
        }
        unreachable!("the loop returns")
    }

    fn failure(&self, error: ureq::Error, url: &str) -> HubError {
        let url = url.to_owned();
        if let ureq::Error::Timeout(_) = error {
            let (after, variable) = (self.settings.answer_timeout, "HF_HUB_ETAG_TIMEOUT");
            return HubError::TimedOut { url, after, variable };
        }
        if let ureq::Error::BadUri(reason) = error {
            return HubError::BadAnswer { url, reason };
        }
        let no_host = matches!(error, ureq::Error::HostNotFound);
        let reason = if no_host { "there is no such host".to_owned() } else { error.to_string() };
        HubError::Unreachable { url, reason }
    }

    /// The address a redirect within the hub leads to.
    fn relative_redirect(&self, answer: &Response<Body>) -> Option<String> {
        let location = header(answer.headers(), "location")?;
        let within = answer.status().is_redirection()
            && location.starts_with('/')
            && !location.starts_with("//");
        within.then(|| {
            let host_end = self.settings.endpoint.find("://").map_or(0, |at| at + 3);
            let path = self.settings.endpoint[host_end..].find('/');
            let host = path
                .map_or(&*self.settings.endpoint, |at| &self.settings.endpoint[..host_end + at]);
            format!("{host}{location}")
        })
    }

    fn expect_success(
        &self,
        answer: Response<Body>,
        repo: &Repository,
        url: &str,
        of_file: bool,
    ) -> Result<Response<Body>, HubError> {
        let status = answer.status().as_u16();
        if status < 400 {
            return Ok(answer);
        }
        let code = header(answer.headers(), "x-error-code").unwrap_or_default();
        let token_sent = self.settings.token.is_some();
        let (endpoint, id) = (self.settings.endpoint.clone(), repo.id.clone());
        Err(match (code, status) {
            ("GatedRepo", _) => {
                let page = format!("{endpoint}/{}", repo.named().url());
                HubError::Gated { id, page, status, token_sent }
            }
            ("RevisionNotFound", _) => {
                HubError::NoRevision { endpoint, id, revision: repo.revision.clone() }
            }
            ("EntryNotFound", _) => HubError::NoFile { url: url.to_owned() },
            // A file of a repository whose description was just read is what is missing.
            (_, 404) if of_file && code != "RepoNotFound" => {
                HubError::NoFile { url: url.to_owned() }
            }
            ("RepoNotFound", _) | (_, 404) => {
                let kind = repo.kind.name();
                HubError::NoRepository { endpoint, kind, id, status, token_sent }
            }
            (_, 401 | 403) => HubError::Refused { endpoint, id, status, token_sent },
            _ => {
                let said = header(answer.headers(), "x-error-message").unwrap_or_default();
                let said: String = said.chars().take(200).collect();
                let message = if said.is_empty() { said } else { format!(" ({said})") };
                HubError::Status { url: url.to_owned(), status, message }
            }
        })
    }
}

fn is_overload(status: u16) -> bool {
    matches!(status, 429 | 500 | 502 | 503 | 504)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn facts_of(headers: &HeaderMap, redirected: bool, url: &str) -> Result<FileFacts, HubError> {
    let bad = |reason: &str| HubError::BadAnswer { url: url.to_owned(), reason: reason.to_owned() };
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
    let etag = etag.ok_or_else(|| bad("no ETag"))?;
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    if !is_plain_name(etag) {
        return Err(bad("an ETag that cannot be a file name"));
    }
    // The length of a redirect is that of the redirect.
    let length = || header(headers, "content-length").filter(|_| !redirected);
    let size = header(headers, "x-linked-size").or_else(length);
    let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| bad("no size"))?;
    Ok(FileFacts { etag: etag.to_owned(), size })
}

/// Whether text may be one component of a path in the cache.
fn is_plain_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=128).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}

/// Whether a path stays below the folder it is joined to.
pub(crate) fn is_safe_path(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':'])
    })
}

fn percent_encoded(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~+=,@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
