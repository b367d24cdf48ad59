//! Answers from Arrow columns, ours or another program's: every value is checked.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type, UInt32Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::DataType;
use distill::signal::TopK;

use crate::cache::payload::Said;
use crate::feed::Scored;

/// The rows of a batch; of each that makes no sense, why. `plain` says that the log-probabilities are
/// those at T = 1, so that the next token's is among them if the token is.
pub(super) fn read(batch: &RecordBatch, plain: bool) -> Vec<Result<Said, String>> {
    (0..batch.num_rows()).map(|row| read_row(batch, row, plain)).collect()
}

fn read_row(batch: &RecordBatch, row: usize, plain: bool) -> Result<Said, String> {
    let tokens = ids(&list(batch, "input_ids", row)?.ok_or("no column input_ids")?, "input_ids")?;
    let of_ids = nested(batch, "teacher_topk_ids", row)?;
    let of_logprobs = nested(batch, "teacher_topk_logprobs", row)?;
    let count = of_ids.len();
    if of_logprobs.len() != count {
        let found = of_logprobs.len();
        return Err(format!(
            "{count} positions in teacher_topk_ids, {found} in teacher_topk_logprobs"
        ));
    }
    let positions = match list(batch, "teacher_positions", row)? {
        Some(column) => ids(&column, "teacher_positions")?,
        None => (0..count as u32).collect(),
    };
    // What follows the last token is no row's to learn.
    let wanted = positions.iter().take_while(|&&p| (p as usize) + 1 < tokens.len()).count();
    let ranges = ranges(&positions[..wanted])?;
    if positions.len() != count || wanted == 0 || count > wanted + 1 {
        return Err(format!(
            "{count} positions with entries and {} named, for {} tokens",
            positions.len(),
            tokens.len()
        ));
    }
    let mut signal = TopK::default();
    for (index, (ids_at, logprobs)) in of_ids.iter().zip(&of_logprobs).take(wanted).enumerate() {
        let entries = entries(&ids(ids_at, "teacher_topk_ids")?, &floats(logprobs)?)
            .map_err(|reason| format!("position {}: {reason}", positions[index]))?;
        if index == 0 {
            signal = TopK::new(entries.len());
        }
        if entries.len() != signal.k {
            let (found, k, at) = (entries.len(), signal.k, positions[index]);
            return Err(format!("position {at} has {found} entries, the first has {k}"));
        }
        push(&mut signal, &entries);
    }
    if let Some(column) = list(batch, "teacher_log_rest", row)? {
        signal.log_rest = exactly(floats(&column)?, count, wanted, "teacher_log_rest")?;
    }
    let next_logprob = match list(batch, "teacher_next_logprobs", row)? {
        Some(column) => exactly(floats(&column)?, count, wanted, "teacher_next_logprobs")?,
        None => next_logprobs(&signal, &tokens, &positions[..wanted], plain),
    };
    let scored = Scored { signal: signal.into(), next_logprob, wire_bytes: 0 };
    Ok(Said { tokens, ranges, scored })
}

/// Entries of a position by falling log-probability, equal ones by rising id.
fn entries(ids: &[u32], logprobs: &[f32]) -> Result<Vec<(u32, f32)>, String> {
    if ids.len() != logprobs.len() || ids.is_empty() {
        return Err(format!("{} ids and {} log-probabilities", ids.len(), logprobs.len()));
    }
    let mut entries: Vec<_> = ids.iter().copied().zip(logprobs.iter().copied()).collect();
    if let Some((id, value)) =
        entries.iter().find(|(_, value)| !(value.is_finite() && *value < 1e-3))
    {
        return Err(format!("token {id} has log-probability {value}"));
    }
    entries.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    Ok(entries)
}

/// Appends a position: log-probabilities are logits whose partition function is 1.
fn push(signal: &mut TopK, entries: &[(u32, f32)]) {
    signal.ids.extend(entries.iter().map(|entry| entry.0));
    signal.scaled.extend(entries.iter().map(|entry| entry.1));
    signal.log_z.push(0.0);
    let mass: f64 = entries.iter().map(|entry| f64::from(entry.1).exp()).sum();
    // Of rounded log-probabilities that come to more than 1 nothing is left.
    let rest = if mass < 1.0 { (-mass).ln_1p() as f32 } else { f32::NEG_INFINITY };
    signal.log_rest.push(rest);
}

