"""Speaks to a teacher from Python: what it is, its answers to several sequences over one stream, put together and
checked, what hidden states are read with, and waiting where it has no room. To import and to copy from; score.py
shows it at work.

needs: pip install grpcio grpcio-tools numpy   (and xxhash, blake3: without them no checksum, no digest is compared)

The stubs are generated from teacher.proto into a temporary directory when a Teacher is made: by
`python -m grpc_tools.protoc`, as you would once for a project. Elsewhere than in the repository,
`proto` says where teacher.proto lies. docs/wire.md describes the bytes, which signals.py and coded.py read.
"""
import importlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from types import SimpleNamespace

import grpc
import numpy as np

from coded import Code
from signals import FORMS, check, must, read_draws, read_hidden, read_matrix, read_top_k

try:
    import xxhash
except ImportError:
    xxhash = None
try:
    from blake3 import blake3
except ImportError:
    blake3 = None

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto/distill/v1/teacher.proto"
# What of google/rpc/status.proto and error_details.proto is read here, under a name of its own: so
# it stands beside the package that has the whole of them.
REFUSAL = """syntax = "proto3"; package refusal;
import "google/protobuf/any.proto"; import "google/protobuf/duration.proto";
message Status { repeated google.protobuf.Any details = 3; }
message RetryInfo { google.protobuf.Duration retry_delay = 1; }
"""
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


class Teacher:
    """A teacher at HOST:PORT; `pb` holds the contract's messages, `info` its GetInfo. What hidden states are read
    with is there once `decoder` was called: `matrix` [V, D] f32, `code`, and its name, `code_fingerprint`."""

    matrix = code = None
    code_fingerprint = b""

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
        parts, done = defaultdict(list), 0
        for reply in replies:
            check("a reply's temperature", reply.temperature, request.temperature)
            check("a reply's top_k", reply.top_k, request.top_k)
            check("a reply's codec", reply.codec, request.codec or self.pb.CODEC_PACKED)
            check("a reply's model", reply.model_fingerprint.hex(), self.info.model_fingerprint[:32])
            check("a reply's tokenizer", reply.tokenizer_fingerprint.hex(), self.info.tokenizer_fingerprint[:32])
            check("a reply's code", reply.code_fingerprint, request.code_fingerprint[:16])
            check("a reply's first_position", [reply.first_position], positions[done : done + 1])
            if xxhash:
                payload = xxhash.xxh3_64_intdigest(reply.signal + reply.next_logprob)
                check("a reply's token_checksum", reply.token_checksum, xxhash.xxh3_64_intdigest(request.tokens))
                check("a reply's payload_checksum", reply.payload_checksum, payload)
            for name, rows in self.read(request, reply).items():
                check(f"damaged: rows of {name}", len(rows), reply.rows)
                parts[name].append(rows)
            done += reply.rows
        check("an answer's rows", done, len(positions))
        joined = {name: sum(rows, []) if isinstance(rows[0], list) else np.concatenate(rows)
                  for name, rows in parts.items()}
        answer = SimpleNamespace(
            **joined,
            positions=positions,
            bytes=sum(len(reply.signal) + len(reply.next_logprob) for reply in replies),
            queue_ms=replies[0].queue_ns / 1e6,
            compute_ms=replies[0].compute_ns / 1e6,
        )
        if "next_logprob" in joined:  # at T = 1; NaN where no token follows, and nowhere else
            follows = [4 * (t + 1) < len(request.tokens) for t in positions]
            check("next_logprob is there", np.isfinite(answer.next_logprob).tolist(), follows)
        if "values" in joined:  # y / T
            answer.logprobs = answer.values - answer.log_z[:, None].astype(np.float64)  # at T
        if request.candidates:  # the same for every position, or each position's own
            ids = np.frombuffer(request.candidates, "<u4").reshape(-1, request.top_k)
            answer.ids = np.broadcast_to(ids, answer.values.shape)
        return answer

    def read(self, request, reply):
        """What a message says, by the names of signals.py: arrays or lists with a row for each position."""
        pb, classes = self.pb, request.vocab_size or self.info.vocab_size
        if request.signal == pb.SIGNAL_KIND_FULL:
            form = FORMS[(request.hidden_form or pb.HIDDEN_FORM_BF16) - pb.HIDDEN_FORM_F32]
            return dict(hidden=read_hidden(reply.signal, reply.rows, self.info.hidden_size, form))
        if request.signal == pb.SIGNAL_KIND_CODED:
            check("the code asked for", request.code_fingerprint, self.code_fingerprint)
            return dict(hidden=self.code.decode(reply.signal, reply.rows, request.rung))
        following = dict(next_logprob=np.frombuffer(reply.next_logprob, "<f4"))
        if request.signal == pb.SIGNAL_KIND_SAMPLED:
            return dict(draws=read_draws(reply.signal, reply.rows, request.draws, request.top_k, classes), **following)
        named = request.signal == pb.SIGNAL_KIND_CANDIDATES
        log_z, log_rest, ids, values = read_top_k(reply.signal, reply.rows, reply.top_k, reply.codec, classes, named)
        listed = dict(log_z=log_z, log_rest=log_rest, values=values, **following)
        return listed if named else dict(ids=ids, **listed)

    def decoder(self, code=False):
        """Fetches what hidden states are read with: the output matrix, and the code where one is wanted."""
        said = self.ask(self.stub.GetDecoder, self.pb.GetDecoderRequest(code=code))
        check("the decoder's model", said.model_fingerprint, self.info.model_fingerprint)
        if self.matrix is None:
            matrix = read_matrix(self.fetch(said.output_matrix))
            check("the output matrix's shape", matrix.shape, (self.info.vocab_size, self.info.hidden_size))
            self.matrix = matrix
        if code and self.code_fingerprint.hex() != said.code.fingerprint:
            found = Code(self.fetch(said.code))
            check("the code's model and width", (found.model, len(found.mean)),
                  (self.info.model_fingerprint, self.info.hidden_size))
            self.code, self.code_fingerprint = found, bytes.fromhex(said.code.fingerprint)

    def fetch(self, blob):
        """The bytes of a blob that GetDecoder named. A transfer that breaks goes on where it was whole, as long as
        it gets on."""
        data, until = bytearray(), time.monotonic() + PATIENCE
        while len(data) < blob.bytes:
            start, broken = len(data), ValueError(f"a blob ended after {len(data)} of {blob.bytes} bytes")
            try:
                request = self.pb.FetchRequest(fingerprint=blob.fingerprint, offset=start)
                for part in self.stub.Fetch(request, metadata=self.metadata, timeout=CALL):
                    check("a part's offset", part.offset, len(data))
                    if xxhash:
                        check("a part's checksum", part.checksum, xxhash.xxh3_64_intdigest(part.data))
                    must(len(data) + len(part.data) <= blob.bytes, "a part reaches beyond the blob's end")
                    data += part.data
            except ValueError as error:
                broken = error
            except grpc.RpcError as error:
                broken = self.refused(error)
            if len(data) == start:
                if not isinstance(broken, Refused):
                    raise broken
                wait(broken, until)
        if blake3:
            check("a blob's BLAKE3", blake3(data).hexdigest(), blob.fingerprint)
        return bytes(data)
