//! An output matrix as bytes: what turns hidden states into logits, as it travels to who has them.
//!
//! `kind u8 = 0xC2 | version u8 = 1 | form u8 (0 float32, 1 bfloat16) | 0 | rows u32 | width u32 |
//! values [rows, width]`, little-endian. A matrix all of whose numbers are bfloat16 travels as such:
//! nothing is rounded.

use crate::fingerprint::Fingerprint;

/// First byte.
const KIND: u8 = 0xC2;
/// Version of this layout.
const VERSION: u8 = 1;
/// Bytes before the numbers.
const HEAD_BYTES: usize = 12;

/// The numbers of a matrix, as they lie in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixForm {
    /// Four bytes each.
    F32,
    /// Two bytes each.
    Bf16,
}

/// A matrix, read where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputMatrix<'a> {
    /// Classes.
    pub rows: usize,
    /// Numbers of a hidden state.
    pub width: usize,
    /// How the numbers lie.
    pub form: MatrixForm,
    /// `[rows, width]`, little-endian.
    pub values: &'a [u8],
}

/// Why bytes are no output matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// Another layout, or nothing.
    #[error("an output matrix begins with {found:02x?}, wanted c2 01 and form 0 or 1")]
    Head {
        /// What it begins with.
        found: Vec<u8>,
    },
    /// A wrong number of bytes.
    #[error("an output matrix of {rows} by {width} takes {wanted} bytes, found {found}")]
    Length {
        /// Rows announced.
        rows: usize,
        /// Width announced.
        width: usize,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes found.
        found: usize,
    },
}

/// Writes a matrix `[rows, width]`, and names the bytes.
pub fn encode(values: &[f32], width: usize) -> (Vec<u8>, Fingerprint) {
    let is_bf16 = values.iter().all(|x| x.to_bits() & 0xffff == 0);
    let form = if is_bf16 { MatrixForm::Bf16 } else { MatrixForm::F32 };
    let mut bytes = Vec::with_capacity(HEAD_BYTES + values.len() * form.bytes());
    bytes.extend([KIND, VERSION, form.number(), 0]);
    bytes.extend(((values.len() / width.max(1)) as u32).to_le_bytes());
    bytes.extend((width as u32).to_le_bytes());
    match form {
        MatrixForm::F32 => values.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
        MatrixForm::Bf16 => {
            values.iter().for_each(|x| bytes.extend(((x.to_bits() >> 16) as u16).to_le_bytes()));
        }
    }
    let name = Fingerprint::of(&bytes);
    (bytes, name)
}

impl MatrixForm {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::Bf16 => 1,
        }
    }
}

impl<'a> OutputMatrix<'a> {
    /// Reads a matrix.
    ///
    /// # Errors
    /// [`MatrixError`]; no bytes make it panic.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MatrixError> {
        let wrong = || MatrixError::Head { found: bytes.iter().take(4).copied().collect() };
        let (head, values) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(wrong)?;
        let form = match head[..4] {
            [KIND, VERSION, 0, 0] => MatrixForm::F32,
            [KIND, VERSION, 1, 0] => MatrixForm::Bf16,
            _ => return Err(wrong()),
        };
        let word =
            |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| head[at + byte])) as usize;
        let [rows, width] = [4, 8].map(word);
        let (found, wanted) =
            (values.len(), rows.saturating_mul(width).saturating_mul(form.bytes()));
        match found == wanted {
            true => Ok(Self { rows, width, form, values }),
            false => Err(MatrixError::Length { rows, width, wanted, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_travel_in_two_bytes_where_they_have_no_more() {
        let (bytes, name) = encode(&[1.0, -2.0, 0.5, 0.0], 2);
        let values = [0x80, 0x3f, 0, 0xc0, 0, 0x3f, 0, 0];
        let head = [0xc2, 1, 1, 0, 2, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(bytes, [&head[..], &values[..]].concat());
        assert_eq!(name.0, *blake3::hash(&bytes).as_bytes());
        let matrix = OutputMatrix::parse(&bytes).unwrap();
        let wanted = OutputMatrix { rows: 2, width: 2, form: MatrixForm::Bf16, values: &values };
        assert_eq!(matrix, wanted);
        let (bytes, _) = encode(&[1.0, 0.1], 1);
        let matrix = OutputMatrix::parse(&bytes).unwrap();
        assert_eq!((matrix.form, matrix.rows, matrix.width), (MatrixForm::F32, 2, 1));
        assert_eq!(matrix.values, [1.0f32, 0.1].map(f32::to_le_bytes).concat());
    }

    #[test]
    fn other_bytes_are_refused() {
        let (bytes, _) = encode(&[1.0, -2.0], 1);
        for end in 0..bytes.len() {
            assert!(OutputMatrix::parse(&bytes[..end]).is_err(), "{end}");
        }
        for at in 0..4 {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            assert!(matches!(OutputMatrix::parse(&bytes), Err(MatrixError::Head { .. })), "{at}");
        }
        let mut huge = bytes.clone();
        huge[4..12].fill(0xff);
        assert!(matches!(OutputMatrix::parse(&huge), Err(MatrixError::Length { .. })));
    }
}
