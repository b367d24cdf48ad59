//! Where the repository and the material beside it lie.

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lies in the root").to_owned()
}

/// A folder of the material beside the repository (`../shared`, or `$DISTILL_SHARED`): golden
/// values, real text, small trained models. `None`, with a word, where it is absent.
pub fn shared(folder: &str, test: &str) -> Option<PathBuf> {
    let base =
        std::env::var_os("DISTILL_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = base.join(folder);
    if path.exists() {
        return Some(path);
    }
    crate::skip(test, &format!("{} does not exist (set DISTILL_SHARED)", path.display()));
    None
}
