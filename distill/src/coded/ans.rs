//! The entropy coder: two interleaved range ANS states of 32 bits (Duda 2013, arXiv:1311.2540), 12-bit
//! probabilities, words of 16 bits. Integer arithmetic throughout, so that every machine decodes the
//! same.

/// Probabilities are multiples of `1 / TOTAL`.
pub const TOTAL: u32 = 1 << PROBABILITY_BITS;
/// Bits of a probability.
pub(super) const PROBABILITY_BITS: u32 = 12;
/// States lie in `LOWEST..LOWEST << 16`; both begin (on decoding: end) at it.
const LOWEST: u32 = 1 << 16;
/// Interleaved states: symbol number i belongs to state i mod this.
const STATES: usize = 2;
/// Bytes of a stream of no symbols.
pub(super) const EMPTY_BYTES: usize = 4 * STATES;

/// Where a symbol lies in `0..TOTAL`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interval {
    pub(super) start: u16,
    pub(super) width: u16,
}

/// Symbols to be encoded, in the order in which they will be read.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    symbols: Vec<Interval>,
    words: Vec<u16>,
}

impl Encoder {
    /// Appends a symbol.
    pub(super) fn put(&mut self, symbol: Interval) {
        self.symbols.push(symbol);
    }

    /// Appends the lowest `count` bits of a value as they are.
    pub(super) fn put_bits(&mut self, value: u32, count: u32) {
        let mut left = count;
        while left > 0 {
            let bits = left.min(PROBABILITY_BITS);
            left -= bits;
            let part = (value >> left) & ((1 << bits) - 1);
            let width = TOTAL >> bits;
            self.put(Interval { start: (part * width) as u16, width: width as u16 });
        }
    }

    /// Appends a number in Elias' gamma code: 2 log2(value + 1) + 1 bits.
    pub(super) fn put_number(&mut self, value: u32) {
        let shifted = value + 1;
        let bits = shifted.ilog2();
        for _ in 0..bits {
            self.put_bits(0, 1);
        }
        self.put_bits(1, 1);
        self.put_bits(shifted, bits);
    }

    /// Writes what was put since the last time: the states, then the words.
    pub(super) fn finish(&mut self, bytes: &mut Vec<u8>) {
        let mut states = [LOWEST; STATES];
        self.words.clear();
        for (number, symbol) in self.symbols.iter().enumerate().rev() {
            let state = &mut states[number % STATES];
            let width = u32::from(symbol.width);
            if u64::from(*state) >= u64::from(width) << (32 - PROBABILITY_BITS) {
                self.words.push(*state as u16);
                *state >>= 16;
            }
            let (quotient, rest) = (*state / width, *state % width);
            *state = (quotient << PROBABILITY_BITS) + rest + u32::from(symbol.start);
        }
        self.symbols.clear();
        states.iter().for_each(|state| bytes.extend(state.to_le_bytes()));
        self.words.iter().rev().for_each(|word| bytes.extend(word.to_le_bytes()));
    }
}

/// Reads what an [`Encoder`] wrote.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    states: [u32; STATES],
    words: &'a [[u8; 2]],
    next: usize,
    turn: usize,
}

impl<'a> Decoder<'a> {
    /// Reads a whole stream; none where it is too short or has half a word.
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        let (states, words) = bytes.split_at_checked(EMPTY_BYTES)?;
        let (words, half) = words.as_chunks::<2>();
        if !half.is_empty() {
            return None;
        }
        let states = states.as_chunks::<4>().0;
        let states = std::array::from_fn(|n| u32::from_le_bytes(states[n]));
        Some(Self { states, words, next: 0, turn: 0 })
    }

    /// The next symbol's place in `0..TOTAL`.
    #[inline(always)]
    pub(super) fn peek(&self) -> u32 {
        self.states[self.turn] % TOTAL
    }

    /// Takes the symbol found at [`Self::peek`]: `offset` is the distance from its interval's start.
    /// Past the end of the stream words are 0; [`Self::is_complete`] tells.
    #[inline(always)]
    pub(super) fn take(&mut self, width: u32, offset: u32) {
        let state = &mut self.states[self.turn];
        *state = width * (*state >> PROBABILITY_BITS) + offset;
        if *state < LOWEST {
            let word = self.words.get(self.next).map_or(0, |&word| u16::from_le_bytes(word));
            *state = (*state << 16) | u32::from(word);
            self.next += 1;
        }
        self.turn = (self.turn + 1) % STATES;
    }

    /// The next `count` bits.
    pub(super) fn bits(&mut self, count: u32) -> u32 {
        let (mut value, mut left) = (0, count);
        while left > 0 {
            let bits = left.min(PROBABILITY_BITS);
            left -= bits;
            let width = TOTAL >> bits;
            let place = self.peek();
            value = (value << bits) | (place / width);
            self.take(width, place % width);
        }
        value
    }

    /// The next number in Elias' gamma code; none where it has more than `most` bits.
    pub(super) fn number(&mut self, most: u32) -> Option<u32> {
        let mut bits = 0;
        while self.bits(1) == 0 {
            bits += 1;
            if bits > most {
                return None;
            }
        }
        Some((1 << bits | self.bits(bits)) - 1)
    }

    /// Whether everything written was read, and nothing else.
    pub(super) fn is_complete(&self) -> bool {
        self.next == self.words.len() && self.states == [LOWEST; STATES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_put_is_read(
            values in prop::collection::vec((0u32..1 << 20, 0u32..=20), 0..300),
        ) {
            let mut encoder = Encoder::default();
            for &(value, count) in &values {
                encoder.put_bits(value & ((1 << count) - 1), count);
                encoder.put_number(value);
            }
            let mut bytes = Vec::new();
            encoder.finish(&mut bytes);
            let mut decoder = Decoder::new(&bytes).unwrap();
            for &(value, count) in &values {
                prop_assert_eq!(decoder.bits(count), value & ((1 << count) - 1));
                prop_assert_eq!(decoder.number(20), Some(value));
            }
            prop_assert!(decoder.is_complete());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(mut decoder) = Decoder::new(&bytes) {
                for count in 0..20 {
                    decoder.bits(count);
                    decoder.number(20);
                }
            }
        }
    }

    /// A thousand symbols of known probabilities take their information and the states' 4 bytes more.
    #[test]
    fn symbols_take_the_bits_their_probability_says() {
        let widths = [3000u16, 1000, 90, 6];
        let starts = [0u16, 3000, 4000, 4090];
        let mut encoder = Encoder::default();
        let mut information = 0.0;
        for number in 0..10_000usize {
            // As often as their probability says.
            let place = (number * 2_654_435_761) % 4096;
            let symbol = starts.iter().rposition(|&start| usize::from(start) <= place).unwrap();
            information -= (f64::from(widths[symbol]) / 4096.0).log2();
            encoder.put(Interval { start: starts[symbol], width: widths[symbol] });
        }
        let mut bytes = Vec::new();
        encoder.finish(&mut bytes);
        let bound = information / 8.0;
        assert!((bytes.len() as f64) < bound * 1.002 + 8.0, "{} of {bound}", bytes.len());
        assert!(bytes.len() as f64 > bound);
    }
}
