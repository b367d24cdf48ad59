//! What it takes to reach a teacher safely: whom to trust, who to be, and the token to show.
//! Files are read once, with the settings; what is in them is never written anywhere.

use std::fmt::{Debug, Formatter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Longest wait for the handshake of an encrypted connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What was given to reach a teacher: files, none of them read yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Papers {
    /// Certificates of the authorities whose servers are trusted, in PEM.
    pub ca: Option<PathBuf>,
    /// Certificate of this client, in PEM.
    pub cert: Option<PathBuf>,
    /// Its private key, in PEM, not encrypted.
    pub key: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host of the address.
    pub name: Option<String>,
    /// A file whose first line that is not empty is shown to the teacher as bearer token.
    pub token_file: Option<PathBuf>,
    /// What errors put before the names `ca`, `cert`, `key`, `name` and `token-file`, so that they
    /// speak of what a person gave: `--teacher-` for options of a program.
    pub prefix: &'static str,
}

/// What was given, and what is in it. Only the former is ever shown or written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    papers: Papers,
    authorities: Secret<Vec<u8>>,
    /// Certificates and key.
    identity: Option<Secret<[Vec<u8>; 2]>>,
    pub(crate) token: Option<Token>,
}

/// Why a teacher cannot be reached in the way that was asked for.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// A file that cannot be used.
    #[error("{paper} {}: {reason}", file.display())]
    File {
        /// What it was given as.
        paper: String,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what is wanted.
        reason: String,
    },
    /// One half of an identity.
    #[error(
        "{given} is given without {missing}: a client certificate needs its private key; give both \
         or neither"
    )]
    Half {
        /// The half that is there.
        given: String,
        /// The one that is not.
        missing: String,
    },
    /// Not a name.
    #[error(
        "{paper} {name}: no host name and no IP address; wanted: the name in the server's \
         certificate, without scheme and port"
    )]
    Name {
        /// What it was given as.
        paper: String,
        /// What was given.
        name: String,
    },
}

impl Papers {
    /// What a paper was given as.
    fn named(&self, paper: &str) -> String {
        format!("{}{paper}", self.prefix)
    }
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(papers: Papers) -> Result<Self, Vec<AccessError>> {
        let mut faults = Vec::new();
        let mut keep = |error| faults.push(error);
        let named = |name| papers.named(name);
        let mut pem = |name, file: &Option<PathBuf>, check: fn(&[u8]) -> Result<(), String>| {
            let file = file.as_deref()?;
            read(named(name), file, check).map_err(&mut keep).ok()
        };
        let authorities = pem("ca", &papers.ca, certificates);
        let cert = pem("cert", &papers.cert, certificates);
        let key = pem("key", &papers.key, private_key);
        let token = papers.token_file.as_deref();
        let token = token.map(|file| Token::read(named("token-file"), file)).transpose();
        let token = token.map_err(&mut keep).ok().flatten();
        match (&papers.cert, &papers.key) {
            (Some(_), None) => {
                keep(AccessError::Half { given: named("cert"), missing: named("key") });
            }
            (None, Some(_)) => {
                keep(AccessError::Half { given: named("key"), missing: named("cert") });
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let Some(name) = &papers.name
            && ServerName::try_from(name.as_str()).is_err()
        {
            keep(AccessError::Name { paper: named("name"), name: name.clone() });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let identity = cert.zip(key).map(|(cert, key)| Secret([cert, key]));
        let authorities = Secret(authorities.unwrap_or_default());
        Ok(Self { papers, authorities, identity, token })
    }

    /// What was given.
    pub fn papers(&self) -> &Papers {
        &self.papers
    }

    /// What a paper was given as.
    pub(crate) fn named(&self, paper: &str) -> String {
        self.papers.named(paper)
    }

    /// The papers given that say something of encrypted connections only.
    pub(crate) fn of_encryption(&self) -> Vec<String> {
        let Papers { ca, cert, key, name, .. } = &self.papers;
        let given = [
            ("ca", ca.is_some()),
            ("cert", cert.is_some()),
            ("key", key.is_some()),
            ("name", name.is_some()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(paper, _)| self.named(paper)).collect()
    }

    /// How to encrypt; none without anybody to trust.
    pub(crate) fn encryption(&self) -> Option<ClientTlsConfig> {
        self.papers.ca.as_ref()?;
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authorities.0))
            .timeout(HANDSHAKE_TIMEOUT);
        if let Some(Secret([cert, key])) = &self.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        if let Some(name) = &self.papers.name {
            tls = tls.domain_name(name);
        }
        Some(tls)
    }

    /// The same for a handshake of our own; `host` is that of the address.
    pub(crate) fn probe(&self, host: &str) -> Option<Probe> {
        let mut config = self.rustls().ok()?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.papers.name.as_deref().unwrap_or(bare).to_owned();
        Some(Probe { name: ServerName::try_from(name).ok()?, config: Secret(Arc::new(config)) })
    }

    /// The same for HTTP/1.1.
    ///
    /// # Errors
    /// What is missing, or does not serve here.
    pub(crate) fn https(&self) -> Result<ClientConfig, String> {
        if self.papers.ca.is_none() {
            return Err(self.nobody_to_trust());
        }
        if self.papers.name.is_some() {
            let name = self.named("name");
            return Err(format!("{name} serves gRPC only: write the name as the address's host"));
        }
        let mut config = self.rustls()?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Whom an encrypted connection would trust is not said.
    pub(crate) fn nobody_to_trust(&self) -> String {
        format!(
            "an encrypted connection needs somebody to trust: give {}, a PEM file with the \
             certificate of the authority that signed the teacher's, or the teacher's own \
             self-signed one",
            self.named("ca")
        )
    }

    /// The same for rustls.
    ///
    /// # Errors
    /// A certificate and a key that do not belong together.
    pub(crate) fn rustls(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(
            CertificateDer::pem_slice_iter(&self.authorities.0).filter_map(Result::ok),
        );
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots);
        let Some(Secret([cert, key])) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        // What the parser says of a key is not told: it may quote it.
        let unfit =
            || format!("{} and {} cannot be used together", self.named("cert"), self.named("key"));
        let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>();
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| unfit())?;
        builder.with_client_auth_cert(chain.map_err(|_| unfit())?, key).map_err(|_| unfit())
    }
}

/// What a handshake of our own needs.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) name: ServerName<'static>,
    config: Secret<Arc<ClientConfig>>,
}

