//! A vLLM server as teacher: `vllm+http://HOST:PORT`, asked for `prompt_logprobs`.
//!
//! Its `/v1/completions` gives log-probabilities at T = 1 of the k most probable tokens of each
//! position, and nothing of the others. At T = 1 their mass is what is missing to 1; at another T
//! it cannot be known, and the signal is that of the k tokens alone.

mod answer;

use std::time::Duration;

use proto::causes::with_causes;
use proto::convert::{ScoreJob, Scored};
use serde::Deserialize;
use serde_json::json;
use tonic::Code;

use crate::access::{Access, Token};
use crate::error::{Error, Failure, Fault};
use crate::{address, stranger, trust};
pub use answer::AnswerError;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer that costs the server nothing.
const INFO_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without a byte of a score: the request may wait in the server's queue.
const SCORE_TIMEOUT: Duration = Duration::from_secs(300);
/// Longest answer about the server itself, in bytes.
const MOST_INFO_BYTES: usize = 1 << 20;
/// Longest pause that is kept, in seconds.
const MOST_PAUSE: u64 = 60;
/// Characters of foreign words that are shown.
const SHOWN: usize = 500;

/// Requests kept under way: the server batches what it has, and queues the rest.
pub const IN_FLIGHT: usize = 64;

/// A vLLM server's address, and what it takes to reach it.
#[derive(Clone, Debug)]
pub struct Server {
    url: String,
    base: String,
    /// `HOST:PORT`.
    authority: String,
    http: reqwest::Client,
    access: Access,
}

/// What a vLLM server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The name it serves its model under.
    pub model: String,
    /// Where the model came from, in the server's words; may be empty.
    pub root: String,
    /// Longest sequence, in tokens, the one that is generated with it.
    pub max_model_len: Option<usize>,
}

/// The scheme of an address that this module speaks to; none for another's.
fn scheme(url: &str) -> Option<(&'static str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    match scheme.to_ascii_lowercase().as_str() {
        "vllm+http" => Some(("http", rest)),
        "vllm+https" => Some(("https", rest)),
        _ => None,
    }
}

