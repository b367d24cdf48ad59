//! JSON lines, and JSON files that hold one array: records one by one, within bounds.

use std::cell::Cell;
use std::io::{BufRead, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::Value;

use super::error::{DataError, Place};
use super::rows::{self, Row};

/// UTF-8's byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Appends at most `limit` rows of JSON lines. Blank lines are passed over; a byte order mark and
/// CRLF line ends are fine.
pub(super) fn read_lines(
    path: &Path,
    mut reader: impl BufRead,
    limit: usize,
    max_line_bytes: usize,
    rows: &mut Vec<Row>,
) -> Result<(), DataError> {
    let file: Arc<Path> = path.into();
    let mut line = Vec::new();
    let mut left = limit;
    for number in 1.. {
        let place = Place { file: file.clone(), number, unit: "line" };
        if left == 0 || !read_line(&mut reader, &mut line, max_line_bytes, &place)? {
            break;
        }
        let text = match line.strip_prefix(BOM) {
            Some(rest) if number == 1 => rest,
            _ => &line,
        };
        if !text.trim_ascii().is_empty() {
            rows.push(parse_line(text, place)?);
            left -= 1;
        }
    }
    Ok(())
}

/// Reads one line without its end; false at the end of the file.
fn read_line(
    reader: &mut impl BufRead,
    line: &mut Vec<u8>,
    max_line_bytes: usize,
    place: &Place,
) -> Result<bool, DataError> {
    line.clear();
    let mut bounded = reader.take(max_line_bytes as u64 + 1);
    let read = bounded.read_until(b'\n', line).map_err(|source| DataError::Read {
        path: place.file.to_path_buf(),
        after: format!(" at line {}", place.number),
        source,
    })?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() > max_line_bytes {
        return Err(DataError::TooLong { place: place.clone(), limit: max_line_bytes });
    }
    Ok(read > 0)
}

fn parse_line(line: &[u8], place: Place) -> Result<Row, DataError> {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            return Err(DataError::NotText { place, byte: line[at], column: at + 1 });
        }
    };
    match serde_json::from_str(text) {
        Ok(record) => rows::row_of(record, place),
        Err(error) => Err(DataError::NotJson { place, reason: of_one_line(&error) }),
    }
}

/// serde_json counts lines itself, and here there is one.
fn of_one_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

/// Appends at most `limit` rows of a `.json` file: an array of objects, or else JSON lines.
pub(super) fn read_json(
    path: &Path,
    mut reader: impl BufRead,
    limit: usize,
    max_line_bytes: usize,
    rows: &mut Vec<Row>,
) -> Result<(), DataError> {
    let fail = |source| DataError::Read { path: path.to_owned(), after: String::new(), source };
    let head = reader.fill_buf().map_err(fail)?;
    let bom = if head.starts_with(BOM) { BOM.len() } else { 0 };
    let is_array = head[bom..].trim_ascii_start().first() == Some(&b'[');
    if !is_array {
        return read_lines(path, reader, limit, max_line_bytes, rows);
    }
    reader.consume(bom);
    let since_row = Rc::new(Cell::new(0));
    let bounded = Bounded { inner: reader, since_row: since_row.clone(), limit: max_line_bytes };
    let mut outcome = Ok(());
    let visitor = Elements { file: path.into(), limit, since_row, rows, outcome: &mut outcome };
    let parsed = serde_json::Deserializer::from_reader(bounded).deserialize_seq(visitor);
    outcome?;
    parsed.or_else(|error| array_error(path, &error, limit, max_line_bytes, rows.len()))
}

/// What ended the array early, if that was not the limit on rows.
fn array_error(
    path: &Path,
    error: &serde_json::Error,
    limit: usize,
    max_line_bytes: usize,
    rows: usize,
) -> Result<(), DataError> {
    let place = Place { file: path.into(), number: error.line() as u64, unit: "line" };
    match error.io_error_kind() {
        Some(ErrorKind::FileTooLarge) => Err(DataError::TooLong { place, limit: max_line_bytes }),
        Some(kind) => Err(DataError::Read {
            path: path.to_owned(),
            after: format!(" at line {}", error.line()),
            source: std::io::Error::new(kind, error.to_string()),
        }),
        // The rest of an array cut off on purpose was never looked at.
        None if rows >= limit => Ok(()),
        None => Err(DataError::NotJson { place, reason: error.to_string() }),
    }
}

/// Fails when more than `limit` bytes pass between two rows.
struct Bounded<R> {
    inner: R,
    since_row: Rc<Cell<usize>>,
    limit: usize,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.since_row.set(self.since_row.get() + read);
        if self.since_row.get() > self.limit {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(read)
    }
}

/// Turns the elements of an array into rows as they are parsed.
struct Elements<'a> {
    file: Arc<Path>,
    limit: usize,
    since_row: Rc<Cell<usize>>,
    rows: &'a mut Vec<Row>,
    outcome: &'a mut Result<(), DataError>,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        for number in 1..=self.limit as u64 {
            let Some(record) = elements.next_element::<Value>()? else { return Ok(()) };
            self.since_row.set(0);
            let place = Place { file: self.file.clone(), number, unit: "row" };
            match rows::row_of(record, place) {
                Ok(row) => self.rows.push(row),
                Err(error) => {
                    *self.outcome = Err(error);
                    return Err(serde::de::Error::custom("a row was refused"));
                }
            }
        }
        Ok(())
    }
}
