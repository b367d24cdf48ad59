//! What a teacher's hidden states are read with: named by the teacher, fetched once, and kept under its
//! digest.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::convert::{BlobAssembler, BlobFacts, DecoderError, DecoderFacts, decoder_facts};
use proto::v1::{FetchRequest, GetDecoderRequest};

use crate::address::Address;
use crate::error::{Error, Failure};

/// Longest wait for the next part of a transfer.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

impl Address {
    /// What this teacher's hidden states are read with; with `code` the coded ones too, for which the
    /// teacher may have to make a code first.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do; [`Error::Decoder`] where no code is named that was
    /// asked for.
    pub async fn decoder(&self, code: bool) -> Result<DecoderFacts, Failure> {
        let mut client = self.client().await?;
        let reply = client.get_decoder(GetDecoderRequest { code }).await;
        let reply = reply.map_err(|status| self.failure("GetDecoder", &status))?;
        let wrong = |source| Error::Decoder { url: self.url().to_owned(), source };
        let facts = decoder_facts(reply.get_ref()).map_err(wrong)?;
        match code && facts.code.is_none() {
            true => Err(wrong(DecoderError::Missing { field: "code" }).into()),
            false => Ok(facts),
        }
    }

    /// Brings a blob into `dir`, where it is found under its digest from then on. What is there is not
    /// fetched again: an attempt goes on where the one before it broke.
    ///
    /// # Errors
    /// [`Failure`], by what trying again would do; [`Error::Keep`] when the disk refuses.
    pub async fn fetch(&self, blob: BlobFacts, dir: &Path) -> Result<PathBuf, Failure> {
        let path = dir.join(blob.fingerprint.to_string());
        let keep = |source| Failure::from(Error::Keep { path: path.clone(), source });
        // A pipe would be waited for.
        if std::fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(keep(std::io::Error::other("it is no file")));
        }
        if let Ok(mut file) = File::open(&path) {
            if digest(&mut file).map_err(keep)? == blob.fingerprint.0 {
                return Ok(path);
            }
            tracing::warn!(path = %path.display(), "is damaged and is fetched anew");
            std::fs::remove_file(&path).map_err(keep)?;
        }
        let begun = part_of(blob, dir);
        let keep = |source| Failure::from(Error::Keep { path: begun.clone(), source });
        std::fs::create_dir_all(dir).map_err(keep)?;
        let options = OpenOptions::new().read(true).append(true).create(true).open(&begun);
        let mut file = options.map_err(keep)?;
        // Unlocked when it is closed.
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("another program is fetching {}", begun.display());
                return Err(Failure::Passing(what));
            }
            // Some network file systems know no locks; what two programs make of it its digest tells.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(keep(e)),
        }
        if path.is_file() {
            return Ok(path);
        }
        let mut there = file.seek(SeekFrom::End(0)).map_err(keep)?;
        if there > blob.bytes {
            file.set_len(0).map_err(keep)?;
            there = 0;
        }
        if there < blob.bytes {
            self.fetch_rest(blob, there, (&mut file, &begun)).await?;
        }
        file.sync_all().map_err(keep)?;
        if digest(&mut file).map_err(keep)? != blob.fingerprint.0 {
            // Which part of it is wrong cannot be known.
            file.set_len(0).map_err(keep)?;
            let what = format!("{} came damaged: it is fetched anew", blob.fingerprint);
            return Err(Failure::Passing(what));
        }
        std::fs::rename(&begun, &path).map_err(keep)?;
        Ok(path)
    }

    /// Appends the bytes from `from` on to a file.
    async fn fetch_rest(
        &self,
        blob: BlobFacts,
        from: u64,
        (file, path): (&mut File, &Path),
    ) -> Result<(), Failure> {
        let keep = |source| Error::Keep { path: path.to_owned(), source };
        let mut client = self.client().await?;
        let request = FetchRequest { fingerprint: blob.fingerprint.to_string(), offset: from };
        let opened = tokio::time::timeout(PART_TIMEOUT, client.fetch(request)).await;
        let late = |_| Failure::Passing(format!("no bytes within {} s", PART_TIMEOUT.as_secs()));
        let refused = |status| self.failure("Fetch", &status);
        let mut parts = opened.map_err(late)?.map_err(refused)?.into_inner();
        let mut assembler = BlobAssembler::new(blob.bytes, from);
        while !assembler.is_complete() {
            let part = tokio::time::timeout(PART_TIMEOUT, parts.message()).await;
            let part = part.map_err(late)?.map_err(refused)?;
            let Some(part) = part else {
                return Err(Failure::Passing("the transfer was cut off".to_owned()));
            };
            let bytes = assembler.push(&part).map_err(|e| Failure::Passing(e.to_string()))?;
            file.write_all(bytes).map_err(keep)?;
        }
        Ok(())
    }
}

/// Where what has come of a blob is kept until all has.
pub fn part_of(blob: BlobFacts, dir: &Path) -> PathBuf {
    dir.join(format!("{}.part", blob.fingerprint))
}

/// BLAKE3 of a file.
fn digest(file: &mut File) -> std::io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(0))?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(*hasher.finalize().as_bytes()),
            count => hasher.update(&buffer[..count]),
        };
    }
}

#[cfg(test)]
#[path = "decoder_tests.rs"]
mod tests;
