//! Writes the inputs that a target begins with, one a file: `seeds TARGET FOLDER`.

use std::path::Path;
use std::process::ExitCode;

use fuzz::TARGETS;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.as_slice() {
        [name, folder] => write(name, Path::new(folder)),
        _ => fail("usage: seeds TARGET FOLDER"),
    }
}

fn write(name: &str, folder: &Path) -> ExitCode {
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        return fail(&format!(
            "no target {name}; there are {:?}",
            TARGETS.map(|target| target.name)
        ));
    };
    let written = (target.seeds)().iter().enumerate().try_for_each(|(number, seed)| {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(format!("seed-{number}")), seed)
    });
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot write to {}: {error}", folder.display())),
    }
}

#[expect(clippy::print_stderr, reason = "a program for the terminal")]
fn fail(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::FAILURE
}
