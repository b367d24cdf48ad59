//! Tests of the command line.

use super::*;
use crate::settings::Settings;

fn read(line: &str) -> Result<Cli, clap::Error> {
    Cli::read(line.split(' ').map(OsString::from))
}

fn serve(line: &str) -> ServeArgs {
    match read(line).unwrap().command {
        Command::Serve(args) => *args,
        Command::Health(_) | Command::Calibrate(_) => panic!("{line} is no serve command"),
    }
}

#[test]
fn serving_needs_no_command_and_the_defaults_are_the_contract() {
    for line in ["teacher-server --model m", "teacher-server serve --model m"] {
        let args = serve(line);
        assert_eq!(args.model, "m");
        assert_eq!(args.listen.to_string(), "127.0.0.1:50051");
        assert_eq!(args.http_listen.to_string(), "127.0.0.1:9464");
        assert_eq!((args.device.as_str(), args.dtype), ("auto", Dtype::Auto));
        assert_eq!(Settings::from(&args.bounds), Settings::DEFAULT);
        assert_eq!((args.profile, args.profile_batches.to_string()), (None, "3..8".to_owned()));
    }
    assert!(matches!(read("teacher-server health").unwrap().command, Command::Health(_)));
}

#[test]
fn the_flags_of_serve_are_frozen() {
    let mut cli = Cli::command();
    cli.build();
    let serve = cli.find_subcommand("serve").unwrap();
    let flags: Vec<&str> = serve.get_arguments().filter_map(|arg| arg.get_long()).collect();
    assert_eq!(
        flags.join(" "),
        "model revision listen http-listen tls-cert tls-key tls-client-ca auth-tokens \
             insecure-allow-remote device dtype threads profile profile-batches otlp-endpoint \
         until-stdin-ends \
         max-sequence-tokens max-batch-tokens max-top-k max-queued-sequences \
         max-queued-tokens max-in-flight-per-stream max-reply-bytes max-request-bytes \
         max-text-bytes batch-wait max-streams-per-connection max-held-bytes-per-stream max-held-bytes \
         max-unfinished-bytes max-http-body-bytes max-encoding-texts stream-timeout stream-idle-timeout \
         message-timeout reader-timeout max-connections idle-timeout drain-timeout calibration-dir \
         auto-calibration help"
    );
    for argument in serve.get_arguments().filter(|arg| arg.get_id() != "help") {
        let flag = argument.get_long().unwrap();
        let wanted = format!("TEACHER_SERVER_{}", flag.replace('-', "_").to_uppercase());
        let variable = argument.get_env().and_then(|env| env.to_str());
        assert_eq!(variable, Some(wanted.as_str()), "--{flag}");
    }
}

#[test]
fn the_flags_of_calibrate_are_frozen() {
    let mut cli = Cli::command();
    cli.build();
    let calibrate = cli.find_subcommand("calibrate").unwrap();
    let flags: Vec<&str> = calibrate.get_arguments().filter_map(|arg| arg.get_long()).collect();
    let wanted = "model revision data tokens calibration-dir device dtype threads help";
    assert_eq!(flags.join(" "), wanted);
    let line = "teacher-server calibrate --model m --data d --calibration-dir k";
    let Command::Calibrate(args) = read(line).unwrap().command else { panic!("{line}") };
    assert_eq!((args.kept.dir(), args.tokens), (Ok("k".into()), None));
    let line = format!("{line} --tokens 9000");
    let Command::Calibrate(args) = read(&line).unwrap().command else { panic!("{line}") };
    assert_eq!(args.tokens, Some(9000));
    assert_eq!(read("teacher-server calibrate --model m").unwrap_err().exit_code(), 2);
}

