//! Hidden states as bytes: each number as it is, rounded, or in groups of 8 or 4 bits, and the coded form
//! of [`crate::coded`].
//!
//! `kind u8 = 0xC1 | version u8 = 1 | form u8 | 0`, then row after row. Forms: 0 `f32[width]`, 1
//! `bf16[width]`; 2 and 3 in groups of [`GROUP`] numbers (the last may be shorter), each `scale bf16` and
//! one signed byte a number, or half a byte (the lower half first, an odd last number alone); a number is
//! `scale · code`. Little-endian throughout.

use std::fmt;

use crate::coded::{CodedError, Rung, rung_of};
use crate::signal::HiddenStates;

/// Numbers that share a scale.
pub const GROUP: usize = 64;
/// First byte of hidden states that are not coded.
const KIND: u8 = 0xC1;
/// Version of this layout.
const VERSION: u8 = 1;
/// Bytes before the first row; coded rows have as many.
pub const HEAD_BYTES: usize = 4;

/// How hidden states are said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HiddenForm {
    /// Float32, as the teacher computed them.
    F32,
    /// Rounded to bfloat16.
    Bf16,
    /// Signed bytes, a scale for each [`GROUP`]: off by at most 1/251 of the group's largest magnitude.
    Int8,
    /// Half bytes of -7 to 7, a scale for each [`GROUP`]: off by at most 1/14 of the group's largest
    /// magnitude.
    Int4,
    /// Coded ([`crate::coded`]) at this step.
    Coded(Rung),
}

impl HiddenForm {
    /// The most bytes a row of `width` numbers takes.
    pub fn row_bytes(self, width: usize) -> usize {
        let scales = 2 * width.div_ceil(GROUP);
        match self {
            Self::F32 => 4 * width,
            Self::Bf16 => 2 * width,
            Self::Int8 => width + scales,
            Self::Int4 => whole_groups_bytes(width) + scales,
            // A row that is sent as it is, in a block of its own: its states, a word and what says so.
            Self::Coded(_) => 4 * width + 20,
        }
    }
}

impl fmt::Display for HiddenForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F32 => f.write_str("f32"),
            Self::Bf16 => f.write_str("bf16"),
            Self::Int8 => f.write_str("int8"),
            Self::Int4 => f.write_str("int4"),
            Self::Coded(rung) => write!(f, "coded at step {rung}"),
        }
    }
}

/// Hidden states of some positions in one form, as they travel: each part stands for its rows alone.
#[derive(Clone, Debug, PartialEq)]
pub struct HiddenRows {
    /// The form of all parts.
    pub form: HiddenForm,
    /// Numbers of a hidden state.
    pub width: usize,
    /// Rows and bytes, in the order of the positions.
    pub parts: Vec<(usize, Vec<u8>)>,
}

impl HiddenRows {
    /// Of no positions.
    pub fn new(form: HiddenForm, width: usize) -> Self {
        Self { form, width, parts: Vec::new() }
    }

    /// Number of positions.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(rows, _)| rows).sum()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Appends bytes that say `rows` rows, after a look at what can be seen without a code.
    ///
    /// # Errors
    /// [`HiddenError`] when they begin otherwise than this form does, or are of another length.
    pub fn push(&mut self, rows: usize, bytes: Vec<u8>) -> Result<(), HiddenError> {
        if let HiddenForm::Coded(wanted) = self.form {
            let found = rung_of(&bytes)?;
            if found != wanted {
                return Err(HiddenError::Rung { found, wanted });
            }
        } else {
            check(&bytes, rows, self.width, self.form)?;
        }
        self.parts.push((rows, bytes));
        Ok(())
    }
}

