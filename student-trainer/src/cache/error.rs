//! Why a cache cannot be used. Each error names the cache, both values and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use distill::cache::SegmentError;

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("--cache: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing there.
    #[error(
        "--cache {place} holds no cache; make one with `student-trainer cache build`, or by training \
         with a teacher and the same --cache"
    )]
    Absent {
        /// The cache.
        place: String,
    },
    /// A directory of something else.
    #[error(
        "--cache {} is not empty and holds no cache (no {}, but {found}); name another directory",
        dir.display(), super::manifest::FILE
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// A description that cannot be read.
    #[error(
        "--cache: {} cannot be read: {reason}; put it back as it was, or name another cache",
        path.display()
    )]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another version of the format.
    #[error(
        "--cache {place} is written in format {found}, this program reads format {wanted}: use the \
         program that wrote it, or build another cache"
    )]
    Format {
        /// The cache.
        place: String,
        /// Its version.
        found: u32,
        /// This program's.
        wanted: u32,
    },
    /// Made for something else than is asked.
    #[error(
        "--cache {place} holds answers for {what} {found}, wanted are those for {wanted}: {remedy}, or name \
         another cache"
    )]
    Differs {
        /// The cache.
        place: String,
        /// What differs.
        what: &'static str,
        /// The value of the cache.
        found: String,
        /// The value wanted.
        wanted: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Another machine has begun another cache in a store while this one began its own.
    #[error(
        "--cache {place}: another machine has begun a cache there meanwhile, for {what} {found} and not \
         {wanted}; what came here is a whole cache in {}, to be used as `--cache` with that directory: name \
         another place, or move that directory away to use the other machine's",
        dir.display()
    )]
    Begun {
        /// The place.
        place: String,
        /// What differs.
        what: &'static str,
        /// The other machine's value.
        found: String,
        /// This one's.
        wanted: String,
        /// Where what came here is.
        dir: PathBuf,
    },
    /// A segment that is not of this cache.
    #[error("--cache: {} is not of this cache: {source}; take it away", path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// Both values.
        source: SegmentError,
    },
    /// Another program writes to it.
    #[error(
        "--cache {place} is being written by another program{}: one writes, others may read what is \
         there; wait for it, or name another cache",
        holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The cache.
        place: String,
        /// Process id of the other, as it wrote it down.
        holder: Option<u32>,
    },
    /// Not every row is there, and nobody can be asked.
    #[error(
        "--cache {place} lacks the answers of {missing} of {of} {what} rows (the first is {first}), \
         and no --teacher is given to ask for them"
    )]
    Incomplete {
        /// The cache.
        place: String,
        /// Rows without an answer.
        missing: usize,
        /// Of how many.
        of: usize,
        /// `training` or `held-out`.
        what: &'static str,
        /// Where the first of them stands.
        first: String,
    },
    /// A payload that is whole and means nothing here.
    #[error("--cache: {record} cannot be used: {reason}")]
    Payload {
        /// The record.
        record: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Damaged records, found by `cache verify`.
    #[error(
        "--cache {place}: {damaged} damaged; what is lost there is asked of the teacher again by the next \
         `cache build` or training with one"
    )]
    Damaged {
        /// The cache.
        place: String,
        /// How many of what.
        damaged: String,
    },
    /// A disk that took no more of a build.
    #[error(
        "{reason}; what was answered by then is kept on this machine: once that is mended, run the same command again"
    )]
    Refused {
        /// What was attempted and what the system said.
        reason: String,
    },
    /// A store that is not on this machine.
    #[error("--cache {place}: {reason}")]
    Remote {
        /// The cache.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A stop was asked for before it was here, or there.
    #[error("told to stop while waiting for what holds the cache {place}; nothing is lost")]
    Stopped {
        /// The cache.
        place: String,
    },
    /// A Parquet file.
    #[error("{}: {reason}", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl CacheError {
    /// Whether this is a place that may be read and not written to.
    pub(super) fn is_read_only(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
    }
}

/// A result with what was attempted, and on what.
pub(super) fn at<T>(
    action: &'static str,
    path: &Path,
    result: io::Result<T>,
) -> Result<T, CacheError> {
    result.map_err(|source| CacheError::Io { action, path: path.to_owned(), source })
}
