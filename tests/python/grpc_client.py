"""Calls a teacher's Score and ScoreText with stock grpcio, each twice: by the client generated from
the proto that clients/python/teacher.py makes, and by reflection, knowing nothing but what the server
says of itself. Compares all four, read as that example reads them, with what transformers computes
in float32.

usage: grpc_client.py HOST:PORT --model DIR [--expected FILE] [--write FILE]
  --model     the model the teacher serves; used where torch and transformers are installed
  --expected  where they are not: values that --write stored on a machine that has them
Prints one JSON line: what was compared and the largest differences. Fails where one exceeds 1e-3.
"""
import argparse
import json
import math
import pathlib
import sys

import grpc
import numpy as np
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients/python"))
import signals
import teacher as example

TEXTS = ["Natalia sold clips to 48 of her friends in April.", "12 + 30 = 42. So there are 42 apples."]
T, K, TOLERANCE = 2.0, 16, 1e-3
CALLS = ("GetInfo", "Score", "ScoreText")


def generated(channel):
    """Calls and messages by name, from the modules that stock grpcio-tools makes of the contract."""
    messages, services, _ = example.stubs()
    stub = services.TeacherStub(channel)
    return {call: (getattr(stub, call), getattr(messages, f"{call}Request")) for call in CALLS}


def reflected(channel):
    """The same, from the descriptors that the server hands out; messages made by protobuf's factory."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "distill.v1.Teacher" in database.get_services(), database.get_services()
    service = descriptor_pool.DescriptorPool(database).FindServiceByName("distill.v1.Teacher")
    calls = {}
    for call in CALLS:
        method = service.FindMethodByName(call)
        assert method.client_streaming == method.server_streaming == (call == "Score"), call
        request, reply = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
        kind = channel.stream_stream if method.client_streaming else channel.unary_unary
        calls[call] = (kind(f"/{service.full_name}/{call}", request_serializer=request.SerializeToString,
                            response_deserializer=reply.FromString), request)
    return calls


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def by_transformers(model_dir, ids):
    """For each text: the ids of the K largest logits at each position, those logits, their
    log-probabilities at T, and the next token's log-probability at T = 1."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    texts = []
    for row in ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0].double().numpy()
        top = np.argsort(-logits, axis=1, kind="stable")[:, :K]
        take = lambda values: np.take_along_axis(values, top, 1).round(6).tolist()
        following = [log_softmax(logits)[t, row[t + 1]].round(6) for t in range(len(row) - 1)]
        texts.append(dict(ids=row, top=top.tolist(), logits=take(logits),
                          logprobs=take(log_softmax(logits / T)), next=following))
    return texts


def compare(name, ours, theirs, worst):
    worst[name] = max(worst.get(name, 0.0), float(np.abs(np.asarray(ours) - np.asarray(theirs)).max()))


def check_text(replies, expected, worst):
    for text, want in zip(replies, expected):
        last = len(text.tokens) - 1
        for t, token in enumerate(text.tokens):
            ours = {n.id: (n.logit, n.logprob) for n in token.next}
            theirs = dict(zip(want["top"][t], zip(want["logits"][t], want["logprobs"][t])))
            assert len(token.next) == len(ours) == K and len(set(ours) ^ set(theirs)) <= 2, (t, ours)
            common = sorted(set(ours) & set(theirs))
            compare("text_logit", [ours[i][0] for i in common], [theirs[i][0] for i in common], worst)
            compare("text_logprob", [ours[i][1] for i in common], [theirs[i][1] for i in common], worst)
            logit, logprob = ours[common[0]]
            compare("text_log_z", logit / T - token.log_z, logprob, worst)
            assert token.HasField("next_logprob") == (t < last), "no token follows the last"
            if t < last:
                compare("text_next_logprob", token.next_logprob, want["next"][t], worst)


def check_score(score, request, teacher, codec, expected, worst):
    """Scores all rows in one stream of this codec; returns how many positions were compared."""
    requests = [request(id=7 + n, tokens=np.array(want["ids"], "<u4").tobytes(), temperature=T, signal=1,
                        top_k=K, codec=codec) for n, want in enumerate(expected)]
    scored = {reply.id: reply for reply in score(iter(requests))}
    positions = 0
    for n, want in enumerate(expected):
        reply, rows = scored[7 + n], len(want["ids"])
        assert not reply.HasField("error"), reply.error
        assert (reply.first_position, reply.rows, reply.last, reply.codec) == (0, rows, True, codec)
        assert reply.temperature == T and reply.model_fingerprint.hex() == teacher.model_fingerprint[:32]
        assert reply.tokenizer_fingerprint.hex() == teacher.tokenizer_fingerprint[:32]
        log_z, log_rest, top, values = signals.read_top_k(
            reply.signal, reply.rows, K, reply.codec, teacher.vocab_size)
        logprobs = values - log_z[:, None].astype(np.float64)
        if codec == 4:  # values of 8 bits: the bound that docs/wire.md states
            bound = TOLERANCE + (values[:, :1] - values[:, -1:]) / 510
            assert (np.abs(logprobs - want["logprobs"]) <= bound).all(), np.abs(logprobs - want["logprobs"]).max()
        else:
            compare("score_logprob", logprobs, want["logprobs"], worst)
            # The contract's logit: the value times T.
            compare("score_logit", values * T, want["logits"], worst)
            compare("sum_to_one", np.exp(logprobs).sum(1) + np.exp(log_rest.astype(np.float64)), 1.0, worst)
        swapped = [set(ours) ^ set(theirs) for ours, theirs in zip(top.tolist(), want["top"])]
        assert sum(map(len, swapped)) <= 2, f"other tokens in the top {K}: {swapped}"
        following = np.frombuffer(reply.next_logprob, "<f4")
        assert len(following) == rows and math.isnan(following[-1])
        compare("next_logprob", following[:-1], want["next"], worst)
        positions += rows
    return positions


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    for option in ("--model", "--expected", "--write"):
        parser.add_argument(option)
    a = parser.parse_args()
    channel = grpc.insecure_channel(a.address)
    clients = dict(generated=generated(channel), reflected=reflected(channel))
    result, expected = {}, None
    for name, calls in clients.items():
        (get_info, info), (score, request), (score_text, text) = (calls[call] for call in CALLS)
        replies = [score_text(text(text=t, temperature=T, top_k=K)) for t in TEXTS]
        ids = [[token.id for token in reply.tokens] for reply in replies]
        if expected is None:
            try:
                expected, result["compared_with"] = by_transformers(a.model, ids), "transformers"
            except ImportError:
                assert a.expected, "torch and transformers are not installed: give --expected FILE"
                expected, result["compared_with"] = json.load(open(a.expected)), a.expected
            if a.write:
                json.dump(expected, open(a.write, "w"))
        assert ids == [want["ids"] for want in expected], f"the tokens differ: {ids}"
        worst = {}
        check_text(replies, expected, worst)
        teacher = get_info(info())
        positions = sum(check_score(score, request, teacher, codec, expected, worst) for codec in (1, 2, 3, 4))
        assert all(value < TOLERANCE for value in worst.values()), (name, worst)
        result[name] = dict(positions=positions, **worst)
    print(json.dumps(result))


main()
