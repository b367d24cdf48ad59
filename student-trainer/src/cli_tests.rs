//! Tests of the command line: its frozen flags, and what a line becomes.

use super::*;

/// One line a flag: command, name, default.
fn flags() -> String {
    let commands = [
        ("train", Command::Train),
        ("eval", Command::Eval),
        ("demo", Command::Demo),
        ("cache build", Command::CacheBuild),
        ("cache verify", Command::CacheVerify),
        ("cache info", Command::CacheInfo),
        ("cache export", Command::CacheExport),
        ("cache import", Command::CacheImport),
        ("signals", Command::Signals),
        ("plan", Command::Plan),
    ];
    let mut lines = Vec::new();
    for (name, command) in commands {
        let built = command_line();
        let built =
            name.split(' ').fold(&built, |built, word| built.find_subcommand(word).unwrap());
        for argument in built.get_arguments().filter(|a| a.get_long() != Some("config")) {
            let long = argument.get_long().unwrap();
            let option = options_of(command).find(|option| option.name == long).unwrap();
            lines.push(format!("{name} --{long} {}", option.default.unwrap_or("-")));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_flag_list_is_the_committed_one() {
    let committed = include_str!("../flags.txt");
    assert_eq!(
        flags(),
        committed,
        "names and defaults are promised to other people's scripts; if a flag was added on \
         purpose, write the list above to student-trainer/flags.txt"
    );
}

#[test]
fn clap_finds_nothing_wrong_with_the_command_line() {
    command_line().debug_assert();
}

fn asked(line: &str) -> Result<Asked, Refusal> {
    read(line.split_whitespace().map(str::to_owned), &Environment::new())
}

#[test]
fn a_misspelt_variable_is_refused_whatever_the_command() {
    let environment = |name: &str| [(name.to_owned(), "1e-4".to_owned())].into();
    let with = |line: &str, name| read(line.split(' ').map(str::to_owned), &environment(name));
    for line in ["student-trainer demo", "student-trainer demo data"] {
        let Err(Refusal::Settings(faults)) = with(line, "STUDENT_TRAINER_LEARNIG_RATE") else {
            panic!("{line} was not refused")
        };
        assert!(faults[0].contains("did you mean STUDENT_TRAINER_LEARNING_RATE?"), "{faults:?}");
        with(line, "STUDENT_TRAINER_LEARNING_RATE").unwrap();
    }
}

#[test]
fn a_line_becomes_settings() {
    let line = "student-trainer train --teacher grpc://a:1 --student s \
                --train-file f --output-dir o --overwrite-output-dir --learning_rate 1e-3";
    let Asked::Train(config) = asked(line).unwrap() else { panic!("not train") };
    assert_eq!(config.teacher, ["grpc://a:1"]);
    assert!(config.overwrite_output_dir);
    assert_eq!(config.learning_rate, 1e-3);
    let Asked::Eval(config) = asked("student-trainer eval --model m --eval-file f --json").unwrap()
    else {
        panic!("not eval")
    };
    assert!(config.json && config.teacher.is_empty());
    let Asked::DemoData(dir) = asked("student-trainer demo data --output-dir d").unwrap() else {
        panic!("not demo data")
    };
    assert_eq!(dir, PathBuf::from("d"));
    let Asked::Demo(config) = asked("student-trainer demo --seeds 2").unwrap() else {
        panic!("not demo")
    };
    assert_eq!((config.seeds, config.output_dir), (2, "out/demo".into()));
}

#[test]
fn negative_numbers_reach_the_range_check() {
    let line = "student-trainer train --teacher t:1 --student s --train-file f --output-dir o \
                --learning-rate -1 --alpha 2";
    let Err(Refusal::Settings(faults)) = asked(line) else { panic!("not refused") };
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(matches!(asked("student-trainer train --learnig-rate 1"), Err(Refusal::Line(_))));
    assert!(matches!(asked("student-trainer trian"), Err(Refusal::Line(_))));
}

#[test]
fn a_missing_config_file_is_named() {
    let line = "student-trainer demo --config /nowhere/run.toml";
    let Err(Refusal::Settings(faults)) = asked(line) else { panic!("not refused") };
    assert!(faults[0].contains("/nowhere/run.toml"), "{faults:?}");
}
