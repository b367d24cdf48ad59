//! Every signal by the real programs: learned from, evaluated with, kept in a cache, gone on with.

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tests::{Teacher, root, run, trainer};

/// The demonstration's models and rows, and where a test keeps what it makes.
struct Bench {
    folder: tempfile::TempDir,
    server: Teacher,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let model = root().join("student-trainer/demo/teacher");
        let calibrations = folder.path().join("codes").display().to_string();
        let server = Teacher::start(&model, &["--calibration-dir", &calibrations]);
        let bench = Self { folder, server };
        bench.write_rows("train.jsonl", 40, 0);
        bench.write_rows("held-out.jsonl", 8, 40);
        bench
    }

    /// Rows of sums, as the demonstration's models know them.
    fn write_rows(&self, name: &str, count: usize, first: usize) {
        let row = |i: usize| {
            let (a, b) = (3 + (first + i) * 7 % 41, 2 + (first + i) * 5 % 23);
            serde_json::json!({
                "question": format!("Ann has {a} apples and buys {b} more. How many has she?"),
                "answer": format!("Ann had {a} apples. She bought {b}. {a} + {b} = {}.", a + b),
            })
        };
        let rows: Vec<String> = (0..count).map(|i| row(i).to_string()).collect();
        std::fs::write(self.folder.path().join(name), rows.join("\n")).expect("rows");
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn student() -> String {
        root().join("student-trainer/demo/student").display().to_string()
    }

    /// Runs a command of the trainer on these rows.
    fn run(&self, command: &[&str], more: &[&str]) -> Output {
        let (train, held_out) = (self.path("train.jsonl"), self.path("held-out.jsonl"));
        let (student, decoders) = (Self::student(), self.path("decoders"));
        let flags = [
            ["--student", &student],
            ["--train-file", &train],
            ["--eval-file", &held_out],
            ["--decoder-dir", &decoders],
        ];
        run(&mut trainer(&[command, flags.as_flattened(), more].concat()))
    }

    /// Trains for five steps; gives the summary and what was said.
    fn train(&self, output: &str, more: &[&str]) -> (Value, String) {
        let output = self.path(output);
        let flags = ["--output-dir", &output, "--max-steps", "5", "--learning-rate", "1e-3"];
        let ran = self.run(&["train"], &[&flags, more].concat());
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{said}");
        (summary(Path::new(&output)), said)
    }
}

fn summary(output: &Path) -> Value {
    let text = std::fs::read_to_string(output.join("summary.json")).expect("a summary");
    serde_json::from_str(&text).expect("JSON")
}

fn number(summary: &Value, name: &str) -> f64 {
    summary[name].as_f64().unwrap_or_else(|| panic!("no {name}: {summary}"))
}

/// What all signals say is the same teacher's: of all that say everything the losses are the same but for
/// what rounding takes, and a top-k of all classes says no more.
#[test]
fn every_signal_teaches_and_those_that_say_all_teach_the_same() {
    let bench = Bench::new();
    let url = bench.server.url();
    let train = |name: &str, more: &[&str]| {
        bench.train(name, &[&["--teacher", &url, "--temperature", "2"], more].concat())
    };
    let (exact, _) = train("exact", &["--signal", "full", "--hidden-form", "f32"]);
    // All there are.
    let (all, _) = train("all", &["--top-k", "1024", "--codec", "raw"]);
    let after = |summary: &Value| number(summary, "student_perplexity_after");
    for name in ["teacher_perplexity", "student_perplexity_after", "eval_kl_after"] {
        let (a, b) = (number(&exact, name), number(&all, name));
        assert!(
            (a - b).abs() < 1e-4 * a.abs(),
            "{name}: {a} from hidden states, {b} from all logits"
        );
    }
    assert_eq!(exact["agreement_after"], all["agreement_after"]);
    for (form, most) in [("bf16", 2e-3), ("int8", 1e-2), ("int4", 5e-2)] {
        let (rounded, _) = train(form, &["--signal", "full", "--hidden-form", form]);
        let off = (after(&rounded) / after(&exact) - 1.0).abs();
        assert!(off < most, "{form}: {off}");
    }
    let (coded, said) = train("coded", &["--signal", "coded"]);
    assert!(said.contains("makes a code") && said.contains("bytes a position"), "{said}");
    assert!((after(&coded) / after(&exact) - 1.0).abs() < 2e-2);
    let bytes = |summary: &Value| number(summary, "wire_bytes_per_token");
    assert!(6.0 * bytes(&coded) < bytes(&exact), "{} of {}", bytes(&coded), bytes(&exact));
    // What is asked for with a budget keeps it; the code is the one that was made before.
    let (small, said) = train("small", &["--signal", "coded", "--signal-bytes", "12"]);
    assert!(!said.contains("makes a code") && bytes(&small) < bytes(&coded), "{said}");
    let (drawn, _) = train("drawn", &["--signal", "sampled", "--draws", "32", "--exact", "4"]);
    assert!(after(&drawn) < number(&drawn, "student_perplexity_before"));
    let of_teacher = |summary: &Value| number(summary, "teacher_perplexity");
    assert!((of_teacher(&drawn) / of_teacher(&all) - 1.0).abs() < 1e-6);
}

