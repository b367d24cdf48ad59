//! An input read as a row of decisions, so that what libFuzzer changes is a decision and not only a
//! byte that makes the whole unreadable.

use arbitrary::{Arbitrary, Unstructured};

/// The decisions that are left. Where the input has ended each of them is its first possibility.
pub(crate) struct Draw<'a>(Unstructured<'a>);

impl<'a> Draw<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    /// 0 to `most`.
    pub(crate) fn up_to(&mut self, most: usize) -> usize {
        self.0.int_in_range(0..=most).unwrap_or(0)
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.up_to(times - 1) == times - 1
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, these: &[T]) -> T {
        these[self.up_to(these.len() - 1)]
    }

    /// Any value.
    pub(crate) fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// One of these, rarely any.
    pub(crate) fn of_or_any<T: Arbitrary<'a> + Default + Copy>(&mut self, these: &[T]) -> T {
        if self.once_in(16) { self.any() } else { self.of(these) }
    }

    /// The bytes that no decision has taken.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}
