//! What other people's programs make of ours: Python's gRPC, TensorBoard, transformers, and the
//! notebook's own loop.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::{Teacher, binary, python, root, run, shared, trainer};

/// Runs a command that prints one JSON line last.
fn json(command: &mut Command) -> Value {
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{said}{complaint}");
    let last = said.lines().last().unwrap_or_else(|| panic!("{command:?} printed nothing"));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{last}: {error}"))
}

#[test]
fn stock_python_clients_read_the_teacher() {
    let test = "stock_python_clients_read_the_teacher";
    let modules = ["grpc", "grpc_tools", "grpc_reflection", "numpy"];
    let Some(python) = python(&modules, test) else { return };
    let model = root().join("student-trainer/demo/teacher");
    let teacher = Teacher::start(&model, &[]);
    let compared = json(
        python
            .script("grpc_client.py")
            .arg(&teacher.grpc)
            .arg("--expected")
            .arg(root().join("tests/golden/demo_teacher_logits.json"))
            .arg("--model")
            .arg(&model),
    );
    for client in ["generated", "reflected"] {
        assert!(compared[client]["positions"].as_u64() > Some(20), "{compared}");
    }
}

#[test]
fn the_rust_example_asks_a_teacher_and_names_an_address_where_none_is() {
    let teacher = Teacher::start(&root().join("student-trainer/demo/teacher"), &[]);
    let ask = |words: &[&str]| run(Command::new(binary("examples/score")).args(words));
    let output = ask(&[&teacher.url(), "16", "17", "30"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("position ")).count(), 3, "{said}");
    let vacant = ask(&["grpc://127.0.0.1:1", "16"]);
    assert!(!vacant.status.success());
    let said = String::from_utf8_lossy(&vacant.stderr);
    assert!(said.contains("refused"), "{said}");
}

#[test]
fn the_python_example_runs_with_a_token() {
    let test = "the_python_example_runs_with_a_token";
    let Some(python) = python(&["grpc", "grpc_tools", "numpy", "xxhash"], test) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("tokens"), "python python-0123456789abcdef\n").expect("a file");
    std::fs::write(path("token"), "python-0123456789abcdef\n").expect("a file");
    let model = root().join("student-trainer/demo/teacher");
    let teacher = Teacher::start(&model, &["--auth-tokens", &path("tokens")]);
    let example = |more: &[&str]| {
        let script = root().join("clients/python/score.py");
        let mut command = Command::new(python.program());
        run(command.arg(script).args(["--teacher", &teacher.grpc]).args(more))
    };
    let output = example(&["--token-file", &path("token")]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("packed is off by at most").count(), 2, "{said}");
    assert!(said.contains("checksums: equal"), "{said}");
    let refused = example(&[]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("UNAUTHENTICATED"), "{said}");
}

#[test]
fn the_client_of_trls_trainers_has_the_numbers_of_transformers() {
    let test = "the_client_of_trls_trainers_has_the_numbers_of_transformers";
    let Some(python) = python(&["trl", "requests", "torch", "transformers"], test) else { return };
    let model = root().join("student-trainer/demo/teacher");
    let teacher = Teacher::start(&model, &["--dtype", "f32"]);
    // As people write addresses: the client then asks for //health/.
    let url = format!("http://{}/", teacher.http);
    let output = run(python.script("trl_teacher.py").arg(url).arg(&model));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.lines().filter(|line| line.starts_with("ok: ")).count() >= 6, "{said}");
}

#[test]
fn the_worker_of_trls_asynchronous_distillation_has_the_numbers_of_transformers() {
    let test = "the_worker_of_trls_asynchronous_distillation_has_the_numbers_of_transformers";
    // TRL 1.10 has no such worker yet, 1.16 has.
    let trl = ["trl", "trl.experimental.async_distillation"];
    let modules = [&trl[..], &["aiohttp", "accelerate", "datasets", "torch", "transformers"]];
    let Some(python) = python(&modules.concat(), test) else { return };
    let model = root().join("student-trainer/demo/teacher");
    let teacher = Teacher::start(&model, &["--dtype", "f32"]);
    let url = format!("http://{}", teacher.http);
    let output = run(python.script("trl_async_teacher.py").arg(url).arg(&model));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 2, "{said}");
}

