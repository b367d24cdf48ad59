//! What the draws of a position depend on beside its logits, and the random numbers made of it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// The last bytes of every key, so that no other use of the same numbers draws alike.
const USE: [u8; 12] = *b"distill draw";

/// The largest number below 1, which the last sum may be rounded up to.
const ALMOST_ONE: f64 = 1.0f64.next_down();

/// What the draws of a position depend on beside its logits: nothing else, so that the same request
/// asked again, of whatever teacher with the same model and beside whatever others, has the same draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DrawKey {
    /// The request's seed.
    pub seed: u64,
    /// [`crate::fingerprint::token_checksum`] of its tokens.
    pub token_checksum: u64,
    /// The position in its sequence, from 0.
    pub position: u32,
}

impl DrawKey {
    /// Where n draws are made: number i, from 0, uniform in i/n..(i + 1)/n.
    ///
    /// Each of them, picked blindly, is uniform in 0..1, so that each draw is from p and the mean of their
    /// share of a class is its p. Together they vary less than n independent ones: a class of mass 1/2 is
    /// drawn by half of them, give or take one.
    ///
    /// Number i is `(i + w_i / 2^53) / n`, w the first n words of 64 bits, the lower half first and each
    /// without its lowest 11 bits, of the key stream of ChaCha with 8 rounds (nonce 0, from block 0). The
    /// 32 bytes of the key are seed, checksum and position, little-endian, and `distill draw` in ASCII.
    pub fn uniforms(&self, n: u32) -> Vec<f64> {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.token_checksum.to_le_bytes());
        key[16..20].copy_from_slice(&self.position.to_le_bytes());
        key[20..].copy_from_slice(&USE);
        let mut random = ChaCha8Rng::from_seed(key);
        let mut within = || (random.next_u64() >> 11) as f64 * (0.5 * f64::EPSILON);
        let place = |i| ((f64::from(i) + within()) / f64::from(n)).min(ALMOST_ONE);
        (0..n).map(place).collect()
    }
}
