//! What it takes to reach a teacher safely: whom to trust, who to be, and the token to show.
//! Files are read once, with the settings; what is in them is never written anywhere.

use std::fmt::{Debug, Formatter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Longest wait for the handshake of an encrypted connection.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// What was given, named as the options.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct Papers {
    pub teacher_ca: Option<PathBuf>,
    pub teacher_cert: Option<PathBuf>,
    pub teacher_key: Option<PathBuf>,
    pub teacher_name: Option<String>,
    pub teacher_token_file: Option<PathBuf>,
}

/// What was given, and what is in it. Only the former is ever shown or written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Access {
    #[serde(flatten)]
    papers: Papers,
    #[serde(skip)]
    authorities: Secret<Vec<u8>>,
    /// Certificates and key.
    #[serde(skip)]
    identity: Option<Secret<[Vec<u8>; 2]>>,
    #[serde(skip)]
    pub(super) token: Option<Token>,
}

/// Why a teacher cannot be reached in the way that was asked for.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// A file that cannot be used.
    #[error("--{option} {}: {reason}", file.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, and what is wanted.
        reason: String,
    },
    /// One half of an identity.
    #[error(
        "--{given} is given without --{missing}: a client certificate needs its private key; give \
         both or neither"
    )]
    Half {
        /// The option that is there.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Not a name.
    #[error(
        "--teacher-name {name}: no host name and no IP address; wanted: the name in the server's \
         certificate, without scheme and port"
    )]
    Name {
        /// What was given.
        name: String,
    },
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(papers: Papers) -> Result<Self, Vec<AccessError>> {
        let mut faults = Vec::new();
        let mut keep = |error| faults.push(error);
        let mut pem = |option, file: &Option<PathBuf>, check: fn(&[u8]) -> Result<(), String>| {
            let file = file.as_deref()?;
            read(option, file, check).map_err(&mut keep).ok()
        };
        let authorities = pem("teacher-ca", &papers.teacher_ca, certificates);
        let cert = pem("teacher-cert", &papers.teacher_cert, certificates);
        let key = pem("teacher-key", &papers.teacher_key, private_key);
        let token = papers.teacher_token_file.as_deref().map(Token::read).transpose();
        let token = token.map_err(&mut keep).ok().flatten();
        match (&papers.teacher_cert, &papers.teacher_key) {
            (Some(_), None) => {
                keep(AccessError::Half { given: "teacher-cert", missing: "teacher-key" });
            }
            (None, Some(_)) => {
                keep(AccessError::Half { given: "teacher-key", missing: "teacher-cert" });
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let Some(name) = &papers.teacher_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            keep(AccessError::Name { name: name.clone() });
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let identity = cert.zip(key).map(|(cert, key)| Secret([cert, key]));
        let authorities = Secret(authorities.unwrap_or_default());
        Ok(Self { papers, authorities, identity, token })
    }

    /// The options given that say something of encrypted connections only.
    pub(super) fn of_encryption(&self) -> Vec<&'static str> {
        let Papers { teacher_ca, teacher_cert, teacher_key, teacher_name, .. } = &self.papers;
        let given = [
            ("--teacher-ca", teacher_ca.is_some()),
            ("--teacher-cert", teacher_cert.is_some()),
            ("--teacher-key", teacher_key.is_some()),
            ("--teacher-name", teacher_name.is_some()),
        ];
        given.into_iter().filter_map(|(option, given)| given.then_some(option)).collect()
    }

    /// How to encrypt; none without anybody to trust.
    pub(super) fn encryption(&self) -> Option<ClientTlsConfig> {
        self.papers.teacher_ca.as_ref()?;
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.authorities.0))
            .timeout(HANDSHAKE_TIMEOUT);
        if let Some(Secret([cert, key])) = &self.identity {
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        if let Some(name) = &self.papers.teacher_name {
            tls = tls.domain_name(name);
        }
        Some(tls)
    }
}

impl Access {
    /// The same for [`trust::probe`](super::trust::probe); `host` is that of the address.
    pub(super) fn probe(&self, host: &str) -> Option<Probe> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(
            CertificateDer::pem_slice_iter(&self.authorities.0).filter_map(Result::ok),
        );
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Secret([cert, key])) => {
                let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>().ok()?;
                builder
                    .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key).ok()?)
                    .ok()?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.papers.teacher_name.as_deref().unwrap_or(bare).to_owned();
        Some(Probe { name: ServerName::try_from(name).ok()?, config: Secret(Arc::new(config)) })
    }
}

/// What a handshake of our own needs.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) name: ServerName<'static>,
    config: Secret<Arc<ClientConfig>>,
}

impl Probe {
    pub(super) fn config(&self) -> Arc<ClientConfig> {
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
pub(super) struct Token(Secret<MetadataValue<Ascii>>);

impl Token {
    /// The first line of a file that is not empty.
    fn read(file: &Path) -> Result<Self, AccessError> {
        let fault = |reason: String| {
            let option = "teacher-token-file";
            AccessError::File { option, file: file.to_owned(), reason }
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

    /// The value of `authorization`.
    pub(super) fn value(&self) -> MetadataValue<Ascii> {
        self.0.0.clone()
    }
}

/// The bytes of a file that holds what it should.
fn read(
    option: &'static str,
    file: &Path,
    check: fn(&[u8]) -> Result<(), String>,
) -> Result<Vec<u8>, AccessError> {
    let fault = |reason| AccessError::File { option, file: file.to_owned(), reason };
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
        Token::read(file.path())
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
    fn what_was_read_is_neither_shown_nor_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret").unwrap();
        let papers =
            Papers { teacher_token_file: Some(file.path().to_owned()), ..Papers::default() };
        let access = Access::read(papers).unwrap();
        let json = serde_json::to_string(&access).unwrap();
        assert!(!format!("{access:?}{json}").contains("s3cret"), "{access:?} {json}");
        assert!(json.contains(file.path().to_str().unwrap()), "{json}");
    }
}
