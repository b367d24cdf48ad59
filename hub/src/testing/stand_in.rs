//! A hub on a loopback port: repositories in memory, and every request written down.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::settings::{HubSettings, Token};

/// A repository the stand-in offers.
#[derive(Clone, Debug, Default)]
pub struct Hosted {
    /// `ORG/NAME`.
    pub id: String,
    /// A dataset, or else a model.
    pub dataset: bool,
    /// Commit that `main`, the tags and the commit itself lead to.
    pub commit: String,
    /// Further names of the commit.
    pub tags: Vec<String>,
    /// Files by path. Those ending in `.safetensors` or `.parquet` are large files: redirected to
    /// a storage server, named by their SHA-256.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The token it takes to see more than its name.
    pub gated: Option<String>,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next downloads of more bytes than `after`, so many, end there.
    Cut {
        /// How many downloads.
        times: u32,
        /// Bytes each sends.
        after: usize,
    },
    /// Content is sent with one byte changed.
    Flip,
    /// Ranges are ignored, as some mirrors do.
    NoRanges,
    /// The next answers, so many, are this status.
    Status {
        /// How many answers.
        times: u32,
        /// The HTTP status.
        status: u16,
    },
    /// Connections are taken and never answered.
    Silent,
}

#[derive(Default)]
struct State {
    hosted: Vec<Hosted>,
    fault: Option<Fault>,
    requests: Vec<String>,
}

/// The running stand-in; it ends with the process.
pub struct StandIn {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    /// Starts a stand-in that offers these repositories.
    ///
    /// # Panics
    /// When there is no loopback port to be had.
    pub fn start(hosted: Vec<Hosted>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port");
        let port = listener.local_addr().expect("its address").port();
        let state = Arc::new(Mutex::new(State { hosted, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || {
                    // A client that goes away is no failure of the stand-in.
                    let _ = serve(&stream, port, &state);
                });
            }
        });
        Self { port, state }
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Settings that use it, with a cache of the test's own.
    pub fn settings(&self, cache: &std::path::Path, token: Option<&str>) -> HubSettings {
        let mut settings = HubSettings::from_vars(|_| None);
        settings.cache = cache.to_owned();
        settings.endpoint = self.endpoint();
        settings.token = token.and_then(Token::new);
        settings.progress = crate::settings::Progress::None;
        settings
    }

    /// Lets something go wrong from now on; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        lock(&self.state).fault = fault;
    }

    /// Replaces what is offered.
    pub fn host(&self, hosted: Vec<Hosted>) {
        lock(&self.state).hosted = hosted;
    }

    /// The requests since the last call, as `METHOD PATH`, with ` range=N` where a part was asked
    /// for and ` token` where a token came along.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.state).requests)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    method: String,
    path: String,
    from: Option<usize>,
    token: Option<String>,
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes really sent.
    sent: usize,
}

fn serve(stream: &TcpStream, port: u16, state: &Mutex<State>) -> std::io::Result<()> {
    let Some(request) = read_request(stream)? else { return Ok(()) };
    let reply = {
        let mut state = lock(state);
        let range = request.from.map_or(String::new(), |from| format!(" range={from}"));
        let token = if request.token.is_some() { " token" } else { "" };
        state.requests.push(format!("{} {}{range}{token}", request.method, request.path));
        if state.fault == Some(Fault::Silent) {
            drop(state);
            std::thread::sleep(std::time::Duration::from_secs(60));
            return Ok(());
        }
        answer(&request, port, &mut state)
    };
    let mut head = format!("HTTP/1.1 {} Stand-in\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", reply.body.len()));
    let mut to = stream;
    to.write_all(head.as_bytes())?;
    if request.method != "HEAD" {
        to.write_all(&reply.body[..reply.sent])?;
    }
    to.flush()
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request = Request { method, path, from: None, token: None };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.trim();
        match name.to_lowercase().as_str() {
            "range" => {
                let from = value.strip_prefix("bytes=").and_then(|v| v.split('-').next());
                request.from = from.and_then(|from| from.parse().ok());
            }
            "authorization" => {
                request.token = value.strip_prefix("Bearer ").map(str::to_owned);
            }
            _ => {}
        }
    }
    Ok(Some(request))
}

