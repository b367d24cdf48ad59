//! A calibration on disk: the code, and the matrix only its teacher needs.
//!
//! Little-endian: `magic "LMBKCALI" | version u32 | tokenizer's fingerprint [32] | code's length u64 | code |
//! matrix f32[directions * width] | XXH3-64 of all before`. The model's fingerprint is in the code.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use distill::codec::{float_bytes, floats_from_bytes};
use distill::coded::{Code, CodedError};
use distill::fingerprint::{Fingerprint, payload_checksum};

use super::Encoder;

const MAGIC: &[u8; 8] = b"LMBKCALI";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 52;
const CHECKSUM_BYTES: usize = 8;

/// Why a calibration cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationFileError {
    /// The file system.
    #[error("cannot {action} the calibration {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not such a file, or damaged.
    #[error(
        "{} is no calibration this program can use ({reason}): move it away and start again, and another is \
         made, or make one with teacher-server calibrate, which sets it aside",
        path.display()
    )]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another model's, or of text in another tokenizer's ids.
    #[error(
        "{} is a calibration of the {what} {found}, this is the {what} {wanted}: move it away (caches and \
         checkpoints that began with it need it) and start again, and another is made, or make one with \
         teacher-server calibrate, which sets it aside",
        path.display()
    )]
    Other {
        /// Which file.
        path: PathBuf,
        /// `model` or `tokenizer`.
        what: &'static str,
        /// The one it was made for.
        found: Fingerprint,
        /// The one that is served.
        wanted: Fingerprint,
    },
}

impl Encoder {
    /// Writes it so that the file is there as a whole or not at all; `tokenizer` made the ids that it was
    /// made from. A file that is there and says anything else is what caches and checkpoints may depend
    /// on: it is set aside, under a name that is given back.
    ///
    /// # Errors
    /// [`CalibrationFileError::Io`]
    pub fn save(
        &self,
        path: &Path,
        tokenizer: Fingerprint,
    ) -> Result<Option<PathBuf>, CalibrationFileError> {
        let failed = |action| {
            let path = path.to_owned();
            move |source| CalibrationFileError::Io { action, path, source }
        };
        let code = self.code.to_bytes();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(tokenizer.0);
        bytes.extend((code.len() as u64).to_le_bytes());
        bytes.extend(code);
        bytes.extend(float_bytes(&self.matrix));
        let checksum = payload_checksum(&[&bytes]);
        bytes.extend(checksum.to_le_bytes());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed("make the directory of"))?;
        }
        let beside = path.with_extension(format!("part-{}", std::process::id()));
        let write = || -> std::io::Result<Option<PathBuf>> {
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            // Not before the new one is whole: a full disk leaves things as they were.
            let before = set_aside(path, &bytes)?;
            std::fs::rename(&beside, path)?;
            Ok(before)
        };
        write().map_err(|source| {
            // What is half written is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
            failed("write")(source)
        })
    }

    /// Reads the calibration of `model` and `tokenizer`; none where there is no file.
    ///
    /// # Errors
    /// [`CalibrationFileError`]
    pub fn load(
        path: &Path,
        [model, tokenizer]: [Fingerprint; 2],
    ) -> Result<Option<Self>, CalibrationFileError> {
        let bytes = match read_file(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = path.to_owned();
                return Err(CalibrationFileError::Io { action: "read", path, source });
            }
        };
        let unusable = |reason| CalibrationFileError::Unusable { path: path.to_owned(), reason };
        let (encoder, of) = parse(&bytes).map_err(unusable)?;
        let found = [("model", encoder.code.model(), model), ("tokenizer", of, tokenizer)];
        match found.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(Some(encoder)),
            Some((what, found, wanted)) => {
                Err(CalibrationFileError::Other { path: path.to_owned(), what, found, wanted })
            }
        }
    }
}

/// The bytes of a file. What is none, as a pipe, would be waited for.
fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::metadata(path)?.is_file() {
        true => std::fs::read(path),
        false => Err(std::io::Error::other("it is no file")),
    }
}

/// Gives the file at `path` another name beside its own, unless it is these bytes or is not there.
fn set_aside(path: &Path, bytes: &[u8]) -> std::io::Result<Option<PathBuf>> {
    let there = match read_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        there => there?,
    };
    if there == bytes {
        return Ok(None);
    }
    let name = payload_checksum(&[&there]);
    let aside = path.with_extension(format!("{name:016x}.before"));
    match std::fs::hard_link(path, &aside) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        // Not every file system gives a file two names.
        Err(_) => drop(std::fs::copy(path, &aside)?),
    }
    Ok(Some(aside))
}

/// The encoder, and the tokenizer it was made with.
fn parse(bytes: &[u8]) -> Result<(Encoder, Fingerprint), String> {
    let cut = || "it is cut off".to_owned();
    let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(cut)?;
    if header[..8] != *MAGIC {
        return Err("it does not begin with LMBKCALI".to_owned());
    }
    let number = |at: usize, count: usize| {
        header[at..at + count].iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte))
    };
    if number(8, 4) != u64::from(VERSION) {
        return Err(format!("its version is {}, this program reads {VERSION}", number(8, 4)));
    }
    let end = rest.len().checked_sub(CHECKSUM_BYTES).ok_or_else(cut)?;
    let checksum = payload_checksum(&[&bytes[..HEADER_BYTES + end]]);
    if rest[end..] != checksum.to_le_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    let mut tokenizer = Fingerprint([0; 32]);
    tokenizer.0.copy_from_slice(&header[12..44]);
    let length = usize::try_from(number(44, 8)).map_err(|e| e.to_string())?;
    let (code, matrix) = rest[..end].split_at_checked(length).ok_or_else(cut)?;
    let code = Code::from_bytes(code).map_err(|error: CodedError| error.to_string())?;
    let matrix = floats_from_bytes(matrix).ok_or_else(cut)?;
    if matrix.iter().any(|x| !x.is_finite()) {
        return Err("its matrix is not finite".to_owned());
    }
    let encoder = Encoder::new(Arc::new(code), matrix).map_err(|error| error.to_string())?;
    Ok((encoder, tokenizer))
}
