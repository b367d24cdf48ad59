//! Calls of an object store: each is bounded and tried a few times, and what comes to nothing is said in one line.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path as Name;
use object_store::{
    Error as StoreError, MultipartUpload as _, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions, PutResult, UpdateVersion,
};
use proto::causes::with_causes;
use tokio::runtime::{Builder, Runtime};

use super::error::CacheError;
use crate::stop::Stop;

/// Bytes of a call at most: longer objects go in parts, and wait for each.
const PART: usize = 64 << 20;
/// A part over a slow line takes minutes.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often a call is tried.
const ATTEMPTS: u32 = 4;
/// How long what is being sent is waited for once a stop was asked for.
const GRACE: Duration = Duration::from_secs(5);
/// Before the second attempt; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// A place in an object store.
#[derive(Debug)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: Name,
    /// Its name, for people.
    pub(super) place: String,
    runtime: Runtime,
    /// Longest wait for a part of a call, [`PATIENCE`].
    pub(super) patience: Duration,
    /// Bytes of a part, [`PART`].
    pub(super) part: usize,
    /// Who may ask that nothing is waited for any more.
    pub(super) stop: Option<Stop>,
    /// How long what is being sent goes on then, [`GRACE`].
    pub(super) grace: Duration,
}

impl Bucket {
    /// `prefix` of a store, called `place`.
    ///
    /// # Errors
    /// When the system gives no means to wait for answers.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        prefix: Name,
        place: &str,
    ) -> Result<Self, CacheError> {
        let place = place.to_owned();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| remote(&place, e.to_string()))?;
        let (patience, part, stop, grace) = (PATIENCE, PART, None, GRACE);
        Ok(Self { store, prefix, place, runtime, patience, part, stop, grace })
    }

    /// An object; none where there is none.
    ///
    /// # Errors
    /// [`CacheError::Remote`] where the store refuses, or there is no such bucket;
    /// [`CacheError::Stopped`] when a stop was asked for meanwhile.
    pub(super) fn get(&self, name: &str) -> Result<Option<(Vec<u8>, UpdateVersion)>, CacheError> {
        self.get_within(name, Duration::ZERO)
    }

    /// An object that a write has to know of; none where there is none.
    ///
    /// # Errors
    /// As [`Self::get`], when it takes longer than a while after a stop.
    pub(super) fn look_at(
        &self,
        name: &str,
    ) -> Result<Option<(Vec<u8>, UpdateVersion)>, CacheError> {
        self.get_within(name, self.grace)
    }

    fn get_within(
        &self,
        name: &str,
        grace: Duration,
    ) -> Result<Option<(Vec<u8>, UpdateVersion)>, CacheError> {
        let path = self.prefix.clone().join(name);
        let got = self.attempt(&format!("get {name}"), (1, grace), || async {
            let found = self.store.get(&path).await?;
            let meta = found.meta.clone();
            let version = UpdateVersion { e_tag: meta.e_tag, version: meta.version };
            Ok((found.bytes().await?.to_vec(), version))
        });
        self.there_or_not(name, got)
    }

    /// Bytes of an object; none where there is none.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) fn length(&self, name: &str) -> Result<Option<u64>, CacheError> {
        let path = self.prefix.clone().join(name);
        let got = self.attempt(&format!("look at {name}"), (1, Duration::ZERO), || async {
            Ok(self.store.head(&path).await?.size)
        });
        self.there_or_not(name, got)
    }

    /// An object that is said to have so many bytes, in parts where these are many; none where there is
    /// none. It may come to have others.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(super) fn get_long(&self, name: &str, bytes: u64) -> Result<Option<Vec<u8>>, CacheError> {
        if bytes <= self.part as u64 {
            return Ok(self.get(name)?.map(|(bytes, _)| bytes));
        }
        let path = self.prefix.clone().join(name);
        let mut come: Vec<u8> = Vec::new();
        while (come.len() as u64) < bytes {
            let from = come.len() as u64;
            let range = from..bytes.min(from + self.part as u64);
            let what = format!("get {name} from byte {from}");
            let got = self.attempt(&what, (1, Duration::ZERO), || async {
                self.store.get_range(&path, range.clone()).await
            });
            let Some(part) = self.there_or_not(name, got)? else { return Ok(None) };
            come.extend_from_slice(&part);
            if (part.len() as u64) < range.end - range.start {
                break;
            }
        }
        Ok(Some(come))
    }

    fn there_or_not<T>(
        &self,
        name: &str,
        got: Result<T, Refusal>,
    ) -> Result<Option<T>, CacheError> {
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
    /// store refuses, [`CacheError::Stopped`] when a stop was asked for and it takes longer than a while.
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
        // A write in parts knows no conditions.
        let parts = if conditional { 1 } else { bytes.len().div_ceil(self.part).max(1) };
        let send = |mode: PutMode| {
            self.attempt(&format!("put {name}"), (parts as u32, self.grace), || {
                let options = PutOptions { mode: mode.clone(), ..PutOptions::default() };
                let (bytes, path) = (bytes.clone(), path.clone());
                async move {
                    match parts {
                        1 => self.store.put_opts(&path, bytes.into(), options).await,
                        _ => put_long(&*self.store, &path, bytes, self.part).await,
                    }
                }
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
            )) => match self.look_at(name)? {
                // An answer that was lost on its way: what is there is what was to be.
                Some((found, version)) if found == sent => Ok(version),
                _ => Err(CacheError::InUse { place: self.place.clone(), holder: None }),
            },
            Err(refusal) => Err(self.wrong(&format!("put {name}"), refusal)),
        }
    }

    /// Makes a call of so many parts, again where that may help. Where a stop is asked for it is given up
    /// after `grace`.
    fn attempt<T, F>(
        &self,
        what: &str,
        (parts, grace): (u32, Duration),
        call: impl Fn() -> F,
    ) -> Result<T, Refusal>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        self.runtime.block_on(async {
            let mut tried = 1;
            loop {
                let tried_once = tokio::select! {
                    tried = tokio::time::timeout(self.patience * parts, call()) => tried,
                    () = self.stopped(grace) => return Err(Refusal::Stopped),
                };
                let refusal = match tried_once {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) => Refusal::Store(error),
                    Err(_) => Refusal::Silent,
                };
                let stopped = self.stop.as_ref().is_some_and(Stop::requested);
                if tried >= ATTEMPTS || refusal.is_final() || stopped {
                    return Err(refusal);
                }
                tracing::info!(place = self.place, what, tried, %refusal, "trying again");
                tokio::time::sleep(PAUSE * 2u32.pow(tried - 1)).await;
                tried += 1;
            }
        })
    }

    /// Waits for a stop, where somebody may ask for one, and then for a while.
    async fn stopped(&self, grace: Duration) {
        match &self.stop {
            Some(stop) => stop.wait().await,
            None => std::future::pending().await,
        }
        tokio::time::sleep(grace).await;
    }

    fn wrong(&self, what: &str, refusal: Refusal) -> CacheError {
        let reason = match refusal {
            Refusal::Stopped => return CacheError::Stopped { place: self.place.clone() },
            Refusal::Silent => {
                let seconds = self.patience.as_secs_f64();
                format!("{what}: no answer within {seconds} s, {ATTEMPTS} times")
            }
            // A store answers with pages of XML.
            Refusal::Store(error) => {
                let text = with_causes(&error);
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                format!("{what}: {}{}", lines.join(" "), cure(&self.place, &text))
            }
        };
        remote(&self.place, reason)
    }
}

