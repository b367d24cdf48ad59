//! Where the trace of `--profile` goes, and of which steps it is.

use std::path::{Path, PathBuf, absolute};

use model::profile::{self, Turns};

use super::layers::Origin;
use super::reader::Reader;

/// The trace's place and its steps. What it would destroy is found before anything is loaded.
pub(super) fn profile(r: &mut Reader<'_>) -> (Option<PathBuf>, Turns) {
    let steps = r.parse("profile-steps", "FIRST..LAST, from 1", |text| text.parse().ok());
    let steps = steps.unwrap_or_default();
    let Some(path) = r.text("profile").map(PathBuf::from) else {
        if r.layers().given("profile-steps") == Some(&Origin::Flag) {
            r.fault("--profile-steps says nothing without --profile");
        }
        return (None, steps);
    };
    let output_dir = r.text("output-dir").map(PathBuf::from);
    match output_dir.filter(|dir| real(&path).starts_with(real(dir))) {
        Some(dir) => r.fault(format!(
            "--profile {} is within --output-dir {}, where the run writes files of its own; name one elsewhere",
            path.display(),
            dir.display()
        )),
        None => profile::check(&path).unwrap_or_else(|error| r.fault(error.to_string())),
    }
    (Some(path), steps)
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    let path = absolute(path).unwrap_or_else(|_| path.to_owned());
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Command, Config, Layers};

    fn read(given: &[(&'static str, &str)]) -> Result<Config, Vec<String>> {
        let needed = [("student", "s"), ("train-file", "t"), ("alpha", "0"), ("output-dir", "out")];
        let flags = needed.iter().chain(given).map(|(name, text)| (*name, (*text).to_owned()));
        let layers = Layers::new(Command::Train, flags.collect(), |_| None, None).unwrap();
        Config::from_layers(&layers)
    }

    #[test]
    fn a_trace_that_would_destroy_something_is_refused_before_anything_is_loaded() {
        let root = tempfile::tempdir().unwrap();
        let rows = root.path().join("train.jsonl");
        fs::write(&rows, "{}").unwrap();
        let faults = read(&[("profile", rows.to_str().unwrap())]).unwrap_err();
        assert!(faults.len() == 1 && faults[0].contains("train.jsonl"), "{faults:?}");
        let trace = root.path().join("trace.json");
        let config = read(&[("profile", trace.to_str().unwrap())]).unwrap();
        assert_eq!(config.profile, Some(trace));
    }

    #[test]
    fn the_files_of_the_run_are_not_replaced_whether_they_are_there_or_not() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let there = root.join("there");
        fs::create_dir(&there).unwrap();
        std::os::unix::fs::symlink(&there, root.join("link")).unwrap();
        for (profile, dir) in [
            ("new/metrics.jsonl", "new"),
            ("new/checkpoints/x", "./new/"),
            ("there/model.safetensors", "there"),
            ("link/summary.json", "there"),
            ("there/config.json", "link"),
            ("there/../new/config.json", "new"),
        ] {
            let [profile, dir] = [profile, dir].map(|name| root.join(name).display().to_string());
            let faults = read(&[("profile", &profile), ("output-dir", &dir)]).unwrap_err();
            assert!(
                faults.len() == 1 && faults[0].contains("is within --output-dir"),
                "{faults:?}"
            );
        }
        let faults = read(&[("profile", "out/trace.json")]).unwrap_err();
        assert!(faults[0].contains("is within --output-dir out"), "{faults:?}");
        let [profile, dir] =
            ["there/a.json", "the"].map(|name| root.join(name).display().to_string());
        read(&[("profile", &profile), ("output-dir", &dir)]).unwrap();
    }

    #[test]
    fn steps_of_no_profile_are_refused() {
        let faults = read(&[("profile-steps", "1..2")]).unwrap_err();
        assert_eq!(faults, ["--profile-steps says nothing without --profile"]);
    }
}
