//! The name of a call, by which its caller and the log speak of it: the caller's own `x-request-id`, or
//! one of ours.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The header over HTTP, and the metadata of gRPC, of a request and of its answer.
pub const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name taken from a caller, in bytes.
pub const LONGEST: usize = 128;

/// A call's name: 1 to [`LONGEST`] visible characters of ASCII, so that it stays on its line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The caller's, where it sent one that can be used; else a fresh one.
    pub fn of(headers: &HeaderMap) -> Self {
        let usable = |value: &&HeaderValue| {
            let bytes = value.as_bytes();
            (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        };
        headers.get(HEADER).filter(usable).map_or_else(Self::fresh, |value| Self(value.clone()))
    }

    /// 16 hexadecimal digits that nobody can guess and that do not come again in practice.
    pub fn fresh() -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let digits = format!("{:016x}", KEYS.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)));
        // Hexadecimal digits are a value.
        Self(HeaderValue::try_from(digits).unwrap_or(HeaderValue::from_static("0")))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// As the value of [`HEADER`].
    pub fn into_header(self) -> HeaderValue {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &[u8]) -> RequestId {
        RequestId::of(&HeaderMap::from_iter([(HEADER, HeaderValue::from_bytes(value).unwrap())]))
    }

    #[test]
    fn a_callers_name_is_kept_where_it_stays_on_its_line() {
        let longest = "a".repeat(LONGEST);
        for good in ["7", "a/b=c;d\"e\\f{}", "3f2504e0-4f89-11d3-9a0c-0305e82c3301", &longest] {
            assert_eq!(of(good.as_bytes()).as_str(), good);
        }
        let too_long = "a".repeat(LONGEST + 1);
        let wrong: [&[u8]; 6] =
            [b"", b"a b", b"a\tb", "ä".as_bytes(), "\u{85}".as_bytes(), too_long.as_bytes()];
        for wrong in wrong {
            let name = of(wrong);
            assert_ne!(name.0.as_bytes(), wrong);
            assert!(is_fresh(name.as_str()), "{name:?}");
        }
    }

    #[test]
    fn fresh_names_are_16_digits_and_differ() {
        let names: std::collections::HashSet<String> = (0..10_000)
            .map(|_| RequestId::of(&HeaderMap::new()).as_str().to_owned())
            .inspect(|name| assert!(is_fresh(name), "{name}"))
            .collect();
        assert_eq!(names.len(), 10_000);
    }

    fn is_fresh(name: &str) -> bool {
        name.len() == 16 && name.bytes().all(|digit| digit.is_ascii_hexdigit())
    }
}
