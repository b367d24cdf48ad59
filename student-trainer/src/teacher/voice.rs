//! The ways a teacher is spoken to: our own contract, vLLM's dialect over HTTP, or not at all.

use client::vllm::{self, Description, Server};
use client::{Access, Address, Error, Failure};
use distill::fingerprint::Fingerprint;
use distill::handshake::{Limits, PROTOCOL_VERSION, SignalKind, StudentFacts, TeacherFacts};
use proto::limits::DEFAULT_LIMITS;

/// An address and how to speak there.
#[derive(Clone, Debug)]
pub(crate) enum Voice {
    /// The contract `distill.v1`.
    Grpc(Box<Address>),
    /// `prompt_logprobs` of a vLLM server.
    Vllm(Box<Server>),
    /// Nobody is there: a cache has all answers.
    Kept {
        /// The cache.
        place: String,
        /// Whether the answers say how much mass they leave out.
        knows_mass: bool,
    },
}

impl Voice {
    /// Reads an address: `vllm+http://` and `vllm+https://` are vLLM's, all others ours.
    ///
    /// # Errors
    /// What is wrong with it, and with what was given to reach it.
    pub(crate) fn parse(url: &str, access: &Access) -> Result<Self, Error> {
        Ok(match Server::is_meant(url) {
            true => Self::Vllm(Box::new(Server::parse(url, access)?)),
            false => Self::Grpc(Box::new(Address::parse(url, access)?)),
        })
    }

    /// The address as it was given.
    pub(crate) fn url(&self) -> &str {
        match self {
            Self::Grpc(address) => address.url(),
            Self::Vllm(server) => server.url(),
            Self::Kept { place, .. } => place,
        }
    }

    /// What it states of itself; of a vLLM server, which states little, what follows for a student
    /// of the same tokenizer.
    pub(super) async fn facts(&self, student: &StudentFacts) -> Result<TeacherFacts, Failure> {
        match self {
            Self::Grpc(address) => address.info().await,
            Self::Vllm(server) => Ok(supposed(&server.describe().await?, student)),
            Self::Kept { place, .. } => Err(nobody(place).into()),
        }
    }

    /// A better word for an error of nobody's or of somebody else's.
    pub(super) async fn stranger(&self) -> Option<Error> {
        match self {
            Self::Grpc(address) => address.stranger().await,
            Self::Vllm(server) => server.stranger().await,
            Self::Kept { .. } => None,
        }
    }

    /// The same for a refusal.
    pub(super) async fn who_refuses(&self, error: Error) -> Error {
        match self {
            Self::Grpc(address) => address.who_refuses(error).await,
            Self::Vllm(_) | Self::Kept { .. } => error,
        }
    }
}

/// What asking nobody comes to.
pub(crate) fn nobody(place: &str) -> Error {
    let reason = "a cache answers here, and cannot be asked for more; give --teacher".to_owned();
    Error::Access { url: place.to_owned(), reason }
}

/// A vLLM server's facts, as far as work with `student` goes. Its fingerprint is of names alone.
fn supposed(found: &Description, student: &StudentFacts) -> TeacherFacts {
    TeacherFacts {
        model: found.model.clone(),
        revision: String::new(),
        model_fingerprint: fingerprint(found),
        tokenizer_fingerprint: student.tokenizer_fingerprint,
        vocab_size: student.vocab_size,
        tokenizer_size: student.tokenizer_size,
        hidden_size: 0,
        limits: Limits {
            // One place is for the token that has to be generated.
            max_sequence_tokens: found.max_model_len.map_or(usize::MAX, |len| len - len.min(1)),
            max_top_k: student.top_k,
            max_in_flight_per_stream: vllm::IN_FLIGHT,
            ..DEFAULT_LIMITS
        },
        signals: vec![SignalKind::TopK],
        codecs: vec![student.codec],
        protocol_version: PROTOCOL_VERSION,
        server_version: String::new(),
        dtype: String::new(),
        device: "a vLLM server".to_owned(),
        parameters: 0,
    }
}

/// What tells one vLLM server's model from another's: the names it goes by.
pub(crate) fn fingerprint(found: &Description) -> Fingerprint {
    let names = ["vllm", &found.model, &found.root].join("\0");
    Fingerprint(*blake3::hash(names.as_bytes()).as_bytes())
}
