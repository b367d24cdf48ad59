//! Encryption: the server's certificate and, for mutual TLS, the authority its clients' come from.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

/// The files, all PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The server's certificate and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority whose certificates clients must show; none when they need none.
    pub client_ca: Option<PathBuf>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read or holds nothing of the kind.
    #[error("{flag} {}: {source}; wanted a PEM file with {wanted}", path.display())]
    File {
        /// The flag it came from.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file without a certificate.
    #[error("{flag} {}: it holds no certificate; wanted a PEM file with one", path.display())]
    NoCertificate {
        /// The flag it came from.
        flag: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key that cannot be used, or not together.
    #[error("--tls-cert {} with --tls-key {}: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// An authority that cannot be used.
    #[error("--tls-client-ca {}: {reason}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Encryption as it is now; clones share it.
#[derive(Clone)]
pub struct Tls {
    files: TlsFiles,
    config: Arc<RwLock<Arc<ServerConfig>>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let config = Arc::new(RwLock::new(Arc::new(read(&files)?)));
        Ok(Self { files, config })
    }

    /// Reads the files again, for connections to come; files that cannot be used change nothing.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Arc::new(read(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        tracing::info!(certificate = %self.files.cert.display(), "read the certificate again");
        Ok(())
    }

    /// For one more connection, over which `protocol` (ALPN) is spoken.
    pub fn config(&self, protocol: &[u8]) -> Arc<ServerConfig> {
        let now = self.config.read().unwrap_or_else(PoisonError::into_inner);
        let mut config = ServerConfig::clone(&now);
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let TlsFiles { cert, key, client_ca } = files;
    let chain = certificates("--tls-cert", cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
        flag: "--tls-key",
        path: key.clone(),
        wanted: "a private key",
        source,
    })?;
    let pair = |source| TlsError::Pair { cert: cert.clone(), key: key.clone(), source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let Some(path) = client_ca else {
        return builder.with_no_client_auth().with_single_cert(chain, private).map_err(pair);
    };
    let wrong = |reason: String| TlsError::Authority { path: path.clone(), reason };
    let mut roots = RootCertStore::empty();
    for authority in certificates("--tls-client-ca", path)? {
        roots.add(authority).map_err(|error| wrong(error.to_string()))?;
    }
    // Whoever shows none is refused call by call, with a reason, and probes need no certificate.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    builder.with_client_cert_verifier(verifier).with_single_cert(chain, private).map_err(pair)
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong =
        |source| TlsError::File { flag, path: path.to_owned(), wanted: "a certificate", source };
    let read = CertificateDer::pem_file_iter(path).map_err(wrong)?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(wrong)?;
    match chain.is_empty() {
        true => Err(TlsError::NoCertificate { flag, path: path.to_owned() }),
        false => Ok(chain),
    }
}
