//! Parquet files: the columns that rows are made of, as JSON records.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use super::error::{DataError, Place};
use super::rows::{self, Row};

/// Rows decoded at a time.
const BATCH: usize = 512;

/// Appends at most `limit` rows of a Parquet file. A damaged file is an error, also where the
/// reader itself would panic on it.
pub(super) fn read(path: &Path, limit: usize, rows: &mut Vec<Row>) -> Result<(), DataError> {
    let file = File::open(path).map_err(|source| DataError::Read {
        path: path.to_owned(),
        after: String::new(),
        source,
    })?;
    let fail = |reason: String| DataError::Parquet { path: path.to_owned(), reason };
    catch_unwind(AssertUnwindSafe(|| read_records(path, file, limit, rows)))
        .unwrap_or_else(|_| Err(fail("its data is damaged".to_owned())))
}

fn read_records(
    path: &Path,
    file: File,
    limit: usize,
    rows: &mut Vec<Row>,
) -> Result<(), DataError> {
    let fail = |reason: String| DataError::Parquet { path: path.to_owned(), reason };
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| fail(e.to_string()))?;
    let schema = builder.schema().clone();
    let place: Arc<Path> = path.into();
    let known = |name: &str| rows::COLUMNS.contains(&name);
    let wanted: Vec<&str> =
        schema.fields().iter().map(|f| f.name().as_str()).filter(|name| known(name)).collect();
    if wanted.is_empty() {
        let found: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let place = Place { file: place, number: 1, unit: "row" };
        return Err(DataError::Columns { place, found: found.join(", ") });
    }
    let roots: Vec<usize> =
        (0..schema.fields().len()).filter(|&i| known(schema.field(i).name())).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(BATCH).with_limit(limit);
    let mut number = 0;
    for batch in reader.build().map_err(|e| fail(e.to_string()))? {
        let batch = batch.map_err(|e| fail(e.to_string()))?;
        for i in 0..batch.num_rows() {
            number += 1;
            let place = Place { file: place.clone(), number, unit: "row" };
            rows.push(rows::row_of(record(&batch, i), place)?);
        }
    }
    Ok(())
}

fn record(batch: &RecordBatch, row: usize) -> Value {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    let entries = columns.map(|(field, column)| (field.name().clone(), value(column, row)));
    Value::Object(entries.collect())
}

/// One value as JSON; of a type no row is made of, a text that names the type.
#[expect(clippy::wildcard_enum_match_arm, reason = "most of Arrow's types hold no text")]
fn value(array: &dyn Array, i: usize) -> Value {
    if array.is_null(i) {
        return Value::Null;
    }
    let list = |items: arrow_array::ArrayRef| {
        Value::Array((0..items.len()).map(|j| value(&items, j)).collect())
    };
    match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(i).into(),
        DataType::Utf8View => array.as_string_view().value(i).into(),
        DataType::Boolean => array.as_boolean().value(i).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(i).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(i).into(),
        DataType::Float32 => f64::from(array.as_primitive::<Float32Type>().value(i)).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(i).into(),
        DataType::List(_) => list(array.as_list::<i32>().value(i)),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(i)),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let entries = columns.map(|(field, column)| (field.name().clone(), value(column, i)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = dictionary.normalized_keys()[i];
            value(dictionary.values(), key)
        }
        other => serde_json::json!({ "unsupported type": other.to_string() }),
    }
}
