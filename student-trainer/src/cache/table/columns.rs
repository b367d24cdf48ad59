//! Answers as Arrow columns, on the way to a file.

use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder as _, Float32Builder, Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{ArrowError, DataType, Field, Schema};
use distill::signal::TopK;

use crate::cache::payload::Said;

/// Names of the columns, in order.
pub(super) const NAMES: [&str; 6] = [
    "input_ids",
    "teacher_topk_ids",
    "teacher_topk_logprobs",
    "teacher_positions",
    "teacher_log_rest",
    "teacher_next_logprobs",
];

/// Columns that are being filled.
#[derive(Default)]
pub(super) struct Columns {
    tokens: ListBuilder<Int32Builder>,
    ids: ListBuilder<ListBuilder<Int32Builder>>,
    logprobs: ListBuilder<ListBuilder<Float32Builder>>,
    positions: ListBuilder<Int32Builder>,
    log_rest: ListBuilder<Float32Builder>,
    next: ListBuilder<Float32Builder>,
}

/// The schema of the file.
pub(super) fn schema() -> Arc<Schema> {
    let list = |of: DataType| DataType::List(Arc::new(Field::new_list_field(of, true)));
    let (int, float) = (DataType::Int32, DataType::Float32);
    let types = [
        list(int.clone()),
        list(list(int.clone())),
        list(list(float.clone())),
        list(int),
        list(float.clone()),
        list(float),
    ];
    let fields: Vec<Field> =
        NAMES.into_iter().zip(types).map(|(name, of)| Field::new(name, of, true)).collect();
    Arc::new(Schema::new(fields))
}

impl Columns {
    /// Appends a row. Ids are below the number of classes of a model, so they fit into an i32.
    pub(super) fn push(&mut self, said: &Said, signal: &TopK) {
        said.tokens.iter().for_each(|&id| self.tokens.values().append_value(id as i32));
        self.tokens.append(true);
        for row in 0..signal.rows() {
            let entries = row * signal.k..(row + 1) * signal.k;
            for at in entries {
                self.ids.values().values().append_value(signal.ids[at] as i32);
                let logprob = f64::from(signal.scaled[at]) - f64::from(signal.log_z[row]);
                self.logprobs.values().values().append_value(logprob as f32);
            }
            self.ids.values().append(true);
            self.logprobs.values().append(true);
        }
        self.ids.append(true);
        self.logprobs.append(true);
        let positions = said.ranges.iter().cloned().flatten();
        positions.for_each(|position| self.positions.values().append_value(position as i32));
        self.positions.append(true);
        self.log_rest.values().append_slice(&signal.log_rest);
        self.log_rest.append(true);
        self.next.values().append_slice(&said.scored.next_logprob);
        self.next.append(true);
    }

    /// What was appended since the last call of this.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        debug_assert_eq!(self.tokens.len(), self.ids.len());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.tokens.finish()),
            Arc::new(self.ids.finish()),
            Arc::new(self.logprobs.finish()),
            Arc::new(self.positions.finish()),
            Arc::new(self.log_rest.finish()),
            Arc::new(self.next.finish()),
        ];
        RecordBatch::try_new(schema(), columns)
    }
}
