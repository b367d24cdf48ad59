//! The commands of the cache, as a person sees them.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use student_trainer::cache::CacheError;
use student_trainer::cache::build::{self, Step, Watcher};
use student_trainer::cache::table;
use student_trainer::config::{
    CacheBuildConfig, CacheConfig, CacheExportConfig, CacheImportConfig,
};
use student_trainer::stop::Stop;

use crate::progress::Console;
use crate::table::{grouped, short};

/// Between two lines about how far a build has come.
const LINES_EVERY: Duration = Duration::from_secs(5);

/// Tells of a build, in lines.
struct Lines<'a> {
    console: &'a Console,
    said: Instant,
}

impl Watcher for Lines<'_> {
    fn note(&mut self, text: &str) {
        self.console.tell(text);
    }

    fn rows(&mut self, there: usize, of: usize) {
        if there == of || self.said.elapsed() >= LINES_EVERY {
            self.said = Instant::now();
            let (there, of) = (grouped(there as i64), grouped(of as i64));
            self.console.tell(&format!("{there} of {of} rows"));
        }
    }
}

/// `cache build`.
pub(crate) fn build(
    config: &CacheBuildConfig,
    console: &Console,
    stop: &Stop,
) -> anyhow::Result<ExitCode> {
    let mut lines = Lines { console, said: Instant::now() };
    let done = build::build(config, &mut lines, stop);
    if stop.requested() {
        let cache = &config.cache;
        console.tell(&format!("stopped; to go on filling {cache}, run the same command again"));
        return Ok(ExitCode::from(stop.exit_code()));
    }
    done?;
    Ok(ExitCode::SUCCESS)
}

/// `cache verify`: each damaged record is a line of the result.
pub(crate) fn verify(config: &CacheConfig, console: &Console) -> anyhow::Result<()> {
    let found = build::verify(config)?;
    for what in &found.unfinished {
        console.tell(&format!("unfinished, and cut off by the next program that writes: {what}"));
    }
    for what in &found.damaged {
        console.result(&format!("damaged: {what}\n"))?;
    }
    console.result(&format!("{} records whole\n", grouped(found.records as i64)))?;
    undamaged(&config.cache, found.damaged.len())
}

/// An error where there is damage.
fn undamaged(cache: &str, count: usize) -> anyhow::Result<()> {
    let damaged = match count {
        0 => return Ok(()),
        1 => "1 place is".to_owned(),
        _ => format!("{count} places are"),
    };
    Err(CacheError::Damaged { place: cache.to_owned(), damaged }.into())
}

/// `cache info`.
pub(crate) fn info(config: &CacheConfig, console: &Console) -> anyhow::Result<()> {
    let info = build::info(config)?;
    if config.json {
        return console.result(&format!("{}\n", serde_json::to_string_pretty(&info)?));
    }
    let m = &info.manifest;
    let temperature = m.temperature.map_or_else(|| "any".to_owned(), |t| t.to_string());
    let mut lines = vec![
        ("model", format!("{} {}", m.model, m.revision).trim().to_owned()),
        ("fingerprint", m.model_fingerprint.clone()),
        ("tokenizer", m.tokenizer_fingerprint.clone()),
        ("classes", grouped(m.classes as i64)),
        ("signal", m.signal.clone()),
        ("temperature", temperature),
        ("records", grouped(info.records as i64)),
        ("segments", grouped(info.segments as i64)),
        ("bytes", short(info.bytes)),
        ("index in memory", format!("{} bytes", grouped(info.index_bytes as i64))),
    ];
    if let Some(step) = info.step {
        let Step { bytes, divergence } = step;
        let said = format!("about {bytes:.1} bytes a position, off by {divergence:.1e} nats");
        lines.insert(5, ("step", said));
    }
    if info.blobs > 0 {
        let beside =
            format!("{} in {} files, to read hidden states", short(info.blob_bytes), info.blobs);
        lines.push(("beside them", beside));
    }
    let text: String = lines.iter().map(|(name, value)| format!("{name:<16} {value}\n")).collect();
    console.result(&text)
}

/// `cache export`.
pub(crate) fn export(config: &CacheExportConfig, console: &Console) -> anyhow::Result<()> {
    let written = table::export(config)?;
    for what in &written.damaged {
        console.tell(&format!("damaged, and left out: {what}"));
    }
    let (rows, path) = (grouped(written.rows as i64), config.parquet.display());
    console.result(&format!("{rows} rows written to {path}\n"))?;
    undamaged(&config.cache, written.damaged.len())
}

/// `cache import`.
pub(crate) fn import(config: &CacheImportConfig, console: &Console) -> anyhow::Result<()> {
    let rows = grouped(table::import(config)? as i64);
    console.result(&format!(
        "{rows} rows of {} are in {}\n",
        config.parquet.display(),
        config.cache
    ))
}
