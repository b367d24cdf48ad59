//! The logits of tokens that somebody named, gathered while the blocks of a row pass by.

use super::select::all_finite;

/// The named tokens of a row.
pub(super) struct Named {
    /// Ids in the order they were named.
    ids: Vec<u32>,
    /// The same ascending, each with its place in `ids`.
    sorted: Vec<(u32, u32)>,
    /// Their logits as far as blocks have come, by place.
    logits: Vec<f32>,
}

impl Named {
    /// Of nothing heard yet; the ids are all different.
    pub(super) fn new(ids: &[u32]) -> Self {
        let mut sorted: Vec<(u32, u32)> = ids.iter().copied().zip(0..).collect();
        sorted.sort_unstable();
        Self { ids: ids.to_vec(), sorted, logits: vec![f32::NAN; ids.len()] }
    }

    /// Takes note of the logits of the classes from `first` on; false when one is NaN or infinite.
    pub(super) fn offer(&mut self, logits: &[f32], first: usize) -> bool {
        for &(id, place) in here(&self.sorted, first, logits.len()) {
            self.logits[place as usize] = logits[id as usize - first];
        }
        all_finite(logits)
    }

    /// Calls `found` with the place in the block of each named token there.
    pub(super) fn within(&self, first: usize, length: usize, mut found: impl FnMut(usize)) {
        here(&self.sorted, first, length).iter().for_each(|&(id, _)| found(id as usize - first));
    }

    /// Ids and logits in the order they were named.
    pub(super) fn in_order(self) -> (Vec<u32>, Vec<f32>) {
        (self.ids, self.logits)
    }
}

/// Those from class `first` on, of `length` classes.
fn here(sorted: &[(u32, u32)], first: usize, length: usize) -> &[(u32, u32)] {
    let from = sorted.partition_point(|&(id, _)| (id as usize) < first);
    let to = sorted.partition_point(|&(id, _)| (id as usize) < first + length);
    &sorted[from..to]
}
