//! A code as bytes: what a trainer fetches once.
//!
//! Little-endian: `magic "LMBKCODE" | version u16 | exponent i16 | width u32 | directions u32 | model [32] |
//! mean f32[width] | classes i16[directions] | matrix i32[width * directions] | tables: per class
//! lowest i16, symbols u16, widths u16[symbols] | rates u32, per rate rung i16, bytes f32, divergence f32`.

use super::tables::{TABLES, Table};
use super::{Code, CodedError, FIRST_CLASS, MAX_ENTRY, MAX_WIDTH, Rate, Rung, Tables};
use crate::fingerprint::Fingerprint;

const MAGIC: &[u8; 8] = b"LMBKCODE";
/// Version of this layout.
const VERSION: u16 = 1;
/// Most rates of a code.
const MOST_RATES: usize = 3201;

impl Code {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.exponent.to_le_bytes());
        bytes.extend((self.width() as u32).to_le_bytes());
        bytes.extend((self.directions() as u32).to_le_bytes());
        bytes.extend(self.model.0);
        self.mean.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        self.classes.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        self.matrix.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        for table in self.tables.all() {
            let (lowest, widths) = table.parts();
            bytes.extend((lowest as i16).to_le_bytes());
            bytes.extend((widths.len() as u16).to_le_bytes());
            widths.for_each(|width| bytes.extend(width.to_le_bytes()));
        }
        bytes.extend((self.rates.len() as u32).to_le_bytes());
        for rate in &self.rates {
            bytes.extend(rate.rung.0.to_le_bytes());
            bytes.extend(rate.bytes.to_le_bytes());
            bytes.extend(rate.divergence.to_le_bytes());
        }
        bytes
    }

    /// Reads a code.
    ///
    /// # Errors
    /// [`CodedError`] when the bytes are no code, of another version, cut off or too long, or hold a
    /// table that does not sum. No bytes make it panic, and it reserves no more than they warrant.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodedError> {
        let mut reader = Reader { bytes };
        if reader.array::<8>()? != *MAGIC {
            return Err(CodedError::Code("it does not begin with LMBKCODE".to_owned()));
        }
        let version = u16::from_le_bytes(reader.array()?);
        if version != VERSION {
            let what = format!("its version is {version}, this program reads {VERSION}");
            return Err(CodedError::Code(what));
        }
        let exponent = i16::from_le_bytes(reader.array()?);
        let width = u32::from_le_bytes(reader.array()?) as usize;
        let directions = u32::from_le_bytes(reader.array()?) as usize;
        if width == 0 || width > MAX_WIDTH || directions == 0 || directions > width {
            let what = format!("{directions} directions of a width of {width}");
            return Err(CodedError::Code(what));
        }
        let code = Self {
            fingerprint: Fingerprint::of(bytes),
            model: Fingerprint(reader.array()?),
            exponent,
            mean: reader.list(width, f32::from_le_bytes)?,
            classes: reader.list(directions, i16::from_le_bytes)?,
            matrix: reader.list(width * directions, i32::from_le_bytes)?,
            tables: reader.tables()?,
            rates: reader.rates()?,
        };
        if !reader.bytes.is_empty() {
            return Err(CodedError::Code(format!("{} bytes too many", reader.bytes.len())));
        }
        code.checked()
    }

    fn checked(self) -> Result<Self, CodedError> {
        let wrong = |what: &str| Err(CodedError::Code(what.to_owned()));
        if !self.mean.iter().all(|x| x.is_finite()) {
            return wrong("its mean is not finite");
        }
        if !self.classes.is_sorted_by(|a, b| a >= b) {
            return wrong("its directions are not in falling order");
        }
        if self.matrix.iter().any(|entry| entry.unsigned_abs() > MAX_ENTRY as u32) {
            return wrong("an entry of its matrix is beyond 24 bits");
        }
        if !(-1000..=900).contains(&self.exponent) {
            return wrong("the unit of its matrix is out of range");
        }
        let rung = |rate: &Rate| (Rung::FINEST..=Rung::COARSEST).contains(&rate.rung);
        let finite = |rate: &Rate| rate.bytes.is_finite() && rate.divergence.is_finite();
        let sound = self.rates.iter().all(|rate| rung(rate) && finite(rate));
        if !sound || !self.rates.is_sorted_by(|a, b| a.rung < b.rung) {
            return wrong("its rates are out of order or range");
        }
        Ok(self)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodedError> {
        let cut = || CodedError::Code("it is cut off".to_owned());
        let (found, rest) = self.bytes.split_first_chunk().ok_or_else(cut)?;
        self.bytes = rest;
        Ok(*found)
    }

    fn list<const N: usize, T>(
        &mut self,
        count: usize,
        of: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, CodedError> {
        let cut = || CodedError::Code("it is cut off".to_owned());
        let (found, rest) = self.bytes.split_at_checked(count * N).ok_or_else(cut)?;
        self.bytes = rest;
        Ok(found.as_chunks::<N>().0.iter().copied().map(of).collect())
    }

    fn tables(&mut self) -> Result<Tables, CodedError> {
        let mut tables = Vec::with_capacity(TABLES);
        for number in 0..TABLES as i32 {
            let lowest = i16::from_le_bytes(self.array()?);
            let symbols = u16::from_le_bytes(self.array()?);
            let widths = self.list(usize::from(symbols), u16::from_le_bytes)?;
            tables.push(Table::new(FIRST_CLASS + number, i32::from(lowest), &widths)?);
        }
        Ok(Tables::new(tables))
    }

    fn rates(&mut self) -> Result<Vec<Rate>, CodedError> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count > MOST_RATES {
            return Err(CodedError::Code(format!("{count} rates, more than {MOST_RATES}")));
        }
        let mut rates = Vec::new();
        for _ in 0..count {
            let rung = Rung(i16::from_le_bytes(self.array()?));
            let bytes = f32::from_le_bytes(self.array()?);
            let divergence = f32::from_le_bytes(self.array()?);
            rates.push(Rate { rung, bytes, divergence });
        }
        Ok(rates)
    }
}
