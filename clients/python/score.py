"""Scores sequences with a teacher from Python: what it is, its top k at a temperature, and then the
log-probabilities of tokens the client names itself. To read, to copy from, and to import.

needs: pip install grpcio grpcio-tools numpy      (and xxhash, to compare the checksums)
usage: score.py --teacher HOST:PORT [--ca FILE] [--token-file FILE] [--text TEXT ...] [--tokens 1,2,3 ...]

The stubs are generated from teacher.proto into a temporary directory when the program starts: by
`python -m grpc_tools.protoc`, as you would once for a project. Elsewhere than in the repository,
`--proto FILE` says where teacher.proto lies. docs/wire.md describes the bytes that `unpack` reads.
"""
import argparse
import importlib
import pathlib
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from types import SimpleNamespace

import grpc
import numpy as np

try:
    import xxhash
except ImportError:
    xxhash = None

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto/distill/v1/teacher.proto"
# What of google/rpc/status.proto and error_details.proto is read here, under a name of its own: so
# it stands beside the package that has the whole of them.
REFUSAL = """syntax = "proto3"; package refusal;
import "google/protobuf/any.proto"; import "google/protobuf/duration.proto";
message Status { repeated google.protobuf.Any details = 3; }
message RetryInfo { google.protobuf.Duration retry_delay = 1; }
"""
KNOWN = {1: "packed", 2: "raw", 3: "compact", 4: "compact8"}  # codecs that `unpack` reads
PATIENCE = 60.0  # seconds in which a refused request is tried again
PAUSE = 0.5  # seconds to wait where the teacher names none
CALL = 120.0  # seconds a call may take; a stream of many sequences wants more


def stubs(proto=PROTO):
    """The modules (teacher_pb2, teacher_pb2_grpc, refusal_pb2) that stock grpcio-tools makes."""
    with tempfile.TemporaryDirectory() as out:
        pathlib.Path(out, "refusal.proto").write_text(REFUSAL)
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--python_out={out}", f"--grpc_python_out={out}"]
        for file in (pathlib.Path(proto).resolve(), pathlib.Path(out, "refusal.proto")):
            subprocess.run([*protoc, f"-I{file.parent}", file.name], check=True)
        sys.path.insert(0, out)
        try:
            return [importlib.import_module(name) for name in ("teacher_pb2", "teacher_pb2_grpc", "refusal_pb2")]
        finally:
            sys.path.remove(out)


class Refused(Exception):
    """What the teacher said no to; `pause` is the seconds to wait, None where that does not help."""

    def __init__(self, code, text, pause):
        super().__init__(f"{code.name}: {text}")
        self.pause = (pause or PAUSE) if code is grpc.StatusCode.RESOURCE_EXHAUSTED else None


def wait(refused, until):
    """Waits as long as the teacher asks; raises what it said where that is no use or takes too long."""
    if refused.pause is None or time.monotonic() + refused.pause > until:
        raise refused
    print(f"waiting {refused.pause:.2f} s: {refused}", file=sys.stderr)
    time.sleep(refused.pause)