impl Probe {
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config.0)
    }
}

/// What no log and no error shows.
#[derive(Clone, Default, PartialEq)]
struct Secret<T>(T);

impl<T> Debug for Secret<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What shows a teacher that this client may ask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token(Secret<MetadataValue<Ascii>>);

impl Token {
    /// The first line of a file that is not empty.
    fn read(paper: String, file: &Path) -> Result<Self, AccessError> {
        let fault = |reason: String| {
            let paper = paper.clone();
            AccessError::File { paper, file: file.to_owned(), reason }
        };
        let bytes = std::fs::read(file).map_err(|e| fault(format!("cannot be read: {e}")))?;
        let mut lines = bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
        let token = lines.find(|line| !line.is_empty());
        let token = token.ok_or_else(|| fault("is empty; wanted: a line with the token".into()))?;
        Self::of(token).ok_or_else(|| {
            fault("a token is one word of visible ASCII characters; this is none".to_owned())
        })
    }

    fn of(token: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(token).ok()?;
        let word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let mut value: MetadataValue<Ascii> =
            word.then(|| format!("Bearer {text}").parse().ok())??;
        value.set_sensitive(true);
        Some(Self(Secret(value)))
    }

    /// The same over HTTP/1.1.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(self.0.0.as_encoded_bytes()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The value of `authorization`.
    pub(crate) fn value(&self) -> MetadataValue<Ascii> {
        self.0.0.clone()
    }
}

/// The bytes of a file that holds what it should.
fn read(
    paper: String,
    file: &Path,
    check: fn(&[u8]) -> Result<(), String>,
) -> Result<Vec<u8>, AccessError> {
    let fault = |reason| AccessError::File { paper: paper.clone(), file: file.to_owned(), reason };
    let bytes = std::fs::read(file).map_err(|e| fault(format!("cannot be read: {e}")))?;
    check(&bytes).map_err(fault)?;
    Ok(bytes)
}

/// Whether this is one certificate in PEM, or several.
fn certificates(pem: &[u8]) -> Result<(), String> {
    let wanted = "wanted: a PEM file with -----BEGIN CERTIFICATE-----";
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| format!("no valid PEM ({e}); {wanted}"))?;
        store.add(certificate).map_err(|e| format!("no valid certificate ({e}); {wanted}"))?;
    }
    if store.is_empty() { Err(format!("holds no certificate; {wanted}")) } else { Ok(()) }
}

/// Whether this is a private key in PEM. What the parser says of it is not told: it may quote it.
fn private_key(pem: &[u8]) -> Result<(), String> {
    PrivateKeyDer::from_pem_slice(pem).map(drop).map_err(|_| {
        "holds no private key; wanted: a PEM file with -----BEGIN PRIVATE KEY----- (not encrypted)"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token_in(text: &[u8]) -> Result<Token, AccessError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Token::read("--teacher-token-file".to_owned(), file.path())
    }

    #[test]
    fn a_token_is_the_first_line_that_is_not_empty_and_is_never_shown() {
        let token = token_in(b"\r\n\n  s3cret-Token== \r\nother\n").unwrap();
        assert_eq!(token.value().to_str().unwrap(), "Bearer s3cret-Token==");
        assert!(token.value().is_sensitive());
        assert_eq!(format!("{token:?}"), "Token(***)");
        for (text, piece) in [
            (&b"\n \n"[..], "is empty"),
            (b"", "is empty"),
            (b"s3cret two\n", "one word"),
            (b"s3cret\xff\n", "one word"),
            ("s3cret\u{e4}\n".as_bytes(), "one word"),
        ] {
            let error = token_in(text).unwrap_err().to_string();
            assert!(error.starts_with("--teacher-token-file /"), "{error}");
            assert!(error.contains(piece) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn what_was_read_is_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret").unwrap();
        let papers = Papers { token_file: Some(file.path().to_owned()), ..Papers::default() };
        let shown = format!("{:?}", Access::read(papers).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains(file.path().to_str().unwrap()), "{shown}");
    }
}
