//! What it takes to make distributions of hidden states, and large pieces of bytes in parts.

use distill::coded::{Rate, Rung};
use distill::fingerprint::{Fingerprint, NotAFingerprint, payload_checksum};

use crate::v1;

/// Bytes of a part of a blob beside its data: every other field at its longest.
const ENVELOPE_BYTES: usize = 32;
/// Largest blob that is believed: an output matrix of 2^20 classes by 8,192 numbers.
const MAX_BLOB_BYTES: u64 = 32 << 30;

/// A piece of bytes by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobFacts {
    /// Digest of the bytes.
    pub fingerprint: Fingerprint,
    /// How many they are.
    pub bytes: u64,
}

/// What it takes to make a teacher's distributions of its hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderFacts {
    /// The model.
    pub model: Fingerprint,
    /// Numbers of a hidden state.
    pub hidden_size: usize,
    /// The output matrix.
    pub matrix: BlobFacts,
    /// The code, where there is one.
    pub code: Option<BlobFacts>,
    /// What the code's steps take and cost, the finest first.
    pub rates: Vec<Rate>,
}

/// Why a `GetDecoderReply` is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DecoderError {
    /// A digest that is none.
    #[error("the {field} of the teacher's decoder: {source}")]
    Fingerprint {
        /// The field.
        field: &'static str,
        /// What is wrong.
        source: NotAFingerprint,
    },
    /// Nothing where something must be.
    #[error("the teacher's decoder has no {field}")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// More bytes than there can be.
    #[error(
        "the {field} of the teacher's decoder is said to take {found} bytes, wanted 1 to {MAX_BLOB_BYTES}"
    )]
    Bytes {
        /// The field.
        field: &'static str,
        /// As received.
        found: u64,
    },
    /// A rate that is none.
    #[error("the teacher's decoder has a rate that cannot be: {0}")]
    Rate(String),
}

/// The message that names a decoder.
pub fn decoder_reply(facts: &DecoderFacts) -> v1::GetDecoderReply {
    let blob = |blob: &BlobFacts| v1::Blob {
        fingerprint: blob.fingerprint.to_string(),
        bytes: blob.bytes,
    };
    let rate = |rate: &Rate| v1::CodeRate {
        rung: rate.rung.0.into(),
        bytes: rate.bytes,
        divergence: rate.divergence,
    };
    v1::GetDecoderReply {
        model_fingerprint: facts.model.to_string(),
        hidden_size: facts.hidden_size as u32,
        output_matrix: Some(blob(&facts.matrix)),
        code: facts.code.as_ref().map(blob),
        rates: facts.rates.iter().map(rate).collect(),
    }
}

/// The decoder a message names.
///
/// # Errors
/// [`DecoderError`]
pub fn decoder_facts(reply: &v1::GetDecoderReply) -> Result<DecoderFacts, DecoderError> {
    let matrix = reply.output_matrix.as_ref();
    let rate = |rate: &v1::CodeRate| {
        let rung = i16::try_from(rate.rung).map(Rung).ok();
        let rung = rung.filter(|rung| (Rung::FINEST..=Rung::COARSEST).contains(rung));
        let sound = rate.bytes > 0.0 && rate.bytes.is_finite() && rate.divergence >= 0.0;
        match rung {
            Some(rung) if sound => {
                Ok(Rate { rung, bytes: rate.bytes, divergence: rate.divergence })
            }
            _ => Err(DecoderError::Rate(format!("{rate:?}"))),
        }
    };
    Ok(DecoderFacts {
        model: fingerprint("model_fingerprint", &reply.model_fingerprint)?,
        hidden_size: reply.hidden_size as usize,
        matrix: blob(
            "output_matrix",
            matrix.ok_or(DecoderError::Missing { field: "output_matrix" })?,
        )?,
        code: reply.code.as_ref().map(|code| blob("code", code)).transpose()?,
        rates: reply.rates.iter().map(rate).collect::<Result<_, _>>()?,
    })
}

fn blob(field: &'static str, blob: &v1::Blob) -> Result<BlobFacts, DecoderError> {
    let found = blob.bytes;
    match (1..=MAX_BLOB_BYTES).contains(&found) {
        true => Ok(BlobFacts { fingerprint: fingerprint(field, &blob.fingerprint)?, bytes: found }),
        false => Err(DecoderError::Bytes { field, found }),
    }
}

fn fingerprint(field: &'static str, text: &str) -> Result<Fingerprint, DecoderError> {
    text.parse().map_err(|source| DecoderError::Fingerprint { field, source })
}

/// The bytes from `offset` on as messages of at most `max_reply_bytes`, made one at a time.
pub fn fetch_replies<B: AsRef<[u8]>>(
    blob: B,
    offset: usize,
    max_reply_bytes: usize,
) -> impl Iterator<Item = v1::FetchReply> {
    let step = max_reply_bytes.saturating_sub(ENVELOPE_BYTES).max(1);
    let starts = (offset..blob.as_ref().len()).step_by(step);
    starts.map(move |start| {
        let bytes = blob.as_ref();
        let data = &bytes[start..bytes.len().min(start + step)];
        let checksum = payload_checksum(&[data]);
        v1::FetchReply { offset: start as u64, data: data.to_vec().into(), checksum }
    })
}

