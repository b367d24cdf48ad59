"""Reads every signal with clients/python and compares what the signals say of the same positions with each other,
within the errors that docs/wire.md states; what it read is left for the caller to compare with its own.

needs: pip install grpcio grpcio-tools numpy xxhash blake3
usage: read_signals.py HOST:PORT FOLDER
  FOLDER/told.json   `requests`: what to ask, each with the `name` its bytes are written under; `made_up`: coded rows
                     that lie in FOLDER, NAME.coded, by the code made-up.code
Writes FOLDER/NAME.bytes for each: hidden states as float32; of draws u32 for each row: bits of log_rest, exact ids,
bits of their log-probabilities, how many ids were drawn, these, and how often each. Prints one JSON line: what was
compared and the largest differences. Fails where one is beyond what is stated, or where damage is not noticed.
"""
import json
import pathlib
import sys

import grpc
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients/python"))
from coded import Code
from signals import CODECS, FORMS, log_softmax, read_draws, read_hidden, read_matrix, read_top_k
from teacher import Teacher

K = 64


class Broken(grpc.RpcError):
    """A connection that was cut."""

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "cut by the test"

    def trailing_metadata(self):
        return ()


def breaking(fetch, offsets):
    """A Fetch whose third message is damaged, or does not come: by turns."""
    def call(request, **options):
        offsets.append(request.offset)
        for number, part in enumerate(fetch(request, **options)):
            if number == 2 and len(offsets) % 2:
                part.data = bytes([part.data[0] ^ 1]) + part.data[1:]
            elif number == 2:
                raise Broken
            yield part
    return call


def request_of(teacher, id, told):
    """A ScoreRequest as the caller told it."""
    pb, more = teacher.pb, dict(told["more"])
    if "hidden_form" in more:
        more["hidden_form"] = FORMS.index(more["hidden_form"]) + pb.HIDDEN_FORM_F32
    if told["signal"] == "CODED":
        more["code_fingerprint"] = teacher.code_fingerprint
    return pb.ScoreRequest(
        id=id, tokens=np.array(told["tokens"], "<u4").tobytes(), temperature=told["temperature"], top_k=told["top_k"],
        positions=[pb.PositionRange(first=first, end=end) for first, end in told["ranges"]],
        signal=getattr(pb, "SIGNAL_KIND_" + told["signal"]), **more)


def bytes_of(answer):
    if hasattr(answer, "hidden"):
        return answer.hidden.astype("<f4").tobytes()
    words = []
    for row in answer.draws:
        bits = np.append(np.float32(row.log_rest), row.exact_logprobs).astype("<f4").view("<u4").tolist()
        words += [bits[0], *row.exact_ids, *bits[1:], len(row.drawn_ids), *row.drawn_ids, *row.counts]
    return np.array(words, "<u4").tobytes()


def compare_codecs(top, figures):
    """Every codec has the ids of the exact one, and its values within half a step."""
    raw = top[2]
    for codec, name in CODECS.items():
        levels = 255 if codec == 4 else 65_535
        half_a_step = (raw.values[:, :1] - raw.values[:, -1:]) / (2 * levels) if codec != 2 else 0
        order, exact = (answer.ids.argsort(1) for answer in (top[codec], raw))
        assert (np.take_along_axis(top[codec].ids, order, 1) == np.take_along_axis(raw.ids, exact, 1)).all(), name
        off = np.abs(np.take_along_axis(top[codec].values, order, 1) - np.take_along_axis(raw.values, exact, 1))
        # And by the last rounding.
        assert (off <= half_a_step * (1 + 1e-5) + np.abs(raw.values).max() * 2.0**-24).all(), (name, off.max())
        assert np.array_equal(top[codec].next_logprob, raw.next_logprob, equal_nan=True), name
        figures[name] = float(off.max())


def compare_hidden(answers, teacher, raw, temperature, figures):
    """Hidden states times the output matrix are what the teacher says; what is rounded is off by what is stated."""
    exact = answers["f32"].hidden
    logprobs = log_softmax(exact, teacher.matrix, temperature)
    figures["logprobs"] = float(np.abs(np.take_along_axis(logprobs, raw.ids, 1) - raw.logprobs).max())
    figures["ranks"] = float(np.abs(-np.sort(-logprobs, axis=1)[:, :K] - raw.logprobs).max())
    assert figures["logprobs"] < 1e-4 and figures["ranks"] < 1e-4, figures
    groups = np.abs(exact).reshape(len(exact), -1, 64).max(2).repeat(64, 1)
    bounds = dict(bf16=np.abs(exact) / 256, int8=groups / 254 * (1 + 2.0**-7), int4=groups / 14 * (1 + 2.0**-7))
    for form, bound in bounds.items():
        off = np.abs(answers[form].hidden - exact)
        assert (off <= bound * (1 + 1e-5)).all() and off.max() > 0, (form, (off - bound).max())
        figures[form] = float((off / np.abs(exact).max(1, keepdims=True)).max())
    # The finer the step the nearer, and below a step that is fine enough nothing is lost.
    rungs = sorted(int(name[5:]) for name in answers if name.startswith("coded"))
    errors = [np.linalg.norm(answers[f"coded{rung}"].hidden - exact) / np.linalg.norm(exact) for rung in rungs]
    assert errors == sorted(errors) and errors[0] == 0 and errors[-1] > 0.1, errors
    figures["coded"] = dict(zip(rungs, map(float, errors)))
    return logprobs


