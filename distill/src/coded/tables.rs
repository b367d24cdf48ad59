//! Static tables: how probable each multiple of the step is, for every ratio of a direction's spread
//! to the step.
//!
//! All directions have the same shape to within a hundredth of a bit, so that there is one table for
//! each quarter octave of the ratio, made from the standardised coordinates of all directions
//! together. Where the spread is above 8 steps the lowest bits of a number are as good as random: they
//! travel as they are, and the rest by the table of a ratio between 4 and 8.

use super::CodedError;
use super::ans::{Decoder, Encoder, Interval, TOTAL};

/// Ratio classes with a table of their own: ratio = 2^(class / 4).
pub(super) const FIRST_CLASS: i32 = -24;
/// From this class on the lowest bits travel as they are.
const SHIFTED_FROM: i32 = 12;
/// Number of tables.
pub(super) const TABLES: usize = (SHIFTED_FROM - FIRST_CLASS) as usize;
/// Most symbols of a table beside the escape.
const MOST_SYMBOLS: usize = 254;
/// Largest magnitude of a number; a row with a larger one travels as float32.
pub const MAX_NUMBER: i32 = (1 << 15) - 1;
/// Bits of an escaped number's distance from the table.
const ESCAPE_BITS: u32 = 16;
/// Weight of zero in `TOTAL` from which on a direction is not spoken of.
const SILENT: u32 = TOTAL - 4;

/// The numbers `lowest..lowest + n` and, last, the escape for all others.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    lowest: i32,
    /// Of each symbol; the widths sum to [`TOTAL`].
    intervals: Vec<Interval>,
    /// For each place in `0..TOTAL`: symbol | width << 8 | offset << 20.
    places: Vec<u32>,
}

impl Table {
    /// A table of these widths, the escape's last.
    ///
    /// # Errors
    /// [`CodedError::Table`] when a width is 0, there are none or too many, or they do not sum to 4,096.
    pub(super) fn new(class: i32, lowest: i32, widths: &[u16]) -> Result<Self, CodedError> {
        let sum: u32 = widths.iter().map(|&width| u32::from(width)).sum();
        let sizes = 2..=MOST_SYMBOLS + 1;
        let sound = sizes.contains(&widths.len()) && widths.iter().all(|&width| width > 0);
        if !sound || sum != TOTAL || lowest.unsigned_abs() > MAX_NUMBER as u32 {
            return Err(CodedError::Table { class, symbols: widths.len(), sum });
        }
        let mut start = 0;
        let mut intervals = Vec::with_capacity(widths.len());
        let mut places = Vec::with_capacity(TOTAL as usize);
        for (symbol, &width) in widths.iter().enumerate() {
            intervals.push(Interval { start, width });
            start += width;
            let place = |offset: u32| symbol as u32 | u32::from(width) << 8 | offset << 20;
            places.extend((0..u32::from(width)).map(place));
        }
        Ok(Self { lowest, intervals, places })
    }

    /// Its lowest number, and the widths with the escape's last.
    pub(super) fn parts(&self) -> (i32, impl ExactSizeIterator<Item = u16> + '_) {
        (self.lowest, self.intervals.iter().map(|interval| interval.width))
    }

    fn escape(&self) -> usize {
        self.intervals.len() - 1
    }

    fn width_of(&self, number: i32) -> u32 {
        let symbol = usize::try_from(number - self.lowest).unwrap_or(usize::MAX);
        let known = self.intervals[..self.escape()].get(symbol);
        known.map_or(0, |interval| u32::from(interval.width))
    }

    #[inline]
    fn put(&self, number: i32, encoder: &mut Encoder) {
        let escape = self.escape();
        match usize::try_from(number - self.lowest) {
            Ok(symbol) if symbol < escape => encoder.put(self.intervals[symbol]),
            Ok(_) | Err(_) => {
                encoder.put(self.intervals[escape]);
                let end = self.lowest + escape as i32;
                let below = number < self.lowest;
                encoder.put_bits(u32::from(below), 1);
                let distance = if below { self.lowest - 1 - number } else { number - end };
                encoder.put_number(distance as u32);
            }
        }
    }

    /// None where an escaped number is none.
    #[inline(always)]
    fn get(&self, decoder: &mut Decoder<'_>) -> Option<i32> {
        let place = self.places[decoder.peek() as usize];
        decoder.take(place >> 8 & 0xfff, place >> 20);
        let (symbol, escape) = ((place & 0xff) as usize, self.escape());
        if symbol < escape {
            return Some(self.lowest + symbol as i32);
        }
        let below = decoder.bits(1) == 1;
        let distance = decoder.number(ESCAPE_BITS)? as i32;
        Some(if below {
            self.lowest - 1 - distance
        } else {
            self.lowest + escape as i32 + distance
        })
    }
}

