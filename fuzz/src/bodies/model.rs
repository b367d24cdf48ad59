//! A model that costs next to nothing, since millions of bodies are answered by it: what it expects
//! after a token depends on that token alone.

use distill::signal::{TopK, log_sum_exp};
use proto::convert::ScoreJob;
use teacher_server::scorer::Scores;

use super::CLASSES;

/// The model.
pub(super) struct Table {
    /// Logits after each token.
    logits: Vec<Vec<f64>>,
    /// The ids after each, the most probable first.
    best: Vec<Vec<u32>>,
}

impl Table {
    pub(super) fn new() -> Self {
        let logit = |token: usize, id: usize| ((token * 37 + id * 11) % 101) as f64 / 8.0 - 6.0;
        let row = |token| (0..CLASSES).map(|id| logit(token, id)).collect::<Vec<f64>>();
        let logits: Vec<_> = (0..CLASSES).map(row).collect();
        let order = |row: &Vec<f64>| {
            let mut ids: Vec<u32> = (0..CLASSES as u32).collect();
            ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            ids
        };
        let best = logits.iter().map(order).collect();
        Self { logits, best }
    }

    /// What a job is answered.
    pub(super) fn scores(&self, job: &ScoreJob) -> Scores {
        let mut signal = TopK::new(job.k);
        let (mut next_logprob, mut next_logprob_t) = (vec![], vec![]);
        let t = f64::from(job.temperature);
        for (position, next) in job.positions().zip(job.next_tokens()) {
            let token = job.tokens[position as usize] as usize;
            let (logits, best) = (&self.logits[token], &self.best[token][..job.k]);
            let logprob = |id: u32, t: f64, log_z: f64| logits[id as usize] / t - log_z;
            let log_z_of = |t: f64| log_sum_exp(logits.iter().map(|logit| logit / t));
            let (log_z, log_z_1) = (log_z_of(t), log_z_of(1.0));
            let shown: f64 = best.iter().map(|&id| logprob(id, t, log_z).exp()).sum();
            signal.ids.extend(best);
            signal.scaled.extend(best.iter().map(|&id| (logits[id as usize] / t) as f32));
            signal.log_z.push(log_z as f32);
            signal.log_rest.push((1.0 - shown).max(0.0).ln() as f32);
            let realised = |t, log_z| next.map_or(f64::NAN, |id| logprob(id, t, log_z)) as f32;
            next_logprob.push(realised(1.0, log_z_1));
            next_logprob_t.push(realised(t, log_z));
        }
        Scores { signal: signal.into(), next_logprob, next_logprob_t }
    }
}
