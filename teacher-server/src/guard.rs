//! What stands between the ports and whoever reaches them: who may call, and encryption.

use crate::access::Access;
use crate::tls::{Tls, TlsError};

/// Who may call, and how the ports are encrypted.
#[derive(Clone, Default)]
pub struct Guard {
    /// Who may call.
    pub access: Access,
    /// Encryption; none is plaintext.
    pub tls: Option<Tls>,
}

impl Guard {
    /// Reads tokens and certificates again, each for itself; what cannot be used is told and
    /// changes nothing.
    pub fn reload(&self) {
        let tls: Result<(), TlsError> = self.tls.as_ref().map_or(Ok(()), Tls::reload);
        if let Err(error) = tls {
            tracing::error!(%error, "the certificate stays as it was");
        }
        if let Err(error) = self.access.reload() {
            tracing::error!(%error, "the tokens stay as they were");
        }
    }
}
