//! What a person sees while a run goes on. Everything this program prints passes through here:
//! results to stdout, all the rest to stderr.

mod pace;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use student_trainer::config::{Config, ProgressKind, SignalKind};
use student_trainer::measure::Measurement;
use student_trainer::needs::{Fit, Plan, amount};
use student_trainer::observer::{EvalReport, Moment, RunFacts, StepReport};
use student_trainer::summary::Summary;

use crate::table::{Table, duration, grouped, machine, maybe, number, percent, short};
use pace::Pace;

/// Seconds between plain lines.
const PLAIN_EVERY: f64 = 5.0;

/// How the run is shown: settled from what was asked for and where stderr goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Bar,
    Plain,
    Nothing,
}

/// The one place that prints. Cheap to clone; clones share the bar.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    manner: Manner,
    colour: bool,
    bar: Arc<Mutex<Option<ProgressBar>>>,
    /// What was said once and is not to be said again.
    told: Arc<Mutex<HashSet<String>>>,
}

impl Console {
    /// A console for this process. Colour only on a terminal, and not with `NO_COLOR` set.
    pub(crate) fn new(kind: ProgressKind) -> Self {
        let terminal = io::stderr().is_terminal();
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = variable("TERM").is_none_or(|term| term == "dumb");
        let manner = match kind {
            ProgressKind::None => Manner::Nothing,
            ProgressKind::Auto | ProgressKind::Bar if terminal && !dumb => Manner::Bar,
            ProgressKind::Auto | ProgressKind::Bar | ProgressKind::Plain => Manner::Plain,
        };
        let colour = terminal && !dumb && variable("NO_COLOR").is_none();
        Self { manner, colour, bar: Arc::default(), told: Arc::default() }
    }

    /// Prints results. A reader that has gone (`| head`) is no reason to fail.
    ///
    /// # Errors
    /// When they cannot be written, to a full disk say: a result nobody gets is none.
    pub(crate) fn result(&self, text: &str) -> anyhow::Result<()> {
        self.around_bar(|| deliver(io::stdout().lock(), text))
            .context("the result could not be written to standard output")
    }

    /// Says something a person should read, whatever progress is shown.
    pub(crate) fn say(&self, text: &str) {
        self.around_bar(|| {
            let _ = writeln!(io::stderr().lock(), "{text}");
        });
    }

    /// Says something unless the run is to be silent.
    pub(crate) fn tell(&self, text: &str) {
        if self.manner != Manner::Nothing {
            self.say(text);
        }
    }

    /// As [`Console::tell`], but the same words only once: of several runs alike, the first speaks.
    pub(crate) fn tell_once(&self, text: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert(text.to_owned()) {
            self.tell(text);
        }
    }

