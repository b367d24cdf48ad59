//! Where a cache is, as a person names it: a directory, or an object store with a copy on this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hub::settings::own_cache;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Name;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use proto::causes::with_causes;
use tonic::codegen::http::Uri;

use super::append::{SEGMENT_BYTES, Writer, has_unsent, is_written, pulling};
use super::bucket::Bucket;
use super::error::{CacheError, at};
use super::manifest::Manifest;
use super::remote::{Remote, is_copy};
use super::store::Store;
use crate::stop::Stop;

/// The forms of a place.
const WANTED: &str = "a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIR is \
                      wanted";

/// A store and the place in it; the error is a reason.
type StoreAt = Result<(Arc<dyn ObjectStore>, Name), String>;

/// A cache's place.
#[derive(Debug)]
pub(crate) struct Located {
    /// As it was named.
    pub(crate) place: String,
    /// Its directory, or that of the copy.
    pub(crate) dir: PathBuf,
    pub(crate) remote: Option<Remote>,
}

impl Located {
    /// What a name means: `s3://BUCKET/PREFIX`, `gs://…`, `az://…` and `file:///DIR` are object stores, all
    /// else is a directory.
    ///
    /// # Errors
    /// [`CacheError::Remote`] when an address is none, or its settings (`AWS_…` and the like) make no sense.
    pub(crate) fn of(place: &str) -> Result<Self, CacheError> {
        Self::with(place, made)
    }

    /// The same, of a place that is not made by looking for it. A directory that is not there is a store that is
    /// away, where this machine has a copy of it.
    ///
    /// # Errors
    /// As [`Self::of`], and [`CacheError::Absent`].
    pub(crate) fn existing(place: &str) -> Result<Self, CacheError> {
        let located = Self::with(place, local)?;
        // What cannot be looked at may be there.
        let gone = |dir: &str| matches!(Path::new(dir).try_exists(), Ok(false));
        if place.strip_prefix("file://").is_some_and(gone) && !is_copy(&located.dir) {
            return Err(CacheError::Absent { place: located.place });
        }
        Ok(located)
    }

    fn with(place: &str, local: impl Fn(&str) -> StoreAt) -> Result<Self, CacheError> {
        let wrong = |reason: String| CacheError::Remote { place: place.to_owned(), reason };
        let Some(address) = address(place).map_err(wrong)? else {
            return Ok(Self { place: place.to_owned(), dir: place.into(), remote: None });
        };
        let mut away = None;
        let (store, prefix) = match address {
            // A directory that cannot be had is a store that is away.
            ("file", dir) => local(dir).unwrap_or_else(|reason| {
                away = Some(reason);
                (Arc::new(InMemory::new()), Name::default())
            }),
            (scheme, rest) => store_of(scheme, rest).map_err(wrong)?,
        };
        let remote = Remote::at(Bucket::new(store, prefix, place)?).away(away);
        Ok(Self { place: place.to_owned(), dir: copy_of(place)?, remote: Some(remote) })
    }

    /// The same, with somebody who may ask that its store is waited for no more.
    pub(crate) fn stopped_by(mut self, stop: &Stop) -> Self {
        if let Some(remote) = &mut self.remote {
            remote.stopped_by(stop);
        }
        self
    }

    /// Opens the cache for reading; none where there is none. What a store does not have as it lists it
    /// is added to the damage. Where that is `thorough`, what is here of a store's cache is compared with
    /// what the store has, and brought again where it differs.
    ///
    /// # Errors
    /// Those of [`Store::open`] and [`Remote::pull`]; [`CacheError::Stopped`] when a stop was asked for
    /// meanwhile.
    pub(crate) fn open(&mut self, thorough: bool) -> Result<Option<Store>, CacheError> {
        self.open_or(thorough, Err)
    }

    /// The same for a run, for which this machine's copy does where the store is away. Why that is not asked
    /// comes with it.
    ///
    /// # Errors
    /// As [`Self::open`]; the store's own where there was no copy before.
    pub(crate) fn open_for_run(
        &mut self,
    ) -> Result<(Option<Store>, Option<CacheError>), CacheError> {
        let (is_copy, mut away) = (is_copy(&self.dir), None);
        let store = self.open_or(false, |error| {
            if !is_copy || !matches!(error, CacheError::Remote { .. }) {
                return Err(error);
            }
            away = Some(error);
            Ok(())
        })?;
        Ok((store, away))
    }

