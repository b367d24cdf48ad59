//! Quantised matrices, widened, against candle's own reading of ggml's blocks: to the bit.

use std::borrow::Cow;

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use half::{bf16, f16};
use kernels::Activations;
use kernels::emulation::Memory;
use kernels::quantised::{Quantised, gather, widen};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::elements::{all, emulated};

const ALL: [(Quantised, GgmlDType); 3] = [
    (Quantised::Q8_0, GgmlDType::Q8_0),
    (Quantised::Q4K, GgmlDType::Q4K),
    (Quantised::Q6K, GgmlDType::Q6K),
];

/// Blocks of any bytes: every pattern of scales and numbers. The half precision numbers among them are small, once each
/// the smallest subnormal, one that is normal and one that is negative.
fn blocks(of: Quantised, count: usize, seed: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut all = vec![0; count * of.bytes()];
    random.fill(&mut all[..]);
    let halves: &[usize] = match of {
        Quantised::Q8_0 => &[0],
        Quantised::Q4K => &[0, 2],
        Quantised::Q6K => &[208],
    };
    for (number, block) in all.chunks_mut(of.bytes()).enumerate() {
        for (which, &at) in halves.iter().enumerate() {
            let d = match (number + which) % 4 {
                0 => f16::from_f32(random.random_range(0.001..0.1)),
                1 => f16::from_bits(1 + number as u16),
                2 => f16::from_f32(-0.7),
                _ => f16::from_f32(3.0),
            };
            block[at..at + 2].copy_from_slice(&d.to_le_bytes());
        }
    }
    all
}

/// What candle reads in blocks.
fn read(of: GgmlDType, blocks: &[u8], count: usize) -> Vec<f32> {
    let Ok(CpuStorage::F32(values)) = of.from_data(Cow::Borrowed(blocks)).dequantize(count) else {
        panic!("candle reads float32")
    };
    values
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn matrices_are_widened_as_candle_reads_them() {
    if !emulated("matrices_are_widened_as_candle_reads_them") {
        return;
    }
    for (of, ggml) in ALL {
        assert_eq!((of.bytes(), of.values()), (ggml.type_size(), ggml.block_size()));
        for count in [1, 7, 33] {
            let (bytes, values) = (blocks(of, count, count as u64), count * of.values());
            let exact = read(ggml, &bytes, values);
            let memory = &mut Memory::default();
            let x = memory.of("x", &bytes);
            let wide = memory.unwritten::<f32>("wide", values);
            let rounded = memory.unwritten::<bf16>("rounded", values);
            let both = [
                widen([x, wide], of, values, Activations::F32),
                widen([x, rounded], of, values, Activations::Bf16),
            ];
            all(&both, memory);
            assert_eq!(bits(&memory.floats(wide)), bits(&exact), "{of:?}, {count} blocks");
            let exact: Vec<f32> = exact.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
            assert_eq!(bits(&memory.floats(rounded)), bits(&exact), "{of:?}, {count} blocks");
        }
    }
}

#[test]
fn rows_are_widened_by_number() {
    if !emulated("rows_are_widened_by_number") {
        return;
    }
    let ids = [3_u32, 0, 3, 4];
    for (of, ggml) in ALL {
        // Of Q8_0 also more blocks of threads than one a row.
        for in_a_row in [1, 3, 40] {
            let (bytes, width) = (blocks(of, 5 * in_a_row, 9), in_a_row * of.values());
            let exact = read(ggml, &bytes, 5 * width);
            let rows = ids.iter().flat_map(|&id| &exact[id as usize * width..][..width]);
            let rows: Vec<f32> = rows.copied().collect();
            let memory = &mut Memory::default();
            let (w, at_ids) = (memory.of("w", &bytes), memory.of("ids", &ids));
            let y = memory.unwritten::<f32>("y", ids.len() * width);
            all(&[gather([w, at_ids, y], of, [ids.len() as u32, width as u32])], memory);
            assert_eq!(bits(&memory.floats(y)), bits(&rows), "{of:?}, {in_a_row} blocks a row");
        }
    }
}

/// What a file that is damaged may hold: it must not become a number.
#[test]
fn infinite_scales_and_those_that_are_none_stay_so() {
    if !emulated("infinite_scales_and_those_that_are_none_stay_so") {
        return;
    }
    let mut bytes = vec![1; 2 * Quantised::Q8_0.bytes()];
    bytes[..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    bytes[34..36].copy_from_slice(&f16::NAN.to_le_bytes());
    let memory = &mut Memory::default();
    let (x, y) = (memory.of("x", &bytes), memory.unwritten::<f32>("y", 64));
    all(&[widen([x, y], Quantised::Q8_0, 64, Activations::F32)], memory);
    let found = memory.floats(y);
    assert!(found[..32].iter().all(|x| *x == f32::INFINITY), "{found:?}");
    assert!(found[32..].iter().all(|x| x.is_nan()), "{found:?}");
}
