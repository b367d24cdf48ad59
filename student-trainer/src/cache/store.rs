//! The directory of a cache, read: `cache.json`, `segment-NNNNNNNN.seg` with the records, and beside
//! each sealed one its index. Opening reads the indices and scans what has none.

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use distill::cache::{
    HEADER_BYTES, Header, Index, IndexBuilder, Key, Place, Scan, SegmentError, Space, payload_is,
    read_index, scan, segment_header,
};

use super::error::{CacheError, at};
use super::manifest::Manifest;
use crate::files;

/// Segments held open at a time.
const OPEN_FILES: usize = 64;

/// A segment as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) bytes: u64,
    /// Whether there is a file of its index.
    pub(crate) sealed: bool,
    /// Where what is whole ends; none where the index says that all was.
    pub(crate) scanned: Option<Scanned>,
}

/// What a scan of a segment leaves to know.
#[derive(Clone, Debug)]
pub(crate) struct Scanned {
    /// Where what can be appended to ends; 0 where not even the header is whole.
    pub(crate) end: u64,
    /// Whether a record before that is damaged.
    pub(crate) damaged: bool,
    /// Of each whole record the first bytes of its key, and its offset.
    pub(crate) records: Vec<(u64, u32)>,
    /// Whether its header can be read: to one that cannot nothing is appended.
    pub(crate) usable: bool,
}

/// A cache, open for reading.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) space: Space,
    pub(crate) segments: Vec<Segment>,
    /// Damage found while opening, in words.
    pub(crate) damage: Vec<String>,
    index: Index,
    open: HashMap<u32, File>,
}

/// What a lookup finds.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    /// The payload, its checksum checked.
    Payload(Vec<u8>),
    /// Nothing of that name.
    Nothing,
    /// A damaged record: the number of its segment, and what is wrong in words.
    Damaged(u32, String),
}

/// The name of a segment's file.
pub(crate) fn segment_name(number: u32) -> String {
    format!("segment-{number:08}.seg")
}

/// The name of the file of its index.
pub(crate) fn index_name(number: u32) -> String {
    format!("segment-{number:08}.idx")
}

impl Store {
    /// Opens the cache in `dir`; none where there is none.
    ///
    /// # Errors
    /// [`CacheError`] when files cannot be read, are of another format or another cache.
    pub(crate) fn open(dir: &Path) -> Result<Option<Self>, CacheError> {
        let Some(manifest) = Manifest::read(dir)? else { return Ok(None) };
        let space = manifest.space();
        let numbers = numbers_in(dir)?;
        let mut opened = Vec::new();
        let (mut places, mut indexed) = (0, Vec::new());
        for &number in &numbers {
            let found = Opened::read(dir, number, &space)?;
            places += found.len();
            opened.push(found);
        }
        let mut built = IndexBuilder::with_room(places);
        let mut damage = Vec::new();
        for (&number, opened) in numbers.iter().zip(opened) {
            let sealed = dir.join(index_name(number)).exists();
            indexed.push(opened.index_into((number, sealed), &space, &mut built, &mut damage));
        }
        for number in orphans_in(dir, &numbers)? {
            let path = dir.join(segment_name(number));
            damage.push(format!("all of {}: it is gone, and its index is there", path.display()));
        }
        Ok(Some(Self {
            dir: dir.to_owned(),
            manifest,
            space,
            segments: indexed,
            damage,
            index: built.finish(),
            open: HashMap::new(),
        }))
    }

