//! The identity of a model: equal exactly when configuration and weights are.

use std::path::Path;

use distill::fingerprint::Fingerprint;
use rayon::prelude::*;

use crate::config::Qwen3Config;
use crate::load::{StoredWeights, WeightsError};
use crate::parameters::ParameterIndex;

/// Bytes hashed at once.
const PIECE: usize = 1 << 20;

/// Of the weights of a directory or a GGUF file: BLAKE3 over what the configuration makes the network compute and over every parameter's name,
/// type, shape and bytes. It does not depend on how the files are cut into shards, on the order of
/// anything in them, or on fields that change no logit. Quantised weights are other bytes of another type, and so
/// another model than what they were made of.
///
/// # Errors
/// As [`Weights::load`](crate::weights::Weights::load): what cannot be loaded has no fingerprint.
pub fn of_place(place: &Path, config: &Qwen3Config) -> Result<Fingerprint, WeightsError> {
    let index = ParameterIndex::new(config);
    let stored = StoredWeights::open(place, config, &index)?;
    let digests: Vec<blake3::Hash> = (0..index.parameters().len())
        .into_par_iter()
        .map(|at| of_parameter(&stored, at, &index.parameters()[at].name))
        .collect::<Result<_, _>>()?;
    let mut all = blake3::Hasher::new();
    all.update(canonical(config).as_bytes());
    for digest in digests {
        all.update(digest.as_bytes());
    }
    Ok(Fingerprint(*all.finalize().as_bytes()))
}

fn of_parameter(
    stored: &StoredWeights,
    at: usize,
    name: &str,
) -> Result<blake3::Hash, WeightsError> {
    let (file, tensor) = stored.get(at);
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{name} {:?} {:?}\n", tensor.dtype, tensor.shape).as_bytes());
    let mut buffer = vec![0; PIECE.min(tensor.bytes())];
    for first in (0..tensor.bytes()).step_by(PIECE) {
        let piece = &mut buffer[..PIECE.min(tensor.bytes() - first)];
        file.read_bytes(tensor, first as u64, piece)?;
        hasher.update(piece);
    }
    Ok(hasher.finalize())
}

/// The fields that change a logit and are not in the shapes; numbers in their shortest exact form.
fn canonical(config: &Qwen3Config) -> String {
    format!(
        "qwen3 heads {} groups {} eps {:?} theta {:?} scaling {:?} positions {} tied {}\n",
        config.num_attention_heads,
        config.num_key_value_heads,
        config.rms_norm_eps,
        config.rope_theta,
        config.rope_scaling,
        config.max_position_embeddings,
        config.tie_word_embeddings,
    )
}

#[cfg(test)]
#[path = "fingerprint_tests.rs"]
mod tests;
