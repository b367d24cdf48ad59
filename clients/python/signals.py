"""Reads what a teacher says into numpy arrays: top-k in every codec, draws, hidden states, and the output
matrix that makes log-probabilities of hidden states. Bytes in, arrays out: score.py has the network.

Written from docs/wire.md (Layouts); each function names its part. Letters: R rows (positions) of a message, K
entries a row, V classes, D numbers of a hidden state. What is damaged raises ValueError: of a message's bytes
nothing is taken on trust that the document lets a reader check. Coded hidden states are coded.py's.
"""
import struct
from types import SimpleNamespace

import numpy as np

CODECS = {1: "packed", 2: "raw", 3: "compact", 4: "compact8"}
FORMS = ("f32", "bf16", "int8", "int4")  # of a `full` hidden state, by the byte that names them
GROUP = 64  # numbers of a hidden state that share a scale


def check(what, found, wanted):
    if found != wanted:
        raise ValueError(f"{what} is {found}, wanted {wanted}")


def must(holds, what):
    if not holds:
        raise ValueError(f"damaged: {what}")


class Arrays:
    """Arrays one after another, without a gap, and nothing behind the last of them."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, kind, *shape):
        count = int(np.prod(shape))
        end = self.at + count * np.dtype(kind).itemsize
        must(end <= len(self.data), f"{len(self.data)} bytes, wanted {end} or more")
        array = np.frombuffer(self.data, kind, count, self.at).reshape(shape)
        self.at = end
        return array

    def end(self):
        check("damaged: length in bytes", len(self.data), self.at)


def floats_of_bf16(halves):
    """float32 of bfloat16, given as u16: its upper half."""
    return (halves.astype("<u4") << 16).view("<f4")


# Top-k and candidates


def read_top_k(signal, rows, k, codec, classes, ids_left_out=False):
    """log_z [R] f32, log_rest [R] f32, ids [R, K] (None of candidates, whose ids are left out) and values [R, K]
    f32, which are `y / T`: CODEC_PACKED, CODEC_RAW, CODEC_COMPACT and CODEC_COMPACT8."""
    arrays, ids = Arrays(signal), None
    if codec == 2:  # CODEC_RAW
        log_z, log_rest = arrays.take("<f4", rows), arrays.take("<f4", rows)
        if not ids_left_out:
            ids = arrays.take("<u4", rows, k)
        values = arrays.take("<f4", rows, k)
    elif codec in (1, 3, 4):
        if codec != 1:
            head = struct.unpack("<4sBBHIII", arrays.take("u1", 20).tobytes())
            wanted = (b"LTK\x01", 16 if codec == 3 else 8, int(not ids_left_out), 0, rows, k)
            check("head", head, (*wanted, 0 if ids_left_out else classes))
        top, step, log_z, log_rest = (arrays.take("<f4", rows) for _ in range(4))
        if not ids_left_out:
            ids = three_bytes(arrays, rows, k) if codec == 1 else elias_fano(arrays, rows, k, classes)
        codes = arrays.take("u1" if codec == 4 else "<u2", rows, k)
        # In float64, then rounded, as every reader does: all get the same bits.
        top, step = (row[:, None].astype(np.float64) for row in (top, step))
        values = (top - codes * step).astype(np.float32)
        if ids is not None and codec != 1:  # by descending value, equal ones by ascending id
            order = np.lexsort((ids, -values), axis=1)
            ids, values = (np.take_along_axis(array, order, 1) for array in (ids, values))
    else:
        raise ValueError(f"codec {codec} is none of {CODECS}")
    arrays.end()
    must(np.isfinite(values).all() and np.isfinite(log_z).all(), "a number that is not finite")
    must((log_rest < np.inf).all(), "a log_rest that is no log of a mass")  # NaN is not below either
    if ids is not None:
        must((ids < classes).all(), f"an id beyond {classes} classes")
        must((np.diff(np.sort(ids, axis=1), axis=1) > 0).all(), "an id twice in a row")
        must((np.diff(values, axis=1) <= 0).all(), "entries that do not descend")
    return log_z, log_rest, ids, values


def three_bytes(arrays, rows, k):
    """The ids [R, K] of CODEC_PACKED."""
    return arrays.take("u1", rows, k, 3) @ np.array([1, 1 << 8, 1 << 16])


def elias_fano(arrays, rows, k, classes):
    """The ids [R, K] of the compact codecs, ascending: lower bits as they are, of the upper part of rank i the bit
    `upper + i`."""
    lower = (classes // k).bit_length() - 1

    def bits(count):
        all_bits = np.unpackbits(arrays.take("u1", rows, -(-count // 8)), axis=1, bitorder="little")
        must(not all_bits[:, count:].any(), "bits behind a row's last")
        return all_bits[:, :count]

    low = bits(k * lower).reshape(rows, k, lower) @ (1 << np.arange(lower))
    upper = bits(k + ((classes - 1) >> lower))
    must((upper.sum(1) == k).all(), f"a row without {k} ids")
    places = np.nonzero(upper)[1].reshape(rows, k)
    ids = (places - np.arange(k) << lower) + low
    must((np.diff(ids, axis=1) > 0).all(), "ids that do not ascend")
    return ids


# Draws


class Bits:
    """Bits one after another, the lowest of a byte first."""

    def __init__(self, data):
        self.bits = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little").tobytes()
        self.at = 0

    def number(self, count):
        """A number of `count` bits, its lowest first."""
        bits = self.bits[self.at : self.at + count]
        must(len(bits) == count, "the bits end within a row")
        self.at += count
        return sum(bit << i for i, bit in enumerate(bits))

    def zeros(self):
        """How many bits 0 come before the next 1, which is read as well."""
        one = self.bits.find(1, self.at)
        must(one >= 0, "the bits end within a row")
        count, self.at = one - self.at, one + 1
        return count

    def ascending(self, count, classes):
        """Ids in Rice's code."""
        l = (classes // count).bit_length() - 1
        ids, before = [], -1
        for _ in range(count):
            before += 1 + (self.zeros() << l | self.number(l))
            ids.append(before)
        must(before < classes, f"an id beyond {classes} classes")
        return ids


def read_draws(signal, rows, draws, k, classes):
    """Rows of SIGNAL_KIND_SAMPLED (Draws), as a list: each with `log_rest` (the log of the mass the draws are
    from: 0 where K is 0), `exact_ids` [K], `exact_logprobs` [K] f32 at T, `drawn_ids` [M], ascending, and `counts`
    [M], which sum to `draws`, or to 0 where no mass is left. A class that was drawn c times has about the
    log-probability `log_rest + log(c / draws)`."""
    magic, value_bits, *reserved = struct.unpack("<4sB3B", Arrays(signal).take("u1", 8).tobytes())
    check("head", (magic, reserved, *Arrays(signal[8:]).take("<u4", 4).tolist()),
          (b"LDR\x01", [0, 0, 0], rows, draws, k, classes))
    must(value_bits in (32, 16), f"values of {value_bits} bits")
    bits, read = Bits(signal[24:]), []
    for _ in range(rows):
        row = SimpleNamespace(log_rest=0.0, exact_ids=[], exact_logprobs=np.zeros(0, "<f4"), drawn_ids=[], counts=[])
        if k > 0:
            row.log_rest = float(np.array(bits.number(32), "<u4").view("<f4"))
            row.exact_ids = bits.ascending(k, classes)
            values = [bits.number(value_bits) for _ in range(k)]
            kinds = ("<u4", "<f4") if value_bits == 32 else ("<u2", "<f2")
            row.exact_logprobs = np.array(values, kinds[0]).view(kinds[1]).astype("<f4")
            logs = np.append(row.exact_logprobs.astype(np.float64), row.log_rest)
            must((logs <= 0).all() and np.isfinite(logs[:-1]).all(), f"logs of no mass: {logs}")
            must(abs(np.exp(logs).sum() - 1) <= 0.02, f"masses that sum to {np.exp(logs).sum()}")
        if row.log_rest > -np.inf:
            while sum(row.counts) < draws:
                l = bits.zeros()
                must(l <= draws.bit_length(), "a count above the draws")
                row.counts.append(1 << l | bits.number(l))
            check("damaged: draws of a row", sum(row.counts), draws)
            row.drawn_ids = bits.ascending(len(row.counts), classes)
            must(not set(row.drawn_ids) & set(row.exact_ids), "an id both exact and drawn")
        read.append(row)
    must(len(bits.bits) - bits.at < 8 and 1 not in bits.bits[bits.at :], "bytes behind the last row")
    return read


# Hidden states, and what makes distributions of them


def read_hidden(signal, rows, width, form):
    """Hidden states [R, D] f32 of SIGNAL_KIND_FULL in one of FORMS (Hidden states)."""
    arrays = Arrays(signal)
    check("head", arrays.take("u1", 4).tolist(), [0xC1, 1, FORMS.index(form), 0])
    if form == "f32":
        hidden = arrays.take("<f4", rows, width)
    elif form == "bf16":
        hidden = floats_of_bf16(arrays.take("<u2", rows, width))
    else:
        hidden = scaled(arrays, rows, width, 1 if form == "int8" else 2)
    arrays.end()
    must(np.isfinite(hidden).all(), "a number that is not finite")
    return hidden


def scaled(arrays, rows, width, codes_a_byte):
    """Hidden states [R, D] f32 of groups, each of a scale and its codes, `codes_a_byte` to a byte."""
    def bytes_of(count):
        return -(-count // codes_a_byte)

    sizes = [min(GROUP, width - first) for first in range(0, width, GROUP)]
    data = arrays.take("u1", rows, sum(2 + bytes_of(size) for size in sizes))
    groups, at = [], 0
    for size in sizes:
        scale = floats_of_bf16(data[:, at : at + 2].copy().view("<u2"))
        codes = data[:, at + 2 : at + 2 + bytes_of(size)].view("i1")
        at += 2 + bytes_of(size)
        if codes_a_byte == 2:  # Shifts of a signed byte keep its sign: the lower half goes up and down again.
            codes = np.stack([codes << 4 >> 4, codes >> 4], axis=2).reshape(rows, -1)
            must(not codes[:, size:].any(), "half a byte behind a group's last number")
        must((scale >= 0).all() and (codes != (-128 if codes_a_byte == 1 else -8)).all(), "a scale or code")
        groups.append(scale * codes[:, :size].astype("<f4"))  # exact: 8 bits times 7
    return np.concatenate(groups, axis=1)


def read_matrix(blob):
    """The output matrix [V, D] f32 (The output matrix)."""
    arrays = Arrays(blob)
    kind, version, form, reserved = arrays.take("u1", 4).tolist()
    check("the output matrix's head", (kind, version, form in (0, 1), reserved), (0xC2, 1, True, 0))
    shape = arrays.take("<u4", 2).tolist()
    matrix = floats_of_bf16(arrays.take("<u2", *shape)) if form == 1 else arrays.take("<f4", *shape)
    arrays.end()
    must(np.isfinite(matrix).all(), "a number of the output matrix that is not finite")
    return matrix


def log_softmax(hidden, matrix, temperature=1.0, classes=None):
    """Log-probabilities [R, V] f64 over the first `classes` (all, where None) of softmax(y / T), of hidden states
    [R, D] and the output matrix [V, D]. At 152,000 classes that is 1.2 MB a row: give it few at a time."""
    scaled_logits = (hidden @ matrix[:classes].T).astype(np.float64) / temperature
    shifted = scaled_logits - scaled_logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
