//! Teacher and trainer over an encrypted connection with a token, as two programs.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use tests::{Teacher, root, run, teacher, trainer};

#[test]
fn a_run_over_tls_with_a_token_and_what_it_is_told_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["teacher".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    std::fs::write(path("cert.pem"), certificate.pem()).expect("a file");
    std::fs::write(path("key.pem"), key.serialize_pem()).expect("a file");
    std::fs::write(path("tokens"), "student student-0123456789abcdef\n").expect("a file");
    std::fs::write(path("token"), "student-0123456789abcdef\n").expect("a file");
    std::fs::write(path("rows.jsonl"), "{\"text\": \"Two and two are four.\"}\n".repeat(4))
        .expect("a file");
    let model = |name: &str| root().join("student-trainer/demo").join(name).display().to_string();
    let mut command = teacher(&model("teacher"));
    command.args(["--tls-cert", &path("cert.pem"), "--tls-key", &path("key.pem")]);
    let server = Teacher::serve(command.args(["--auth-tokens", &path("tokens")]));
    let url = format!("grpcs://{}", server.grpc);
    let train = |more: &[&str]| {
        let (student, rows, out) = (model("student"), path("rows.jsonl"), path("out"));
        let flags = ["train", "--teacher", &url, "--student", &student, "--train-file", &rows];
        let ends = ["--output-dir", &out, "--max-steps", "1", "--overwrite-output-dir"];
        run(&mut trainer(&[&flags[..], &ends, more].concat()))
    };
    let (ca, token) = (path("cert.pem"), path("token"));
    let good = ["--teacher-ca", &ca, "--teacher-name", "teacher", "--teacher-token-file", &token];
    let output = train(&good);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(Path::new(&path("out")).join("model.safetensors").exists());
    let kept = std::fs::read_to_string(Path::new(&path("out")).join("summary.json"));
    assert!(!kept.expect("a summary").contains("0123456789"), "the token was written down");
    for (more, status, says) in [
        (&good[..4], 1, "Unauthenticated"),
        (&[good[0], good[1], good[4], good[5]][..], 1, "not valid for name"),
        (&good[2..], 2, "--teacher-ca"),
    ] {
        let output = train(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{says}: {said}");
        assert!(said.contains(says), "{says}: {said}");
    }
}