/// Those of the tokens that follow, as far as they are among the entries; NaN where they are not.
fn next_logprobs(signal: &TopK, tokens: &[u32], positions: &[u32], plain: bool) -> Vec<f32> {
    let of = |(row, &position): (usize, &u32)| {
        let next = tokens[position as usize + 1];
        let ids = &signal.ids[row * signal.k..(row + 1) * signal.k];
        let rank = ids.iter().position(|&id| id == next).filter(|_| plain);
        rank.map_or(f32::NAN, |rank| signal.scaled[row * signal.k + rank])
    };
    positions.iter().enumerate().map(of).collect()
}

/// Ascending positions as ranges.
fn ranges(positions: &[u32]) -> Result<Vec<Range<u32>>, String> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for &position in positions {
        match ranges.last_mut() {
            Some(last) if position == last.end => last.end += 1,
            Some(last) if position < last.end => {
                return Err(format!("position {position} comes after {}", last.end - 1));
            }
            _ => ranges.push(position..position + 1),
        }
    }
    Ok(ranges)
}

fn exactly(
    mut values: Vec<f32>,
    count: usize,
    wanted: usize,
    name: &str,
) -> Result<Vec<f32>, String> {
    if values.len() != count {
        return Err(format!("{} values in {name} for {count} positions", values.len()));
    }
    values.truncate(wanted);
    Ok(values)
}

/// The list of a row in a column; none without such a column.
fn list(batch: &RecordBatch, name: &str, row: usize) -> Result<Option<ArrayRef>, String> {
    let Some(column) = batch.column_by_name(name) else { return Ok(None) };
    items(column, row).map(Some).map_err(|found| format!("{name} is {found}, wanted a list"))
}

/// The lists of a row in a column of lists of lists.
fn nested(batch: &RecordBatch, name: &str, row: usize) -> Result<Vec<ArrayRef>, String> {
    let outer = list(batch, name, row)?.ok_or_else(|| format!("no column {name}"))?;
    let inner = |i| items(&outer, i).map_err(|found| format!("{name} holds {found}, wanted lists"));
    (0..outer.len()).map(inner).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most of Arrow's types are no lists")]
fn items(column: &ArrayRef, row: usize) -> Result<ArrayRef, String> {
    if column.is_null(row) {
        return Err("null".to_owned());
    }
    match column.data_type() {
        DataType::List(_) => Ok(column.as_list::<i32>().value(row)),
        DataType::LargeList(_) => Ok(column.as_list::<i64>().value(row)),
        DataType::FixedSizeList(_, _) => Ok(column.as_fixed_size_list().value(row)),
        other => Err(other.to_string()),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most of Arrow's types are no whole numbers")]
fn ids(column: &ArrayRef, name: &str) -> Result<Vec<u32>, String> {
    let wide: Vec<Option<i64>> = match column.data_type() {
        DataType::Int32 => {
            column.as_primitive::<Int32Type>().iter().map(|v| v.map(i64::from)).collect()
        }
        DataType::Int64 => column.as_primitive::<Int64Type>().iter().collect(),
        DataType::UInt32 => {
            column.as_primitive::<UInt32Type>().iter().map(|v| v.map(i64::from)).collect()
        }
        other => return Err(format!("{name} holds {other}, wanted whole numbers")),
    };
    let id = |value: Option<i64>| {
        let found = value.map_or_else(|| "null".to_owned(), |value| value.to_string());
        // Ids above are none of any model, and a range must be able to end behind one.
        value
            .and_then(|value| u32::try_from(value).ok())
            .filter(|&id| id < u32::MAX)
            .ok_or_else(|| format!("{name} holds {found}, which is no id"))
    };
    wide.into_iter().map(id).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "most of Arrow's types are no numbers")]
fn floats(column: &ArrayRef) -> Result<Vec<f32>, String> {
    let values: Vec<Option<f32>> = match column.data_type() {
        DataType::Float32 => column.as_primitive::<Float32Type>().iter().collect(),
        DataType::Float64 => {
            column.as_primitive::<Float64Type>().iter().map(|v| v.map(|v| v as f32)).collect()
        }
        other => return Err(format!("{other} where float32 is wanted")),
    };
    values.into_iter().collect::<Option<_>>().ok_or_else(|| "null among the numbers".to_owned())
}
