//! student-trainer