    /// Whether a writer would send something, and nobody writes.
    pub(crate) fn has_more(&self) -> Result<bool, CacheError> {
        let Some(remote) = &self.remote else { return Ok(false) };
        Ok(!is_written(&self.dir)? && remote.lists_less(&self.dir)?)
    }

    /// Sends what is here and the store lacks. What it refuses is told, and kept for the next time.
    ///
    /// # Errors
    /// [`CacheError::Stopped`], and those of [`Self::open`].
    pub(crate) fn send_rest(
        &mut self,
        manifest: &Manifest,
        stop: &Stop,
    ) -> Result<Option<Store>, CacheError> {
        let writer = Writer::open(&self.dir, manifest, SEGMENT_BYTES, self.remote.take());
        match writer.and_then(|(writer, _)| writer.finish()) {
            Ok(_) => {}
            Err(error @ CacheError::Stopped { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!("{error}: what was not sent is kept in {}", self.dir.display())
            }
        }
        *self = Self::of(&self.place)?.stopped_by(stop);
        Ok(self.open_for_run()?.0)
    }

    /// Opens the cache; `unless` a failure to bring what the store has is the end.
    fn open_or(
        &mut self,
        thorough: bool,
        unless: impl FnOnce(CacheError) -> Result<(), CacheError>,
    ) -> Result<Option<Store>, CacheError> {
        let (mut lost, mut pulled) = (Vec::new(), None);
        if let Some(remote) = &mut self.remote {
            at("create", &self.dir, std::fs::create_dir_all(&self.dir))?;
            // Until it is opened nobody changes what it is made of.
            pulled = Some(pulling(&self.dir, remote.stop())?);
            // A program that writes here brought what there was, and has what the store does not have yet.
            if !is_written(&self.dir)? {
                match remote.pull(&self.dir, thorough) {
                    Ok(found) => lost = found,
                    Err(error) => unless(error)?,
                }
                // What this machine could not send is no less an answer.
                if let (true, Some(manifest)) = (has_unsent(&self.dir)?, Manifest::read(&self.dir)?)
                {
                    Writer::open(&self.dir, &manifest, SEGMENT_BYTES, None)?.0.finish()?;
                }
            }
        }
        let mut store = Store::open(&self.dir)?;
        drop(pulled);
        if let Some(store) = &mut store {
            store.damage.extend(lost.into_iter().map(|what| format!("all of {what}")));
        }
        Ok(store)
    }
}

/// What is wrong with the name of a cache's place, as far as can be said without going there.
pub(crate) fn fault(place: &str) -> Option<String> {
    let reached = match address(place) {
        Ok(None | Some(("file", _))) => return None,
        Ok(Some((scheme, rest))) => store_of(scheme, rest).map(drop),
        Err(reason) => Err(reason),
    };
    reached.err().map(|reason| format!("--cache {place}: {reason}"))
}

/// An address apart at its `://`; none of a directory. The error is a reason.
fn address(place: &str) -> Result<Option<(&str, &str)>, String> {
    let Some((scheme, rest)) = place.split_once("://") else {
        let schemes = ["s3:", "gs:", "az:", "file:", "s3//", "gs//", "az//", "file//"];
        let meant = schemes.iter().any(|scheme| place.starts_with(scheme));
        return if meant { Err(WANTED.to_owned()) } else { Ok(None) };
    };
    match scheme {
        "file" if !rest.starts_with('/') || rest.trim_matches('/').is_empty() => {
            Err(WANTED.to_owned())
        }
        _ => Ok(Some((scheme, rest))),
    }
}

/// A store that is a directory, and the place in it, made where it is not there.
fn made(dir: &str) -> StoreAt {
    std::fs::create_dir_all(dir).map_err(|e| e.to_string())?;
    local(dir)
}

/// A store that is a directory, and the place in it.
fn local(dir: &str) -> StoreAt {
    let store = LocalFileSystem::new_with_prefix(dir).map_err(|e| with_causes(&e))?;
    Ok((Arc::new(store), Name::default()))
}

/// The store of another address, and the place in it.
fn store_of(scheme: &str, rest: &str) -> StoreAt {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(WANTED.to_owned());
    }
    let named = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if !bucket.chars().all(named) || !bucket.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("{bucket:?} is no name of a bucket: letters, digits and - . _ are"));
    }
    let allows = |name: &&str| std::env::var(name).is_ok_and(|text| text == "true");
    let allow_http = ["AWS_ALLOW_HTTP", "AZURE_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP"].iter().any(allows);
    if scheme == "s3" {
        for name in ["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"] {
            let value = std::env::var(name).ok();
            let fault = value.and_then(|value| endpoint_fault(name, &value, allow_http));
            fault.map_or(Ok(()), Err)?;
        }
    }
    // The one of this program's other connections; one is in place already as a rule.
    drop(rustls::crypto::ring::default_provider().install_default());
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    // Calls are bounded as a whole, where they are made.
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        .with_timeout(Duration::from_secs(600))
        .with_allow_http(allow_http);
    let prefix = Name::parse(prefix).map_err(|e| e.to_string())?;
    let store: Result<Arc<dyn ObjectStore>, _> = match scheme {
        "s3" => {
            let store = AmazonS3Builder::from_env().with_bucket_name(bucket);
            let store = store.with_retry(retry).with_client_options(client).build();
            store.map(|store| Arc::new(store) as _)
        }
        "gs" => {
            let store = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
            let store = store.with_retry(retry).with_client_options(client).build();
            store.map(|store| Arc::new(store) as _)
        }
        "az" => {
            let store = MicrosoftAzureBuilder::from_env().with_container_name(bucket);
            let store = store.with_retry(retry).with_client_options(client).build();
            store.map(|store| Arc::new(store) as _)
        }
        _ => return Err(WANTED.to_owned()),
    };
    let store =
        store.map_err(|e| format!("{e}; its settings are the {} variables", settings(scheme)));
    Ok((store?, prefix))
}