/// Why bytes are no hidden states.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HiddenError {
    /// Another layout.
    #[error("hidden states begin with {found:02x?}, wanted {wanted:02x?} (form {form})")]
    Head {
        /// What they begin with.
        found: Vec<u8>,
        /// What they should begin with.
        wanted: [u8; HEAD_BYTES],
        /// The form asked for.
        form: HiddenForm,
    },
    /// A wrong number of bytes.
    #[error(
        "{rows} hidden states of {width} numbers in form {form} take {wanted} bytes, found {found}"
    )]
    Length {
        /// The form.
        form: HiddenForm,
        /// Rows announced.
        rows: usize,
        /// Numbers a row.
        width: usize,
        /// Bytes wanted.
        wanted: usize,
        /// Bytes found.
        found: usize,
    },
    /// A number that is none.
    #[error("hidden state {row} holds {found}, wanted finite numbers")]
    NotFinite {
        /// The row.
        row: usize,
        /// The number.
        found: f32,
    },
    /// Coded at another step.
    #[error("hidden states are coded at step {found}, asked was {wanted}")]
    Rung {
        /// The step found.
        found: Rung,
        /// The step asked for.
        wanted: Rung,
    },
    /// Coded rows that are none.
    #[error(transparent)]
    Coded(#[from] CodedError),
}

/// The form's number on the wire; none for the coded one.
fn number(form: HiddenForm) -> Option<u8> {
    match form {
        HiddenForm::F32 => Some(0),
        HiddenForm::Bf16 => Some(1),
        HiddenForm::Int8 => Some(2),
        HiddenForm::Int4 => Some(3),
        HiddenForm::Coded(_) => None,
    }
}

/// Bytes of half bytes: each group of an odd number of codes has half a byte to spare.
fn whole_groups_bytes(width: usize) -> usize {
    width / GROUP * (GROUP / 2) + (width % GROUP).div_ceil(2)
}

/// Writes hidden states in a form that is not coded.
///
/// # Errors
/// [`HiddenError::NotFinite`].
///
/// # Panics
/// When the form is the coded one, which [`crate::coded::Code::encode`] writes.
pub fn encode(states: &[f32], width: usize, form: HiddenForm) -> Result<Vec<u8>, HiddenError> {
    let Some(number) = number(form) else { panic!("coded rows are written by their code") };
    if let Some(at) = states.iter().position(|x| !x.is_finite()) {
        return Err(HiddenError::NotFinite { row: at / width.max(1), found: states[at] });
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + states.len() / width * form.row_bytes(width));
    bytes.extend([KIND, VERSION, number, 0]);
    for row in states.chunks_exact(width) {
        match form {
            HiddenForm::F32 | HiddenForm::Coded(_) => {
                row.iter().for_each(|x| bytes.extend(x.to_le_bytes()));
            }
            HiddenForm::Bf16 => row.iter().for_each(|&x| bytes.extend(to_bf16(x).to_le_bytes())),
            HiddenForm::Int8 => {
                row.chunks(GROUP).for_each(|group| put_group(&mut bytes, group, 127))
            }
            HiddenForm::Int4 => row.chunks(GROUP).for_each(|group| put_group(&mut bytes, group, 7)),
        }
    }
    Ok(bytes)
}

/// Reads `rows` hidden states in a form that is not coded.
///
/// # Errors
/// [`HiddenError`]; no bytes make it panic, and it reserves no more than they warrant.
///
/// # Panics
/// When the form is the coded one, which [`crate::coded::Code::decode`] reads.
pub fn decode(
    bytes: &[u8],
    rows: usize,
    width: usize,
    form: HiddenForm,
) -> Result<HiddenStates, HiddenError> {
    let body = check(bytes, rows, width, form)?;
    let mut values = Vec::with_capacity(rows * width);
    for row in body.chunks_exact(form.row_bytes(width).max(1)) {
        match form {
            HiddenForm::F32 | HiddenForm::Coded(_) => {
                values.extend(row.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)));
            }
            HiddenForm::Bf16 => {
                values
                    .extend(row.as_chunks::<2>().0.iter().map(|&x| of_bf16(u16::from_le_bytes(x))));
            }
            HiddenForm::Int8 => get_groups(&mut values, row, width, 1),
            HiddenForm::Int4 => get_groups(&mut values, row, width, 2),
        }
    }
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(HiddenStates { width, values }),
        Some(at) => Err(HiddenError::NotFinite { row: at / width, found: values[at] }),
    }
}

