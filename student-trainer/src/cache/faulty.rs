//! A store in memory that misbehaves as it is told, and a small cache in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path as Name;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result as StoreResult,
};
use tempfile::TempDir;

use super::CacheError;
use super::append::Writer;
use super::bucket::Bucket;
use super::remote::Remote;
use super::store::{Found, Store};
use crate::testing::manifest;

/// A store in memory that misbehaves. All numbers may be changed while it is used.
#[derive(Debug, Default)]
pub(super) struct Faulty {
    pub(super) inner: InMemory,
    /// Calls that work before others fail.
    pub(super) good: AtomicUsize,
    /// Calls that fail before one works.
    pub(super) fail: AtomicUsize,
    /// Writes of the list that are carried out and whose answer fails.
    pub(super) mute: AtomicUsize,
    /// Calls that never end.
    pub(super) stall: AtomicUsize,
    /// Calls so far.
    pub(super) calls: AtomicUsize,
    /// Listings asked for.
    pub(super) lists: AtomicUsize,
    /// Above 0 where there is no such bucket.
    pub(super) no_bucket: AtomicUsize,
}

impl Faulty {
    async fn misbehave(&self) -> StoreResult<()> {
        self.calls.fetch_add(1, Relaxed);
        let take =
            |of: &AtomicUsize| of.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok();
        if take(&self.good) {
            return Ok(());
        }
        if take(&self.stall) {
            std::future::pending::<()>().await;
        }
        match take(&self.fail) {
            true => Err(StoreError::Generic { store: "faulty", source: "503 Slow Down".into() }),
            false => Ok(()),
        }
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty")
    }
}

#[tonic::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        location: &Name,
        payload: PutPayload,
        options: PutOptions,
    ) -> StoreResult<PutResult> {
        self.misbehave().await?;
        let put = self.inner.put_opts(location, payload, options).await;
        let is_list = location.filename() == Some("segments.json");
        if is_list && self.mute.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok() {
            put?;
            return Err(StoreError::Generic { store: "faulty", source: "502 Bad Gateway".into() });
        }
        put
    }

    async fn put_multipart_opts(
        &self,
        location: &Name,
        options: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Name, options: GetOptions) -> StoreResult<GetResult> {
        self.misbehave().await?;
        if self.no_bucket.load(Relaxed) > 0 {
            let source = "404 Not Found: <Error>\n<Code>NoSuchBucket</Code></Error>".into();
            return Err(StoreError::NotFound { path: location.to_string(), source });
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Name>>,
    ) -> BoxStream<'static, StoreResult<Name>> {
        self.inner.delete_stream(locations)
    }

    /// Nothing, whatever is there.
    fn list(&self, _: Option<&Name>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.lists.fetch_add(1, Relaxed);
        futures::stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Name>) -> StoreResult<ListResult> {
        self.lists.fetch_add(1, Relaxed);
        Err(StoreError::NotImplemented { operation: "list".into(), implementer: "faulty".into() })
    }

    async fn copy_opts(&self, from: &Name, to: &Name, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

pub(super) const RECORDS: u32 = 20;

pub(super) fn key(i: u32) -> distill::cache::Key {
    manifest().space().key(&[i], &[])
}

/// A store, and directories of these names beside each other.
pub(super) fn places<const N: usize>(names: [&str; N]) -> (Arc<Faulty>, TempDir, [PathBuf; N]) {
    let root = tempfile::tempdir().unwrap();
    let dirs = names.map(|name| root.path().join(name));
    (Arc::default(), root, dirs)
}

/// Where the cache is, with little patience.
pub(super) fn bucket(store: &Arc<Faulty>) -> Bucket {
    let store: Arc<dyn ObjectStore> = Arc::clone(store) as _;
    let mut bucket = Bucket::new(store, Name::from("runs/one"), "s3://bucket/runs/one").unwrap();
    bucket.patience = Duration::from_millis(200);
    bucket
}

pub(super) fn remote(store: &Arc<Faulty>) -> Remote {
    Remote::at(bucket(store))
}

/// Writes the records that are not in the copy in `dir`, and sends them.
pub(super) fn fill(
    store: &Arc<Faulty>,
    dir: &Path,
    records: std::ops::Range<u32>,
) -> Result<(), CacheError> {
    let (mut writer, mut opened) = Writer::open(dir, &manifest(), 500, Some(remote(store)))?;
    for i in records {
        if !opened.has(&key(i)) {
            let place = writer.append(&key(i), &[i as u8; 50])?;
            opened.added(&key(i), place);
        }
    }
    writer.finish()
}

/// Brings what the store has to `dir`, for reading.
pub(super) fn pull(store: &Arc<Faulty>, dir: &Path) -> Result<Vec<String>, CacheError> {
    fs::create_dir_all(dir).unwrap();
    remote(store).pull(dir, false)
}

pub(super) fn readable(dir: &Path) -> usize {
    let mut store = Store::open(dir).unwrap().unwrap();
    let whole = |i: &u32| match store.read(&key(*i)) {
        Found::Payload(bytes) => {
            assert_eq!(bytes, [*i as u8; 50]);
            true
        }
        Found::Nothing | Found::Damaged(..) => false,
    };
    (0..RECORDS).filter(whole).count()
}

pub(super) fn name(of: &str) -> Name {
    Name::from("runs/one").join(of)
}

/// The object that a file is.
pub(super) fn object(store: &Faulty, file: &str) -> Name {
    let found = block(store.inner.list(None).collect::<Vec<_>>());
    let names = found.into_iter().map(|meta| meta.unwrap().location);
    names.into_iter().find(|name| name.as_ref().ends_with(file)).unwrap()
}

pub(super) fn block<T>(call: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(call)
}