def unpack(signal, rows, k, codec, ids_left_out=False):
    """log_z [rows], log_rest [rows], ids [rows, k] (None of candidates) and values [rows, k] of a reply."""
    at = 0

    def take(kind, count):
        nonlocal at
        array = np.frombuffer(signal, kind, count, at)
        at += array.nbytes
        return array

    if codec == 2:  # CODEC_RAW
        log_z, log_rest = take("<f4", rows), take("<f4", rows)
        ids = None if ids_left_out else take("<u4", rows * k).reshape(rows, k)
        values = take("<f4", rows * k).reshape(rows, k)
    elif codec in (3, 4):  # CODEC_COMPACT, CODEC_COMPACT8
        magic, bits, sent, _, *shape, classes = struct.unpack_from("<4sBBHIII", signal)
        wanted = (b"LTK\x01", 16 if codec == 3 else 8, not ids_left_out, [rows, k])
        check("head", (magic, bits, sent == 1, shape), wanted)
        at = 20
        top, step, log_z, log_rest = (take("<f4", rows) for _ in range(4))
        ids = None if ids_left_out else ascending(take, rows, k, classes)
        codes = take("<u2" if codec == 3 else "u1", rows * k).reshape(rows, k)
        values = fixed_point(top, step, codes)
        if ids is not None:  # by descending value, equal ones by ascending id
            order = np.lexsort((ids, -values), axis=1)
            ids, values = (np.take_along_axis(array, order, 1) for array in (ids, values))
    else:  # CODEC_PACKED
        top, step, log_z, log_rest = (take("<f4", rows) for _ in range(4))
        three = None if ids_left_out else take("u1", rows * k * 3).reshape(rows, k, 3)
        ids = None if ids_left_out else three @ np.array([1, 1 << 8, 1 << 16])
        codes = take("<u2", rows * k).reshape(rows, k)
        values = fixed_point(top, step, codes)
    if at != len(signal):
        raise ValueError(f"signal has {len(signal)} bytes, {rows} rows of {k} entries have {at}")
    return log_z, log_rest, ids, values


def fixed_point(top, step, codes):
    """In float64, then rounded, as every reader does: all get the same bits."""
    top, step = (row[:, None].astype(np.float64) for row in (top, step))
    return (top - codes * step).astype(np.float32)


