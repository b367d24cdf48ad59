//! `student-trainer signals` as a person sees it: the table in the terminal, as a page and as JSON.

use anyhow::Context as _;
use student_trainer::config::SignalsConfig;
use student_trainer::fidelity::{AtTemperature, Fidelity, Measured, measure};
use student_trainer::stop::Stop;

use crate::progress::Console;
use crate::report::Report;
use crate::table::{Table, grouped};

/// What the columns mean.
const LEGEND: &str = "Angle and norm: of the student's gradient, held against that under the teacher's full \
                      distribution. Bytes: a position's share of the answers. Asking, learning: seconds \
                      for 1,000 positions.";

/// Measures and shows.
pub(crate) fn run(config: &SignalsConfig, console: &Console, stop: &Stop) -> anyhow::Result<()> {
    let dir = &config.output_dir;
    // Before anything is measured.
    std::fs::create_dir_all(dir).with_context(|| format!("--output-dir {}", dir.display()))?;
    let found = measure(config, &mut |text| console.tell(text), stop)?;
    let json = serde_json::to_string_pretty(&found)?;
    for (name, text) in [("signals.json", &json), ("signals.html", &page(&found).to_html())] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    match config.json {
        true => console.result(&format!("{json}\n"))?,
        false => {
            let text = |(name, table): (String, Table)| format!("\n{name}\n\n{}", table.to_text());
            let text: String = tables(&found).into_iter().map(text).collect();
            let word = recommendation(&found);
            console.result(&format!("{text}\n{word}\n\n{LEGEND}\n"))?;
        }
    }
    console.tell(&format!("wrote signals.html and signals.json in {}", dir.display()));
    Ok(())
}

/// For each temperature its name and a table: what each signal costs, and what it is worth there.
fn tables(found: &Fidelity) -> Vec<(String, Table)> {
    let at_all = found.signals.first().map(|signal| &signal.at[..]).unwrap_or_default();
    let of_temperature = |(index, at): (usize, &AtTemperature)| {
        let mut table = Table::new([
            "signal", "bytes", "mass", "angle", "norm", "KL error", "asking", "learning",
        ]);
        for signal in &found.signals {
            table.row(cells(signal, &signal.at[index]));
        }
        (format!("Temperature {}", at.temperature), table)
    };
    at_all.iter().enumerate().map(of_temperature).collect()
}

fn cells(signal: &Measured, at: &AtTemperature) -> [String; 8] {
    let mass = at.teacher_mass.map(|mass| format!("{:.1} %", 100.0 * mass));
    [
        signal.name.clone(),
        format!("{:.1}", at.bytes),
        mass.unwrap_or_else(|| "-".to_owned()),
        format!("{:.2}°", at.angle),
        format!("{:.2}", at.norm_ratio),
        format!("{:+.1e}", at.kl_error),
        format!("{:.2} s", signal.ask_seconds),
        format!("{:.2} s", signal.learn_seconds),
    ]
}

/// One sentence.
fn recommendation(found: &Fidelity) -> String {
    let within = found.budget.map(|bytes| format!(" within {bytes} bytes a position"));
    let within = within.unwrap_or_default();
    match found.recommended.map(|at| &found.signals[at]) {
        None => format!("no signal here is{within}"),
        Some(Measured { name, options, bytes, .. }) => format!(
            "recommended{within}: {name} ({options}), {bytes:.1} bytes a position and at most {:.2}° from \
             the full gradient",
            found.recommended.map_or(0.0, |at| found.signals[at].worst_angle())
        ),
    }
}

fn page(found: &Fidelity) -> Report {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    Report {
        title: "What each signal is worth".to_owned(),
        lead: recommendation(found),
        tables: tables(found)
            .into_iter()
            .map(|(name, table)| (name, LEGEND.to_owned(), table))
            .collect(),
        facts: vec![
            fact("teacher", format!("{} at {}", found.teacher.model, found.teacher.url)),
            fact("fingerprint of the teacher", found.teacher.fingerprint.clone()),
            fact("student", found.student.clone()),
            fact("rows", grouped(found.rows as i64)),
            fact("positions", grouped(found.positions as i64)),
        ],
        ..Report::default()
    }
}