/// What is wrong with the address of an S3 server of one's own, which the client would stumble over.
fn endpoint_fault(name: &str, value: &str, allow_http: bool) -> Option<String> {
    let wanted = "http://HOST:PORT or https://HOST:PORT is wanted";
    let uri = value.parse::<Uri>().ok();
    let sound = |uri: &Uri| uri.scheme_str().is_some() && uri.host().is_some_and(|h| !h.is_empty());
    // One whose port is none has an authority and no port.
    let of_port = |uri: &Uri| {
        let after_host = uri.authority().and_then(|all| all.as_str().rsplit_once(':'));
        uri.port_u16().is_some() || after_host.is_none_or(|(_, port)| port.ends_with(']'))
    };
    match uri.filter(sound).filter(of_port).as_ref().and_then(Uri::scheme_str) {
        Some("https") => None,
        Some("http") if allow_http => None,
        Some("http") => Some(format!(
            "{name} is {value}, which is not encrypted: AWS_ALLOW_HTTP=true allows that"
        )),
        _ => Some(format!("{name} is {value:?}: {wanted}")),
    }
}

/// The environment variables that say how a store is reached.
fn settings(scheme: &str) -> &'static str {
    match scheme {
        "gs" => "GOOGLE_...",
        "az" => "AZURE_STORAGE_...",
        _ => "AWS_...",
    }
}

/// The directory of this machine that a store's cache is copied to.
fn copy_of(place: &str) -> Result<PathBuf, CacheError> {
    let home = own_cache().ok_or_else(|| CacheError::Remote {
        place: place.to_owned(),
        reason: "a copy is kept in $XDG_CACHE_HOME or $HOME/.cache, and neither is set".to_owned(),
    })?;
    let name = blake3::hash(place.as_bytes()).to_hex();
    Ok(home.join("answers").join(&name[..16]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_server_of_ones_own_is_looked_at() {
        for value in [
            "",
            "127.0.0.1:9000",
            "localhost:9000",
            "http://",
            "minio:9000/x",
            "ftp://a:1",
            "http://a:99999",
        ] {
            let fault = endpoint_fault("AWS_ENDPOINT", value, true).unwrap();
            assert!(
                fault.contains("http://HOST:PORT") && fault.contains("AWS_ENDPOINT is"),
                "{fault}"
            );
        }
        assert_eq!(endpoint_fault("AWS_ENDPOINT", "https://minio:9000", false), None);
        assert_eq!(endpoint_fault("AWS_ENDPOINT", "http://minio:9000", true), None);
        let fault = endpoint_fault("AWS_ENDPOINT", "http://minio:9000", false).unwrap();
        assert!(fault.contains("AWS_ALLOW_HTTP=true"), "{fault}");
    }
}
