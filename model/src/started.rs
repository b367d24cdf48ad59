//! What a device that computes by itself was given to do, and what it came to.

/// What was started: done already, or under way on a device that computes by itself.
#[derive(Debug)]
pub enum Started<T> {
    /// What it came to.
    Done(T),
    /// Under this number.
    Running(u64),
}

impl<T> Started<T> {
    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }

    /// What somebody who computes at once has started.
    ///
    /// # Panics
    /// When it is under way.
    pub fn done(self) -> T {
        match self {
            Self::Done(result) => result,
            Self::Running(number) => unreachable!("number {number} runs where nothing does"),
        }
    }
}
