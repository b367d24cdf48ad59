"""Reads coded hidden states: the code, the entropy decoder, and hidden states bit for bit as every reader has them.

Written from docs/wire.md (Coded hidden states). Letters: R rows, D numbers of a hidden state, J directions. What is
damaged raises ValueError. The decoder is a loop over symbols, to read; sums over directions are numpy's.
"""
import math
from bisect import bisect_right
from decimal import Decimal

import numpy as np

from signals import Arrays, check, must

UNITS = 4096  # of probability: what the widths of a table sum to
BLOCK = 64  # rows of a block
LOWEST_STATE = 1 << 16
PLAIN, EXCEPTIONS, VERBATIM = range(3)
KINDS = [0, 4000, 4092, UNITS]  # where the interval of each kind of row begins
FIRST_CLASS, LAST_CLASS = -24, 60
FIRST_RAW_CLASS = 12  # from here on lower bits travel as they are
RUNGS = range(-1600, 1601)
# Bounds that keep every sum below 2^53, where float64 has all whole numbers.
LARGEST_NUMBER, LARGEST_ENTRY, LARGEST_WIDTH = (1 << 15) - 1, (1 << 24) - 1, 8192


class Table:
    """How likely the numbers from `lowest` on are, and last of all the escape."""

    def __init__(self, lowest, widths):
        must(2 <= len(widths) <= 255 and min(widths) > 0, f"a table of the widths {widths}")
        must(abs(lowest) <= LARGEST_NUMBER, f"a table from {lowest} on")
        check("damaged: sum of a table's widths", sum(widths), UNITS)
        self.lowest, self.end = lowest, lowest + len(widths) - 1
        self.starts = [0]
        for width in widths:
            self.starts.append(self.starts[-1] + width)

    def width(self, number):
        if not self.lowest <= number < self.end:
            return 0
        return self.starts[number - self.lowest + 1] - self.starts[number - self.lowest]


