//! Who may call: bearer tokens from a file, client certificates, or everybody who reaches the port.
//!
//! One layer before every route of both ports asks; only health is open, so that probes need no
//! secrets. What the file holds is kept as digests, compared in constant time, and never printed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq as _;
use tonic::Status;
use tracing::Span;

use crate::client::{Client, Peer};
use crate::error::TeacherError;
use crate::metrics::Metrics;

/// Shortest token, in characters: shorter ones can be guessed.
const MIN_TOKEN: usize = 16;
/// Routes that are open to everybody.
const OPEN: [&str; 3] = ["/health", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"];

/// Why a file of tokens cannot be used. No text of the file is in it.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// It cannot be read.
    #[error("--auth-tokens {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No line of it holds a token.
    #[error(
        "--auth-tokens {}: it holds no token; wanted a line TOKEN or NAME TOKEN for each", path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A line that is no token.
    #[error("--auth-tokens {}: line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The tokens of a file.
struct Tokens(Vec<Token>);

struct Token {
    name: String,
    digest: [u8; 32],
}

impl Tokens {
    fn read(path: &Path) -> Result<Self, TokensError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokensError::Read { path: path.to_owned(), source })?;
        let mut tokens: Vec<Token> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let wrong = |what| TokensError::Line { path: path.to_owned(), line, what };
            let mut words = text.split_whitespace();
            let (name, token) = match (words.next(), words.next(), words.next()) {
                (None, ..) => continue,
                (Some(first), ..) if first.starts_with('#') => continue,
                (Some(token), None, _) => (format!("{line}"), token),
                (Some(name), Some(token), None) => (name.to_owned(), token),
                (Some(_), Some(_), Some(_)) => {
                    return Err(wrong("more than two words; wanted TOKEN or NAME TOKEN"));
                }
            };
            if token.len() < MIN_TOKEN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(wrong("a token has at least 16 printable ASCII characters"));
            }
            let digest = digest(token);
            if tokens.iter().any(|known| known.digest == digest) {
                return Err(wrong("this token is there already"));
            }
            tokens.push(Token { name, digest });
        }
        match tokens.is_empty() {
            true => Err(TokensError::Empty { path: path.to_owned() }),
            false => Ok(Self(tokens)),
        }
    }

    /// The name of a token that is one of these. Every one is compared, in the same time.
    fn name_of(&self, token: &str) -> Option<&str> {
        let digest = digest(token);
        let compare = |known: &Token| bool::from(known.digest.ct_eq(&digest));
        let mut found = None;
        for known in &self.0 {
            if compare(known) {
                found = Some(known.name.as_str());
            }
        }
        found
    }
}

fn digest(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}

/// Who may call.
#[derive(Clone, Default)]
pub struct Access {
    tokens: Option<Arc<(PathBuf, RwLock<Tokens>)>>,
    /// Whether a client has to show a certificate; the connection checked it.
    certificates: bool,
}

impl Access {
    /// Those with a token of the file, where there is one, and with a certificate, where those are
    /// asked for.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn new(tokens: Option<&Path>, certificates: bool) -> Result<Self, TokensError> {
        let read = |path: &Path| Ok(Arc::new((path.to_owned(), RwLock::new(Tokens::read(path)?))));
        Ok(Self { tokens: tokens.map(read).transpose()?, certificates })
    }

    /// Whether everybody who reaches the port may call.
    pub fn is_open(&self) -> bool {
        self.tokens.is_none() && !self.certificates
    }

    /// Reads the file again; a file that cannot be used leaves the tokens as they were.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn reload(&self) -> Result<(), TokensError> {
        if let Some(held) = &self.tokens {
            let fresh = Tokens::read(&held.0)?;
            let count = fresh.0.len();
            *held.1.write().unwrap_or_else(PoisonError::into_inner) = fresh;
            tracing::info!(file = %held.0.display(), count, "read the tokens again");
        }
        Ok(())
    }

    /// Who sent this, if they may call.
    fn check(&self, headers: &HeaderMap, peer: &Client, certified: bool) -> Result<Client, Denied> {
        if self.certificates && !certified {
            return Err(Denied::NoCertificate);
        }
        let Some(held) = &self.tokens else { return Ok(peer.clone()) };
        let value = headers.get(header::AUTHORIZATION).ok_or(Denied::NoToken)?;
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let tokens = held.1.read().unwrap_or_else(PoisonError::into_inner);
        let name = token.and_then(|token| tokens.name_of(token)).ok_or(Denied::WrongToken)?;
        Ok(Client::named(name))
    }
}

/// Why a call was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Certificates are asked for and none was shown.
    #[error("this server wants a client certificate (mutual TLS), and none was shown")]
    NoCertificate,
    /// Tokens are asked for and none was sent.
    #[error(
        "this server wants a token: send the metadata or header \"authorization: Bearer TOKEN\""
    )]
    NoToken,
    /// The token is none of this server's.
    #[error("the token is not one of this server's")]
    WrongToken,
}

/// Middleware of every route: lets in who may call, under the name that shares are counted by.
pub async fn ask(
    State((access, metrics)): State<(Access, Metrics)>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
    let tell = |client: &Client| {
        Span::current().record("client", client.name());
    };
    if OPEN.contains(&request.uri().path()) {
        tell(&peer.client);
        return next.run(request).await;
    }
    match access.check(request.headers(), &peer.client, peer.certified) {
        Ok(client) => {
            tell(&client);
            request.extensions_mut().insert(Peer { client, ..peer });
            next.run(request).await
        }
        Err(denied) => {
            metrics.refused("unauthenticated");
            tell(&peer.client);
            tracing::debug!(error = denied.to_string(), "refused");
            deny(&request, denied)
        }
    }
}

fn deny(request: &Request, denied: Denied) -> Response {
    let is_grpc = request.headers().get(header::CONTENT_TYPE);
    if is_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return Status::from(TeacherError::Denied(denied)).into_http::<Body>();
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, format!("{denied}\n")).into_response()
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
