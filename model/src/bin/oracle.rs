//! `oracle DIR [DEVICE]`: the engine against the golden values of a folder. Exit 0 within the tolerances,
//! 1 beyond one of them, 2 on bad usage or a folder that cannot be read.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command's output")]

use std::path::PathBuf;
use std::process::ExitCode;

use model::device::choose;
use model::golden::{Report, run};
use model::recompute::Recompute;

fn main() -> ExitCode {
    model::malloc::tune();
    let mut arguments = std::env::args_os().skip(1);
    let (Some(dir), device, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!(
            "usage: oracle DIR [DEVICE] (a folder with golden.json, golden.safetensors, teacher/, student/; cpu or cuda:N)"
        );
        return ExitCode::from(2);
    };
    let name = device.map_or_else(|| "cpu".into(), |name| name.to_string_lossy().into_owned());
    let device = match choose(&name, |text| eprintln!("{text}")) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&PathBuf::from(dir), device, Recompute::None) {
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
        Ok(report) => {
            print(&report);
            if report.passes() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
    }
}

fn print(report: &Report) {
    println!("{:<24} {:>7} {:>11} {:>10}  where the worst is", "kind", "count", "worst", "allowed");
    for worst in &report.worst {
        println!(
            "{:<24} {:>7} {:>11.2e} {:>10.0e}  {}{}",
            worst.kind.label(),
            worst.count,
            worst.error,
            worst.tolerance,
            worst.place,
            if worst.passes() { "" } else { "  <-- BEYOND" }
        );
    }
    println!("{}", if report.passes() { "within every tolerance" } else { "BEYOND A TOLERANCE" });
}