class Symbols:
    """The range ANS decoder of a block: two states that take turns, and words that fill them up."""

    def __init__(self, block):
        must(len(block) >= 8 and len(block) % 2 == 0, f"a block of {len(block)} bytes")
        arrays = Arrays(block)
        self.states = arrays.take("<u4", 2).tolist()
        self.words = iter(arrays.take("<u2", len(block) // 2 - 4).tolist())
        must(min(self.states) >= LOWEST_STATE, "a state that is too low")
        self.turn = 0

    def place(self):
        return self.states[self.turn] % UNITS

    def advance(self, start, width):
        """Takes the symbol of this interval from the state whose turn it is."""
        state = self.states[self.turn]
        state = width * (state // UNITS) + state % UNITS - start
        if state < LOWEST_STATE:
            word = next(self.words, None)
            must(word is not None, "a block ends within a row")
            state = state << 16 | word
        self.states[self.turn] = state
        self.turn ^= 1

    def symbol(self, starts):
        """The index of a symbol whose interval begins at `starts[index]` and ends at the next."""
        index = bisect_right(starts, self.place()) - 1
        self.advance(starts[index], starts[index + 1] - starts[index])
        return index

    def bits(self, count):
        """A number of `count` bits as they are, the upper ones first."""
        value = 0
        while count > 0:
            some = min(count, 12)
            width = UNITS >> some
            piece = self.place() // width
            self.advance(piece * width, width)
            value, count = value << some | piece, count - some
        return value

    def gamma(self):
        """A number from 0 on in Elias' gamma code; none that a row holds has more than 17 bits."""
        l = 0
        while self.bits(1) == 0:
            l += 1
            must(l <= 16, "a number beyond 17 bits")
        return (1 << l | self.bits(l)) - 1

    def number(self, table):
        """A number by a table, or beyond its ends."""
        index = self.symbol(table.starts)
        if table.lowest + index < table.end:
            return table.lowest + index
        below = self.bits(1)
        distance = self.gamma()
        return table.lowest - 1 - distance if below else table.end + distance

    def end(self):
        must(self.states == [LOWEST_STATE] * 2 and next(self.words, None) is None, "a block does not end with its rows")


class Code:
    """A code, of the bytes that Fetch gave; whether their BLAKE3 is its name is for who fetched them to see."""

    def __init__(self, blob):
        arrays = Arrays(blob)
        check("a code's first bytes", arrays.take("u1", 8).tobytes(), b"LMBKCODE")
        check("a code's version", int(arrays.take("<u2", 1)[0]), 1)
        self.exponent = int(arrays.take("<i2", 1)[0])
        width, directions = arrays.take("<u4", 2).tolist()
        must(1 <= directions <= width <= LARGEST_WIDTH, f"{directions} directions of a width of {width}")
        self.model = arrays.take("u1", 32).tobytes().hex()
        self.mean = arrays.take("<f4", width)
        self.classes = arrays.take("<i2", directions)
        self.matrix = arrays.take("<i4", width, directions)
        self.tables = []
        for _ in range(36):
            lowest, symbols = int(arrays.take("<i2", 1)[0]), int(arrays.take("<u2", 1)[0])
            self.tables.append(Table(lowest, arrays.take("<u2", symbols).tolist()))
        rates = int(arrays.take("<u4", 1)[0])
        self.rates = arrays.take("<i2,<f4,<f4", rates).tolist()  # rung, bytes a position, divergence
        arrays.end()
        must(np.isfinite(self.mean).all() and -1000 <= self.exponent <= 900, "a code's mean or exponent")
        must((np.diff(self.classes.astype(int)) <= 0).all(), "a code's directions do not fall")
        must(np.abs(self.matrix.astype(np.int64)).max() <= LARGEST_ENTRY, "a code's matrix")
        must((np.diff([rung for rung, *_ in self.rates]) > 0).all(), "a code's rates do not rise")

    def decode(self, signal, rows, rung):
        """Hidden states [R, D] f32 of coded rows at the step that was asked for."""
        arrays = Arrays(signal)
        head = (arrays.take("u1", 2).tolist(), int(arrays.take("<i2", 1)[0]))
        check("head", head, ([0xC0, 1], rung))
        must(rung in RUNGS, f"rung {rung}")
        counts = [min(BLOCK, rows - first) for first in range(0, rows, BLOCK)]
        lengths = arrays.take("<u4", max(len(counts) - 1, 0)).tolist()  # of all but the last
        spoken = self.spoken(rung)
        numbers, verbatim = np.zeros((rows, len(self.classes)), int), {}
        for block, count in enumerate(counts):
            length = lengths[block] if block < len(lengths) else len(signal) - arrays.at
            symbols = Symbols(arrays.take("u1", length).tobytes())
            for row in range(BLOCK * block, BLOCK * block + count):
                values = self.row(symbols, spoken, numbers[row])
                if values is not None:
                    verbatim[row] = values
            symbols.end()
        arrays.end()
        hidden = self.hidden(numbers, rung)
        for row, values in verbatim.items():
            hidden[row] = values
        must(np.isfinite(hidden).all(), "a number that is not finite")
        return hidden

    def spoken(self, rung):
        """For each direction that is spoken of, the first ones: its table, and how many bits travel as they are."""
        first = next((c for c in range(FIRST_CLASS, FIRST_RAW_CLASS) if self.tables[c - FIRST_CLASS].width(0) < 4092),
                     FIRST_RAW_CLASS)
        spoken = []
        for of_code in self.classes.tolist():
            found = min((of_code - rung + 2) // 4, LAST_CLASS)
            if found < first:
                break
            raw = (found - 8) // 4 if found >= FIRST_RAW_CLASS else 0
            spoken.append((self.tables[found - 4 * raw - FIRST_CLASS], raw))
        return spoken

    def row(self, symbols, spoken, numbers):
        """Reads a row into its numbers [J]; gives the hidden state [D] of one that travelled verbatim."""
        kind = symbols.symbol(KINDS)
        if kind == VERBATIM:
            return np.array([symbols.bits(32) for _ in self.mean], "<u4").view("<f4")
        if kind == EXCEPTIONS:
            silent = numbers[len(spoken) :]
            count = symbols.gamma() + 1
            must(count <= len(silent), "more exceptions than directions")
            for _ in range(count):
                place = symbols.bits((len(silent) - 1).bit_length())
                negative, magnitude = symbols.bits(1), symbols.gamma() + 1
                must(place < len(silent) and not silent[place], "an exception in no direction, or a second one")
                silent[place] = -magnitude if negative else magnitude
        for direction, (table, raw) in enumerate(spoken):
            number = symbols.number(table)
            if raw:
                number = (number << raw | symbols.bits(raw)) - (1 << raw - 1)
            numbers[direction] = number
        must(np.abs(numbers).max() <= LARGEST_NUMBER, "a number beyond the largest")
        return None

    def hidden(self, numbers, rung):
        """`mean + unit · Σ matrix_j number_j`, [R, D] f32, of numbers [R, J]: the sum exact, the rest in float64."""
        # Products and sums of whole numbers, all below 2^53: exact, in whatever order they are added.
        sums = numbers.astype(np.float64) @ self.matrix.T.astype(np.float64)
        # The root to the nearest float64, which not every `pow` gives; times powers of two.
        root = float(Decimal(2) ** (Decimal(rung % 16) / 16))
        unit = math.ldexp(root, rung // 16 + self.exponent)
        return (self.mean.astype(np.float64) + unit * sums).astype(np.float32)
