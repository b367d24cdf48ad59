//! `teacher-server calibrate`: makes the code of a model's hidden states from text of the kind that will
//! be taught, and keeps it under the model's fingerprint.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use candle_core::{Device, Tensor};
use distill::batch::{Sequence, TokenBatch};
use distill::coded::Rate;
use distill::fingerprint::Fingerprint;
use hub::tokenizer::Tokenizer;
use model::coding::{CalibrationError, Encoder, Sample, enough_positions, fit, least_positions};
use model::language_model::LanguageModel;

use crate::qwen3_scorer::{ModelSource, Opened};

/// Longest sequence the text is cut into, in tokens.
const SEQUENCE_TOKENS: usize = 1024;
/// Tokens computed at once.
const BATCH_TOKENS: usize = 4096;
/// Bytes of text read at most: many times what any code is made from.
const MOST_BYTES: u64 = 64 << 20;
/// Different tokens a text must have, of a vocabulary that has so many.
const LEAST_DIFFERENT: usize = 64;

/// What was made.
#[derive(Debug)]
pub struct Calibrated {
    /// Where it is kept.
    pub path: PathBuf,
    /// Where another is now that was there.
    pub before: Option<PathBuf>,
    /// Tokens it was made from and measured on.
    pub tokens: usize,
    /// What its steps take and cost, the finest first.
    pub rates: Vec<Rate>,
}

/// Makes the code of a model from a text file and keeps it in `dir`.
///
/// # Errors
/// What is wrong with the model, the text or the directory.
pub fn calibrate(
    source: ModelSource,
    data: &Path,
    most_tokens: Option<usize>,
    dir: &Path,
) -> anyhow::Result<Calibrated> {
    let texts = read_texts(data)?;
    let Opened { network, tokenizer, facts } =
        source.open().map_err(|error| anyhow::anyhow!(error))?;
    let width = network.config().hidden_size;
    let longest = SEQUENCE_TOKENS.min(facts.max_positions as usize);
    let least = least_positions(width);
    if let Some(few) = most_tokens.filter(|&most| most < least) {
        bail!(
            "--tokens {few}: hidden states of {width} numbers take at least {least} tokens; give as many or \
             more, or leave it out"
        );
    }
    let most = most_tokens.unwrap_or_else(|| enough_positions(width));
    let named = || format!("--data {}", data.display());
    let sequences = encode(&texts, &tokenizer, longest, most).with_context(named)?;
    let tokens = sequences.iter().map(Vec::len).sum();
    check(&*network, &sequences).with_context(named)?;
    // A large model takes minutes: that there is no room for the result is better known before.
    std::fs::create_dir_all(dir).with_context(|| format!("--calibration-dir {}", dir.display()))?;
    let encoder =
        from_sequences(&*network, &sequences, facts.model_fingerprint).with_context(named)?;
    let path = dir.join(format!("{}.calibration", facts.model_fingerprint));
    let before = encoder.save(&path, facts.tokenizer_fingerprint)?;
    Ok(Calibrated { path, before, tokens, rates: encoder.code().rates().to_vec() })
}

/// Refuses text that is too little, or says the same over and over.
fn check(network: &dyn LanguageModel, sequences: &[Vec<u32>]) -> Result<(), CalibrationError> {
    let width = network.config().hidden_size;
    let (found, wanted) = (sequences.iter().map(Vec::len).sum(), least_positions(width));
    if found < wanted {
        return Err(CalibrationError::TooShort { found, wanted, width });
    }
    let different: HashSet<u32> = sequences.iter().flatten().copied().collect();
    let wanted = LEAST_DIFFERENT.min(network.config().vocab_size / 4);
    if different.len() < wanted {
        return Err(CalibrationError::Monotonous { found: different.len(), wanted });
    }
    Ok(())
}

/// The code of a model's hidden states on these sequences.
///
/// # Errors
/// [`CalibrationError`]: too little text or too much alike, or an operation that fails.
pub(crate) fn from_sequences(
    network: &dyn LanguageModel,
    sequences: &[Vec<u32>],
    model: Fingerprint,
) -> Result<Encoder, CalibrationError> {
    check(network, sequences)?;
    let width = network.config().hidden_size;
    let mut states = Vec::new();
    let mut rest = sequences;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |sequence: &&Vec<u32>| {
            tokens += sequence.len();
            tokens <= BATCH_TOKENS
        };
        let (batch, after) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        rest = after;
        let rows = batch.iter().map(|ids| Sequence::all_scored(ids.clone()));
        let rows = rows.collect::<Result<Vec<_>, _>>();
        let rows = rows.map_err(|error| CalibrationError::Degenerate(error.to_string()))?;
        states.extend(network.states(&TokenBatch::pack(&rows))?);
    }
    let positions = states.len() / width;
    let hidden = Tensor::from_vec(states, (positions, width), &Device::Cpu)?;
    let w = &network.head()?;
    fit(Sample { hidden: &hidden, w, precision: network.precision(), model })
}