#[test]
fn transformers_loads_what_we_save_and_computes_the_same_logits() {
    let test = "transformers_loads_what_we_save_and_computes_the_same_logits";
    let modules = ["grpc", "grpc_tools", "grpc_reflection", "numpy", "torch", "transformers"];
    let Some(python) = python(&modules, test) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let saved = folder.path().join("saved");
    let demo = |name: &str| root().join("student-trainer/demo").join(name).display().to_string();
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"Two and two are four.\"}\n".repeat(8)).expect("rows");
    let output = run(&mut trainer(&[
        "train",
        "--alpha",
        "0",
        "--student",
        &demo("student"),
        "--learning-rate",
        "1e-3",
        "--train-file",
        &rows.display().to_string(),
        "--output-dir",
        &saved.display().to_string(),
    ]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let server = Teacher::start(&saved, &["--dtype", "f32"]);
    let compared =
        json(python.script("grpc_client.py").arg(&server.grpc).arg("--model").arg(&saved));
    assert_eq!(compared["compared_with"], "transformers", "{compared}");
}

#[test]
fn tensorboard_reads_our_event_files() {
    let test = "tensorboard_reads_our_event_files";
    let Some(python) = python(&["tensorboard"], test) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, "{\"text\": \"Two and two are four.\"}\n".repeat(8)).expect("rows");
    let student = root().join("student-trainer/demo/student").display().to_string();
    let out = folder.path().join("out");
    let output = run(&mut trainer(&[
        "train",
        "--alpha",
        "0",
        "--student",
        &student,
        "--train-file",
        &rows.display().to_string(),
        "--output-dir",
        &out.display().to_string(),
    ]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = json(python.script("read_events.py").arg(&out));
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics.jsonl");
    for (index, line) in lines.lines().enumerate() {
        let line: Value = serde_json::from_str(line).expect("a JSON line");
        let (event, loss) = (&read["train/loss"][index], line["loss"].as_f64().expect("loss"));
        assert_eq!(event[0], line["step"], "step of event {index}");
        let value = event[1].as_f64().expect("a value");
        assert!((value - loss).abs() <= 1e-6 * loss.abs(), "{value} against {loss}");
    }
}

/// The notebook's loop with its faults mended, in PyTorch, on the same rows in the same order: the
/// losses of each epoch and the perplexities agree to 0.5 %.
#[test]
fn the_peer_in_pytorch_reaches_the_same_losses() {
    let test = "the_peer_in_pytorch_reaches_the_same_losses";
    let Some(python) = python(&["torch", "transformers"], test) else { return };
    let (Some(models), Some(data), Some(bench)) =
        (shared("models", test), shared("data/gsm8k", test), shared("bench", test))
    else {
        return;
    };
    let text = |path: std::path::PathBuf| path.display().to_string();
    let (teacher, student) =
        (text(models.join("gsm8k-teacher")), text(models.join("gsm8k-student")));
    let (rows, held_out) = (text(data.join("train.jsonl")), text(data.join("test.jsonl")));
    let peer = json(Command::new(python.program()).arg(bench.join("torch_seed_loop.py")).args([
        "--teacher",
        &teacher,
        "--student",
        &student,
        "--train",
        &rows,
        "--eval",
        &held_out,
        "--train-samples",
        "100",
        "--eval-samples",
        "50",
    ]));
    let server = Teacher::start(Path::new(&teacher), &["--max-top-k", "4096", "--dtype", "f32"]);
    let folder = tempfile::tempdir().expect("a folder");
    let out = text(folder.path().join("out"));
    let output = run(&mut trainer(&[
        "train",
        "--teacher",
        &server.url(),
        "--student",
        &student,
        "--train-file",
        &rows,
        "--eval-file",
        &held_out,
        "--max-train-samples",
        "100",
        "--max-eval-samples",
        "50",
        "--output-dir",
        &out,
        "--loss-on",
        "all",
        "--shuffle",
        "false",
        "--max-grad-norm",
        "inf",
        "--top-k",
        "4096",
        "--dtype",
        "f32",
    ]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = std::fs::read_to_string(format!("{out}/summary.json")).expect("summary.json");
    let ours: Value = serde_json::from_str(&summary).expect("JSON");
    let mut pairs = vec![
        ("teacher", &peer["teacher_ppl"], &ours["teacher_perplexity"]),
        ("before", &peer["student_ppl_before"], &ours["student_perplexity_before"]),
        ("after", &peer["student_ppl_after"], &ours["student_perplexity_after"]),
        ("row mean", &peer["doc_mean_ppl"]["after"], &ours["student_perplexity_after_row_mean"]),
    ];
    for epoch in 0..3 {
        pairs.push(("epoch loss", &peer["epoch_loss"][epoch], &ours["epoch_loss"][epoch]));
    }
    for (name, theirs, ours) in pairs {
        let (theirs, ours) = (theirs.as_f64().expect(name), ours.as_f64().expect(name));
        assert!((ours / theirs - 1.0).abs() < 0.005, "{name}: ours {ours}, the peer's {theirs}");
    }
}

#[test]
fn the_lines_of_grpcurl_and_ghz_in_the_clients_readme_are_answered() {
    let test = "the_lines_of_grpcurl_and_ghz_in_the_clients_readme_are_answered";
    let Some(python) = python(&["grpc", "grpc_reflection"], test) else { return };
    let teacher = Teacher::start(&root().join("student-trainer/demo/teacher"), &[]);
    let counts = json(python.script("readme_clients.py").arg(&teacher.grpc));
    for (program, lines) in [("grpcurl", 7), ("ghz", 3)] {
        assert!(counts[program].as_u64() >= Some(lines), "{counts}");
    }
    // The block that wants certificates and a token.
    assert_eq!(counts["skipped"], 1, "{counts}");
}