/// The tables of all ratios.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tables {
    /// `[TABLES]`, of the classes from [`FIRST_CLASS`] on.
    tables: Vec<Table>,
    /// Directions of a lower class are not spoken of.
    pub(super) least: i32,
}

/// How a direction's numbers are coded at a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Coding<'a> {
    table: &'a Table,
    /// Bits that travel as they are.
    shift: u32,
}

impl Tables {
    /// From the tables of the classes from [`FIRST_CLASS`] on.
    pub(super) fn new(tables: Vec<Table>) -> Self {
        let loud = |table: &Table| table.width_of(0) < SILENT;
        let least = tables.iter().position(loud).unwrap_or(tables.len());
        Self { tables, least: FIRST_CLASS + least as i32 }
    }

    /// From standardised coordinates in ascending order, all finite; at least one.
    ///
    /// # Errors
    /// [`CodedError::Table`] when they spread so far that no table can be made of them.
    pub(super) fn of_shape(sorted: &[f32]) -> Result<Self, CodedError> {
        let classes = FIRST_CLASS..SHIFTED_FROM;
        let tables: Result<Vec<Table>, _> = classes.map(|class| of_class(sorted, class)).collect();
        Ok(Self::new(tables?))
    }

    pub(super) fn all(&self) -> &[Table] {
        &self.tables
    }

    /// How a direction of this class is coded; none when it is not spoken of.
    pub(super) fn coding(&self, class: i32) -> Option<Coding<'_>> {
        if class < self.least {
            return None;
        }
        let shift = if class < SHIFTED_FROM { 0 } else { ((class - 8) >> 2) as u32 };
        let at = (class - 4 * shift as i32 - FIRST_CLASS) as usize;
        Some(Coding { table: &self.tables[at], shift })
    }
}

impl Coding<'_> {
    /// Half of the numbers that share their upper bits: these are the middle of them.
    fn half(self) -> i32 {
        (1 << self.shift) >> 1
    }

    #[inline]
    pub(super) fn put(self, number: i32, encoder: &mut Encoder) {
        let raised = number + self.half();
        self.table.put(raised >> self.shift, encoder);
        encoder.put_bits(raised as u32 & ((1 << self.shift) - 1), self.shift);
    }

    /// None where an escaped number is none.
    #[inline(always)]
    pub(super) fn get(self, decoder: &mut Decoder<'_>) -> Option<i32> {
        let upper = self.table.get(decoder)?;
        if self.shift == 0 {
            return Some(upper);
        }
        let lower = decoder.bits(self.shift) as i32;
        Some((upper << self.shift) + lower - self.half())
    }

    /// Bits of a number by the table's probabilities: the entropy coder's bound.
    pub(super) fn information(self, number: i32) -> f64 {
        let mut encoder = Symbols(0.0);
        encoder.of(self.table, (number + self.half()) >> self.shift);
        encoder.0 + f64::from(self.shift)
    }
}

struct Symbols(f64);

impl Symbols {
    fn of(&mut self, table: &Table, number: i32) {
        let bits = |width: u32| (f64::from(TOTAL) / f64::from(width)).log2();
        let width = table.width_of(number);
        if width > 0 {
            self.0 += bits(width);
            return;
        }
        let end = table.lowest + table.escape() as i32;
        let distance = if number < table.lowest { table.lowest - 1 - number } else { number - end };
        let escape = u32::from(table.intervals[table.escape()].width);
        self.0 += bits(escape) + 2.0 + 2.0 * f64::from((distance + 1).ilog2());
    }
}

/// Largest class with bits of its own in a shift: numbers then have at most 15 bits.
pub(super) const LAST_CLASS: i32 = 60;

fn of_class(sorted: &[f32], class: i32) -> Result<Table, CodedError> {
    let ratio = (f64::from(class) / 4.0).exp2();
    let count = sorted.len() as f64;
    let below = |number: i32| {
        let edge = (f64::from(number) - 0.5) / ratio;
        sorted.partition_point(|&x| f64::from(x) < edge) as f64
    };
    // As far out as a number has a share of the table's smallest unit.
    let seen = |number: i32| below(number + 1) - below(number) >= count / f64::from(TOTAL);
    let reach = (MOST_SYMBOLS as i32 - 1) / 2;
    let first = (-reach..0).find(|&number| seen(number)).unwrap_or(0);
    let last = (1..=reach).rev().find(|&number| seen(number)).unwrap_or(0);
    let mut masses: Vec<f64> =
        (first..=last).map(|number| below(number + 1) - below(number)).collect();
    masses.push(count - masses.iter().sum::<f64>());
    Table::new(class, first, &in_units(&masses))
}