#[test]
fn a_misspelt_variable_is_a_usage_error_that_names_the_nearest() {
    let known = [
        "TEACHER_SERVER_DTYPE",
        "TEACHER_SERVER_MAX_TOP_K",
        "TEACHER_SERVER_HEALTH_ADDR",
        "TEACHER_SERVER_SERVICE_HOST",
        "TEACHER_SERVER_PORT_50051_TCP",
        "TEACHER_SERVERS",
        "HOME",
    ];
    Cli::check_variables(known).unwrap();
    let error = Cli::check_variables(["PATH", "TEACHER_SERVER_MAX_TOPK"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("TEACHER_SERVER_MAX_TOPK; the nearest is TEACHER_SERVER_MAX_TOP_K"));
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn bad_values_are_usage_errors() {
    for line in [
        "teacher-server",
        "teacher-server --model m --max-top-k 0",
        "teacher-server --model m --max-batch-tokens -1",
        "teacher-server --model m --listen nowhere",
        "teacher-server --model m --dtype int8",
        "teacher-server --model m --device gpu",
        "teacher-server --model m --device cuda:0",
        "teacher-server --model m --max-reply-bytes 4096MiB",
        "teacher-server --model m --no-such-flag",
        "teacher-server --model m --profile-batches 1..2",
        "teacher-server health --timeout soon",
    ] {
        assert_eq!(read(line).unwrap_err().exit_code(), 2, "{line}");
    }
}

#[test]
fn a_profile_that_would_destroy_something_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("model.safetensors");
    std::fs::write(&weights, "weights").unwrap();
    let checked = |path: &std::path::Path| {
        serve(&format!("teacher-server --model m --profile {}", path.display())).check_profile()
    };
    let error = checked(&weights).unwrap_err().to_string();
    assert!(error.contains("model.safetensors would replace"), "{error}");
    checked(&dir.path().join("trace.json")).unwrap();
    serve("teacher-server --model m").check_profile().unwrap();
}

#[test]
fn an_address_to_listen_at_is_an_ip_and_a_port() {
    for wrong in ["localhost:50051", "50051", ":50051", "127.0.0.1:99999"] {
        let error = read(&format!("teacher-server --model m --listen {wrong}")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("wanted IP:PORT") && error.contains(wrong), "{error}");
    }
    let args = serve("teacher-server --model m --http-listen [::1]:7");
    assert_eq!(args.http_listen.to_string(), "[::1]:7");
}

#[test]
fn sizes_may_carry_a_unit() {
    let line = "teacher-server --model m --max-reply-bytes 512KiB --max-request-bytes 8MiB";
    let bounds = serve(line).bounds;
    assert_eq!((bounds.max_reply_bytes, bounds.max_request_bytes), (524_288, 8_388_608));
    assert_eq!(
        serve("teacher-server --model m --max-held-bytes 2GiB").bounds.max_held_bytes,
        2 << 30
    );
    for (size, says) in [("0", "at least 1 byte"), ("4GiB", "4 GiB less 1"), ("2GB", "1GiB")] {
        let error = read(&format!("teacher-server --model m --max-held-bytes {size}")).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn addresses_others_reach_need_the_flag_that_says_so() {
    let open = "teacher-server --model m --listen 0.0.0.0:50051";
    let refused = serve(open).check_exposure().unwrap_err().to_string();
    assert!(refused.contains("--listen 0.0.0.0:50051"), "{refused}");
    assert!(refused.contains("--insecure-allow-remote"), "{refused}");
    let allowed = format!("{open} --insecure-allow-remote");
    assert_eq!(serve(&allowed).check_exposure(), Ok(()));
    let http = "teacher-server --model m --listen [::1]:1 --http-listen 10.0.0.1:2";
    let refused = serve(http).check_exposure().unwrap_err().to_string();
    assert!(refused.contains("--http-listen 10.0.0.1:2"), "{refused}");
}

#[test]
fn a_collector_is_named_by_a_url_in_a_build_that_can_export() {
    let line = |endpoint| format!("teacher-server --model m --otlp-endpoint {endpoint}");
    let refused = |endpoint| read(&line(endpoint)).unwrap_err();
    let (code, says) = match cfg!(feature = "otel") {
        true => {
            assert_eq!(serve(&line("http://x:4317")).otlp_endpoint.unwrap(), "http://x:4317");
            assert!(read(&line("https://x")).is_ok());
            (2, "wanted http://HOST:PORT")
        }
        false => (2, "--features otel"),
    };
    for wrong in ["x:4317", "ftp://x:4317", "4317"] {
        let error = refused(wrong);
        assert_eq!(error.exit_code(), code);
        assert!(error.to_string().contains(says), "{wrong}: {error}");
    }
}

#[test]
fn a_collector_that_is_set_to_nothing_is_none() {
    let words = ["teacher-server", "--model", "m", "--otlp-endpoint", ""];
    let read = Cli::read(words.map(OsString::from));
    assert!(read.is_ok(), "{:?}", read.err());
}
