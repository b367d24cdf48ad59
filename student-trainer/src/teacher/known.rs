//! A teacher that need not be reached, because a cache has its answers.

use std::sync::Arc;
use std::time::Duration;

use client::Access;
use distill::handshake::{StudentFacts, TeacherFacts, check};

use super::{Network, Teacher, TeacherError, Voice};
use crate::cache::{Cache, Manifest};

impl Teacher {
    /// The teacher at `url` as a cache of its answers describes it. It is not reached.
    ///
    /// # Errors
    /// When the address is none, or the teacher does not fit the student.
    pub(crate) fn known(
        url: &str,
        access: &Access,
        manifest: &Manifest,
        student: &StudentFacts,
    ) -> Result<Self, TeacherError> {
        Self::described(Voice::parse(url, access)?, manifest, student)
    }

    /// Nobody: all there is are the answers in the cache called `place`.
    ///
    /// # Errors
    /// When the teacher that gave them does not fit the student.
    pub(crate) fn kept(
        place: &str,
        manifest: &Manifest,
        student: &StudentFacts,
    ) -> Result<Self, TeacherError> {
        let (place, knows_mass) = (place.to_owned(), manifest.knows_mass);
        Self::described(Voice::Kept { place, knows_mass }, manifest, student)
    }

    fn described(
        voice: Voice,
        manifest: &Manifest,
        student: &StudentFacts,
    ) -> Result<Self, TeacherError> {
        let facts = manifest.facts();
        let agreement = check(&facts, student)
            .map_err(|source| TeacherError::Mismatch { url: voice.url().to_owned(), source })?;
        Ok(Self { voice, agreement, facts: Arc::new(facts), cache: None, reading: Arc::default() })
    }

    /// It, with a cache of its answers before it.
    pub(crate) fn remembering(self, cache: Arc<Cache>) -> Self {
        Self { cache: Some(cache), ..self }
    }

    /// The cache before it.
    pub(crate) fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }

    /// Whether it can be asked at all.
    pub(crate) fn can_be_asked(&self) -> bool {
        !matches!(self.voice, Voice::Kept { .. })
    }

    /// What it says of itself now, asked once; why not, where it does not answer within `limit`.
    pub(crate) fn glance(
        &self,
        network: &Network,
        student: &StudentFacts,
        limit: Duration,
    ) -> Result<TeacherFacts, String> {
        network.0.block_on(async {
            match tokio::time::timeout(limit, self.voice.facts(student)).await {
                Ok(Ok(facts)) => Ok(facts),
                Ok(Err(failure)) => Err(failure.to_string()),
                Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
            }
        })
    }
}
