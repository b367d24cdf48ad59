//! Rows become token sequences with a mask of what is learned.

use hub::chat::{ChatTemplate, Message};
use hub::tokenizer::Tokenizer;
use serde::Serialize;

use distill::batch::Sequence;

use super::MAX_LINE_BYTES;
use super::error::{DataError, Place};
use super::rows::{Row, RowContent};
use super::turns::MarkedText;
use crate::config::{ChatTemplateUse, LossOn};

/// How rows become sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizeOptions {
    /// Which tokens are learned. Plain `text` rows tell no answer apart: all of theirs are.
    pub loss_on: LossOn,
    /// Whether rows pass through the model's chat template.
    pub chat_template: ChatTemplateUse,
    /// Tokens kept of a row; the rest is cut off.
    pub max_length: usize,
}

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TokenizeReport {
    /// Rows read.
    pub rows: usize,
    /// Rows cut to the length limit.
    pub truncated: usize,
    /// Rows left out because no token of theirs is learned.
    pub skipped: usize,
    /// Tokens of the rows kept.
    pub tokens: usize,
    /// Tokens learned: the scored positions.
    pub scored: usize,
}

/// Sequences, in the rows' order, and what became of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenized {
    /// One for each row kept.
    pub sequences: Vec<Sequence>,
    /// Where each of them stands.
    pub places: Vec<Place>,
    /// Counts.
    pub report: TokenizeReport,
}

/// Tokenises rows. No special token is added and nothing is padded: the ids are those of the text
/// the row stands for, cut to `max_length`.
///
/// # Errors
/// [`DataError`], naming the first row in error by file and line; also when no row at all has a
/// token to learn from.
pub fn tokenize(
    rows: &[Row],
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &TokenizeOptions,
) -> Result<Tokenized, DataError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(64);
    // Shares are joined in order: the result does not depend on how many there were.
    let shares = std::thread::scope(|scope| {
        let work = |rows| scope.spawn(move || tokenize_share(rows, tokenizer, template, options));
        let workers: Vec<_> = rows.chunks(share).map(work).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        workers.into_iter().map(join).collect::<Result<Vec<_>, DataError>>()
    })?;
    let mut all = Tokenized::default();
    for share in shares {
        all.sequences.extend(share.sequences);
        all.places.extend(share.places);
        all.report = all.report.plus(share.report);
    }
    if all.sequences.is_empty() {
        return Err(nothing_scored(rows, options, all.report.truncated));
    }
    Ok(all)
}

/// Why no row has a token to learn from; `cut` of them were longer than the limit.
fn nothing_scored(rows: &[Row], options: &TokenizeOptions, cut: usize) -> DataError {
    let unanswered = |row: &Row| match &row.content {
        RowContent::Conversation(messages) => messages.iter().all(|m| m.role != "assistant"),
        RowContent::Text(_) | RowContent::Completion { .. } | RowContent::Instruction { .. } => {
            false
        }
    };
    match rows {
        [first, ..] if options.loss_on == LossOn::Completion && rows.iter().all(unanswered) => {
            DataError::NoAnswer { rows: rows.len(), place: first.place.clone() }
        }
        _ => DataError::NothingScored { rows: rows.len(), cut, max_length: options.max_length },
    }
}

impl Tokenized {
    /// Refuses rows that a model of this many positions cannot take.
    ///
    /// # Errors
    /// [`DataError::Positions`] for the first row that is too long.
    pub fn fit(&self, positions: usize, max_length: usize) -> Result<(), DataError> {
        let too_long = |(sequence, _): &(&Sequence, _)| sequence.len() > positions;
        match self.sequences.iter().zip(&self.places).find(too_long) {
            Some((sequence, place)) => {
                let (place, tokens) = (place.clone(), sequence.len());
                Err(DataError::Positions { place, tokens, max_length, positions })
            }
            None => Ok(()),
        }
    }
}

impl TokenizeReport {
    fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            truncated: self.truncated + other.truncated,
            skipped: self.skipped + other.skipped,
            tokens: self.tokens + other.tokens,
            scored: self.scored + other.scored,
        }
    }
}

fn tokenize_share(
    rows: &[Row],
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &TokenizeOptions,
) -> Result<Tokenized, DataError> {
    let mut share = Tokenized::default();
    share.report.rows = rows.len();
    for row in rows {
        let marked = marked_text(row, tokenizer, template, options)?;
        // Lines are bounded where they are read; a Parquet row is not.
        if marked.text.len() > MAX_LINE_BYTES {
            return Err(DataError::TooLong { place: row.place.clone(), limit: MAX_LINE_BYTES });
        }
        let begin = tokenizer.encode_first(&marked.text, options.max_length).map_err(|source| {
            DataError::Tokenizer { place: row.place.clone(), source: source.into() }
        })?;
        share.report.truncated += usize::from(begin.more);
        let mask = marked.mask(&begin.encoded.offsets);
        let sequence = match Sequence::new(begin.encoded.ids, mask) {
            Ok(sequence) if sequence.scored().next().is_some() => sequence,
            // No tokens, or none to learn from.
            Ok(_) | Err(_) => {
                share.report.skipped += 1;
                continue;
            }
        };
        share.report.tokens += sequence.len();
        share.report.scored += sequence.scored().count();
        share.sequences.push(sequence);
        share.places.push(row.place.clone());
    }
    Ok(share)
}

/// The text of a row, with what is learned marked in it.
fn marked_text(
    row: &Row,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    options: &TokenizeOptions,
) -> Result<MarkedText, DataError> {
    let place = &row.place;
    let through_template = match (&row.content, options.chat_template) {
        (RowContent::Text(_), ChatTemplateUse::Model) => {
            return Err(DataError::TextThroughTemplate { place: place.clone() });
        }
        (RowContent::Text(text), _) => return Ok(MarkedText::whole(text.clone())),
        (_, ChatTemplateUse::Model) | (RowContent::Conversation(_), ChatTemplateUse::Auto) => true,
        (_, ChatTemplateUse::None | ChatTemplateUse::Auto) => false,
    };
    if !through_template && let RowContent::Completion { prompt, completion } = &row.content {
        let marked = MarkedText::completion(prompt, completion);
        return Ok(scoring_all(marked, options.loss_on));
    }
    let pair;
    let messages = match &row.content {
        RowContent::Conversation(messages) => messages.as_slice(),
        RowContent::Completion { prompt: asked, completion: answer }
        | RowContent::Instruction { instruction: asked, response: answer } => {
            pair = [Message::new("user", asked), Message::new("assistant", answer)];
            &pair
        }
        RowContent::Text(_) => &[],
    };
    if !through_template {
        return Ok(scoring_all(MarkedText::plain(messages), options.loss_on));
    }
    let Some(template) = template else {
        return Err(DataError::NoTemplate { place: place.clone() });
    };
    if options.loss_on == LossOn::All {
        let text = template.render(messages, false);
        let text = text.map_err(|source| DataError::Chat { place: place.clone(), source })?;
        return Ok(MarkedText::whole(text));
    }
    let closing = tokenizer.special_tokens().get("eos_token");
    MarkedText::templated(template, messages, closing, place)
}

fn scoring_all(marked: MarkedText, loss_on: LossOn) -> MarkedText {
    match loss_on {
        LossOn::All => MarkedText::whole(marked.text),
        LossOn::Completion => marked,
    }
}