    /// Whether there is a record of this name, as far as the index tells; reading it may find it
    /// damaged.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.index.places(key.prefix()).next().is_some()
    }

    /// Whether a segment is whole as its writer left it, and not being written.
    pub(crate) fn is_sealed(&self, number: u32) -> bool {
        self.segments.iter().any(|segment| segment.number == number && segment.sealed)
    }

    /// Whether there is a whole record of this name.
    pub(crate) fn has(&mut self, key: &Key) -> bool {
        self.holds(key) && matches!(self.read(key), Found::Payload(_))
    }

    /// Whether the record of this name at a place, which is whole, is the newest that is.
    pub(crate) fn is_newest(&mut self, key: &Key, place: Place) -> bool {
        let places: Vec<Place> = self.index.places(key.prefix()).collect();
        let newer = places.into_iter().take_while(|&other| other != place);
        let mut found = newer.map(|other| self.read_at(other));
        !found.any(|found| found.is_ok_and(|(header, _)| header.key == *key))
    }

    /// Whether a whole record stands for the one at a place, whose name cannot be read there any more: the
    /// index beside its segment has it.
    pub(crate) fn is_replaced(&mut self, place: Place) -> bool {
        let path = self.dir.join(index_name(place.segment));
        let Ok(bytes) = files::read(&path) else { return false };
        let Ok(indexed) = read_index(&bytes, place.segment, &self.space) else { return false };
        let Some((prefix, _)) = indexed.entries().find(|&(_, offset)| offset == place.offset)
        else {
            return false;
        };
        let others: Vec<Place> =
            self.index.places(prefix).filter(|&other| other != place).collect();
        others.into_iter().any(|other| self.read_at(other).is_ok())
    }

    /// Records in it.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Memory of its index, in bytes.
    pub(crate) fn index_bytes(&self) -> usize {
        self.index.bytes()
    }

    /// Takes note of a record that was appended.
    pub(crate) fn added(&mut self, key: &Key, place: Place) {
        self.index.insert(key.prefix(), place);
    }

    /// Reads the newest whole record of this name.
    pub(crate) fn read(&mut self, key: &Key) -> Found {
        let places: Vec<Place> = self.index.places(key.prefix()).collect();
        let mut damaged = None;
        for place in places {
            match self.read_at(place) {
                Ok((header, payload)) if header.key == *key => return Found::Payload(payload),
                // Another record whose name begins alike.
                Ok(_) => {}
                Err(reason) => {
                    let what = describe(&self.dir, place, Some(key), &reason);
                    damaged = Some((place.segment, what));
                }
            }
        }
        damaged.map_or(Found::Nothing, |(segment, what)| Found::Damaged(segment, what))
    }

    /// Takes note that the file of a segment is another one now.
    pub(crate) fn replaced(&mut self, number: u32) {
        self.open.remove(&number);
    }

    fn read_at(&mut self, place: Place) -> Result<(Header, Vec<u8>), String> {
        let file = self.file(place.segment).map_err(|e| e.to_string())?;
        let at = u64::from(place.offset);
        let mut head = [0; HEADER_BYTES];
        let read = |buffer: &mut [u8], at| match file.read_exact_at(buffer, at) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err("its file ends in it".to_owned()),
            read => read.map_err(|e| e.to_string()),
        };
        read(&mut head, at)?;
        let header = Header::read(&head, place).ok_or("its header is damaged")?;
        let length = u64::from(header.length);
        let left = file.metadata().map_err(|e| e.to_string())?.len().saturating_sub(at);
        if left < length + HEADER_BYTES as u64 {
            return Err("its file ends in it".to_owned());
        }
        let mut payload = vec![0; header.length as usize];
        read(&mut payload, at + HEADER_BYTES as u64)?;
        match payload_is(&payload, &header) {
            true => Ok((header, payload)),
            false => Err("its checksum does not match".to_owned()),
        }
    }

    /// A segment, open. Of many, those opened before are closed.
    fn file(&mut self, number: u32) -> std::io::Result<&File> {
        if !self.open.contains_key(&number) {
            if self.open.len() >= OPEN_FILES {
                self.open.clear();
            }
            let file = File::open(self.dir.join(segment_name(number)))?;
            self.open.insert(number, file);
        }
        self.open.get(&number).ok_or_else(|| ErrorKind::NotFound.into())
    }
}

/// The numbers of the segments in a directory, ascending.
pub(crate) fn numbers_in(dir: &Path) -> Result<Vec<u32>, CacheError> {
    numbers_of(dir, ".seg")
}

/// The numbers of indexes whose segments are gone.
pub(crate) fn orphans_in(dir: &Path, segments: &[u32]) -> Result<Vec<u32>, CacheError> {
    let mut numbers = numbers_of(dir, ".idx")?;
    numbers.retain(|number| segments.binary_search(number).is_err());
    Ok(numbers)
}

fn numbers_of(dir: &Path, end: &str) -> Result<Vec<u32>, CacheError> {
    let mut numbers = Vec::new();
    for entry in at("list", dir, std::fs::read_dir(dir))? {
        let name = at("list", dir, entry)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("segment-")?.strip_suffix(end)?.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whether a file begins with these bytes.
fn begins_with(path: &Path, wanted: &[u8]) -> bool {
    let mut found = vec![0; wanted.len()];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut found, 0));
    read.is_ok() && found == wanted
}