/// Candidates of all classes say what hidden states do; of few the reverse divergence lies between those
/// of the teacher's k alone and of everything: what is told apart further is never less apart (the data
/// processing inequality).
#[test]
fn candidates_say_more_than_the_teachers_likeliest_and_no_more_than_everything() {
    let bench = Bench::new();
    let url = bench.server.url();
    let train = |name: &str, more: &[&str]| {
        let flags = ["--teacher", &url, "--divergence", "reverse-kl", "--temperature", "2"];
        bench.train(name, &[&flags, more].concat()).0
    };
    let exact = train("exact", &["--signal", "full", "--hidden-form", "f32"]);
    let all = ["--signal", "candidates", "--top-k", "512", "--codec", "raw"];
    let all = train("all", &all);
    for name in ["eval_kl_before", "eval_kl_after", "student_perplexity_after"] {
        let (a, b) = (number(&exact, name), number(&all, name));
        assert!(
            (a - b).abs() < 1e-4 * a.abs(),
            "{name}: {a} from hidden states, {b} from candidates"
        );
    }
    let few = train("few", &["--signal", "candidates", "--top-k", "8"]);
    let top = train("top", &["--top-k", "8"]);
    let [exact, few, top] = [&exact, &few, &top].map(|summary| number(summary, "eval_kl_before"));
    assert!(1.02 * top < few && few < exact, "{top}, {few}, {exact}");
    // More ids than a request holds.
    let small = ["--max-request-bytes", "20000"];
    let model = root().join("student-trainer/demo/teacher");
    let server = Teacher::start(&model, &small);
    let output = bench.path("refused");
    let flags = ["--teacher", &server.url(), "--signal", "candidates", "--top-k", "256"];
    let ran = bench.run(&["train"], &[&flags[..], &["--output-dir", &output]].concat());
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success(), "{said}");
    for word in ["train.jsonl", "20000", "--top-k 256", "--max-request-bytes"] {
        assert!(said.contains(word), "{said}");
    }
}

/// Every divergence on hidden states; and what evaluates with them.
#[test]
fn hidden_states_carry_every_divergence_and_evaluations() {
    let bench = Bench::new();
    let url = bench.server.url();
    for divergence in ["reverse-kl", "jsd", "mixture"] {
        let flags = ["--teacher", &url, "--signal", "full", "--divergence", divergence];
        let (trained, _) = bench.train(divergence, &flags);
        assert!(number(&trained, "eval_kl_after") < number(&trained, "eval_kl_before"));
    }
    let (model, held_out) = (Bench::student(), bench.path("held-out.jsonl"));
    let decoders = bench.path("decoders");
    let eval = |more: &[&str]| -> Value {
        let flags =
            ["eval", "--model", &model, "--eval-file", &held_out, "--teacher", &url, "--json"];
        let ran = run(&mut trainer(&[&flags, more].concat()));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).expect("JSON")
    };
    let full = eval(&["--signal", "full", "--hidden-form", "f32", "--decoder-dir", &decoders]);
    let listed = eval(&["--top-k", "64"]);
    let pairs = (number(&full, "teacher_perplexity"), number(&listed, "teacher_perplexity"));
    assert!((pairs.0 / pairs.1 - 1.0).abs() < 1e-5, "{pairs:?}");
    assert_eq!(full["agreement"], listed["agreement"]);
    assert_eq!((full["signal"].as_str(), full["top_k"].as_u64()), (Some("full"), None));
}

