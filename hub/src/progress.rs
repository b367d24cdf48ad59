//! How a download shows itself: a bar on a terminal, lines in a log.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::settings::Progress;

/// Time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// What one file's bar shows.
const BAR: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// One file's progress.
pub(crate) struct Meter {
    file: String,
    size: u64,
    show: Show,
}

enum Show {
    Bar(ProgressBar),
    Lines(Cell<Instant>),
    Nothing,
}

impl Meter {
    pub(crate) fn start(how: Progress, file: &str, size: u64) -> Self {
        let bar = match how {
            Progress::Auto => std::io::stderr().is_terminal(),
            Progress::Bar => true,
            Progress::Plain | Progress::None => false,
        };
        let show = if how == Progress::None {
            Show::Nothing
        } else if bar {
            let style = ProgressStyle::with_template(BAR);
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            Show::Bar(ProgressBar::new(size).with_style(style).with_message(file.to_owned()))
        } else {
            tracing::info!("downloading {file} ({})", HumanBytes(size));
            Show::Lines(Cell::new(Instant::now()))
        };
        Self { file: file.to_owned(), size, show }
    }

    /// So many bytes are there.
    pub(crate) fn at(&self, bytes: u64) {
        match &self.show {
            Show::Bar(bar) => bar.set_position(bytes),
            Show::Lines(last) if last.get().elapsed() >= LINE_EVERY => {
                last.set(Instant::now());
                let percent = bytes as f64 * 100.0 / self.size.max(1) as f64;
                tracing::info!("{}: {percent:.0} % of {}", self.file, HumanBytes(self.size));
            }
            Show::Lines(_) | Show::Nothing => {}
        }
    }

    pub(crate) fn finish(&self) {
        match &self.show {
            Show::Bar(bar) => bar.finish(),
            Show::Lines(_) => tracing::info!("downloaded {}", self.file),
            Show::Nothing => {}
        }
    }
}
