//! What users get wrong, one by one: the programs answer with the thing's name and the remedy, exit
//! with the status the contract states, and leave nothing half done.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::{Teacher, binary, root, run, trainer};

fn demo(name: &str) -> PathBuf {
    root().join("student-trainer/demo").join(name)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A folder with a few good rows, for runs in which something else is wrong.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let desk = Self { folder: tempfile::tempdir().expect("a folder") };
        desk.file("rows.jsonl", b"{\"text\": \"Two and two are four.\"}\n");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).expect("the desk is writable");
        text(&self.path(name))
    }

    /// A copy of the demonstration's student to spoil.
    fn model(&self, name: &str) -> PathBuf {
        let copy = self.path(name);
        std::fs::create_dir(&copy).expect("a folder");
        for entry in std::fs::read_dir(demo("student")).expect("the demonstration's student") {
            let entry = entry.expect("an entry").path();
            std::fs::copy(&entry, copy.join(entry.file_name().expect("a name"))).expect("a copy");
        }
        copy
    }
}

/// Runs `student-trainer train` on good rows with these changes; returns status and complaint.
fn train(desk: &Desk, changes: &[&str]) -> (i32, String) {
    let mut flags = vec!["train", "--progress", "none"];
    let rows = text(&desk.path("rows.jsonl"));
    let out = text(&desk.path("out"));
    let student = text(&demo("student"));
    let good = [("--train-file", &rows), ("--output-dir", &out), ("--student", &student)];
    for (flag, value) in good {
        if !changes.contains(&flag) {
            flags.extend([flag, value]);
        }
    }
    if !changes.contains(&"--teacher") && !changes.contains(&"--alpha") {
        flags.extend(["--alpha", "0"]);
    }
    flags.extend(changes);
    let output = run(&mut trainer(&flags));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!complaint.contains("panicked"), "a panic: {complaint}");
    (output.status.code().expect("no signal"), complaint)
}

/// The run fails with this status and a complaint that has all of these words.
#[track_caller]
fn refused(desk: &Desk, changes: &[&str], status: i32, words: &[&str]) {
    let (code, complaint) = train(desk, changes);
    assert_eq!(code, status, "{changes:?}: {complaint}");
    for word in words {
        assert!(complaint.contains(word), "{changes:?}: no {word:?} in: {complaint}");
    }
    assert!(!desk.path("out/model.safetensors").exists(), "a model was left behind");
}

#[test]
fn settings_out_of_range_or_unknown_are_usage_errors() {
    let desk = Desk::new();
    for value in ["0", "-1", "nan", "inf", "warm", "0.00001", "2e6"] {
        let flag = format!("--temperature={value}");
        refused(&desk, &[&flag], 2, &["temperature", value]);
    }
    refused(&desk, &["--top-k", "0"], 2, &["top-k", "0"]);
    refused(&desk, &["--alpha", "1.5"], 2, &["alpha", "1.5"]);
    refused(&desk, &["--alpha", "0.7"], 2, &["--teacher"]);
    // Found before rows are looked for.
    for (flag, value, word) in [
        ("--teacher", "https://127.0.0.1:9", "encrypted"),
        ("--teacher", "127.0.0.1", "no port"),
        ("--teacher", "grpc://127.0.0.1:9,grpc://127.0.0.1:10", "names 2 teachers"),
        ("--device", "cuda:0", "CPU only"),
        ("--device", "warp", "cuda:N"),
    ] {
        let changes = ["--train-file", "no/such/rows.jsonl", flag, value];
        refused(&desk, &changes, 2, &[flag, word]);
    }
    let mut server = Command::new(binary("teacher-server"));
    let output = run(server.args(["--model", "none", "--device", "cuda:0"]));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("--device") && complaint.contains("CPU only"), "{complaint}");
    let config = desk.file("run.toml", b"learning_rat = 0.1\n");
    refused(&desk, &["--config", &config], 2, &["learning_rat", "learning_rate"]);
}

