//! Calls of an object store: each is bounded and tried a few times, and what comes to nothing is said in one line.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path as Name;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion,
};
use tokio::runtime::{Builder, Runtime};

use super::error::CacheError;

/// Files of 64 MiB over a slow line take minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a call is tried.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// A place in an object store.
#[derive(Debug)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Name,
    /// Its name, for people.
    pub(super) place: String,
    runtime: Runtime,
    patience: Duration,
}

impl Bucket {
    /// `prefix` of a store, called `place`. A call may take `patience`, if that is given.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Name,
        place: &str,
        patience: Option<Duration>,
    ) -> Result<Self, CacheError> {
        let place = place.to_owned();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| remote(&place, e.to_string()))?;
        Ok(Self { store, prefix, place, runtime, patience: patience.unwrap_or(PATIENCE) })
    }

    /// An object; none where there is none.
    ///
    /// # Errors
    /// [`CacheError::Remote`] where the store refuses, or there is no such bucket.
    pub(super) fn get(&self, name: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>, CacheError> {
        let path = self.prefix.clone().join(name);
        let got = self.attempt(&format!("get {name}"), || async {
            let found = self.store.get(&path).await?;
            let meta = found.meta.clone();
            let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
            Ok((found.bytes().await?.to_vec(), version))
        });
        match got {
            Ok(found) => Ok(Some(found)),
            // A bucket that is not there is a name mistyped, and no empty cache.
            Err(Refusal::Store(StoreError::NotFound { source, .. }))
                if !source.to_string().contains("NoSuchBucket") =>
            {
                Ok(None)
            }
            Err(refusal) => Err(self.wrong(&format!("get {name}"), refusal)),
        }
    }

    /// Writes an object; conditionally where the mode says so.
    ///
    /// # Errors
    /// [`CacheError::InUse`] where somebody else has written it meanwhile, [`CacheError::Remote`] where the
    /// store refuses.
    pub(super) fn put(
        &self,
        name: &str,
        bytes: Vec<u8>,
        mode: PutMode,
    ) -> Result<UpdateVersion, CacheError> {
        let path = self.prefix.clone().join(name);
        let bytes = bytes::Bytes::from(bytes);
        let sent = bytes.clone();
        let conditional = !matches!(mode, PutMode::Overwrite);
        let send = |mode: PutMode| {
            self.attempt(&format!("put {name}"), || {
                let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
                let (bytes, path) = (bytes.clone(), path.clone());
                async move { self.store.put_opts(&path, bytes.into(), options).await }
            })
        };
        let put = match send(mode) {
            // Stores that know no conditions: there their owner has to keep writers apart.
            Err(Refusal::Store(
                StoreError::NotImplemented { .. } | StoreError::NotSupported { .. },
            )) if conditional => send(PutMode::Overwrite),
            put => put,
        };
        match put {
            Ok(put) => Ok(UpdateVersion { e_tag: put.e_tag, version: put.version }),
            Err(Refusal::Store(
                StoreError::Precondition { .. } | StoreError::AlreadyExists { .. },
            )) => match self.get(name)? {
                // An answer that was lost on its way: what is there is what was to be.
                Some((found, version)) if found == sent => Ok(version),
                _ => Err(CacheError::InUse { place: self.place.clone(), holder: None }),
            },
            Err(refusal) => Err(self.wrong(&format!("put {name}"), refusal)),
        }
    }

    /// Makes a call, again where that may help.
    fn attempt<T, F>(&self, what: &str, call: impl Fn() -> F) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.runtime.block_on(async {
            let mut tried = 1;
            loop {
                let refusal = match tokio::time::timeout(self.patience, call()).await {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) => Refusal::Store(error),
                    Err(_) => Refusal::Silent,
                };
                if tried >= ATTEMPTS || refusal.is_final() {
                    return Err(refusal);
                }
                tracing::info!(place = self.place, what, tried, %refusal, "trying again");
                tokio::time::sleep(PAUSE * 2u32.pow(tried - 1)).await;
                tried += 1;
            }
        })
    }

    fn wrong(&self, what: &str, refusal: Refusal) -> CacheError {
        let reason = match refusal {
            Refusal::Silent => {
                let seconds = self.patience.as_secs_f64();
                format!("{what}: no answer within {seconds} s, {ATTEMPTS} times")
            }
            // A store answers with pages of XML.
            Refusal::Store(error) => {
                let text = error.to_string();
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                format!("{what}: {}", lines.join(" "))
            }
        };
        remote(&self.place, reason)
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
enum Refusal {
    Store(StoreError),
    Silent,
}

impl Refusal {
    /// Whether asking again cannot help.
    fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Store(
                StoreError::NotFound { .. }
                    | StoreError::AlreadyExists { .. }
                    | StoreError::Precondition { .. }
                    | StoreError::NotImplemented { .. }
                    | StoreError::NotSupported { .. }
                    | StoreError::PermissionDenied { .. }
                    | StoreError::Unauthenticated { .. }
            )
        )
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Silent => f.write_str("no answer"),
        }
    }
}

pub(super) fn remote(place: &str, reason: String) -> CacheError {
    CacheError::Remote { place: place.to_owned(), reason }
}