fn answer(request: &Request, port: u16, state: &mut State) -> Reply {
    if let Some(Fault::Status { times, status }) = &mut state.fault
        && *times > 0
    {
        *times -= 1;
        return error(*status, "");
    }
    let path = request.path.split('?').next().unwrap_or_default();
    let parts: Vec<String> = path[1..].split('/').map(|part| part.replace("%2F", "/")).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let ["storage", sha] = parts[..] {
        let mut all = state.hosted.iter().flat_map(|repo| repo.files.values());
        let Some(content) = all.find(|content| sha256(content) == sha).cloned() else {
            return error(404, "");
        };
        return body(request, &content, vec![("ETag", "\"storage\"".into())], &mut state.fault);
    }
    let (dataset, id, rest) = match parts[..] {
        ["api", "models", org, name, ref rest @ ..] => (false, format!("{org}/{name}"), rest),
        ["api", "datasets", org, name, ref rest @ ..] => (true, format!("{org}/{name}"), rest),
        ["datasets", org, name, ref rest @ ..] => (true, format!("{org}/{name}"), rest),
        [org, name, ref rest @ ..] => (false, format!("{org}/{name}"), rest),
        _ => return error(404, ""),
    };
    let known = state.hosted.iter().find(|repo| repo.id == id && repo.dataset == dataset);
    let Some(repo) = known.cloned() else {
        // The real hub does not tell strangers what exists.
        return error(if request.token.is_some() { 404 } else { 401 }, "RepoNotFound");
    };
    let ["revision" | "resolve", revision, file @ ..] = rest else { return error(404, "") };
    if *revision != "main" && *revision != repo.commit && !repo.tags.iter().any(|t| t == revision) {
        return error(404, "RevisionNotFound");
    }
    let file = file.join("/");
    if path.starts_with("/api/") {
        let files = repo.files.keys().map(|name| serde_json::json!({ "rfilename": name }));
        let info = serde_json::json!({ "id": id, "sha": repo.commit,
            "siblings": files.collect::<Vec<_>>() });
        return whole(info.to_string().into_bytes(), vec![]);
    }
    if let Some(wanted) = &repo.gated
        && request.token.as_ref() != Some(wanted)
    {
        return error(if request.token.is_some() { 403 } else { 401 }, "GatedRepo");
    }
    let Some(content) = repo.files.get(&file) else { return error(404, "EntryNotFound") };
    of_file(request, port, &repo, &file, content, &mut state.fault)
}

fn of_file(
    request: &Request,
    port: u16,
    repo: &Hosted,
    file: &str,
    content: &[u8],
    fault: &mut Option<Fault>,
) -> Reply {
    let sha = sha256(content);
    let commit = ("X-Repo-Commit", repo.commit.clone());
    if !file.ends_with(".safetensors") && !file.ends_with(".parquet") {
        let etag = ("ETag", format!("\"{}\"", &sha[..40]));
        return body(request, content, vec![commit, etag], fault);
    }
    let headers = vec![
        commit,
        ("X-Linked-Etag", format!("\"{sha}\"")),
        ("X-Linked-Size", content.len().to_string()),
        // Another host name: tokens must not go there.
        ("Location", format!("http://localhost:{port}/storage/{sha}")),
    ];
    Reply { status: 302, headers, body: Vec::new(), sent: 0 }
}

fn body(
    request: &Request,
    content: &[u8],
    mut headers: Vec<(&'static str, String)>,
    fault: &mut Option<Fault>,
) -> Reply {
    let mut content = content.to_vec();
    if let (Some(Fault::Flip), Some(last)) = (&fault, content.last_mut()) {
        *last ^= 1;
    }
    let total = content.len();
    let from = request.from.filter(|_| *fault != Some(Fault::NoRanges));
    let status = match from {
        Some(from) if from >= total => {
            headers.push(("Content-Range", format!("bytes */{total}")));
            return Reply { status: 416, headers, body: Vec::new(), sent: 0 };
        }
        Some(from) => {
            headers.push(("Content-Range", format!("bytes {from}-{}/{total}", total - 1)));
            content.drain(..from);
            206
        }
        None => 200,
    };
    let mut reply = Reply { status, headers, sent: content.len(), body: content };
    if let Some(Fault::Cut { times, after }) = fault
        && *times > 0
        && reply.sent > *after
        && request.method == "GET"
    {
        *times -= 1;
        reply.sent = *after;
    }
    reply
}

fn whole(body: Vec<u8>, headers: Vec<(&'static str, String)>) -> Reply {
    Reply { status: 200, headers, sent: body.len(), body }
}

fn error(status: u16, code: &str) -> Reply {
    let headers = vec![("X-Error-Code", code.to_owned())];
    Reply { status, headers, body: Vec::new(), sent: 0 }
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
