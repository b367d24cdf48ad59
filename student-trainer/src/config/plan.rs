//! The settings of `student-trainer plan`: those of a run that say what it takes of memory.

use model::device::{self, Device, DeviceError};

use super::kinds::{ChatTemplateUse, DtypeChoice, LossOn, OnMemory, RecomputeChoice, SignalKind};
use super::layers::Layers;
use super::reader::Reader;
use super::signal::SignalConfig;
use super::{count, length, optional_count};

/// Wider than any model's hidden states.
const MOST_WIDTH: usize = 1 << 20;

/// Everything `plan` needs to know. Fields are named as the flags.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is the option of the same name in OPTIONS")]
pub struct PlanConfig {
    pub student: String,
    pub student_revision: Option<String>,
    pub train_file: Option<String>,
    pub max_train_samples: Option<usize>,
    pub max_length: usize,
    pub loss_on: LossOn,
    pub chat_template: ChatTemplateUse,
    pub alpha: f64,
    pub signal: SignalConfig,
    pub teacher_width: Option<usize>,
    pub per_device_train_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    /// None for `auto`, where nothing is said of its memory.
    pub device: Option<Device>,
    /// In bytes.
    pub device_memory: Option<u64>,
    pub dtype: DtypeChoice,
    pub recompute: RecomputeChoice,
    pub on_memory: OnMemory,
    pub json: bool,
}

impl PlanConfig {
    /// The settings of a plan.
    ///
    /// # Errors
    /// Every fault: missing, unreadable, out of range.
    pub fn from_layers(layers: &Layers) -> Result<Self, Vec<String>> {
        let mut r = Reader::new(layers);
        let wanted = "a number of bytes, as 24GiB, 80GB or 25769803776";
        let config = Self {
            student: r.required("student", "a local directory or a hub id"),
            student_revision: r.text("student-revision"),
            train_file: r.text("train-file"),
            max_train_samples: optional_count(&mut r, "max-train-samples"),
            max_length: length(&mut r),
            loss_on: r.choice("loss-on"),
            chat_template: r.choice("chat-template"),
            alpha: r.number("alpha", 0.0..=1.0, "a number from 0 to 1"),
            signal: SignalConfig::read(&mut r),
            teacher_width: optional_count(&mut r, "teacher-width"),
            per_device_train_batch_size: count(&mut r, "per-device-train-batch-size"),
            gradient_accumulation_steps: count(&mut r, "gradient-accumulation-steps"),
            device: planned_device(&mut r),
            device_memory: r.parse("device-memory", wanted, bytes),
            dtype: r.choice("dtype"),
            recompute: r.choice("recompute"),
            on_memory: r.choice("on-memory"),
            json: r.switch("json"),
        };
        let all = matches!(config.signal.kind, SignalKind::Coded | SignalKind::Full);
        if config.teacher_width.is_some() && !all {
            r.fault("--teacher-width says nothing of tokens that are listed; it is for --signal coded and full");
        }
        gradients_add_up(&mut r, config.recompute, config.gradient_accumulation_steps);
        if let Some(width) = config.teacher_width.filter(|width| *width > MOST_WIDTH) {
            r.fault(format!("--teacher-width {width}: a teacher's hidden states have at most {MOST_WIDTH} numbers"));
        }
        r.finish(config)
    }
}

/// What keeps no gradients cannot add them up.
pub(super) fn gradients_add_up(r: &mut Reader<'_>, recompute: RecomputeChoice, batches: usize) {
    if recompute == RecomputeChoice::Gradients && batches > 1 {
        r.fault(format!(
            "--recompute gradients keeps no gradients, so --gradient-accumulation-steps {batches} cannot add \
             them up; use --recompute blocks"
        ));
    }
}

