//! What the server is doing: loading, serving or draining.

use std::sync::Arc;

use distill::handshake::TeacherFacts;

use crate::error::TeacherError;
use crate::scorer::TextCodec;

/// The server's state, watched by every handler.
#[derive(Clone)]
pub enum State {
    /// The model is being loaded; nothing is accepted.
    Loading,
    /// Work is accepted.
    Serving(Arc<Serving>),
    /// Admitted work is being finished; nothing is accepted.
    Draining,
}

/// What handlers need while the server serves.
pub struct Serving {
    /// What the server states of itself, its limits included.
    pub facts: TeacherFacts,
    /// The tokenizer.
    pub text: Arc<dyn TextCodec>,
}

impl State {
    /// What is needed to serve.
    ///
    /// # Errors
    /// [`TeacherError::Loading`] or [`TeacherError::Draining`].
    pub fn serving(&self) -> Result<Arc<Serving>, TeacherError> {
        match self {
            Self::Loading => Err(TeacherError::Loading),
            Self::Serving(serving) => Ok(Arc::clone(serving)),
            Self::Draining => Err(TeacherError::Draining),
        }
    }
}