/// A cache of hidden states holds what they are read with: nobody need be asked, at any temperature.
#[test]
fn a_cache_of_each_signal_teaches_without_its_teacher() {
    let bench = Bench::new();
    let url = bench.server.url();
    let coded: &[&str] = &["--signal", "coded", "--signal-error", "0.02"];
    let signals: [(&str, &[&str]); 3] =
        [("coded", coded), ("full", &["--signal", "full"]), ("sampled", &["--signal", "sampled"])];
    for (name, signal) in signals {
        let cache = bench.path(&format!("{name}-cache"));
        let place = ["--cache", &cache];
        let build = [&place[..], &["--teacher", &url], signal].concat();
        let built = bench.run(&["cache", "build"], &build);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let verified = run(&mut trainer(&["cache", "verify", "--cache", &cache]));
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        let asked = [signal, &["--teacher", &url]].concat();
        let (taught, _) = bench.train(&format!("{name}-asked"), &asked);
        let (alone, said) = bench.train(&format!("{name}-alone"), &[signal, &place].concat());
        assert!(said.contains("the teacher is asked for none"), "{said}");
        for number in ["student_perplexity_after", "teacher_perplexity", "eval_kl_after"] {
            assert_eq!(taught[number], alone[number], "{name}: {number}");
        }
        let parquet = bench.path("answers.parquet");
        let exported =
            run(&mut trainer(&["cache", "export", "--cache", &cache, "--parquet", &parquet]));
        let said = String::from_utf8_lossy(&exported.stderr).into_owned();
        assert!(!exported.status.success() && said.contains("top-k answers only"), "{said}");
        if name != "sampled" {
            let other = [signal, &place, &["--temperature", "1", "--divergence", "jsd"]].concat();
            bench.train(&format!("{name}-other"), &other);
        }
    }
    let cache = bench.path("coded-cache");
    let told = run(&mut trainer(&["cache", "info", "--cache", &cache]));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("bytes a position, off by") && told.contains("in 2 files"), "{told}");
    // Another step than the cache's is refused, with both.
    let output = bench.path("refused");
    let flags = ["--output-dir", &output, "--cache", &cache, "--signal", "coded"];
    let refused = bench.run(&["train"], &[&flags[..], &["--signal-bytes", "12"]].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains("step of coded hidden states") && said.contains("--signal-bytes"),
        "{said}"
    );
    // What it is read with is part of it.
    for entry in std::fs::read_dir(&cache).expect("a cache") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "blob") {
            let bytes = std::fs::read(&path).expect("a blob");
            std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("half a blob");
        }
    }
    let flags = [&["--output-dir", &output, "--cache", &cache][..], coded].concat();
    let refused = bench.run(&["train"], &flags);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is damaged"), "{said}");
    let verify = || run(&mut trainer(&["cache", "verify", "--cache", &cache]));
    let found = verify();
    let said = String::from_utf8_lossy(&[found.stdout, found.stderr].concat()).into_owned();
    assert!(!found.status.success() && said.contains(".blob"), "{said}");
    // A teacher has what is lacking, and mends it.
    let flags = [coded, &["--cache", &cache]].concat();
    let (_, said) = bench.train("mended", &[&flags[..], &["--teacher", &url]].concat());
    assert!(said.contains("is damaged") && said.contains("the teacher is asked"), "{said}");
    assert!(verify().status.success());
    let (_, said) = bench.train("alone-again", &flags);
    assert!(said.contains("the teacher is asked for none"), "{said}");
}

/// A teacher that starts again has the code it made before; one that cannot read it says so, and a run
/// does not wait for it.
#[test]
fn a_code_outlives_its_teacher() {
    let mut bench = Bench::new();
    let url = bench.server.url();
    bench.train("out", &["--signal", "coded", "--teacher", &url]);
    let model = root().join("student-trainer/demo/teacher");
    bench.server = Teacher::start(&model, &["--calibration-dir", &bench.path("codes")]);
    let url = bench.server.url();
    let (_, said) = bench.train("again", &["--signal", "coded", "--teacher", &url]);
    assert!(!said.contains("makes a code"), "{said}");
    let codes = std::fs::read_dir(bench.path("codes")).expect("codes");
    let code = codes.map(|entry| entry.expect("an entry").path()).next().expect("a code");
    let mut bytes = std::fs::read(&code).expect("a code");
    bytes[8] = 9;
    std::fs::write(&code, bytes).expect("a code");
    bench.server = Teacher::start(&model, &["--calibration-dir", &bench.path("codes")]);
    let (url, output) = (bench.server.url(), bench.path("refused"));
    let flags = ["--output-dir", &output, "--teacher", &url, "--signal", "coded"];
    let refused = bench.run(&["train"], &flags);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    let name = code.display().to_string();
    for piece in ["version is 9", &name, "move it away", "FailedPrecondition"] {
        assert!(said.contains(piece), "no {piece:?} in {said}");
    }
}