/// The rows' bytes, if these are as many as there should be.
fn check(bytes: &[u8], rows: usize, width: usize, form: HiddenForm) -> Result<&[u8], HiddenError> {
    let Some(number) = number(form) else { panic!("coded rows are read by their code") };
    let wanted = [KIND, VERSION, number, 0];
    let body = bytes.strip_prefix(&wanted[..]).ok_or_else(|| HiddenError::Head {
        found: bytes.iter().take(HEAD_BYTES).copied().collect(),
        wanted,
        form,
    })?;
    let wanted = rows.saturating_mul(form.row_bytes(width));
    match body.len() == wanted {
        true => Ok(body),
        false => Err(HiddenError::Length { form, rows, width, wanted, found: body.len() }),
    }
}

/// A group of numbers in codes of magnitude up to `most`: 127 a byte each, 7 half a byte each.
fn put_group(bytes: &mut Vec<u8>, group: &[f32], most: i8) {
    let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    // Rounded up, so that the largest needs no code beyond `most`.
    let scale = to_bf16_up(largest / f32::from(most));
    bytes.extend(scale.to_le_bytes());
    let scale = of_bf16(scale);
    let code = |x: f32| if scale > 0.0 { (x / scale).round() as i8 } else { 0 };
    match most {
        127 => bytes.extend(group.iter().map(|&x| code(x) as u8)),
        _ => bytes.extend(group.chunks(2).map(|pair| {
            let high = pair.get(1).map_or(0, |&x| code(x));
            (code(pair[0]) as u8 & 15) | (high as u8) << 4
        })),
    }
}

/// The numbers of one row, `codes` to a byte.
fn get_groups(values: &mut Vec<f32>, mut row: &[u8], width: usize, codes: usize) {
    let end = values.len() + width;
    while values.len() < end {
        let count = GROUP.min(end - values.len());
        let (scale, rest) = row.split_at(2);
        let scale = of_bf16(u16::from_le_bytes([scale[0], scale[1]]));
        let (group, rest) = rest.split_at(count.div_ceil(codes));
        row = rest;
        match codes {
            1 => values.extend(group.iter().map(|&code| f32::from(code as i8) * scale)),
            _ => values.extend((0..count).map(|at| {
                let byte = group[at / 2];
                // Arithmetic shifts bring the sign down.
                let code = if at % 2 == 0 { (byte << 4) as i8 >> 4 } else { byte as i8 >> 4 };
                f32::from(code) * scale
            })),
        }
    }
}

/// To nearest, ties to even.
fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.saturating_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // What would round to infinity stays the largest there is.
    if rounded & 0x7f80 == 0x7f80 { (bits >> 16) as u16 } else { rounded as u16 }
}

/// To the next above, for numbers from 0 on.
fn to_bf16_up(x: f32) -> u16 {
    (x.to_bits().saturating_add(0xffff) >> 16).min(0x7f7f) as u16
}

