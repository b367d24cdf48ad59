//! How teacher and student are compared: what goes together.

use super::kinds::{DivergenceKind, TailKind};
use super::layers::Origin;
use super::reader::Reader;

/// The weight within a divergence.
pub(super) fn beta(r: &mut Reader<'_>) -> f64 {
    r.number("beta", 0.0..=1.0, "a number from 0 to 1")
}

/// Divergences that the rest of the signal, or nobody, can make something of.
pub(super) fn comparison(r: &mut Reader<'_>, divergence: DivergenceKind, tail: TailKind) {
    let layers = r.layers();
    if tail == TailKind::Renormalise && divergence != DivergenceKind::ForwardKl {
        r.fault(format!(
            "--divergence {divergence} needs --tail bucket: where the teacher's mass outside the top k \
             is dropped, only forward-kl has a meaning"
        ));
    }
    let weighs = matches!(divergence, DivergenceKind::Jsd | DivergenceKind::Mixture);
    if !weighs && layers.given("beta") == Some(&Origin::Flag) {
        r.fault(format!(
            "--beta says nothing with --divergence {divergence}; it is for jsd and mixture"
        ));
    }
}
