//! The header of a GGUF file (version 2 or 3, little-endian), checked against the file: what it says of the model, and
//! where each tensor lies. No bytes can cause a panic, or more memory than the file's length.
//!
//! candle's own reader divides by an alignment that the file names, 0 or not, and keeps every token of the vocabulary;
//! lists are skipped here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};

use kernels::quantised::Quantised;

use crate::tensor_file::{Entry, StoredDtype};

/// Where tensors begin, unless the file says otherwise: a multiple of it.
const ALIGNMENT: u64 = 32;
/// Longest text that is read, in bytes.
const MAX_TEXT: u64 = 1 << 24;
/// Most elements of a tensor.
const MAX_ELEMENTS: u64 = 1 << 40;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Of so many elements.
    List(u64),
}

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, Entry>,
}

impl Header {
    /// Of an open file of this length.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(file: &File, length: u64) -> Result<Self, String> {
        let mut from = Reader { inner: BufReader::new(file), at: 0, length };
        if from.bytes::<4>()? != *b"GGUF" {
            return Err("it does not begin with GGUF".to_owned());
        }
        let version = from.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("its version is {version}; accepted: 2 and 3, little-endian"));
        }
        let (tensors, pairs) = (from.u64()?, from.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let (key, kind) = (from.text()?, from.u32()?);
            let value = from.value(kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("it says `{key}` twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(&Value::Integer(found)) if is_alignment(found) => found as u64,
            Some(other) => {
                return Err(format!("its general.alignment is {other:?}; accepted: powers of two"));
            }
        };
        let mut described = Vec::new();
        for _ in 0..tensors {
            described.push(from.tensor()?);
        }
        let data = from.at.next_multiple_of(alignment);
        check_places(&described, length.saturating_sub(data), alignment)?;
        let mut all = BTreeMap::new();
        for Described { name, dtype, shape, offset, .. } in described {
            let entry = Entry { dtype, shape, start: data + offset };
            if all.insert(name.clone(), entry).is_some() {
                return Err(format!("it holds tensor `{name}` twice"));
            }
        }
        Ok(Self { metadata, tensors: all })
    }
}

/// Whether this is a power of two, and none without reason.
fn is_alignment(found: i128) -> bool {
    (1..=1 << 20).contains(&found) && found.count_ones() == 1
}

/// A tensor as the header has it.
struct Described {
    name: String,
    dtype: Result<StoredDtype, String>,
    shape: Vec<usize>,
    /// From where tensors begin.
    offset: u64,
    /// Its length; none where its type is not read.
    bytes: Option<u64>,
}

/// Tensors lie within the file, apart from each other, and begin where they are to begin.
fn check_places(tensors: &[Described], room: u64, alignment: u64) -> Result<(), String> {
    let mut order: Vec<&Described> = tensors.iter().collect();
    order.sort_by_key(|tensor| (tensor.offset, tensor.bytes));
    let mut free = 0;
    for Described { name, offset, bytes, .. } in order {
        let end = offset.checked_add(bytes.unwrap_or(0)).filter(|end| *end <= room);
        let Some(end) = end else {
            return Err(format!("the file ends before tensor `{name}` does"));
        };
        if *offset < free || !offset.is_multiple_of(alignment) {
            return Err(format!("tensor `{name}` overlaps another or begins at an odd place"));
        }
        free = end;
    }
    Ok(())
}

/// The types of ggml (`enum ggml_type`).
fn dtype(number: u32) -> Result<StoredDtype, String> {
    let name = match number {
        0 => return Ok(StoredDtype::F32),
        1 => return Ok(StoredDtype::F16),
        30 => return Ok(StoredDtype::Bf16),
        8 => return Ok(StoredDtype::Quantised(Quantised::Q8_0)),
        12 => return Ok(StoredDtype::Quantised(Quantised::Q4K)),
        14 => return Ok(StoredDtype::Quantised(Quantised::Q6K)),
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        20 => "IQ4_NL",
        23 => "IQ4_XS",
        other => return Err(format!("type {other} of ggml")),
    };
    Err(name.to_owned())
}

/// What is read next.
struct Reader<'a> {
    inner: BufReader<&'a File>,
    at: u64,
    length: u64,
}

impl Reader<'_> {
    fn advance(&mut self, bytes: u64) -> Result<(), String> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.length);
        self.at = end.ok_or("it ends within its header")?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.inner.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn skip(&mut self, bytes: u64) -> Result<(), String> {
        self.advance(bytes)?;
        // No further than the file's length, which is below 2^63.
        self.inner.seek_relative(bytes as i64).map_err(|error| error.to_string())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u64()?;
        if length > MAX_TEXT {
            return Err(format!("a text in its header would have {length} bytes"));
        }
        self.advance(length)?;
        let mut text = vec![0; length as usize];
        self.inner.read_exact(&mut text).map_err(|error| error.to_string())?;
        String::from_utf8(text).map_err(|_| "a text in its header is no UTF-8".to_owned())
    }

    /// A value of this kind (`enum gguf_type`).
    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(format!("a value in its header is of kind {other}")),
        })
    }

    /// A list, whose elements are passed over.
    fn list(&mut self) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..count {
                    let length = self.u64()?;
                    self.skip(length)?;
                }
                return Ok(Value::List(count));
            }
            other => return Err(format!("a list in its header is of kind {other}")),
        };
        self.skip(count.checked_mul(size).ok_or("a list in its header has no end")?)?;
        Ok(Value::List(count))
    }

    fn tensor(&mut self) -> Result<Described, String> {
        let (name, dimensions) = (self.text()?, self.u32()?);
        if !(1..=4).contains(&dimensions) {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        // The innermost comes first.
        let mut shape = Vec::new();
        let mut elements = 1_u64;
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.insert(0, size as usize);
            let product = elements.checked_mul(size).filter(|all| (1..=MAX_ELEMENTS).contains(all));
            elements =
                product.ok_or_else(|| format!("tensor `{name}` has sizes that cannot be"))?;
        }
        let (dtype, offset) = (dtype(self.u32()?), self.u64()?);
        let row = shape.last().copied().unwrap_or(0);
        if let Ok(StoredDtype::Quantised(blocks)) = dtype
            && !row.is_multiple_of(blocks.values())
        {
            return Err(format!("tensor `{name}` has rows of {row}, which are no whole blocks"));
        }
        let bytes = dtype.as_ref().ok().map(|dtype| dtype.bytes_of(elements as usize) as u64);
        Ok(Described { name, dtype, shape, offset, bytes })
    }
}