/// Any device where its memory is said, rightly or not, else one this build can ask.
fn planned_device(r: &mut Reader<'_>) -> Option<Device> {
    let name = r.text("device").unwrap_or_default();
    let advice = "or say with --device-memory how much it has, then it is not asked";
    let refused = match device::check(&name) {
        Ok(()) => None,
        Err(DeviceError::NotBuilt { .. }) if r.layers().given("device-memory").is_some() => None,
        Err(error @ DeviceError::NotBuilt { .. }) => Some(format!("{error}; {advice}")),
        Err(error @ DeviceError::Unknown { .. }) => Some(error.to_string()),
    };
    if let Some(error) = refused {
        r.fault(format!("--device {name} is refused: {error}"));
    }
    device::parse(&name).ok().flatten()
}

/// Bytes of a text, with a unit from `KiB` to `TiB` or `KB` to `TB`, in whatever letters, or without.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let binary = [("kib", 1_u64 << 10), ("mib", 1 << 20), ("gib", 1 << 30), ("tib", 1 << 40)];
    let decimal =
        [("kb", 1000_u64), ("mb", 1_000_000), ("gb", 1_000_000_000), ("tb", 1_000_000_000_000)];
    let unit = |(suffix, unit)| Some((text.strip_suffix(suffix)?, unit));
    let (number, unit) = binary.into_iter().chain(decimal).find_map(unit).unwrap_or((&text, 1));
    let bytes = number.trim().parse::<f64>().ok()? * unit as f64;
    (1.0..1e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::super::command::Command;
    use super::*;

    fn read(flags: &[(&'static str, &str)]) -> Result<PlanConfig, Vec<String>> {
        let student = [("student", "s")];
        let flags = student.iter().chain(flags).map(|(name, text)| (*name, (*text).to_owned()));
        let layers = Layers::new(Command::Plan, flags.collect(), |_| None, None).unwrap();
        PlanConfig::from_layers(&layers)
    }

    #[test]
    fn a_card_that_is_not_here_can_be_planned_for_when_its_memory_is_said() {
        let config = read(&[("device", "cuda:1"), ("device-memory", "24GiB")]).unwrap();
        assert_eq!((config.device, config.device_memory), (Some(Device::Cuda(1)), Some(24 << 30)));
        assert_eq!(read(&[]).unwrap().device, None);
        let faults = read(&[("device", "tpu"), ("device-memory", "24GiB")]).unwrap_err();
        assert!(faults[0].contains("--device tpu is refused"), "{faults:?}");
        #[cfg(not(feature = "cuda"))]
        assert!(read(&[("device", "cuda:1")]).unwrap_err()[0].contains("--device-memory"));
        let twice = [("recompute", "gradients"), ("gradient-accumulation-steps", "2")];
        assert!(read(&twice).unwrap_err()[0].contains("--recompute blocks"));
        let wide = [("signal", "full"), ("teacher-width", "1048577")];
        assert!(read(&wide).unwrap_err()[0].contains("at most 1048576"));
        assert!(read(&[("signal", "full"), ("teacher-width", "1048576")]).is_ok());
        let faults = read(&[("teacher-width", "9"), ("device-memory", "much")]).unwrap_err();
        assert!(faults[0].contains("as 24GiB") && faults[1].contains("--teacher-width"));
        // Who has said what a card has, be it wrongly, is not told to say it.
        let faults = read(&[("device", "cuda:0"), ("device-memory", "24G")]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains("`24G`; wanted"), "{faults:?}");
        // What is no device has no memory either.
        let faults = read(&[("device", "gpu")]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].ends_with("cuda is cuda:0)"), "{faults:?}");
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("24GiB"), Some(24 << 30));
        assert_eq!(bytes("1.5 MiB"), Some(3 << 19));
        assert_eq!(bytes("80GB"), Some(80_000_000_000));
        assert_eq!(bytes("24gib"), Some(24 << 30));
        assert_eq!(bytes("2TiB"), Some(2 << 40));
        assert_eq!(bytes("10MB"), Some(10_000_000));
        assert_eq!(bytes("4096"), Some(4096));
        for wrong in ["", "GiB", "0", "-1GiB", "12PB", "24G", "nan"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