impl Server {
    /// Whether an address is meant for this dialect.
    pub fn is_meant(url: &str) -> bool {
        // Whoever writes vllm:// means it too, and is told how it is written.
        url.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case("vllm"))
            && url.contains("://")
    }

    /// Reads `vllm+http://HOST:PORT` or `vllm+https://HOST:PORT`; a path before `/v1` is kept.
    ///
    /// # Errors
    /// [`Error::NotVllm`] for what is no such address, [`Error::Access`] for papers that do not fit.
    pub fn parse(url: &str, access: &Access) -> Result<Self, Error> {
        let wrong = |found: String| Error::NotVllm { url: url.to_owned(), found };
        let unfit = |reason: String| Error::Access { url: url.to_owned(), reason };
        let (scheme, rest) = scheme(url).ok_or_else(|| {
            wrong("unknown scheme; known are vllm+http:// and vllm+https://".to_owned())
        })?;
        let rest = rest.trim_end_matches('/');
        let base = format!("{scheme}://{}", rest.strip_suffix("/v1").unwrap_or(rest));
        let parsed = reqwest::Url::parse(&base).map_err(|e| wrong(e.to_string()))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            let found = "a name or a password in an address would be shown".to_owned();
            let host = rest.rsplit('@').next().unwrap_or_default();
            return Err(Error::NotVllm { url: format!("vllm+{scheme}://***@{host}"), found });
        }
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(wrong("an address has no ? and no #".to_owned()));
        }
        // An address without encryption gets settings too: the library's own want a process-wide
        // choice of cryptography.
        let tls = match scheme {
            "https" => access.https(),
            _ => {
                let host = parsed.host_str().unwrap_or_default();
                address::plain(host, access, "vllm+https://").and_then(|()| access.rustls())
            }
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.map_err(unfit)?)
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SCORE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tcp_nodelay(true)
            .build()
            .map_err(|e| wrong(with_causes(&e)))?;
        let port = parsed.port_or_known_default().unwrap_or_default();
        let authority = format!("{}:{port}", parsed.host_str().unwrap_or_default());
        Ok(Self { url: url.to_owned(), base, authority, http, access: access.clone() })
    }

    /// It, as it was given.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The error of something else that listens here; none where that could be a vLLM server.
    pub async fn stranger(&self) -> Option<Error> {
        if self.base.starts_with("https") {
            return None;
        }
        let found = stranger::instead_of_vllm(&self.authority).await?.to_owned();
        Some(Error::NotVllm { url: self.url.clone(), found })
    }

    /// Asks what it serves.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do.
    pub async fn describe(&self) -> Result<Description, Failure> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Model>,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
            root: Option<String>,
            parent: Option<String>,
            max_model_len: Option<usize>,
        }
        let request = self.http.get(format!("{}/v1/models", self.base)).timeout(INFO_TIMEOUT);
        let body = match self.call("GET /v1/models", request, MOST_INFO_BYTES).await {
            Err(Failure::Final(Error::Refused { code: Code::Unimplemented, message, .. })) => {
                return Err(
                    self.foreign(format!("{}/v1/models is not there: {message}", self.base))
                );
            }
            other => other?,
        };
        let models: Models = serde_json::from_slice(&body)
            .map_err(|e| self.foreign(format!("its /v1/models is no list of models ({e})")))?;
        // An adapter names the model it is laid over.
        let base = models.data.into_iter().find(|model| model.parent.is_none());
        let base = base.ok_or_else(|| self.foreign("it serves no model".to_owned()))?;
        let (model, root) = (base.id, base.root.unwrap_or_default());
        // They are printed, and sent with every request.
        if [&model, &root].iter().any(|name| name.len() > SHOWN || name.contains(char::is_control))
        {
            return Err(self.foreign("its model has a name that nobody gives one".to_owned()));
        }
        Ok(Description { model, root, max_model_len: base.max_model_len })
    }

    /// The ids its tokenizer gives a text, nothing added; none where the server does not tell.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do.
    pub async fn tokens(&self, model: &str, text: &str) -> Result<Option<Vec<u32>>, Failure> {
        #[derive(Deserialize)]
        struct Tokens {
            tokens: Vec<u32>,
        }
        let body = json!({"model": model, "prompt": text, "add_special_tokens": false});
        let request = self.post("/tokenize", body.to_string()).timeout(INFO_TIMEOUT);
        match self.call("POST /tokenize", request, MOST_INFO_BYTES).await {
            Ok(body) => Ok(serde_json::from_slice::<Tokens>(&body).ok().map(|t| t.tokens)),
            Err(Failure::Final(Error::Refused { code: Code::Unimplemented, .. })) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The answer to a job, and the bytes of the request. The teacher chooses the tokens; the
    /// job's codec and priority mean nothing here.
    ///
    /// # Errors
    /// The outer: the server cannot be reached. The inner: what is wrong with this answer.
    pub async fn score(
        &self,
        model: &str,
        job: &ScoreJob,
    ) -> Result<Result<(Scored, usize), Fault>, Failure> {
        let body = json!({
            "model": model, "prompt": job.tokens, "prompt_logprobs": job.k,
            // One token has to be asked for. The temperature is that of the token.
            "max_tokens": 1, "temperature": 1.0,
        });
        let body = body.to_string();
        let request_bytes = body.len();
        let most = answer::most_bytes(job);
        match self.reply("POST /v1/completions", self.post("/v1/completions", body), most).await {
            Ok(Reply::Body(body)) => Ok(answer::read(job, &body)
                .map(|scored| (scored, request_bytes))
                .map_err(Fault::from)),
            // The others that are under way are not touched by it.
            Ok(Reply::Busy { message, pause }) => {
                Ok(Err(AnswerError::Busy { id: job.id, message, pause }.into()))
            }
            Err(Failure::Final(Error::Refused { code, message, .. })) => {
                Ok(Err(AnswerError::Refused { id: job.id, code, message }.into()))
            }
            Err(failure) => Err(failure),
        }
    }

    fn post(&self, path: &str, body: String) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{}{path}", self.base));
        request.header("content-type", "application/json").body(body)
    }

    /// The body of a call that went well.
    async fn call(
        &self,
        call: &'static str,
        request: reqwest::RequestBuilder,
        most_bytes: usize,
    ) -> Result<Vec<u8>, Failure> {
        match self.reply(call, request, most_bytes).await? {
            Reply::Body(body) => Ok(body),
            Reply::Busy { message: reason, pause } => Err(Failure::Busy { reason, pause }),
        }
    }

    /// What came of a call.
    async fn reply(
        &self,
        call: &'static str,
        request: reqwest::RequestBuilder,
        most_bytes: usize,
    ) -> Result<Reply, Failure> {
        let token = self.access.token.as_ref().and_then(Token::header);
        let request = match token {
            Some(token) => request.header("authorization", token),
            None => request,
        };
        let mut response = request.send().await.map_err(|error| self.unreached(&error))?;
        let status = response.status();
        let pause = pause(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreached(&error))? {
            if body.len() + chunk.len() > most_bytes {
                return Err(self.foreign(format!("{call} gives more than {most_bytes} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(Reply::Body(body));
        }
        let message = words(&body);
        let code = match status.as_u16() {
            401 => Code::Unauthenticated,
            403 => Code::PermissionDenied,
            300..=399 | 404 | 405 if call != "POST /v1/completions" => Code::Unimplemented,
            408 | 425 | 429 | 500.. => {
                let message = format!("{call}: {status}: {message}");
                return Ok(Reply::Busy { message, pause });
            }
            _ => Code::InvalidArgument,
        };
        let message = format!("{status} {message}").trim_end().to_owned();
        Err(Failure::Final(Error::Refused { url: self.url.clone(), call, code, message }))
    }

    fn unreached(&self, error: &reqwest::Error) -> Failure {
        let reason = with_causes(error);
        match trust::refusal(error, &self.access).filter(|_| self.base.starts_with("https")) {
            Some(advice) => Error::Untrusted { url: self.url.clone(), reason, advice }.into(),
            None if error.is_connect() || error.is_timeout() => Failure::Passing(reason),
            None => Failure::Garbled(reason),
        }
    }

    fn foreign(&self, found: String) -> Failure {
        Error::NotVllm { url: self.url.clone(), found }.into()
    }
}

/// What a server says to a call.
enum Reply {
    Body(Vec<u8>),
    /// It may have room, or be well, later.
    Busy {
        message: String,
        pause: Duration,
    },
}

/// The pause a server asks for, in seconds of `Retry-After`; zero where it asks for none.
fn pause(headers: &reqwest::header::HeaderMap) -> Duration {
    let seconds = headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0).min(MOST_PAUSE))
}

/// What a refusal says, in vLLM's form, in FastAPI's, or as it is; safe to print.
fn words(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let said = [&json["error"]["message"], &json["message"], &json["detail"]];
    let text = said.into_iter().find_map(|text| text.as_str());
    let text = text.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(SHOWN).map(clean).collect::<String>().trim().to_owned()
}
