//! The innermost loop: a tile of the product in registers.

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps,
};

use super::pack::Rows;
use crate::ops::product::{MatMut, Store};

/// Rows of a tile. With two registers a row its sums take 24 of the 32, and each element of `a`
/// that is loaded serves two instructions.
pub(super) const ROWS: usize = 12;
/// Columns of a tile: two registers.
pub(super) const COLUMNS: usize = 32;

/// The sums of a tile.
type Sums = [[__m512; 2]; ROWS];

/// Where a tile's sums go, and how.
pub(super) struct Tile<'a> {
    /// At most [`ROWS`] x [`COLUMNS`] elements.
    pub(super) target: MatMut<'a>,
    pub(super) store: Store,
    pub(super) alpha: f32,
}

impl Tile<'_> {
    /// Multiplies the rows from `row` on with a panel over the same terms.
    pub(super) fn multiply(self, rows: &Rows<'_>, row: usize, panel: &[u32]) {
        let (a, row_stride, pair_stride) = rows.from(row);
        let read = match rows.pairs {
            0 => 0,
            pairs => (ROWS - 1) * row_stride + (pairs - 1) * pair_stride + 1,
        };
        assert!(a.len() >= read && panel.len() >= rows.pairs * COLUMNS, "operands too short");
        #[expect(unsafe_code, reason = "instructions not every processor has")]
        // SAFETY: the driver asserted that this one has them; the buffers hold what is read, as
        // just checked.
        unsafe {
            let sums = sums(a.as_ptr(), row_stride, pair_stride, panel.as_ptr(), rows.pairs);
            self.write(&sums);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn write(mut self, sums: &Sums) {
        let cols = self.target.cols();
        let masks = [lanes(cols), lanes(cols.saturating_sub(16))];
        let alpha = _mm512_set1_ps(self.alpha);
        for (row, sums) in sums.iter().enumerate().take(self.target.rows()) {
            let start = self.target.row_start(row);
            for (half, (&sum, &mask)) in sums.iter().zip(&masks).enumerate() {
                let to = start.wrapping_add(16 * half);
                #[expect(unsafe_code, reason = "part of a row")]
                // SAFETY: the mask leaves out what lies beyond the row's columns.
                unsafe {
                    let value = match self.store {
                        Store::Replace => _mm512_mul_ps(sum, alpha),
                        Store::Add => _mm512_fmadd_ps(sum, alpha, _mm512_maskz_loadu_ps(mask, to)),
                    };
                    _mm512_mask_storeu_ps(to, mask, value);
                }
            }
        }
    }
}

/// The first `count` of 16 lanes.
fn lanes(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// `a` holds pairs of terms, that of row r and pair p at `r·row_stride + p·pair_stride`; `b` holds
/// [`COLUMNS`] pairs for each p.
///
/// # Safety
/// Both must be good to read at what these places name, for [`ROWS`] rows and `pairs` pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[expect(unsafe_code, reason = "the innermost loop checks no bounds")]
unsafe fn sums(
    mut a: *const u32,
    row_stride: usize,
    pair_stride: usize,
    mut b: *const u32,
    pairs: usize,
) -> Sums {
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    for _ in 0..pairs {
        // SAFETY: promised by the caller.
        unsafe {
            let low = as_pairs(_mm512_loadu_si512(b.cast()));
            let high = as_pairs(_mm512_loadu_si512(b.add(16).cast()));
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = as_pairs(_mm512_set1_epi32(*a.add(row * row_stride) as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], x, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], x, high);
            }
        }
        a = a.wrapping_add(pair_stride);
        b = b.wrapping_add(COLUMNS);
    }
    sums
}

#[target_feature(enable = "avx512f")]
fn as_pairs(register: __m512i) -> __m512bh {
    #[expect(unsafe_code, reason = "one register under another name")]
    // SAFETY: both are 64 bytes, and every pattern of bits is a value of both.
    unsafe {
        std::mem::transmute(register)
    }
}