#[test]
fn rows_that_cannot_be_read_are_named() {
    let desk = Desk::new();
    let file = |name: &str, bytes: &[u8]| desk.file(name, bytes);
    let broken = file("broken.jsonl", b"{\"text\": \"a\"}\n{\"text\": \n");
    refused(&desk, &["--train-file", &broken], 1, &["broken.jsonl", "2"]);
    let utf8 = file("utf8.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\xfe\"}\n");
    refused(&desk, &["--train-file", &utf8], 1, &["utf8.jsonl", "2", "UTF-8"]);
    let columns = file("columns.jsonl", b"{\"body\": \"a\", \"title\": \"b\"}\n");
    refused(&desk, &["--train-file", &columns], 1, &["body", "title", "text", "messages"]);
    let empty = file("empty.jsonl", b"");
    refused(&desk, &["--train-file", &empty], 1, &["empty.jsonl"]);
    refused(&desk, &["--train-file", "no/such/rows.jsonl"], 1, &["no/such/rows.jsonl"]);
    let parquet = file("rows.parquet", b"PAR1 this is no parquet file PAR1");
    refused(&desk, &["--train-file", &parquet], 1, &["rows.parquet"]);
}

#[test]
fn rows_past_the_students_positions_are_refused_before_a_teacher_is_asked() {
    let desk = Desk::new();
    let long = "Two and two are four. ".repeat(200);
    let rows = format!("{{\"text\": \"short enough\"}}\n{{\"text\": \"{long}\"}}\n");
    let rows = desk.file("long.jsonl", rows.as_bytes());
    let words = ["long.jsonl, line 2 has 1024 tokens", "512 positions", "--max-length 512"];
    // Nobody listens at port 9: it would be waited for.
    let changes = ["--train-file", &rows, "--teacher", "grpc://127.0.0.1:9"];
    refused(&desk, &changes, 1, &words);
    refused(&desk, &["--eval-file", &rows], 1, &words);
    let student = text(&demo("student"));
    let output = run(&mut trainer(&["eval", "--model", &student, "--eval-file", &rows]));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    words.iter().for_each(|word| assert!(complaint.contains(word), "{complaint}"));
    refused(&desk, &["--train-file", &rows, "--max-length", "513"], 1, &["line 2 has 513 tokens"]);
    let fits = ["--train-file", &rows, "--max-length", "512", "--max-steps", "1"];
    let (code, complaint) = train(&desk, &fits);
    assert_eq!(code, 0, "{complaint}");
}

