//! Layers, ranges and contradictions of the settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

const NEEDED: [(&str, &str); 4] = [
    ("teacher", "grpc://127.0.0.1:50051"),
    ("student", "models/student"),
    ("train-file", "train.jsonl"),
    ("output-dir", "out"),
];

/// Settings from the needed flags and others (which replace them; "-" takes one away), variables
/// and a file.
fn settings(
    flags: &[(&'static str, &str)],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Config, Vec<String>> {
    let named = NEEDED.iter().chain(flags).map(|&(name, text)| (name, text.to_owned()));
    let mut flags: BTreeMap<_, _> = named.collect();
    flags.retain(|_, text| text != "-");
    let variables: BTreeMap<_, _> = variables.iter().copied().collect();
    let lookup = |name: &str| variables.get(name).map(|&text| text.to_owned());
    let file = file.map(|text| (Path::new("run.toml"), text));
    Config::from_layers(&Layers::new(Command::Train, flags, lookup, file)?)
}

fn faults(flags: &[(&'static str, &str)]) -> Vec<String> {
    settings(flags, &[], None).expect_err("a fault was expected")
}

#[test]
fn defaults_are_those_of_the_contract() {
    let c = settings(&[], &[], None).unwrap();
    assert_eq!((c.alpha, c.temperature, c.signal.top_k), (0.7, 5.0, 64));
    assert_eq!((c.signal.kind, c.tail), (SignalKind::TopK, TailKind::Bucket));
    assert_eq!(c.signal.codec, CodecKind::Packed);
    assert_eq!((c.num_train_epochs, c.max_steps), (3, None));
    assert_eq!((c.per_device_train_batch_size, c.gradient_accumulation_steps), (4, 1));
    assert_eq!((c.learning_rate, c.lr_scheduler_type), (5e-5, SchedulerKind::Constant));
    assert_eq!((c.warmup_steps, c.weight_decay, c.max_grad_norm), (0, 0.01, 1.0));
    assert_eq!((c.adam_beta1, c.adam_beta2, c.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((c.max_length, c.loss_on, c.shuffle), (1024, LossOn::Completion, true));
    assert_eq!((c.max_train_samples, c.max_eval_samples), (None, None));
    assert_eq!((c.chat_template, c.seed), (ChatTemplateUse::Auto, 42));
    assert_eq!((c.device.as_str(), c.dtype), ("auto", DtypeChoice::Auto));
    assert_eq!((c.eval_file, c.eval_steps), (None, None));
    assert_eq!((c.save_steps, c.save_total_limit), (500, 3));
    assert_eq!((c.resume_from_checkpoint, c.logging_steps), (Resume::Off, 1));
    assert_eq!(c.progress, ProgressKind::Auto);
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let file = Some("learning_rate = 1e-3\ntop_k = 16\nalpha = 0.25\nshuffle = false\n");
    let variables = [
        ("STUDENT_TRAINER_TOP_K", "32"),
        ("STUDENT_TRAINER_ALPHA", "0.5"),
        ("STUDENT_TRAINER", ""),
    ];
    let c = settings(&[("alpha", "0.9")], &variables, file).unwrap();
    assert_eq!((c.alpha, c.signal.top_k, c.learning_rate, c.shuffle), (0.9, 32, 1e-3, false));
    let c = settings(&[], &[("STUDENT_TRAINER_CODEC", "compact8")], Some("codec = 'raw'")).unwrap();
    assert_eq!(c.signal.codec, CodecKind::Compact8);
    assert!(faults(&[("codec", "compact9")])[0].contains("compact8"));
    assert_eq!(c.temperature, 5.0);
}

#[test]
fn a_list_in_the_file_is_a_list_with_commas() {
    let file = |list| format!("teacher = [{list}]");
    let c = settings(&[("teacher", "-")], &[], Some(&file("\"grpc://a:1\""))).unwrap();
    assert_eq!(c.teacher, ["grpc://a:1"]);
    let two = file("\"grpc://a:1\", \"http://b:2\"");
    let found = settings(&[("teacher", "-")], &[], Some(&two)).unwrap_err();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("--teacher names 2 teachers"), "{found:?}");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_name_and_all_at_once() {
    let file = "learing_rate = 1.0\ntemprature = 2\nxyzzy_plugh = 1\n[alpha]\nx = 1\n";
    let found = settings(&[], &[], Some(file)).unwrap_err();
    assert_eq!(found.len(), 4, "{found:#?}");
    let all = found.join("\n");
    for piece in [
        "run.toml: unknown key `learing_rate`; did you mean `learning_rate`?",
        "unknown key `temprature`; did you mean `temperature`?",
        "unknown key `xyzzy_plugh`; `student-trainer train --help`",
        "`alpha` is a table",
    ] {
        assert!(all.contains(piece), "{piece} is not in\n{all}");
    }
    let one = |file: &str| settings(&[], &[], Some(file)).unwrap_err().join("\n");
    for tables in ["[train]\nseed = 1", "[[train]]\nseed = 1", "alpha = { a = 1 }"] {
        let found = one(tables);
        assert!(found.contains("keys stand at the top level"), "{found}");
        assert!(!found.contains("did you mean"), "{found}");
    }
    let found = one("config = \"other.toml\"");
    assert!(found.contains("`config` names this file and cannot stand in it"), "{found}");
    let found = one("confg = 1");
    assert!(!found.contains("`config`"), "{found}");
    let broken = settings(&[], &[], Some("alpha = = 1")).unwrap_err();
    assert!(broken[0].contains("run.toml: not valid TOML"), "{broken:?}");
}

#[test]
fn values_out_of_range_are_refused_all_at_once_with_what_is_wanted() {
    let bad = [
        ("alpha", "1.5"),
        ("temperature", "0"),
        ("top-k", "0"),
        ("learning-rate", "-1"),
        ("adam-beta2", "1"),
        ("adam-epsilon", "0"),
        ("max-grad-norm", "nan"),
        ("max-length", "1"),
        ("per-device-train-batch-size", "four"),
        ("tail", "buckets"),
        ("shuffle", "maybe"),
        ("seed", "-1"),
        ("num-train-epochs", "0"),
        ("teacher", "ftp://x"),
        ("save-total-limit", "0"),
    ];
    let found = faults(&bad);
    assert_eq!(found.len(), bad.len(), "{found:#?}");
    for (name, text) in bad {
        let named = found.iter().find(|f| f.starts_with(&format!("--{name} ")));
        let fault = named.unwrap_or_else(|| panic!("no fault names --{name}: {found:#?}"));
        assert!(fault.contains(text) && fault.contains("wanted"), "{fault}");
    }
    for text in ["nan", "inf", "-5", "1e400", "0.00009", "1000001"] {
        let found = faults(&[("temperature", text)]);
        assert_eq!(found.len(), 1, "T = {text}");
        assert!(found[0].ends_with("wanted: a number from 0.0001 to 1000000"), "{found:?}");
    }
    for text in ["0.0001", "1_000_000"] {
        settings(&[("temperature", text)], &[], None).unwrap();
    }
}

#[test]
fn what_this_build_cannot_reach_is_refused_with_its_flag() {
    for (name, text, pieces) in [
        ("device", "cuda:0", ["--device cuda:0", "CPU only"]),
        ("device", "gpu", ["--device gpu", "accepted: auto, cpu, cuda:N"]),
        ("teacher", "https://a:1", ["--teacher https://a:1", "give --teacher-ca"]),
        ("teacher", "grpc://a", ["--teacher grpc://a", "no port"]),
        ("teacher", "grpc://a:1,b:2", ["--teacher names 2 teachers", "give one address"]),
        ("output-dir", "~/out", ["--output-dir ~/out", "write the path out"]),
    ] {
        let found = faults(&[(name, text)]);
        assert_eq!(found.len(), 1, "{found:#?}");
        for piece in pieces {
            assert!(found[0].contains(piece), "no {piece:?} in: {found:?}");
        }
    }
}

#[test]
fn a_fault_says_where_the_value_was_written() {
    let variables = [("STUDENT_TRAINER_ALPHA", "7")];
    let found = settings(&[], &variables, Some("top_k = -1")).unwrap_err().join("\n");
    assert!(found.contains("STUDENT_TRAINER_ALPHA is `7`"), "{found}");
    assert!(found.contains("`top_k` in run.toml is `-1`"), "{found}");
}

#[test]
fn what_is_missing_is_named() {
    let found = faults(&[("student", "-"), ("train-file", "-"), ("output-dir", "-")]);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found[0].contains("--student is missing"));
    assert!(found[0].contains("STUDENT_TRAINER_STUDENT") && found[0].contains("`student`"));
    let found = faults(&[("teacher", "-")]);
    assert!(found[0].contains("--alpha 0 for plain training"), "{found:?}");
    assert!(settings(&[("teacher", "-"), ("alpha", "0")], &[], None).unwrap().teacher.is_empty());
}

#[test]
fn hidden_states_are_compared_up_to_the_highest_temperature_that_tells() {
    for (signal, temperature, faults) in
        [("coded", "1000", 0), ("full", "1000.001", 1), ("top-k", "1001", 0)]
    {
        let found = settings(&[("signal", signal), ("temperature", temperature)], &[], None);
        assert_eq!(found.err().map_or(0, |found| found.len()), faults, "{signal} {temperature}");
    }
}

/// Two ways to say one thing in two places are no contradiction: the flag says it.
#[test]
fn a_flag_for_the_step_is_over_a_file_that_says_it_the_other_way() {
    for (flag, of_file, wanted) in [
        (("signal-error", "0.1"), "signal_bytes = 40", (None, Some(0.1))),
        (("signal-bytes", "40"), "signal_error = 0.1", (Some(40.0), None)),
    ] {
        let file = format!("signal = \"coded\"\n{of_file}\n");
        let c = settings(&[flag], &[], Some(&file)).unwrap();
        assert_eq!((c.signal.signal_bytes, c.signal.signal_error), wanted);
    }
}

#[test]
fn contradictions_are_refused() {
    for (flags, piece) in [
        (&[("warmup-steps", "10")][..], "constant_with_warmup"),
        (&[("overwrite-output-dir", "true"), ("resume-from-checkpoint", "auto")], "contradict"),
        (&[("eval-steps", "5")], "--eval-steps says nothing without --eval-file"),
        (&[("max-steps", "5"), ("num-train-epochs", "2")], "give one of them"),
        (&[("divergence", "jsd"), ("tail", "renormalise")], "jsd needs --tail bucket"),
        (&[("beta", "0.3")], "--beta says nothing with --divergence forward-kl"),
        (
            &[("signal", "sampled"), ("divergence", "jsd")],
            "--divergence jsd cannot be learned from --signal sampled: draws give the gradient of \
             forward-kl alone; --signal coded or full carries every divergence, top-k carries it on its \
             tokens and the rest",
        ),
        (
            &[("signal", "coded"), ("top-k", "8")],
            "--top-k says nothing with --signal coded; it is for top-k and candidates",
        ),
        (
            &[("signal", "candidates"), ("cache", "answers")],
            "a cache cannot keep --signal candidates",
        ),
        (
            &[("signal", "coded"), ("temperature", "1001")],
            "above 1000 the divergence of all classes is less than float32 can tell",
        ),
        (
            &[("signal-bytes", "40")],
            "--signal-bytes says nothing with --signal top-k; it is for coded",
        ),
        (
            &[("signal", "coded"), ("signal-bytes", "40"), ("signal-error", "0.01")],
            "--signal-bytes and --signal-error both choose the step of the code; give one",
        ),
        (
            &[("signal", "full"), ("tail", "renormalise")],
            "--tail renormalise says nothing with --signal full, which leaves no tokens out; it is for \
             top-k and candidates",
        ),
    ] {
        let found = faults(flags);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(piece), "{found:?}");
    }
}

#[test]
fn steps_and_epochs_of_different_places_follow_the_order_of_places() {
    let by_flag = settings(&[("max-steps", "5")], &[], Some("num_train_epochs = 2")).unwrap();
    assert_eq!(by_flag.max_steps, Some(5));
    let coded = [("signal", "coded"), ("signal-error", "0.02")];
    let by_flag = settings(&coded, &[("STUDENT_TRAINER_SIGNAL_BYTES", "44")], None).unwrap().signal;
    assert_eq!((by_flag.signal_bytes, by_flag.signal_error), (None, Some(0.02)));
    let by_file = settings(&[("num-train-epochs", "2")], &[], Some("max_steps = 5")).unwrap();
    assert_eq!((by_file.max_steps, by_file.num_train_epochs), (None, 2));
}

#[test]
fn resume_and_clipping_have_words_of_their_own() {
    let c = settings(&[("max-grad-norm", "inf"), ("resume-from-checkpoint", "auto")], &[], None);
    let c = c.unwrap();
    assert_eq!((c.max_grad_norm, c.resume_from_checkpoint.clone()), (f64::INFINITY, Resume::Auto));
    let json = serde_json::to_value(&c).unwrap();
    assert_eq!(json["max_grad_norm"], "inf");
    assert_eq!(json["lr_scheduler_type"], "constant");
    let c = settings(&[("resume-from-checkpoint", "out/checkpoints/step-000005")], &[], None);
    let path = PathBuf::from("out/checkpoints/step-000005");
    assert_eq!(c.unwrap().resume_from_checkpoint, Resume::Path(path));
}

#[test]
fn every_field_of_the_settings_is_an_option_and_the_other_way_round() {
    let json = serde_json::to_value(settings(&[], &[], None).unwrap()).unwrap();
    let fields: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
    let mut options: Vec<_> = options_of(Command::Train).map(OptionSpec::key).collect();
    let mut sorted = fields.clone();
    sorted.sort();
    options.sort();
    assert_eq!(sorted, options);
}

#[test]
fn a_variable_no_option_has_is_a_fault_that_names_the_nearest() {
    let known = [
        "STUDENT_TRAINER_ALPHA",
        "STUDENT_TRAINER_JSON",
        "STUDENT_TRAINER_CONFIG",
        // Kubernetes' own, for a service called student-trainer.
        "STUDENT_TRAINER_SERVICE_HOST",
        "STUDENT_TRAINER_SERVICE_PORT_GRPC",
        "STUDENT_TRAINER_PORT_50051_TCP_ADDR",
        "STUDENT_TRAINERS",
        "PATH",
    ];
    assert_eq!(unknown_variables(known), Vec::<String>::new());
    let faults = unknown_variables(["STUDENT_TRAINER_TOPK", "STUDENT_TRAINER_alpha"]);
    assert!(faults[0].contains("STUDENT_TRAINER_TOPK; did you mean STUDENT_TRAINER_TOP_K?"));
    assert!(faults[1].contains("did you mean STUDENT_TRAINER_ALPHA?"), "{faults:?}");
    let [far] = &unknown_variables(["STUDENT_TRAINER_XYZZY_PLUGH"])[..] else { panic!("no fault") };
    assert!(far.contains("--help"), "{far}");
}

#[test]
fn files_for_the_way_to_the_teacher_are_refused_with_option_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name).to_str().unwrap().to_owned()
    };
    let (missing, empty) = (dir.path().join("none").to_str().unwrap().to_owned(), file("e", ""));
    let text = file("t", "no certificate");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = file("b", broken);
    for (option, path, piece) in [
        ("teacher-ca", &missing, "cannot be read"),
        ("teacher-ca", &empty, "holds no certificate"),
        ("teacher-ca", &text, "-----BEGIN CERTIFICATE-----"),
        ("teacher-ca", &broken, "no valid certificate"),
        ("teacher-token-file", &missing, "cannot be read"),
        ("teacher-token-file", &empty, "is empty"),
    ] {
        let found = faults(&[("teacher", "grpcs://a:1"), (option, path)]);
        assert_eq!(found.len(), 1, "{found:#?}");
        let begin = format!("--{option} {path}: ");
        assert!(found[0].starts_with(&begin) && found[0].contains(piece), "{found:?}");
    }
    let both = [("teacher-cert", text.as_str()), ("teacher-key", &text)];
    let found = faults(&both).join("\n");
    assert!(found.contains("--teacher-cert /") && found.contains("--teacher-key /"), "{found}");
    let found = faults(&[("teacher-cert", &text)]).join("\n");
    assert!(found.contains("--teacher-cert is given without --teacher-key"), "{found}");
    let found = faults(&[("teacher-name", "https://x")]).join("\n");
    assert!(found.contains("--teacher-name https://x: no host name"), "{found}");
    let found = faults(&[("teacher-name", "x")]).join("\n");
    assert!(found.contains("--teacher-name would do nothing; write grpcs://"), "{found}");
}

#[test]
fn a_token_is_in_no_written_settings() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let path = file.path().to_str().unwrap();
    let c = settings(&[("teacher-token-file", path)], &[], None).unwrap();
    let json = serde_json::to_value(&c).unwrap();
    assert_eq!(json["teacher_token_file"], path);
    assert!(!format!("{json}{c:?}").contains("s3cret"), "{c:?}");
    let found = faults(&[("teacher", "grpc://a:1"), ("teacher-token-file", path)]);
    assert!(found[0].contains("readable by everybody on the way"), "{found:?}");
    assert!(!found[0].contains("s3cret"), "{found:?}");
}