/// The texts of a file: each line's strings together where it is `.jsonl`, else the whole of it.
fn read_texts(path: &Path) -> anyhow::Result<Vec<String>> {
    let named = || format!("--data {}", path.display());
    let mut bytes = Vec::new();
    // A pipe would be waited for.
    if !std::fs::metadata(path).with_context(named)?.is_file() {
        bail!("--data {} is no file", path.display());
    }
    let file = std::fs::File::open(path).with_context(named)?;
    file.take(MOST_BYTES).read_to_end(&mut bytes).with_context(named)?;
    let cut_off = bytes.len() as u64 == MOST_BYTES;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(vec![text]);
    }
    let mut texts = Vec::new();
    let last_end = text.rfind('\n').filter(|_| cut_off);
    let whole = last_end.map_or(text.as_str(), |end| &text[..end]);
    for (number, line) in whole.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let row = serde_json::from_str(line)
            .with_context(|| format!("--data {} line {}", path.display(), number + 1))?;
        let mut strings = Vec::new();
        collect(&row, &mut strings);
        texts.push(strings.join("\n"));
    }
    Ok(texts)
}

fn collect<'a>(value: &'a serde_json::Value, strings: &mut Vec<&'a str>) {
    use serde_json::Value;
    match value {
        Value::String(text) => strings.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect(item, strings)),
        Value::Object(fields) => fields.values().for_each(|field| collect(field, strings)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The texts' tokens in sequences of at most `longest`, `most` tokens in all.
fn encode(
    texts: &[String],
    tokenizer: &Tokenizer,
    longest: usize,
    most: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut sequences = Vec::new();
    let mut left = most;
    for text in texts {
        let ids = tokenizer.encode(text)?;
        for part in ids.chunks(longest) {
            let part = &part[..part.len().min(left)];
            if part.is_empty() {
                break;
            }
            left -= part.len();
            sequences.push(part.to_vec());
        }
        if left == 0 {
            break;
        }
    }
    if sequences.is_empty() {
        bail!("the text has no token");
    }
    Ok(sequences)
}

/// The rates as lines for people: for each whole number of bytes that doubles, the finest step within.
pub fn table(rates: &[Rate]) -> String {
    let mut lines = vec!["bytes a position   divergence at T = 1, nats   step".to_owned()];
    let mut last = f32::INFINITY;
    // Coarser steps take less; each line at least a fifth less than the one before.
    for rate in rates.iter().filter(|rate| rate.bytes >= 4.0) {
        if rate.bytes > last / 1.2 {
            continue;
        }
        last = rate.bytes;
        let Rate { rung, bytes, divergence } = rate;
        lines.push(format!("{bytes:>16.1}   {divergence:>25.2e}   {rung}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_json_give_their_strings_and_other_files_their_text() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let rows =
            "{\"question\": \"Why?\", \"n\": 3, \"answer\": [\"So\", {\"x\": \"there\"}]}\n\n\"a\"";
        let texts = read_texts(&write("a.jsonl", rows)).unwrap();
        let mut parts: Vec<&str> = texts[0].split('\n').collect();
        parts.sort_unstable();
        assert_eq!((parts, texts[1].as_str()), (vec!["So", "Why?", "there"], "a"));
        assert_eq!(read_texts(&write("a.txt", rows)).unwrap(), [rows]);
        let error = read_texts(&write("b.jsonl", "{}\n{\n")).unwrap_err();
        assert!(format!("{error:#}").contains("b.jsonl line 2"), "{error:#}");
        let error = read_texts(&dir.path().join("none.txt")).unwrap_err();
        assert!(format!("{error:#}").contains("none.txt"), "{error:#}");
    }

    #[test]
    fn a_line_for_each_fifth_of_the_bytes() {
        let rate = |rung, bytes| Rate { rung: distill::coded::Rung(rung), bytes, divergence: 0.5 };
        let text = table(&[rate(-2, 44.0), rate(-1, 40.0), rate(0, 36.0), rate(1, 3.0)]);
        assert_eq!(text.lines().count(), 3);
        assert!(
            text.contains("44.0") && text.contains("36.0") && text.contains("5.00e-1"),
            "{text}"
        );
    }
}