/// What a teacher cannot say is named, and costs the table nothing else.
#[test]
fn where_a_teacher_makes_no_code_the_other_signals_are_measured() {
    let mut bench = Bench::new();
    let model = root().join("student-trainer/demo/teacher");
    let none = bench.path("no codes");
    let off = ["--calibration-dir", &none, "--auto-calibration", "off"];
    bench.server = Teacher::start(&model, &off);
    let (url, decoders) = (bench.server.url(), bench.path("decoders"));
    let (student, data, out) = (Bench::student(), bench.path("train.jsonl"), bench.path("table"));
    let flags = [
        ["--teacher", &url],
        ["--student", &student],
        ["--data", &data],
        ["--decoder-dir", &decoders],
        ["--output-dir", &out],
        ["--temperatures", "1"],
        ["--max-samples", "4"],
    ];
    let ran = run(&mut trainer(&[&["signals", "--json"], flags.as_flattened()].concat()));
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    assert!(said.contains("--auto-calibration off") && said.contains("are measured"), "{said}");
    let found: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    let names =
        found["signals"].as_array().expect("signals").iter().map(|row| row["name"].to_string());
    let names: Vec<String> = names.collect();
    assert!(names.len() > 8 && !names.iter().any(|name| name.contains("coded")), "{names:?}");
}

/// The table of signals on rows of one's own: everything is exact, what is coded finer is nearer, and a
/// budget is kept.
#[test]
fn what_each_signal_is_worth_is_measured_and_one_recommended() {
    let bench = Bench::new();
    let (url, decoders) = (bench.server.url(), bench.path("decoders"));
    let (student, data, out) = (Bench::student(), bench.path("train.jsonl"), bench.path("table"));
    let flags = [
        ["--teacher", &url],
        ["--student", &student],
        ["--data", &data],
        ["--decoder-dir", &decoders],
        ["--output-dir", &out],
        ["--temperatures", "1,4"],
        ["--max-samples", "16"],
    ];
    let signals = |more: &[&str]| {
        let ran = run(&mut trainer(&[&["signals"], flags.as_flattened(), more].concat()));
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).expect("UTF-8")
    };
    let found: Value = serde_json::from_str(&signals(&["--json", "--budget", "30"])).expect("JSON");
    let rows = found["signals"].as_array().expect("signals");
    let angle = |row: &Value, at: usize| row["at"][at]["angle"].as_f64().expect("an angle");
    let of = |name: &str| {
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}: {found}"))
    };
    assert_eq!((angle(of("full f32"), 0), angle(of("full f32"), 1)), (0.0, 0.0));
    assert!(angle(of("full bf16"), 0) < 0.2 && angle(of("full int4"), 0) < 5.0);
    let coded = ["0.001", "0.01", "0.1"].map(|e| of(&format!("coded, --signal-error {e}")));
    assert!(angle(coded[0], 0) < angle(coded[1], 0) && angle(coded[1], 0) < angle(coded[2], 0));
    assert!(number(coded[0], "bytes") > number(coded[2], "bytes"));
    // What a top-k leaves out at a high temperature it cannot teach.
    assert!(angle(of("top-64"), 1) > 10.0 * angle(coded[1], 1));
    let chosen = &rows[found["recommended"].as_u64().expect("one") as usize];
    assert!(number(chosen, "bytes") <= 30.0, "{chosen}");
    let page = std::fs::read_to_string(Path::new(&out).join("signals.html")).expect("a page");
    assert!(page.contains("recommended within 30 bytes") && page.contains("Temperature 4"));
    let text = signals(&[]);
    assert!(text.contains("recommended: ") && text.contains("top-64, renormalised"), "{text}");
}