def ascending(take, rows, k, classes):
    """The ids [rows, k] of a compact codec: lower bits as they are, of the upper parts that of rank i
    as the bit upper + i."""
    lower = (classes // k).bit_length() - 1

    def bits(count):
        of_a_row = -(-count // 8)
        return np.unpackbits(take("u1", rows * of_a_row).reshape(rows, of_a_row), axis=1, bitorder="little")

    low = bits(k * lower)[:, : k * lower].reshape(rows, k, lower) @ (1 << np.arange(lower))
    places = np.nonzero(bits(k + ((classes - 1) >> lower)))[1].reshape(rows, k)
    return (places - np.arange(k) << lower) + low


class Teacher:
    """A teacher at HOST:PORT; `pb` holds the contract's messages, `info` its GetInfo."""

    def __init__(self, address, ca=None, name=None, token=None, proto=PROTO):
        self.pb, services, self.refusal = stubs(proto)
        if ca:
            options = [("grpc.ssl_target_name_override", name)] if name else []
            trusted = grpc.ssl_channel_credentials(pathlib.Path(ca).read_bytes())
            channel = grpc.secure_channel(address, trusted, options)
        else:
            channel = grpc.insecure_channel(address)
        self.stub = services.TeacherStub(channel)
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.info = self.ask(self.stub.GetInfo, self.pb.GetInfoRequest())
        if self.info.protocol_version != 1:
            raise ValueError(f"protocol_version is {self.info.protocol_version}, this client knows 1")

    def refused(self, error):
        """A call that ended with a status: how long to wait stands in its details, as RetryInfo."""
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        retry = self.refusal.RetryInfo()
        for detail in self.refusal.Status.FromString(details).details:
            if detail.type_url.endswith("/google.rpc.RetryInfo"):
                retry.ParseFromString(detail.value)
        return Refused(error.code(), error.details(), retry.retry_delay.ToTimedelta().total_seconds())

    def ask(self, call, request):
        """The reply of a call with one, asked for again while the teacher has no room."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call(request, metadata=self.metadata, timeout=CALL)
            except grpc.RpcError as error:
                wait(self.refused(error), until)

    def score(self, requests):
        """Answers by the requests' ids, all over one stream. What the teacher has no room for is
        refused before any work; that alone goes out again, after the pause it names."""
        unanswered, answers = {request.id: request for request in requests}, {}
        until = time.monotonic() + PATIENCE
        while unanswered:
            refused, replies = None, defaultdict(list)
            try:
                stream = self.stub.Score(iter(list(unanswered.values())), metadata=self.metadata, timeout=CALL)
                for reply in stream:
                    if reply.HasField("error"):
                        code = next(code for code in grpc.StatusCode if code.value[0] == reply.error.code)
                        refused = Refused(code, reply.error.message, reply.error.retry_after_ms / 1000)
                        if refused.pause is None:
                            raise refused
                        continue
                    replies[reply.id].append(reply)
                    if reply.last:
                        answers[reply.id] = self.answer(unanswered.pop(reply.id), replies.pop(reply.id))
            except grpc.RpcError as error:
                refused = self.refused(error)
            if unanswered:
                wait(refused or Refused(grpc.StatusCode.UNAVAILABLE, "the stream ended early", None), until)
        return answers

    def answer(self, request, replies):
        """The messages of one answer, checked against the request and put together."""
        ranges = request.positions or [self.pb.PositionRange(first=0, end=len(request.tokens) // 4)]
        positions = [t for wanted in ranges for t in range(wanted.first, wanted.end)]
        named = request.signal == self.pb.SIGNAL_KIND_CANDIDATES
        parts, done = [], 0
        for reply in replies:
            check("temperature", reply.temperature, request.temperature)
            check("top_k", reply.top_k, request.top_k)
            check("codec", reply.codec, request.codec or self.pb.CODEC_PACKED)
            check("model", reply.model_fingerprint.hex(), self.info.model_fingerprint[:32])
            check("tokenizer", reply.tokenizer_fingerprint.hex(), self.info.tokenizer_fingerprint[:32])
            check("first_position", [reply.first_position], positions[done : done + 1])
            if xxhash:
                payload = xxhash.xxh3_64_intdigest(reply.signal + reply.next_logprob)
                check("token_checksum", reply.token_checksum, xxhash.xxh3_64_intdigest(request.tokens))
                check("payload_checksum", reply.payload_checksum, payload)
            arrays = unpack(reply.signal, reply.rows, reply.top_k, reply.codec, named)
            parts.append((*arrays, np.frombuffer(reply.next_logprob, "<f4")))
            done += reply.rows
        check("rows", done, len(positions))
        log_z, log_rest, ids, values, following = zip(*parts)
        log_z, values = np.concatenate(log_z), np.concatenate(values)
        return SimpleNamespace(
            positions=positions,
            # Candidates are the same for every position, or each position's own.
            ids=np.broadcast_to(np.frombuffer(request.candidates, "<u4").reshape(-1, request.top_k), values.shape)
            if named else np.concatenate(ids),
            values=values,  # y / T
            logprobs=values - log_z[:, None].astype(np.float64),  # at T
            log_rest=np.concatenate(log_rest),
            next_logprob=np.concatenate(following),  # at T = 1; NaN where no token follows
            queue_ms=replies[0].queue_ns / 1e6,
            compute_ms=replies[0].compute_ns / 1e6,
        )


def check(what, found, wanted):
    if found != wanted:
        raise ValueError(f"a reply's {what} is {found}, wanted {wanted}")


def show(tokens, raw, word, few=3):
    """A table of some positions: the token there, the one that follows, and the likeliest."""
    print("    t  token         follows       log p(T=1)  likeliest at T")
    for row in sorted({*range(min(4, len(raw.positions))), len(raw.positions) - 1}):
        t = raw.positions[row]
        follows = word(tokens[t + 1]) if t + 1 < len(tokens) else "-"
        best = "  ".join(f"{word(id)} {np.exp(p):.3f}" for id, p in zip(raw.ids[row, :few], raw.logprobs[row]))
        print(f"{t:5}  {word(tokens[t]):12}  {follows:12}  {raw.next_logprob[row]:10.4f}  {best}")


def error(coded, raw):
    """The largest difference of a value; a codec may exchange entries that are nearly equal."""
    by_id = (np.take_along_axis(some.values, some.ids.argsort(1), 1) for some in (coded, raw))
    return np.abs(np.subtract(*by_id)).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", required=True, metavar="HOST:PORT")
    parser.add_argument("--ca", metavar="FILE", help="PEM of the authority, for a teacher that encrypts")
    parser.add_argument("--name", help="the name in its certificate, where HOST is another")
    parser.add_argument("--token-file", metavar="FILE", help="holds the bearer token")
    parser.add_argument("--proto", default=PROTO, metavar="FILE", help="teacher.proto")
    parser.add_argument("--text", nargs="+", default=[], help="texts, which the teacher encodes")
    parser.add_argument("--tokens", nargs="+", default=[], metavar="1,2,3", help="token ids")
    parser.add_argument("--first", type=int, default=0, help="positions wanted: from here to the end")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--top-k", type=int, default=8)
    a = parser.parse_args()
    if not a.text and not a.tokens:
        a.text = ["Natalia sold 48 clips in April.", "12 + 30 = 42. So there are 42 apples."]
    token = pathlib.Path(a.token_file).read_text().strip() if a.token_file else None
    teacher = Teacher(a.teacher, a.ca, a.name, token, a.proto)
    pb, info = teacher.pb, teacher.info
    print(f"{info.model}: {info.parameters / 1e6:.1f} M parameters, {info.vocab_size} classes, "
          f"{info.dtype} on {info.device}; up to {info.limits.max_sequence_tokens} tokens, "
          f"top-k up to {info.limits.max_top_k}")

    # Texts are encoded by the teacher: its reply names the tokens.
    sequences, words = [[int(id) for id in ids.split(",")] for ids in a.tokens], {}
    for text in a.text:
        reply = teacher.ask(teacher.stub.ScoreText, pb.ScoreTextRequest(text=text, top_k=a.top_k))
        words.update((some.id, some.text) for token in reply.tokens for some in (token, *token.next))
        sequences.append([token.id for token in reply.tokens])

    def request(id, tokens, codec, **what):
        return pb.ScoreRequest(
            id=id, tokens=np.array(tokens, "<u4").tobytes(), temperature=a.temperature, top_k=a.top_k,
            positions=[pb.PositionRange(first=a.first, end=len(tokens))], codec=codec, **what)

    # Each sequence in every codec; ids of our own choice say which answer is whose.
    codecs = [codec for codec in info.codecs if codec in KNOWN]
    top = teacher.score(request(16 * n + codec, tokens, codec, signal=pb.SIGNAL_KIND_TOP_K)
                        for n, tokens in enumerate(sequences) for codec in codecs)
    # Then the tokens of our own choice: here for each position those of the first answer, backwards.
    named = teacher.score(request(n, tokens, pb.CODEC_RAW, signal=pb.SIGNAL_KIND_CANDIDATES,
                                  candidates=top[16 * n + pb.CODEC_RAW].ids[:, ::-1].astype("<u4").tobytes(),
                                  priority=pb.PRIORITY_HIGH) for n, tokens in enumerate(sequences))
    for n, tokens in enumerate(sequences):
        raw = top[16 * n + pb.CODEC_RAW]
        print(f"\nsequence {n}: {len(tokens)} tokens, {len(raw.positions)} positions, top {a.top_k} at "
              f"T = {a.temperature:g}; waited {raw.queue_ms:.1f} ms, computed in {raw.compute_ms:.1f} ms")
        show(tokens, raw, lambda id: repr(words[id]) if id in words else f"[{id}]")
        again = np.abs(named[n].logprobs[:, ::-1] - raw.logprobs).max()
        mass = np.exp(raw.logprobs).sum(1) + np.exp(raw.log_rest.astype(np.float64))
        off = (f"{KNOWN[codec]} is off by at most {error(top[16 * n + codec], raw):.1e}, " for codec in codecs)
        print(f"  {''.join(off)}candidates by {again:.1e}; the mass is 1 within {np.abs(mass - 1).max():.1e}")
    print(f"\nchecksums: {'equal' if xxhash else 'not compared (pip install xxhash)'}")


if __name__ == "__main__":
    try:
        main()
    except (Refused, ValueError) as error:
        sys.exit(str(error))
