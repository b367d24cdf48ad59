//! Bytes from the hub into the cache: resumed where they broke off, checked before they count.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::cache::{self, CachedRepository};
use crate::client::{Client, FileFacts, Repository};
use crate::progress::Meter;
use crate::settings::HubSettings;
use crate::source::HubError;

/// How often a download is taken up again without a single byte in between.
const FRUITLESS_ATTEMPTS: u32 = 4;

/// Bytes moved at a time.
const CHUNK: usize = 1 << 20;

/// Puts the named files of a commit into the cache, those that are not there already, and returns
/// the commit's folder.
pub(crate) fn fetch(
    client: &Client<'_>,
    settings: &HubSettings,
    repo: &Repository,
    commit: &str,
    files: &[String],
) -> Result<PathBuf, HubError> {
    let cached = CachedRepository::new(&settings.cache, repo);
    // Asked for by commit: what the branch points to may change meanwhile.
    let pinned = Repository { revision: commit.to_owned(), ..repo.clone() };
    let missing = files.iter().filter(|file| !cached.snapshot(commit).join(file).exists());
    for file in missing {
        let facts = client.file_facts(&pinned, file)?;
        let _lock = cached.lock(&facts.etag)?;
        let blob = cached.blob(&facts.etag);
        if !blob.exists() {
            let meter = Meter::start(settings.progress, file, facts.size);
            Download { client, repo: &pinned, file, facts: &facts }.run(&blob, &meter)?;
            meter.finish();
        }
        cached.link(commit, file, &facts.etag)?;
    }
    cached.remember(commit)?;
    Ok(cached.snapshot(commit))
}

/// One file on its way.
struct Download<'a> {
    client: &'a Client<'a>,
    repo: &'a Repository,
    file: &'a str,
    facts: &'a FileFacts,
}

impl Download<'_> {
    /// Downloads to `BLOB.incomplete`, and gives it its name when it is whole and right.
    fn run(&self, blob: &Path, meter: &Meter) -> Result<(), HubError> {
        cache::create_dir(blob.parent().unwrap_or(blob))?;
        let mut name = blob.as_os_str().to_owned();
        name.push(".incomplete");
        let part = PathBuf::from(name);
        let mut fruitless = 0;
        loop {
            let before = length(&part);
            let outcome = self.attempt(&part, meter)?;
            let have = length(&part);
            match outcome {
                Outcome::Whole => break,
                Outcome::BrokenOff(_) if have > before => fruitless = 0,
                Outcome::BrokenOff(reason) => {
                    fruitless += 1;
                    if fruitless >= FRUITLESS_ATTEMPTS {
                        let (file, want) = (self.file.to_owned(), self.facts.size);
                        return Err(HubError::BrokenOff { file, have, want, reason });
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(200 << fruitless));
        }
        if let Err(error) = self.check(&part) {
            fs::remove_file(&part).map_err(cache::io("remove", &part))?;
            return Err(error);
        }
        fs::rename(&part, blob).map_err(cache::io("write", blob))
    }

    /// One request, from where the part ends.
    fn attempt(&self, part: &Path, meter: &Meter) -> Result<Outcome, HubError> {
        let want = self.facts.size;
        let mut from = length(part);
        if from > want {
            // Left over from something else.
            fs::remove_file(part).map_err(cache::io("remove", part))?;
            from = 0;
        }
        if from == want && from > 0 {
            return Ok(Outcome::Whole);
        }
        let mut answer = match self.client.content(self.repo, self.file, from) {
            Ok(answer) => answer,
            // What broke off may come back; what never began may not.
            Err(
                error @ (HubError::Unreachable { .. }
                | HubError::TimedOut { .. }
                | HubError::Status { .. }),
            ) if from > 0 => return Ok(Outcome::BrokenOff(error.to_string())),
            Err(error) => return Err(error),
        };
        // A server that does not know ranges sends everything.
        let resumed = answer.status().as_u16() == 206;
        let fail = cache::io("write", part);
        let mut to = OpenOptions::new()
            .create(true)
            .write(true)
            .append(resumed)
            .truncate(!resumed)
            .open(part)
            .map_err(&fail)?;
        if answer.status().as_u16() == 416 {
            return Ok(Outcome::BrokenOff("the hub refused to resume".to_owned()));
        }
        let mut have = if resumed { from } else { 0 };
        let mut body = answer.body_mut().as_reader();
        let mut buffer = vec![0; CHUNK];
        let stopped = loop {
            meter.at(have);
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(read) => {
                    to.write_all(&buffer[..read]).map_err(&fail)?;
                    have += read as u64;
                }
                Err(error) => break Some(error.to_string()),
            }
        };
        to.flush().map_err(&fail)?;
        Ok(match stopped {
            Some(reason) => Outcome::BrokenOff(reason),
            None if have < want => Outcome::BrokenOff("the connection was closed".to_owned()),
            None => Outcome::Whole,
        })
    }

    /// Size, and for large files the SHA-256 that is their ETag.
    fn check(&self, part: &Path) -> Result<(), HubError> {
        let damaged = |what, found: String, wanted: String| {
            Err(HubError::Damaged { file: self.file.to_owned(), what, found, wanted })
        };
        let (found, wanted) = (length(part), self.facts.size);
        if found != wanted {
            return damaged("size", found.to_string(), wanted.to_string());
        }
        let etag = &self.facts.etag;
        if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(());
        }
        let found = sha256(part).map_err(cache::io("read", part))?;
        if found.eq_ignore_ascii_case(etag) {
            return Ok(());
        }
        damaged("SHA-256", found, etag.clone())
    }
}

enum Outcome {
    Whole,
    BrokenOff(String),
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
