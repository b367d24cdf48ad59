//! Errors in words, on both sides: the transport's own text says only "transport error".

use std::error::Error;

/// An error and what caused it, on one line; a cause that is said already is not said again.
pub fn with_causes(error: &dyn Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Told {
        said: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn every_cause_is_said_once() {
        let told = ["transport error", "connection refused", "refused"];
        let error =
            told.iter().rev().fold(None, |source, said| Some(Box::new(Told { said, source })));
        assert_eq!(with_causes(&*error.unwrap()), "transport error: connection refused");
    }
}
