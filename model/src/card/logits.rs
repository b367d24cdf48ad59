//! How the logits of many positions are cut: they exist for some positions at a time, all classes of each.

use std::ops::Range;

/// Positions of a chunk: a multiple of it where there are so many, as products like it.
const POSITIONS: usize = 128;

/// Positions of a chunk of rows of so many logits, all of them in chunks of nearly equal size.
pub(super) fn chunks(
    positions: usize,
    width: usize,
    bytes: usize,
) -> impl Iterator<Item = Range<usize>> {
    let fit = (bytes / (width * size_of::<f32>())).max(1);
    let most = if fit > POSITIONS { fit / POSITIONS * POSITIONS } else { fit };
    let count = positions.div_ceil(most);
    let size = positions.div_ceil(count.max(1)).next_multiple_of(POSITIONS.min(most)).max(1);
    (0..positions).step_by(size).map(move |first| first..positions.min(first + size))
}

/// Logits of a row as they lie: four are read together.
pub(super) fn logits_width(classes: usize) -> usize {
    classes.next_multiple_of(4)
}