/// Why a part of a blob is not the next one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Another place.
    #[error("a part begins at byte {found}, wanted {wanted}")]
    Offset {
        /// As received.
        found: u64,
        /// The first byte that has not come.
        wanted: u64,
    },
    /// Damaged on the way.
    #[error("a part's checksum is {found:016x}, it says {wanted:016x}")]
    Checksum {
        /// Of the bytes received.
        found: u64,
        /// As it says.
        wanted: u64,
    },
    /// More than there is.
    #[error("parts reach to byte {found} of {wanted}")]
    TooLong {
        /// Where they reach to.
        found: u64,
        /// The blob's bytes.
        wanted: u64,
    },
    /// No bytes.
    #[error("a part holds no bytes")]
    Empty,
}

/// Takes a blob's parts in order.
#[derive(Clone, Copy, Debug)]
pub struct BlobAssembler {
    next: u64,
    bytes: u64,
}

impl BlobAssembler {
    /// Of a blob of so many bytes, of which the first `from` are there.
    pub fn new(bytes: u64, from: u64) -> Self {
        Self { next: from, bytes }
    }

    /// Whether all has come.
    pub fn is_complete(&self) -> bool {
        self.next == self.bytes
    }

    /// The bytes of the next part.
    ///
    /// # Errors
    /// [`BlobError`] when it is not that.
    pub fn push<'a>(&mut self, reply: &'a v1::FetchReply) -> Result<&'a [u8], BlobError> {
        let (found, wanted) = (reply.offset, self.next);
        if found != wanted {
            return Err(BlobError::Offset { found, wanted });
        }
        if reply.data.is_empty() {
            return Err(BlobError::Empty);
        }
        let (found, wanted) = (payload_checksum(&[&reply.data]), reply.checksum);
        if found != wanted {
            return Err(BlobError::Checksum { found, wanted });
        }
        let end = self.next.saturating_add(reply.data.len() as u64);
        if end > self.bytes {
            return Err(BlobError::TooLong { found: end, wanted: self.bytes });
        }
        self.next = end;
        Ok(&reply.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> DecoderFacts {
        let blob = |byte, bytes| BlobFacts { fingerprint: Fingerprint([byte; 32]), bytes };
        DecoderFacts {
            model: Fingerprint([1; 32]),
            hidden_size: 256,
            matrix: blob(2, 7),
            code: Some(blob(3, 9)),
            rates: vec![Rate { rung: Rung(-40), bytes: 43.5, divergence: 1e-4 }],
        }
    }

    #[test]
    fn a_decoder_survives_the_wire_and_nonsense_is_named() {
        assert_eq!(decoder_facts(&decoder_reply(&facts())), Ok(facts()));
        let refused = |change: fn(&mut v1::GetDecoderReply)| {
            let mut reply = decoder_reply(&facts());
            change(&mut reply);
            decoder_facts(&reply).unwrap_err().to_string()
        };
        assert!(refused(|r| r.output_matrix = None).contains("no output_matrix"));
        assert!(refused(|r| r.code.as_mut().unwrap().bytes = 0).contains("code"));
        assert!(refused(|r| r.output_matrix.as_mut().unwrap().bytes = u64::MAX).contains("1844"));
        assert!(refused(|r| r.model_fingerprint = "x".to_owned()).contains("model_fingerprint"));
        assert!(refused(|r| r.rates[0].rung = 1601).contains("1601"));
        assert!(refused(|r| r.rates[0].bytes = f32::NAN).contains("NaN"));
    }

    #[test]
    fn a_blob_comes_in_parts_and_goes_on_where_it_broke() {
        let blob: Vec<u8> = (0..100).collect();
        let mut assembler = BlobAssembler::new(100, 0);
        let mut come = Vec::new();
        for reply in fetch_replies(&blob, 0, ENVELOPE_BYTES + 30).take(2) {
            come.extend(assembler.push(&reply).unwrap());
        }
        assert_eq!((come.len(), assembler.is_complete()), (60, false));
        let mut assembler = BlobAssembler::new(100, 60);
        for reply in fetch_replies(&blob, 60, ENVELOPE_BYTES + 30) {
            come.extend(assembler.push(&reply).unwrap());
        }
        assert_eq!((come, assembler.is_complete()), (blob.clone(), true));

        let part = fetch_replies(&blob, 0, 1 << 20).next().unwrap();
        let of = |from, bytes, part: &v1::FetchReply| {
            BlobAssembler::new(bytes, from).push(part).map(<[u8]>::len)
        };
        assert_eq!(of(0, 100, &part), Ok(100));
        assert_eq!(of(1, 100, &part), Err(BlobError::Offset { found: 0, wanted: 1 }));
        assert_eq!(of(0, 99, &part), Err(BlobError::TooLong { found: 100, wanted: 99 }));
        let mut bad = part.clone();
        bad.checksum += 1;
        assert!(matches!(of(0, 100, &bad), Err(BlobError::Checksum { .. })));
        bad.data = Vec::new().into();
        assert_eq!(of(0, 100, &bad), Err(BlobError::Empty));
    }

    #[test]
    fn the_longest_envelope_of_a_part_fits_its_allowance() {
        use prost::Message as _;
        let blob = vec![7; 3 << 20];
        for reply in fetch_replies(&blob, 1, 1 << 20) {
            let longest = v1::FetchReply { offset: u64::MAX, ..reply };
            assert!(longest.encoded_len() <= 1 << 20);
        }
    }
}