/// Whole widths of at least 1 in proportion to these masses, which sum to [`TOTAL`]: what rounding
/// leaves goes to those that lose or gain least by it.
fn in_units(masses: &[f64]) -> Vec<u16> {
    let total: f64 = masses.iter().sum();
    let exact: Vec<f64> = masses.iter().map(|mass| mass / total * f64::from(TOTAL)).collect();
    let mut widths: Vec<u16> = exact.iter().map(|share| share.round().max(1.0) as u16).collect();
    loop {
        let sum: u32 = widths.iter().map(|&width| u32::from(width)).sum();
        let cost = |at: usize, now: f64| exact[at] * (f64::from(widths[at]) / now).ln();
        let all = 0..widths.len();
        let changed = if sum > TOTAL {
            let lowered = |at: usize| cost(at, f64::from(widths[at]) - 1.0);
            let able = all.filter(|&at| widths[at] > 1);
            able.min_by(|&a, &b| lowered(a).total_cmp(&lowered(b))).map(|at| (at, -1))
        } else if sum < TOTAL {
            let raised = |at: usize| cost(at, f64::from(widths[at]) + 1.0);
            all.min_by(|&a, &b| raised(a).total_cmp(&raised(b))).map(|at| (at, 1))
        } else {
            None
        };
        match changed {
            Some((at, by)) => widths[at] = widths[at].saturating_add_signed(by),
            None => return widths,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A standard normal by its quantiles.
    pub(crate) fn normal(count: usize) -> Vec<f32> {
        // Acklam's tails are not needed: the sum of twelve even numbers is near enough for a shape.
        let mut values: Vec<f32> = (0..count as u64)
            .map(|n| {
                let uniform = |at: u64| {
                    let mixed = (n * 12 + at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as f32
                        / (1 << 24) as f32
                };
                (0..12).map(uniform).sum::<f32>() - 6.0
            })
            .collect();
        values.sort_by(f32::total_cmp);
        values
    }

    #[test]
    fn widths_sum_and_follow_the_masses() {
        assert_eq!(in_units(&[1.0, 1.0, 2.0]), [1024, 1024, 2048]);
        assert_eq!(in_units(&[0.0, 1e9]), [1, 4095]);
        let widths = in_units(&vec![1.0; 255]);
        assert_eq!(widths.iter().map(|&width| u32::from(width)).sum::<u32>(), TOTAL);
        assert!(widths.iter().all(|&width| width == 16 || width == 17));
    }

    #[test]
    fn every_number_comes_back_at_every_ratio() {
        let tables = Tables::of_shape(&normal(20_000)).unwrap();
        assert_eq!(tables.all().len(), TABLES);
        let numbers: Vec<i32> =
            (-40..=40).chain([-MAX_NUMBER, MAX_NUMBER, 255, -255, 4096]).collect();
        for class in tables.least..=LAST_CLASS {
            let coding = tables.coding(class).unwrap();
            let mut encoder = Encoder::default();
            numbers.iter().for_each(|&number| coding.put(number, &mut encoder));
            let mut bytes = Vec::new();
            encoder.finish(&mut bytes);
            let mut decoder = Decoder::new(&bytes).unwrap();
            let read: Option<Vec<i32>> = numbers.iter().map(|_| coding.get(&mut decoder)).collect();
            assert_eq!(read.as_ref(), Some(&numbers), "class {class}");
            assert!(decoder.is_complete());
        }
        assert!(tables.coding(tables.least - 1).is_none());
    }

    /// The differential entropy of a normal is log2(spread sqrt(2 pi e)) bits.
    #[test]
    fn a_normal_costs_what_its_entropy_says() {
        let shape = normal(200_000);
        let tables = Tables::of_shape(&shape).unwrap();
        for class in [4, 8, 11, 16, 22] {
            let ratio = (f64::from(class) / 4.0).exp2();
            let coding = tables.coding(class).unwrap();
            let bits: f64 = shape
                .iter()
                .map(|&x| coding.information((f64::from(x) * ratio).round() as i32))
                .sum();
            let entropy =
                (ratio * (2.0 * std::f64::consts::PI * std::f64::consts::E).sqrt()).log2();
            let found = bits / shape.len() as f64;
            assert!((found - entropy).abs() < 0.02, "class {class}: {found} of {entropy}");
        }
    }

    #[test]
    fn tables_that_do_not_sum_are_refused() {
        assert!(Table::new(0, 0, &[4095, 1]).is_ok());
        for widths in [&[4095u16, 2][..], &[4096], &[], &[4096, 0], &[2048, 2047]] {
            let refused = Table::new(3, 0, widths).unwrap_err();
            assert!(matches!(refused, CodedError::Table { class: 3, .. }), "{widths:?}");
        }
    }
}