fn of_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMS: [HiddenForm; 4] =
        [HiddenForm::F32, HiddenForm::Bf16, HiddenForm::Int8, HiddenForm::Int4];

    #[test]
    fn a_row_by_hand() {
        let row = [1.0, -2.0, 0.5];
        let read = |form| decode(&encode(&row, 3, form).unwrap(), 1, 3, form).unwrap().values;
        assert_eq!(encode(&row, 3, HiddenForm::Bf16).unwrap()[4..], [0x80, 0x3f, 0, 0xc0, 0, 0x3f]);
        assert_eq!(read(HiddenForm::F32), row);
        assert_eq!(read(HiddenForm::Bf16), row);
        // 2 / 7 rounded up to bfloat16 is 0x3e93: 0.287109375.
        let scale = 0.287_109_38;
        let bytes = encode(&row, 3, HiddenForm::Int4).unwrap();
        assert_eq!(bytes, [0xc1, 1, 3, 0, 0x93, 0x3e, 0x93, 0x02]);
        assert_eq!(read(HiddenForm::Int4), [3.0 * scale, -7.0 * scale, 2.0 * scale]);
    }

    proptest! {
        #[test]
        fn numbers_come_back_as_near_as_is_said(
            width in 1usize..200,
            seed in prop::collection::vec(-8.0f32..8.0, 1..40),
            exponent in -20i32..20,
        ) {
            let scale = (exponent as f32).exp2();
            let states: Vec<f32> =
                (0..2 * width).map(|at| scale * seed[at % seed.len()] * (1 + at % 5) as f32).collect();
            for form in FORMS {
                let bytes = encode(&states, width, form).unwrap();
                prop_assert_eq!(bytes.len(), HEAD_BYTES + 2 * form.row_bytes(width));
                let read = decode(&bytes, 2, width, form).unwrap();
                for (row, found) in states.chunks(width).zip(read.values.chunks(width)) {
                    for (group, found) in row.chunks(GROUP).zip(found.chunks(GROUP)) {
                        let largest = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                        for (x, found) in group.iter().zip(found) {
                            let most = match form {
                                HiddenForm::F32 | HiddenForm::Coded(_) => 0.0,
                                HiddenForm::Bf16 => x.abs() / 256.0,
                                HiddenForm::Int8 => largest / 251.0,
                                HiddenForm::Int4 => largest / 13.8,
                            };
                            prop_assert!((x - found).abs() <= most, "{form}: {x} {found}");
                        }
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            rows in 0usize..5,
            width in 1usize..70,
            form in 0usize..4,
        ) {
            let form = FORMS[form];
            let whole = HEAD_BYTES + rows * form.row_bytes(width);
            let mut sized: Vec<u8> = bytes.iter().copied().cycle().take(whole).collect();
            sized.resize(whole, 0);
            sized[..4].copy_from_slice(&[KIND, VERSION, number(form).unwrap(), 0]);
            for bytes in [&bytes, &sized] {
                if let Ok(read) = decode(bytes, rows, width, form) {
                    prop_assert!(read.values.iter().all(|x| x.is_finite()));
                    prop_assert_eq!(read.values.len(), rows * width);
                }
            }
        }
    }

    #[test]
    fn what_is_not_such_rows_is_refused() {
        let bytes = encode(&[1.0; 6], 3, HiddenForm::Int8).unwrap();
        let refused =
            |bytes: &[u8], rows, form| decode(bytes, rows, 3, form).unwrap_err().to_string();
        assert!(refused(&bytes, 2, HiddenForm::Bf16).contains("[c1, 01, 02, 00]"));
        assert!(refused(&bytes, 3, HiddenForm::Int8).contains("take 15 bytes, found 10"));
        assert!(refused(&bytes[..3], 0, HiddenForm::Int8).contains("begin with"));
        let mut spoilt = encode(&[1.0; 3], 3, HiddenForm::F32).unwrap();
        spoilt[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(refused(&spoilt, 1, HiddenForm::F32).contains("hidden state 0 holds NaN"));
        let unsound = encode(&[1.0, f32::INFINITY], 1, HiddenForm::Bf16).unwrap_err();
        assert_eq!(unsound, HiddenError::NotFinite { row: 1, found: f32::INFINITY });
    }

    #[test]
    fn parts_are_looked_at_as_they_come() {
        let mut rows = HiddenRows::new(HiddenForm::Int8, 3);
        rows.push(2, encode(&[1.0; 6], 3, HiddenForm::Int8).unwrap()).unwrap();
        rows.push(1, encode(&[2.0; 3], 3, HiddenForm::Int8).unwrap()).unwrap();
        assert_eq!((rows.rows(), rows.bytes()), (3, 4 + 10 + 4 + 5));
        assert!(rows.push(2, encode(&[1.0; 3], 3, HiddenForm::Int8).unwrap()).is_err());
        let mut coded = HiddenRows::new(HiddenForm::Coded(Rung(2)), 3);
        let refused = coded.push(1, vec![0xc0, 1, 3, 0]).unwrap_err();
        assert_eq!(refused, HiddenError::Rung { found: Rung(3), wanted: Rung(2) });
        assert!(coded.push(0, vec![0xc0, 1, 2, 0]).is_ok());
        assert!(coded.push(0, vec![0xc0]).is_err());
    }
}
