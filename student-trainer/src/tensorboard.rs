//! TensorBoard event files, written without TensorFlow.
//!
//! A file is a sequence of records: length (u64), masked CRC-32C of the length, an `Event`
//! message, masked CRC-32C of the message; all little-endian. The messages are those of
//! `tensorflow/core/util/event.proto` and `tensorflow/core/framework/summary.proto`, declared here
//! as far as scalars need them.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use prost::Message;
use student_trainer::observer::{EvalReport, StepReport};

/// One record of an event file.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    /// `brain.Event:2`, in the first event of a file.
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Scalars),
    #[prost(message, tag = "7")]
    Session(Session),
}

/// `Summary`: values of one step.
#[derive(Clone, PartialEq, Message)]
struct Scalars {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

/// `Summary.Value` with a `simple_value`.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// `SessionLog`; status 1 (start) tells a reader that steps from here on replace older ones.
#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SESSION_START: i32 = 1;

/// An open event file.
#[derive(Debug)]
pub(crate) struct EventFile<W = File> {
    out: W,
}

impl EventFile {
    /// Creates a new event file in `dir` (made where missing) for a run that has done `start_step`
    /// steps. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn create(dir: &Path, start_step: u64, now: f64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let name = format!("events.out.tfevents.{:.6}.student-trainer.{}", now, std::process::id());
        Self::start(File::create(dir.join(name))?, start_step, now)
    }
}

impl<W: Write> EventFile<W> {
    fn start(out: W, start_step: u64, now: f64) -> io::Result<Self> {
        let mut file = Self { out };
        file.event(now, 0, What::FileVersion("brain.Event:2".into()))?;
        if start_step > 0 {
            // Steps after this one are taken again; readers drop what an earlier file says of them.
            let session = Session { status: SESSION_START };
            file.event(now, start_step + 1, What::Session(session))?;
        }
        Ok(file)
    }

    /// Writes the scalars of a training step.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn step(&mut self, report: &StepReport, now: f64) -> io::Result<()> {
        let always = [
            ("train/loss", Some(report.loss)),
            ("train/ce", Some(report.ce)),
            ("train/kl", report.kl),
            ("train/learning_rate", Some(report.learning_rate)),
            ("train/grad_norm", Some(report.grad_norm)),
            ("train/epoch", Some(report.epoch)),
            ("speed/tokens_per_second", Some(report.tokens_per_second)),
            ("speed/teacher_wait_seconds", Some(report.teacher_wait_seconds)),
            ("speed/wire_bytes", Some(report.wire_bytes as f64)),
            ("signal/teacher_mass", report.teacher_mass),
            ("signal/student_mass", report.student_mass),
            ("signal/kl_rest", report.kl_rest),
            ("signal/teacher_entropy", report.teacher_entropy),
        ];
        self.scalars(now, report.step, &always)
    }

    /// Writes the scalars of an evaluation.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn evaluation(&mut self, report: &EvalReport, now: f64) -> io::Result<()> {
        let values = [
            ("eval/perplexity", Some(report.student.token)),
            ("eval/perplexity_row_mean", Some(report.student.row_mean)),
            ("eval/teacher_perplexity", report.teacher.map(|p| p.token)),
            ("eval/kl", report.kl),
            ("eval/agreement", report.agreement),
        ];
        self.scalars(now, report.step, &values)
    }

    fn scalars(&mut self, now: f64, step: u64, values: &[(&str, Option<f64>)]) -> io::Result<()> {
        let known = values.iter().filter_map(|&(tag, value)| {
            value.map(|value| Scalar { tag: tag.into(), simple_value: value as f32 })
        });
        self.event(now, step, What::Summary(Scalars { value: known.collect() }))
    }

    fn event(&mut self, now: f64, step: u64, what: What) -> io::Result<()> {
        let event = Event { wall_time: now, step: step as i64, what: Some(what) }.encode_to_vec();
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(&event);
        record.extend_from_slice(&masked_crc(&event).to_le_bytes());
        self.out.write_all(&record)?;
        self.out.flush()
    }
}

/// CRC-32C, turned and shifted so that a checksum stored within checked data does no harm.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::step;
    use student_trainer::observer::{Moment, Perplexity};

    fn evaluation() -> EvalReport {
        EvalReport {
            moment: Moment::After,
            step: 2,
            epoch: 0.25,
            student: Perplexity { token: 42.5, row_mean: 43.5 },
            teacher: Some(Perplexity { token: 8.25, row_mean: 8.5 }),
            kl: Some(0.5),
            agreement: Some(0.625),
            positions: 100,
            seconds: 1.0,
        }
    }

    #[test]
    fn the_first_record_is_the_one_every_event_file_begins_with() {
        let file = EventFile::start(Vec::new(), 0, 0.0).unwrap();
        // 15 bytes: field 3, length 13, "brain.Event:2"; checksums computed with Python's
        // `tensorboard.compat.tensorflow_stub.pywrap_tensorflow.masked_crc32c`.
        let mut wanted = 15_u64.to_le_bytes().to_vec();
        wanted.extend_from_slice(&0x092b_536d_u32.to_le_bytes());
        wanted.extend_from_slice(b"\x1a\x0dbrain.Event:2");
        wanted.extend_from_slice(&0x2951_98fc_u32.to_le_bytes());
        assert_eq!(file.out, wanted);
    }

    #[test]
    fn the_real_tensorboard_package_reads_every_scalar_back() {
        let test = "the_real_tensorboard_package_reads_every_scalar_back";
        let Some(python) = test_support::python(&["tensorboard"], test) else { return };
        let dir = tempfile::tempdir().unwrap();
        let mut first = EventFile::create(dir.path(), 0, 100.0).unwrap();
        (1..=3).for_each(|n| first.step(&step(n), 100.0 + n as f64).unwrap());
        let mut resumed = EventFile::create(dir.path(), 1, 200.0).unwrap();
        resumed.step(&step(2), 201.0).unwrap();
        resumed.evaluation(&evaluation(), 202.0).unwrap();
        let output = python.script("read_events.py").arg(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        // Step 3 of the first file is gone: the resumed run starts over from step 2.
        assert_eq!(read["train/loss"], serde_json::json!([[1, 3.4375], [2, 3.375]]));
        assert_eq!(read["signal/teacher_mass"], serde_json::json!([[1, 0.9375], [2, 0.9375]]));
        assert_eq!(read["signal/kl_rest"].as_array().unwrap().len(), 2);
        assert_eq!(read["signal/teacher_entropy"].as_array().unwrap().len(), 2);
        assert_eq!(read["eval/perplexity"], serde_json::json!([[2, 42.5]]));
        assert_eq!(read["eval/agreement"], serde_json::json!([[2, 0.625]]));
        assert_eq!(read.as_object().unwrap().len(), 18);
    }
}