#[test]
fn models_that_are_none_are_named() {
    let desk = Desk::new();
    refused(&desk, &["--student", "/no/such/model"], 1, &["/no/such/model"]);
    let spoil = |name: &str, change: &dyn Fn(&Path)| {
        let model = desk.model(name);
        change(&model);
        text(&model)
    };
    let no_config = spoil("no-config", &|m| std::fs::remove_file(m.join("config.json")).unwrap());
    refused(&desk, &["--student", &no_config], 1, &["config.json"]);
    let other = spoil("other", &|m| {
        let config = std::fs::read_to_string(m.join("config.json")).unwrap();
        let config =
            config.replace("Qwen3ForCausalLM", "LlamaForCausalLM").replace("qwen3", "llama");
        std::fs::write(m.join("config.json"), config).unwrap();
    });
    refused(&desk, &["--student", &other], 1, &["llama", "qwen3"]);
    let short = spoil("short", &|m| {
        let bytes = std::fs::read(m.join("model.safetensors")).unwrap();
        std::fs::write(m.join("model.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    });
    refused(&desk, &["--student", &short], 1, &["model.safetensors"]);
    let pickle = spoil("pickle", &|m| {
        let name = m.join("pytorch_model.bin");
        std::fs::rename(m.join("model.safetensors"), name).unwrap();
    });
    refused(&desk, &["--student", &pickle], 1, &["pytorch_model.bin", "safetensors"]);
    let bare = spoil("bare", &|m| std::fs::remove_file(m.join("model.safetensors")).unwrap());
    refused(&desk, &["--student", &bare], 1, &["--student-init random"]);
    let output = run(Command::new(binary("teacher-server")).args(["--model", &pickle]));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("pytorch_model.bin"), "{complaint}");
}

#[test]
fn output_directories_with_something_in_them_are_left_alone() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("full")).expect("a folder");
    let kept = desk.file("full/notes.txt", b"years of work");
    let full = text(&desk.path("full"));
    refused(&desk, &["--output-dir", &full], 1, &[&full, "--overwrite-output-dir"]);
    assert_eq!(std::fs::read(kept).expect("notes.txt"), b"years of work");
    let below_a_file = text(&desk.path("rows.jsonl/out"));
    refused(&desk, &["--output-dir", &below_a_file], 1, &[&below_a_file]);
}

#[test]
fn a_teacher_that_is_not_there_is_named_with_the_time_it_was_given() {
    let desk = Desk::new();
    let url = "grpc://127.0.0.1:9";
    let changes = ["--teacher", url, "--teacher-timeout", "1"];
    refused(&desk, &changes, 1, &["127.0.0.1:9", "1"]);
}

#[test]
fn the_http_port_of_a_teacher_is_told_from_its_grpc_port() {
    let desk = Desk::new();
    let teacher = Teacher::start(&demo("teacher"), &[]);
    let url = format!("http://{}", teacher.http);
    // With the default patience of minutes; the complaint is not the one of a wait that ended.
    let changes = ["--teacher", &url];
    refused(&desk, &changes, 1, &[&url, "the HTTP port of a teacher-server", "grpc=HOST:PORT"]);
    let mut health = Command::new(binary("teacher-server"));
    let output = run(health.args(["health", "--addr", &teacher.http]));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    for word in [&teacher.http, "the HTTP port of a teacher-server", "grpc=HOST:PORT"] {
        assert!(complaint.contains(word), "no {word:?} in: {complaint}");
    }
}

#[test]
fn a_teacher_with_another_tokenizer_is_refused_before_the_first_step() {
    let desk = Desk::new();
    let other = desk.model("other-tokenizer");
    let tokenizer = std::fs::read_to_string(other.join("tokenizer.json")).expect("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer).expect("JSON");
    let vocabulary = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let (one, two) = (vocabulary["!"].clone(), vocabulary["\""].clone());
    vocabulary.insert("!".to_owned(), two);
    vocabulary.insert("\"".to_owned(), one);
    std::fs::write(other.join("tokenizer.json"), json.to_string()).expect("written");
    let teacher = Teacher::start(&demo("teacher"), &[]);
    let changes = ["--teacher", &teacher.url(), "--student", &text(&other)];
    refused(&desk, &changes, 1, &["tokenizer"]);
    assert!(!desk.path("out/metrics.jsonl").exists(), "a step was taken");
}

#[test]
fn a_k_beyond_the_teachers_limit_is_refused_with_both_values() {
    let desk = Desk::new();
    let teacher = Teacher::start(&demo("teacher"), &["--max-top-k", "32"]);
    let changes = ["--teacher", &teacher.url(), "--top-k", "33"];
    refused(&desk, &changes, 1, &["33", "32"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows() {
    let desk = Desk::new();
    let rows = desk.file("rows4.jsonl", &b"{\"text\": \"Two and two are four.\"}\n".repeat(8));
    let changes = ["--train-file", &rows, "--learning-rate", "1e30", "--max-grad-norm", "inf"];
    refused(&desk, &changes, 1, &["not finite", "Rows of the training set"]);
}

/// `student-trainer eval` of a model on the good row, as JSON, to a standard output of any kind.
fn eval(desk: &Desk, model: &Path, stdout: std::process::Stdio) -> (i32, String) {
    let (model, rows) = (text(model), text(&desk.path("rows.jsonl")));
    let flags = ["eval", "--progress", "none", "--json", "--model", &model, "--eval-file", &rows];
    let child = trainer(&flags).stdout(stdout).stderr(std::process::Stdio::piped()).spawn();
    let output = child.expect("the trainer starts").wait_with_output().expect("it ends");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("no signal"), complaint)
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_and_a_reader_who_left_is_none() {
    let desk = Desk::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let (code, complaint) = eval(&desk, &demo("student"), full.into());
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("standard output: No space left"), "{complaint}");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!(eval(&desk, &demo("student"), writer.into()), (0, String::new()));
}

#[test]
fn a_model_of_numbers_that_are_not_finite_is_named_not_measured() {
    let desk = Desk::new();
    let model = desk.model("nan");
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("weights");
    // NaN in bfloat16, in the last 64 weights of the last tensor.
    let end = bytes.len();
    bytes[end - 128..].chunks_exact_mut(2).for_each(|weight| weight.copy_from_slice(&[0xc0, 0x7f]));
    std::fs::write(&file, bytes).expect("weights");
    let (code, complaint) = eval(&desk, &model, std::process::Stdio::null());
    assert_eq!(code, 1, "{complaint}");
    for word in [text(&model).as_str(), "not finite on 1 of 1", "rows.jsonl, line 1"] {
        assert!(complaint.contains(word), "no {word:?} in: {complaint}");
    }
}

#[test]
fn an_environment_variable_no_option_has_is_a_usage_error() {
    let desk = Desk::new();
    let demo = ["demo", "--output-dir", &text(&desk.path("demo"))];
    let output = run(trainer(&demo).env("STUDENT_TRAINER_SEED_S", "1"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("STUDENT_TRAINER_SEEDS"), "{complaint}");
    let mut server = Command::new(binary("teacher-server"));
    let output = run(server.args(["--model", "none"]).env("TEACHER_SERVER_TYPE", "f32"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{complaint}");
    assert!(complaint.contains("TEACHER_SERVER_DTYPE"), "{complaint}");
}

#[test]
fn a_second_run_into_a_directory_in_use_is_refused_and_touches_nothing() {
    let desk = Desk::new();
    let rows = desk.file("many.jsonl", &b"{\"text\": \"Two and two are four.\"}\n".repeat(400));
    let (student, out) = (text(&demo("student")), text(&desk.path("out")));
    let flags = ["train", "--progress", "none", "--alpha", "0", "--student", &student];
    let flags = [&flags[..], &["--train-file", &rows, "--output-dir", &out]].concat();
    let mut first = trainer(&flags).args(["--num-train-epochs", "1000"]).spawn().expect("starts");
    let metrics = desk.path("out/metrics.jsonl");
    let begin = std::time::Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |meta| meta.len()) == 0 {
        assert!(begin.elapsed().as_secs() < 60, "no step was taken");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let before = std::fs::read(&metrics).expect("metrics");
    for more in [["--overwrite-output-dir", "true"], ["--resume-from-checkpoint", "auto"]] {
        let output = run(trainer(&flags).args(more));
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        for word in [&out, &format!("(process {})", first.id())] {
            assert!(complaint.contains(word), "no {word:?} in: {complaint}");
        }
    }
    assert!(std::fs::read(&metrics).expect("metrics").starts_with(&before), "steps were lost");
    first.kill().expect("killed");
    first.wait().expect("ended");
    // The lock went with its process.
    let output = run(trainer(&flags).args(["--max-steps", "1", "--overwrite-output-dir", "true"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_filter_of_the_log_that_is_none_is_told_and_stops_nothing() {
    let desk = Desk::new();
    let nowhere = text(&desk.path("nowhere"));
    let programs: [(&str, &[&str]); 2] = [
        ("teacher-server", &["--model", &nowhere]),
        ("student-trainer", &["eval", "--model", &nowhere, "--eval-file", &nowhere]),
    ];
    for (program, flags) in programs {
        let mut command = Command::new(binary(program));
        let output = command.args(flags).env("RUST_LOG", "debug=info=x").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("RUST_LOG cannot be used"), "{program}: {said}");
        assert!(said.contains("nowhere"), "{program} did not go on: {said}");
    }
}
