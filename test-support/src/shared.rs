//! Where the repository and the material beside it lie.

use std::path::{Path, PathBuf};

/// The repository's root.
///
/// # Panics
/// Never: this crate lies in the root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the root").to_owned()
}

/// A folder or file of the material beside the repository (`../shared`, or `$DISTILL_SHARED`):
/// golden values, real text, small trained models. `None`, with a word, where it is absent.
///
/// # Panics
/// As [`crate::skip`] for `shared`.
pub fn shared(path: &str, test: &str) -> Option<PathBuf> {
    let base =
        std::env::var_os("DISTILL_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = base.join(path);
    if path.exists() {
        return Some(path);
    }
    let why = format!("{} does not exist (set DISTILL_SHARED)", path.display());
    crate::skip(test, "shared", &why);
    None
}