    /// Whether stderr takes colours.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// The text in bold where colours are allowed.
    pub(crate) fn bold(&self, text: &str) -> String {
        if self.colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Runs something that writes to the terminal with the bar out of its way.
    fn around_bar<T>(&self, write: impl FnOnce() -> T) -> T {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn start_bar(&self, total: u64, done: u64) {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let colour = if self.colour { ".cyan" } else { "" };
        let template = format!("  {{bar:24{colour}}} {{pos}}/{{len}}  {{wide_msg}}");
        let style = ProgressStyle::with_template(&template).map(|s| s.progress_chars("=> "));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_position(done);
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn with_bar(&self, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            act(bar);
        }
    }

    /// Takes the bar off the terminal.
    pub(crate) fn stop_bar(&self) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

/// Writes a text to its end, unless its reader has gone.
fn deliver(mut out: impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(gone) if gone.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Log lines of libraries go around the bar too.
impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.around_bar(|| {
            let _ = io::stderr().write_all(bytes);
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows one run.
#[derive(Debug)]
pub(crate) struct Progress {
    console: Console,
    label: String,
    /// What the divergence is called.
    divergence: String,
    total: u64,
    pace: Pace,
    last_line: Option<Instant>,
}

impl Progress {
    /// Shows a run on a console; `label` stands before its lines, to tell several runs apart, and
    /// `divergence` before that number.
    pub(crate) fn new(console: Console, label: &str, divergence: String) -> Self {
        let label = if label.is_empty() { String::new() } else { format!("{label}  ") };
        Self { console, label, divergence, total: 0, pace: Pace::default(), last_line: None }
    }

    /// The run begins.
    pub(crate) fn started(&mut self, facts: &RunFacts) {
        self.total = facts.total_steps;
        if self.console.manner == Manner::Bar {
            self.console.start_bar(facts.total_steps, facts.start_step);
        }
    }

    /// A step was done.
    pub(crate) fn step(&mut self, report: &StepReport) {
        self.pace.add(report);
        let line = self.line(report);
        match self.console.manner {
            Manner::Nothing => {}
            Manner::Bar => self.console.with_bar(|bar| {
                bar.set_message(line);
                bar.set_position(report.step);
            }),
            Manner::Plain => {
                let due = self.last_line.is_none_or(|t| t.elapsed().as_secs_f64() >= PLAIN_EVERY);
                if due || report.step == self.total {
                    self.last_line = Some(Instant::now());
                    let (label, step, total) = (&self.label, report.step, self.total);
                    self.console.say(&format!("{label}step {step}/{total}  {line}"));
                }
            }
        }
    }

    /// An evaluation was done. Of several runs only the last one of each is worth a line.
    pub(crate) fn evaluated(&self, report: &EvalReport) {
        if !self.label.is_empty() && report.moment != Moment::After {
            return;
        }
        let when = match report.moment {
            Moment::Before => "before training".to_owned(),
            Moment::During | Moment::After => format!("after step {}", report.step),
        };
        let mut line =
            format!("{}evaluation {when}: perplexity {}", self.label, number(report.student.token));
        if let Some(teacher) = report.teacher {
            line += &format!(" (teacher {})", number(teacher.token));
        }
        if report.kl.is_some() || report.agreement.is_some() {
            line += &format!(", {} {}, ", self.divergence, maybe(report.kl));
            line += &format!("agreement {}", percent(report.agreement));
        }
        self.console.tell(&line);
    }

    /// The run is over, well or not.
    pub(crate) fn ended(&self) {
        self.console.stop_bar();
    }

    /// Loss, speed, waiting and time left.
    fn line(&self, report: &StepReport) -> String {
        let left = self.total.saturating_sub(report.step);
        let bar = self.console.manner == Manner::Bar;
        let mut parts = vec![
            format!("{}loss {}", if bar { self.label.as_str() } else { "" }, number(report.loss)),
            format!("{} tokens/s", grouped(self.pace.tokens_per_second().round() as i64)),
        ];
        if report.kl.is_some() {
            parts.push(format!("wait for teacher {:.0} %", 100.0 * self.pace.wait_share()));
        }
        parts.push(format!("{} left", duration(self.pace.seconds_for(left))));
        parts.join("  ")
    }
}

/// The start-up banner: who learns from whom, on what, how.
pub(crate) fn banner(console: &Console, facts: &RunFacts, config: &Config) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| {
        lines.push(format!("  {}{text}", console.bold(&format!("{name:<9}"))));
    };
    line("student", {
        let init = format!("{} parameters", short(facts.student_parameters));
        format!("{}  ({init}, {} on {})", facts.student, facts.dtype, facts.device)
    });
    match &facts.teacher {
        Some(t) => line("teacher", {
            let model = [t.model.as_str(), t.revision.as_str()].join(" ");
            let (machine, fingerprint) = (machine(t), t.fingerprint.get(..12));
            let named = fingerprint.unwrap_or(&t.fingerprint);
            format!("{}  ({machine}) at {}, fingerprint {named}", model.trim_end(), t.url)
        }),
        None => line("teacher", "none: plain training".to_owned()),
    }
    line("data", {
        let tokens = short(facts.train_tokens);
        let rows = grouped(facts.train_rows as i64);
        format!("{rows} rows, {tokens} tokens an epoch; {} held-out rows", facts.eval_rows)
    });
    if config.alpha > 0.0 {
        line("loss", {
            let (alpha, t, tail) = (config.alpha, config.temperature, facts.tail);
            let divergence = config.divergence.with(config.beta);
            let signal = &config.signal;
            let words = match signal.kind {
                SignalKind::TopK => format!("top-k {} + {tail}", signal.top_k),
                SignalKind::Candidates => {
                    let k = signal.top_k;
                    format!("top-k {k} of the teacher's and {k} of the student's + {tail}")
                }
                SignalKind::Sampled => {
                    format!("{} draws beside {} exact", signal.draws, signal.exact)
                }
                SignalKind::Full => format!("full hidden states ({})", signal.hidden_form),
                SignalKind::Coded => "coded hidden states".to_owned(),
            };
            format!("alpha {alpha}, temperature {t}, {divergence} on {words}")
        });
    }
    line("steps", {
        let batch = config.per_device_train_batch_size * config.gradient_accumulation_steps;
        let (from, schedule) = (facts.start_step, config.lr_scheduler_type);
        let resumed = if from > 0 { format!(" (from step {from})") } else { String::new() };
        let (steps, rate) = (facts.total_steps, config.learning_rate);
        format!("{steps}{resumed} of {batch} rows, learning rate {rate:e} {schedule}")
    });
    line("memory", memory(&facts.memory));
    line("output", facts.output_dir.display().to_string());
    lines.join("\n")
}

/// What training takes, of what, and what for.
fn memory(plan: &Plan) -> String {
    let Some(chosen) = plan.chosen() else { return "not known".to_owned() };
    let about = if plan.is_estimate() { "about " } else { "" };
    let free = plan.room.map_or_else(String::new, |room| format!(" of {} free", amount(room.free)));
    let parts: Vec<String> = chosen
        .needs
        .parts()
        .into_iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", amount(bytes)))
        .collect();
    let recompute = plan.recompute;
    let (total, parted) = match plan.fit {
        Some(Fit::Parts { tokens, total }) => {
            let parted = format!(", in parts of at most {} tokens", grouped(tokens as i64));
            (format!("{} in parts, whole {}", amount(total), amount(chosen.total)), parted)
        }
        Some(Fit::Whole | Fit::Tried) | None => (amount(chosen.total), String::new()),
    };
    let tokens = grouped(plan.tokens as i64);
    format!(
        "{about}{total}{free}: {} ({} rows, {tokens} tokens{parted}; recompute {recompute})",
        parts.join(", "),
        plan.rows
    )
}

/// What to say of a signal that cannot carry what it is asked to teach: the mean mass of the
/// teacher on what it sends, and the part of the divergence that is the rest's, over the first steps.
pub(crate) fn thin_signal(teacher_mass: f64, rest: Option<f64>, config: &Config) -> Option<String> {
    let k = config.signal.top_k;
    let named = match config.signal.kind == SignalKind::Candidates {
        true => format!("{k} likeliest tokens of the teacher and {k} of the student"),
        false => format!("top-k {k}"),
    };
    (config.signal.lists() && teacher_mass < 0.5).then(|| {
        format!(
            "warning: the {named} hold only {:.1} % of the teacher's mass at temperature {}{}; what \
             the rest would teach is lost. --signal coded carries all of it in fewer bytes; or lower \
             --temperature, or raise --top-k",
            100.0 * teacher_mass,
            config.temperature,
            rest.map_or_else(String::new, |rest| {
                format!(", and {:.0} % of the divergence is that of all others together", 100.0 * rest)
            })
        )
    })
}

/// An empty table of models beside a teacher.
fn compared(divergence: &str) -> Table {
    let divergence = format!("{divergence} to teacher");
    Table::new(["", "perplexity", "row mean", &divergence, "agreement"])
}

/// Teacher, student before and student after.
pub(crate) fn results(summary: &Summary) -> Table {
    let mut table = compared(&summary.divergence());
    let mut row = |name: &str, perplexity: [Option<f64>; 2], others: &[String]| {
        if let [Some(token), row_mean] = perplexity {
            let cells = [name.to_owned(), number(token), maybe(row_mean)];
            table.row(cells.into_iter().chain(others.iter().cloned()));
        }
    };
    let s = summary;
    row("teacher", [s.teacher_perplexity, s.teacher_perplexity_row_mean], &[]);
    let before = [s.student_perplexity_before, s.student_perplexity_before_row_mean];
    row("student before", before, &[maybe(s.eval_kl_before), percent(s.agreement_before)]);
    let after = [s.student_perplexity_after, s.student_perplexity_after_row_mean];
    row("student after", after, &[maybe(s.eval_kl_after), percent(s.agreement_after)]);
    table
}

/// The table of `eval`.
pub(crate) fn measurement(m: &Measurement) -> Table {
    let mut table = compared(&m.divergence.heading(m.beta.unwrap_or_default()));
    if let Some(teacher) = m.teacher_perplexity {
        let cells = [number(teacher), maybe(m.teacher_perplexity_row_mean)];
        table.row(std::iter::once("teacher".to_owned()).chain(cells));
    }
    let numbers = [number(m.perplexity), number(m.perplexity_row_mean), maybe(m.kl)];
    let cells = numbers.into_iter().chain([percent(m.agreement)]);
    table.row(std::iter::once("model".to_owned()).chain(cells));
    table
}