def compare_draws(name, answer, told, logprobs, figures):
    """Draws are from p, one from each n-th part of its mass: how often a class is drawn is off by less than two."""
    draws, k = told["more"]["draws"], told["top_k"]
    for row, p in zip(answer.draws, np.exp(logprobs)):
        exact = np.array(row.exact_ids, int)
        assert np.abs(np.log(p[exact]) - row.exact_logprobs).max(initial=0) < 1e-4, name
        p[exact] = 0
        assert abs(p.sum() - np.exp(row.log_rest)) < 1e-4, name
        counts = np.zeros(len(p))
        counts[row.drawn_ids] = row.counts
        assert counts.sum() == draws
        off = np.abs(counts - draws * p / p.sum()).max()
        assert off < 2 + 1e-2, (name, off)
        figures[f"draws {draws} beside {k}"] = max(figures.get(f"draws {draws} beside {k}", 0), float(off))


def refuses(read, *arguments):
    try:
        read(*arguments)
    except ValueError:
        return True
    return False


# The examples of docs/wire.md.
EXAMPLES = [
    ("4c544b0110010000010000000400000064000000000040408100803800007040000000c0873a19020020ffff00000020",
     lambda data: read_top_k(data, 1, 4, 3, 100)),
    ("4c544b0108010000010000000400000064000000000040408180803c00007040000000c0873a190220ff0020",
     lambda data: read_top_k(data, 1, 4, 4, 100)),
    ("4c4452012000000001000000040000000000000064000000fa11a801", lambda data: read_draws(data, 1, 4, 0, 100)),
    ("4c4452011000000001000000020000000100000064000000000070bf55005c3d00",
     lambda data: read_draws(data, 1, 2, 1, 100)),
    ("c1010300933e9302", lambda data: read_hidden(data, 1, 3, "int4")),
    ("c20101000200000002000000803f00c0003f0000", read_matrix),
]


def refused_of(data, reader):
    """Cut short, too long, with another head: all refused. How many these are."""
    reader(data)
    heads = (bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]) for at in range(4))
    damaged = [data[:-1], data + b"\0", b"", *heads]
    assert all(refuses(reader, some) for some in damaged), data[:4]
    return len(damaged)


def refused_of_coded(code, told, coded):
    """Of coded rows nearly any other bit is refused, or it lies in a number that travels as it is: that is for the
    message's checksum to find."""
    def reader(data):
        return code.decode(data, told["rows"], told["rung"])

    refused = refused_of(coded, reader)
    for at in range(0, 8 * len(coded), 8 * len(coded) // 40 | 1):
        flipped = bytearray(coded)
        flipped[at // 8] ^= 1 << at % 8
        refused += refuses(reader, bytes(flipped))
    return refused


def check_message(teacher):
    """A message that is damaged on its way is refused, wherever the damage is."""
    request = teacher.pb.ScoreRequest(id=1, tokens=bytes(8), temperature=1, top_k=4, signal=1)
    [reply] = teacher.stub.Score(iter([request]))
    teacher.answer(request, [reply])
    reply.signal = reply.signal[:-1] + bytes([reply.signal[-1] ^ 1])
    assert refuses(teacher.answer, request, [reply])


def main():
    address, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    told = json.loads((folder / "told.json").read_text())
    teacher, offsets = Teacher(address), []
    teacher.stub.Fetch = breaking(teacher.stub.Fetch, offsets)
    teacher.decoder(code=True)
    assert len(offsets) > 10 and max(offsets) > 0, offsets
    figures = dict(fetches=len(offsets))

    requests = {told["name"]: request_of(teacher, id, told) for id, told in enumerate(told["requests"])}
    answers = teacher.score(requests.values())
    answers = {name: answers[request.id] for name, request in requests.items()}
    for name, answer in answers.items():
        (folder / f"{name}.bytes").write_bytes(bytes_of(answer))
    # All of a sequence's signals are of the same positions.
    for length in sorted({name.rpartition("-")[2] for name in answers}):
        of_length = {name.rpartition("-")[0]: answer for name, answer in answers.items() if name.endswith("-" + length)}
        same = requests[f"f32-{length}"]
        top = teacher.score(
            teacher.pb.ScoreRequest(id=codec, tokens=same.tokens, positions=same.positions, codec=codec, top_k=K,
                                    temperature=same.temperature, signal=teacher.pb.SIGNAL_KIND_TOP_K)
            for codec in CODECS)
        found = figures[f"{length} tokens"] = {}
        compare_codecs(top, found)
        logprobs = compare_hidden(of_length, teacher, top[2], same.temperature, found)
        for some in told["requests"]:
            name, _, of = some["name"].rpartition("-")
            if some["signal"] == "SAMPLED" and of == length:
                compare_draws(name, of_length[name], some, logprobs, found)
                # Summed in another order than beside a top-k.
                following = (of_length[name].next_logprob, top[2].next_logprob)
                assert np.allclose(*following, rtol=0, atol=1e-5, equal_nan=True), name

    check_message(teacher)
    figures["damage refused"] = sum(refused_of(bytes.fromhex(data), reader) for data, reader in EXAMPLES)
    code = Code((folder / "made-up.code").read_bytes())
    for some in told["made_up"]:
        coded = (folder / f"{some['name']}.coded").read_bytes()
        figures["damage refused"] += refused_of_coded(code, some, coded)
        hidden = code.decode(coded, some["rows"], some["rung"])
        (folder / f"{some['name']}.bytes").write_bytes(hidden.astype("<f4").tobytes())
    print(json.dumps(figures))


main()
