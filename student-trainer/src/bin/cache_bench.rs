//! `cache_bench throughput ROWS POSITIONS K` or `cache_bench open RECORDS`, in an empty directory named
//! first: a line of JSON. For `cargo xtask bench cache`.

use std::path::Path;

use anyhow::{Context as _, bail};
use student_trainer::cache::speed::{opening, throughput};

#[expect(clippy::print_stdout, reason = "its result")]
fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().with_context(|| format!("{word}: no number"));
    let line = match words[..] {
        [dir, "throughput", rows, positions, k] => {
            let (rows, positions, k) = (number(rows)?, number(positions)?, number(k)?);
            serde_json::to_string(&throughput(Path::new(dir), rows, positions, k)?)?
        }
        [dir, "open", records] => {
            serde_json::to_string(&opening(Path::new(dir), number(records)?)?)?
        }
        _ => bail!("wanted: DIR throughput ROWS POSITIONS K, or DIR open RECORDS"),
    };
    println!("{line}");
    Ok(())
}
