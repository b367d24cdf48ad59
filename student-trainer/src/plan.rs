//! Which rows each optimiser step takes: pure arithmetic on rows, batch, epochs and seed.
//!
//! The order of an epoch is a function of seed and epoch alone, so a resumed run finds its place
//! from the number of steps done and nothing else.

use distill::order::epoch_order;

/// The division of a run into epochs and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rows of the training set.
    pub rows: usize,
    /// Rows an optimiser step takes: batch size times accumulation. The last step of an epoch
    /// takes what is left.
    pub rows_per_step: usize,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// What the orders come from.
    pub seed: u64,
}

/// One optimiser step to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedStep {
    /// Its number, from 1.
    pub step: u64,
    /// The epoch it belongs to, from 0.
    pub epoch: u64,
    /// Whether it is the last step of its epoch.
    pub ends_epoch: bool,
    /// Indices of its rows in the training set.
    pub rows: Vec<usize>,
}

impl Plan {
    /// Steps an epoch has, the last and perhaps smaller one included.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.rows_per_step) as u64
    }

    /// Steps of `epochs` whole epochs.
    pub fn steps_of_epochs(rows: usize, rows_per_step: usize, epochs: usize) -> u64 {
        rows.div_ceil(rows_per_step) as u64 * epochs as u64
    }

    /// Epochs done after `step` steps, with the fraction of the one begun.
    pub fn epochs_after(&self, step: u64) -> f64 {
        step as f64 / self.steps_per_epoch() as f64
    }

    /// The steps after the first `done`, to the end of the run.
    pub fn steps_after(self, done: u64) -> impl Iterator<Item = PlannedStep> + Clone + Send {
        let per_epoch = self.steps_per_epoch();
        let mut order = (u64::MAX, Vec::new());
        (done..self.total_steps).map(move |index| {
            let epoch = index / per_epoch;
            if order.0 != epoch {
                order = (epoch, epoch_order(self.seed, epoch, self.rows, self.shuffle));
            }
            let first = (index % per_epoch) as usize * self.rows_per_step;
            let end = (first + self.rows_per_step).min(self.rows);
            PlannedStep {
                step: index + 1,
                epoch,
                ends_epoch: end == self.rows,
                rows: order.1[first..end].to_vec(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(shuffle: bool) -> Plan {
        let total_steps = Plan::steps_of_epochs(7, 3, 2);
        Plan { rows: 7, rows_per_step: 3, total_steps, shuffle, seed: 42 }
    }

    #[test]
    fn an_epoch_ends_with_what_is_left() {
        let steps: Vec<_> = plan(false).steps_after(0).collect();
        let rows: Vec<_> = steps.iter().map(|s| s.rows.clone()).collect();
        let epoch = [vec![0, 1, 2], vec![3, 4, 5], vec![6]];
        assert_eq!(rows, [epoch.clone(), epoch].concat());
        let ends: Vec<_> = steps.iter().map(|s| (s.step, s.epoch, s.ends_epoch)).collect();
        let wanted = [
            (1, 0, false),
            (2, 0, false),
            (3, 0, true),
            (4, 1, false),
            (5, 1, false),
            (6, 1, true),
        ];
        assert_eq!(ends, wanted);
        assert_eq!(plan(false).epochs_after(4), 4.0 / 3.0);
    }

    #[test]
    fn every_row_comes_once_an_epoch_and_epochs_differ() {
        let steps: Vec<_> = plan(true).steps_after(0).collect();
        let epoch = |e| steps.iter().filter(move |s| s.epoch == e).flat_map(|s| s.rows.clone());
        for e in [0, 1] {
            let mut rows: Vec<_> = epoch(e).collect();
            rows.sort_unstable();
            assert_eq!(rows, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_ne!(epoch(0).collect::<Vec<_>>(), epoch(1).collect::<Vec<_>>());
    }

    #[test]
    fn a_resumed_run_takes_the_rows_the_first_would_have_taken() {
        let whole: Vec<_> = plan(true).steps_after(0).collect();
        for done in 0..=6 {
            let rest: Vec<_> = plan(true).steps_after(done).collect();
            assert_eq!(rest, whole[done as usize..]);
        }
    }
}