/// Damage in the words of a message.
pub(crate) fn describe(dir: &Path, place: Place, key: Option<&Key>, reason: &str) -> String {
    let path = dir.join(segment_name(place.segment));
    let name = key.map_or_else(|| "a record".to_owned(), |key| format!("record {key}"));
    format!("{name} at byte {} of {}: {reason}", place.offset, path.display())
}

/// A segment's index as it stands in its file, or what a scan of the segment itself found.
enum Opened {
    Indexed {
        bytes: Vec<u8>,
        segment_bytes: u64,
        len: usize,
    },
    Scanned {
        scan: Scan,
        bytes: u64,
        /// As many as its index says that there were.
        written: Option<u64>,
    },
    /// Not even its header is whole.
    Unusable {
        reason: String,
        bytes: u64,
        short: bool,
    },
}

impl Opened {
    fn read(dir: &Path, number: u32, space: &Space) -> Result<Self, CacheError> {
        let path = dir.join(segment_name(number));
        let file_bytes = at("read", &path, std::fs::metadata(&path))?.len();
        let mut written = None;
        if let Ok(bytes) = files::read(&dir.join(index_name(number)))
            && let Ok(indexed) = read_index(&bytes, number, space)
        {
            let (segment_bytes, len) = (indexed.segment_bytes, indexed.len());
            if segment_bytes == file_bytes && begins_with(&path, &segment_header(number, space)) {
                return Ok(Self::Indexed { segment_bytes, len, bytes });
            }
            written = Some(segment_bytes);
        }
        let bytes = at("read", &path, files::read(&path))?;
        let length = bytes.len() as u64;
        match scan(&bytes, number, space) {
            Ok(scan) => Ok(Self::Scanned { scan, bytes: length, written }),
            Err(source @ (SegmentError::Version { .. } | SegmentError::Space { .. })) => {
                Err(CacheError::Segment { path, source })
            }
            Err(
                source @ (SegmentError::Short { .. }
                | SegmentError::Header
                | SegmentError::Number { .. }),
            ) => {
                let short = matches!(source, SegmentError::Short { .. });
                let reason = format!("{}: {source}", path.display());
                Ok(Self::Unusable { reason, bytes: length, short })
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Indexed { len, .. } => *len,
            Self::Scanned { scan, .. } => scan.records.len(),
            Self::Unusable { .. } => 0,
        }
    }

    /// Puts its records into an index, and its damage into words.
    fn index_into(
        self,
        (number, sealed): (u32, bool),
        space: &Space,
        index: &mut IndexBuilder,
        damage: &mut Vec<String>,
    ) -> Segment {
        let mut push = |(prefix, offset)| index.push(prefix, Place { segment: number, offset });
        match self {
            Self::Indexed { bytes, segment_bytes, .. } => {
                if let Ok(indexed) = read_index(&bytes, number, space) {
                    indexed.entries().for_each(push);
                }
                Segment { number, bytes: segment_bytes, sealed: true, scanned: None }
            }
            Self::Scanned { scan, bytes, written } => {
                let found: Vec<_> =
                    scan.records.iter().map(|r| (r.key.prefix(), r.offset)).collect();
                found.iter().copied().for_each(&mut push);
                damage.extend(scan.damaged.iter().map(|lost| {
                    let name = lost.key.map(|key| format!("record {key}"));
                    let name = name.unwrap_or_else(|| "a record".to_owned());
                    format!("{name} at byte {} of {}", lost.offset, segment_name(number))
                }));
                if let (true, Some(torn)) = (sealed, &scan.torn) {
                    let name = segment_name(number);
                    damage.push(format!(
                        "a record at byte {} of {name}: the file ends in it",
                        torn.offset
                    ));
                }
                if let (None, Some(written)) = (&scan.torn, written.filter(|&w| w > bytes)) {
                    let name = segment_name(number);
                    damage.push(format!("all of {name} behind byte {bytes}: it had {written}"));
                }
                let end = scan.torn.map_or(bytes, |torn| u64::from(torn.offset));
                let damaged = !scan.damaged.is_empty();
                let scanned = Some(Scanned { end, damaged, records: found, usable: true });
                Segment { number, bytes, sealed, scanned }
            }
            Self::Unusable { reason, bytes, short } => {
                // A writer was killed before its first bytes were all there: nothing is lost.
                if !short || sealed {
                    damage.push(format!("all of {reason}"));
                }
                let usable = short && !sealed;
                let (end, damaged, records) = (0, false, Vec::new());
                let scanned = Some(Scanned { end, damaged, records, usable });
                Segment { number, bytes, sealed, scanned }
            }
        }
    }
}