/// What to do about what a store says, where its own words leave that open.
fn cure(place: &str, text: &str) -> &'static str {
    // Where machines of a cloud are told who they are: asked when nothing else says so.
    let asked = ["169.254.169.254", "metadata"].iter().any(|who| text.contains(who));
    match text {
        _ if asked && place.starts_with("gs:") => {
            "; without GOOGLE_SERVICE_ACCOUNT this machine was asked who it is, and it does not say: set it"
        }
        _ if asked && place.starts_with("az:") => {
            "; without AZURE_STORAGE_ACCOUNT_KEY this machine was asked who it is, and it does not say: set it"
        }
        _ if asked => {
            "; without AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY this machine was asked who it is, and it \
             does not say: set them"
        }
        _ if text.contains("NoSuchBucket") => "; make the bucket, or mend its name",
        _ if text.contains("InvalidAccessKeyId") || text.contains("SignatureDoesNotMatch") => {
            "; look at AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        }
        _ => "",
    }
}

/// Writes an object in parts.
async fn put_long(
    store: &dyn ObjectStore,
    path: &Name,
    bytes: bytes::Bytes,
    part: usize,
) -> Result<PutResult, StoreError> {
    let mut upload = store.put_multipart(path).await?;
    let mut sent = Ok(());
    for from in (0..bytes.len()).step_by(part) {
        let these = bytes.slice(from..bytes.len().min(from + part));
        sent = upload.put_part(these.into()).await;
        if sent.is_err() {
            break;
        }
    }
    match sent {
        Ok(()) => upload.complete().await,
        Err(error) => {
            // Its parts would be kept, and paid for.
            drop(upload.abort().await);
            Err(error)
        }
    }
}

/// Why a call came to nothing.
#[derive(Debug)]
enum Refusal {
    Store(StoreError),
    Silent,
    Stopped,
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
            Self::Stopped => f.write_str("told to stop"),
        }
    }
}

pub(super) fn remote(place: &str, reason: String) -> CacheError {
    CacheError::Remote { place: place.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_a_store_says_of_who_asks_comes_with_what_to_do() {
        let unknown = "error sending request for url (http://169.254.169.254/latest/api/token)";
        let cure = |text: &str| super::cure("s3://bucket", text);
        assert!(cure(unknown).contains("set them"));
        for asked in ["http://metadata/x", "http://169.254.169.254/x"] {
            assert!(super::cure("gs://bucket", asked).contains("GOOGLE_SERVICE_ACCOUNT"));
        }
        let wrong = "403 Forbidden: <Error><Code>InvalidAccessKeyId</Code>";
        for text in [wrong, "<Code>SignatureDoesNotMatch</Code>", unknown] {
            assert!(cure(text).contains("AWS_SECRET_ACCESS_KEY"), "{text}");
        }
        assert!(cure("<Code>NoSuchBucket</Code>").contains("make the bucket"));
        assert_eq!(cure("503 Slow Down"), "");
    }
}
