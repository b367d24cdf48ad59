//! Skipping: said where a person sees it, and refused where the thing was promised.

use std::io::Write as _;

/// The variable that names what must be there: things as [`skip`] names them, with commas between,
/// or `all`.
const VARIABLE: &str = "LIMBECK_REQUIRE";

/// Says that a test is skipped because `missing` is: `shared`, `docker`, or a Python module's name.
/// `why` says how it was looked for and what to do.
///
/// # Panics
/// When `$LIMBECK_REQUIRE` names the missing thing: there the test must run.
pub fn skip(test: &str, missing: &str, why: &str) {
    let required = std::env::var(VARIABLE).unwrap_or_default();
    assert!(
        !is_required(&required, missing),
        "{test} must not be skipped, {VARIABLE} is {required:?}: {why}"
    );
    // Not `eprintln!`, which the test runner swallows for tests that pass.
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}

fn is_required(required: &str, missing: &str) -> bool {
    required.split(',').map(str::trim).any(|name| name == missing || name == "all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_required_and_nothing_else() {
        assert!(is_required("grpc, docker", "docker"));
        assert!(is_required("all", "docker"));
        for required in ["", "grpc", "grpc,dock", "dockers"] {
            assert!(!is_required(required, "docker"), "{required:?}");
        }
    }
}
