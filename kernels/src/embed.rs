//! Launches that read and add to rows of a matrix by number (`cuda/embed.cu`).

use crate::Argument::{Buffer, U32};
use crate::{Activations, Call};

/// `y[j] = w[ids[j]]`: `w` `[R, width]` in `weights`, `ids` `[rows]` u32, `y` `[rows, width]` float32. Ids are the
/// caller's to check.
pub fn gather<B>([w, ids, y]: [B; 3], [rows, width]: [u32; 2], weights: Activations) -> Call<B> {
    Call::over_rows(
        weights.of(["gather_f32", "gather_bf16"]),
        [rows, width],
        vec![Buffer(w), Buffer(ids), Buffer(y), U32(width)],
    )
}

/// Which rows are added to which: places with the same id together, in the order they had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Places among the ids, sorted by these; `[n]`.
    pub places: Vec<u32>,
    /// The ids, each once, rising.
    pub ids: Vec<u32>,
    /// Where each id's places begin in `places`, and, last, n; one more than `ids`.
    pub starts: Vec<u32>,
}

impl Runs {
    /// Of these ids.
    pub fn of(ids: &[u32]) -> Self {
        Self::without(ids, None)
    }

    /// Of these ids but one.
    pub fn without(ids: &[u32], left_out: Option<u32>) -> Self {
        let mut places: Vec<u32> =
            (0..ids.len() as u32).filter(|&at| Some(ids[at as usize]) != left_out).collect();
        places.sort_by_key(|&place| ids[place as usize]);
        let (mut once, mut starts) = (Vec::new(), Vec::new());
        for (at, &place) in places.iter().enumerate() {
            let id = ids[place as usize];
            if once.last() != Some(&id) {
                once.push(id);
                starts.push(at as u32);
            }
        }
        starts.push(places.len() as u32);
        Self { places, ids: once, starts }
    }
}

/// `dw[ids[j]] += d[j]`, a row that occurs several times in the order of its places: `d` `[n, width]` and `dw` `[R,
/// width]` float32, and buffers of what [`Runs`] holds, of `runs` ids.
pub fn scatter_add<B>([d, places, ids, starts, dw]: [B; 5], [runs, width]: [u32; 2]) -> Call<B> {
    Call::over_rows(
        "scatter_add",
        [runs, width],
        vec![Buffer(d), Buffer(places), Buffer(ids), Buffer(starts), Buffer(dw), U32(width)],
    )
}
