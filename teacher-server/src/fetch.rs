//! One `Fetch` call: the bytes of a blob from an offset on, as fast as they are read.

use std::time::Duration;

use distill::fingerprint::Fingerprint;
use proto::convert::fetch_replies;
use proto::v1::{FetchReply, FetchRequest};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::desk::Desk;
use crate::error::TeacherError;

/// Longest part of a name that is told back, in characters.
const MAX_NAME: usize = 80;

/// The bytes that are asked for, and the first one wanted.
///
/// # Errors
/// [`TeacherError::NoBlob`] or [`TeacherError::BlobOffset`], and those of [`crate::engine::Engine::blob`].
pub async fn find(
    desk: &Desk,
    request: &FetchRequest,
) -> Result<(std::sync::Arc<[u8]>, usize), TeacherError> {
    let FetchRequest { fingerprint, offset } = request;
    let no_blob = || {
        let name = fingerprint.chars().filter(char::is_ascii_graphic).take(MAX_NAME).collect();
        TeacherError::NoBlob { name }
    };
    let name: Fingerprint = fingerprint.parse().map_err(|_| no_blob())?;
    let blob = desk.engine.blob(name).await?.ok_or_else(no_blob)?;
    let first = usize::try_from(*offset).ok().filter(|&first| first <= blob.len());
    let behind = TeacherError::BlobOffset { offset: *offset, bytes: blob.len() };
    Ok((blob, first.ok_or(behind)?))
}

/// Sends a blob's bytes from `first` on to a client who takes each part within `patience`.
///
/// # Errors
/// [`TeacherError::Unread`] when it does not; one that has left is no error.
pub async fn send(
    blob: std::sync::Arc<[u8]>,
    first: usize,
    max_reply_bytes: usize,
    patience: Duration,
    out: mpsc::Sender<FetchReply>,
) -> Result<(), TeacherError> {
    for part in fetch_replies(blob, first, max_reply_bytes) {
        match timeout(patience, out.send(part)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(TeacherError::Unread { seconds: patience.as_secs_f64() }),
        }
    }
    Ok(())
}
