//! What the draws of a position depend on beside its logits, and the random numbers made of it.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// The last bytes of every key, so that no other use of the same numbers draws alike.
const USE: [u8; 12] = *b"distill draw";

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
    /// n numbers uniform in 0..1 (multiples of 2^-53), in ascending order.
    ///
    /// They are the first n words of 64 bits, the lower half first, of the key stream of ChaCha with 8
    /// rounds (nonce 0, from block 0), each without its lowest 11 bits. The 32 bytes of the key are seed,
    /// checksum and position, little-endian, and `distill draw` in ASCII.
    pub fn uniforms(&self, n: u32) -> Vec<f64> {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&self.token_checksum.to_le_bytes());
        key[16..20].copy_from_slice(&self.position.to_le_bytes());
        key[20..].copy_from_slice(&USE);
        let mut random = ChaCha8Rng::from_seed(key);
        let mut one = || (random.next_u64() >> 11) as f64 * (0.5 * f64::EPSILON);
        let mut uniforms: Vec<f64> = (0..n).map(|_| one()).collect();
        uniforms.sort_unstable_by(f64::total_cmp);
        uniforms
    }
}
