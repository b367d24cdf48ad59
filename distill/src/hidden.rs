//! Hidden states as bytes: each number as it is, rounded, or in groups of 8 or 4 bits, and the coded form
//! of [`crate::coded`].
//!
//! `kind u8 = 0xC1 | version u8 = 1 | form u8 | 0`, then row after row. Forms: 0 `f32[width]`, 1
//! `bf16[width]`; 2 and 3 in groups of [`GROUP`] numbers (the last may be shorter), each `scale bf16` and
//! one signed byte a number, or half a byte (the lower half first, an odd last number alone); a number is
//! `scale · code`. Little-endian throughout.

use std::fmt;

use crate::coded::{CodedError, Rung, rung_of};
use crate::fingerprint::Fingerprint;
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
    /// Coded ([`crate::coded`]).
    Coded {
        /// By this code.
        code: Fingerprint,
        /// At this step.
        rung: Rung,
    },
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
            Self::Coded { .. } => 4 * width + 20,
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
            Self::Coded { rung, .. } => write!(f, "coded at step {rung}"),
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

    /// Appends the rows of another answer's parts.
    ///
    /// # Panics
    /// When form or width differ.
    pub fn append(&mut self, other: Self) {
        let of = |rows: &Self| (rows.form, rows.width);
        assert_eq!(of(self), of(&other), "hidden states of different forms cannot be joined");
        self.parts.extend(other.parts);
    }

    /// Appends bytes that say `rows` rows, after a look at what can be seen without a code.
    ///
    /// # Errors
    /// [`HiddenError`] when they begin otherwise than this form does, or are of another length.
    pub fn push(&mut self, rows: usize, bytes: Vec<u8>) -> Result<(), HiddenError> {
        if let HiddenForm::Coded { rung: wanted, .. } = self.form {
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
    /// A scale below 0, a code beyond the largest, or something in the half byte to spare.
    #[error("hidden state {row} holds a group that no teacher writes in form {form}")]
    Group {
        /// The row.
        row: usize,
        /// The form.
        form: HiddenForm,
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
        HiddenForm::Coded { .. } => None,
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
            HiddenForm::F32 | HiddenForm::Coded { .. } => {
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
    for (at, row) in body.chunks_exact(form.row_bytes(width).max(1)).enumerate() {
        let sound = match form {
            HiddenForm::F32 | HiddenForm::Coded { .. } => {
                values.extend(row.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)));
                true
            }
            HiddenForm::Bf16 => {
                let numbers = row.as_chunks::<2>().0.iter();
                values.extend(numbers.map(|&x| of_bf16(u16::from_le_bytes(x))));
                true
            }
            HiddenForm::Int8 => get_groups(&mut values, row, width, 1),
            HiddenForm::Int4 => get_groups(&mut values, row, width, 2),
        };
        if !sound {
            return Err(HiddenError::Group { row: at, form });
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

/// The numbers of one row, `codes` to a byte; whether they are such as [`put_group`] writes.
fn get_groups(values: &mut Vec<f32>, mut row: &[u8], width: usize, codes: usize) -> bool {
    let end = values.len() + width;
    let mut sound = true;
    while values.len() < end {
        let count = GROUP.min(end - values.len());
        let (scale, rest) = row.split_at(2);
        let scale = of_bf16(u16::from_le_bytes([scale[0], scale[1]]));
        sound &= scale.is_sign_positive();
        let (group, rest) = rest.split_at(count.div_ceil(codes));
        row = rest;
        if codes == 1 {
            sound &= group.iter().all(|&code| code as i8 != -128);
            values.extend(group.iter().map(|&code| f32::from(code as i8) * scale));
            continue;
        }
        // Arithmetic shifts bring the sign down.
        let halves = group.iter().flat_map(|&byte| [(byte << 4) as i8 >> 4, byte as i8 >> 4]);
        for (at, code) in halves.enumerate() {
            sound &= code != -8 && (at < count || code == 0);
            if at < count {
                values.push(f32::from(code) * scale);
            }
        }
    }
    sound
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
#[path = "hidden_tests.rs"]
mod tests;
