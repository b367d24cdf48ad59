#!/usr/bin/env python3
"""Asks a teacher for sequences' log-probabilities with the client that TRL's own trainers use, in
every reply format which the installed version speaks, and compares what it makes of the replies
with what transformers computes of the same model in float32. Up to TRL 1.10 the formats are those of
/get_sequence_logprobs/, JSON and binary; later versions speak vLLM's /v1/completions. No vLLM and no
GPU is needed.

needs: pip install trl requests torch transformers
usage: trl_teacher.py URL MODEL
  MODEL  the directory of the model that the teacher serves
Prints one line for each check. Fails where anything differs by more than 1e-4.
"""
import inspect
import os
import signal
import sys
import time

import torch
import trl
from transformers import AutoModelForCausalLM
from trl.generation import vllm_client

TOLERANCE = 1e-4
UNKNOWN_ID = 2**30  # in no vocabulary

T, K = 5.0, 8
url, model = sys.argv[1:]


def expected(model):
    """For each token after a prompt: the K likeliest at T, best first, with their log-probabilities,
    and the log-probability of the one that stands there."""
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    draw, sequences = torch.Generator().manual_seed(1), []
    # Among them an empty completion, one token, and a prompt of one.
    for length, prompt in ((9, 3), (6, 1), (5, 5), (12, 11), (30, 4)):
        tokens = torch.randint(model.config.vocab_size, (length,), generator=draw)
        with torch.no_grad():
            logits = model(input_ids=tokens[None]).logits[0].double()
        logprobs = (logits / T).log_softmax(-1)[prompt - 1 : -1]
        best, follow = logprobs.topk(K), tokens[prompt:, None]
        sequences.append(dict(tokens=tokens.tolist(), prompt_length=prompt, ids=best.indices.tolist(),
                              logprobs=best.values.tolist(), realised=logprobs.gather(1, follow)[:, 0].tolist()))
    return sequences


sequences = expected(model)
tokens, prompts = ([sequence[what] for sequence in sequences] for what in ("tokens", "prompt_length"))
os.environ["no_proxy"] = "*"


def connect():
    """The client, once it has found the teacher up. It asks for ever where the answer is an error."""
    # vLLM is only needed to send it weights, but the client refuses to be made without.
    vllm_client.is_vllm_available = lambda *args, **kwargs: True

    def too_long(*_):
        raise TimeoutError(f"the client still waits for {url} to report its health")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(90)
    client = vllm_client.VLLMClient(base_url=url, connection_timeout=60.0)
    begun = time.monotonic()
    client.check_server()
    waited = time.monotonic() - begun
    signal.alarm(0)
    # It asks again after 2 s.
    assert waited < 2, f"the first question for the teacher's health was in vain: {waited:.1f} s"
    named = f", which serves {client.model}" if hasattr(client, "model") else ""
    print(f"ok: the client of TRL {trl.__version__} found the teacher up{named}")
    return client


def same(ours, theirs, where):
    # A NaN or null compares as different.
    assert ours is not None and abs(ours - theirs) <= TOLERANCE, f"{where}: {ours}, not {theirs}"
    return abs(ours - theirs)


def check_position(ids, logprobs, k, token, want_ids, want_logprobs, want_realised, where):
    """The top k, and behind them the token that stands there if the format has room for it."""
    assert len(ids) == len(logprobs), where
    worst = 0.0
    want = dict(zip(want_ids, want_logprobs))
    for rank, (id, logprob) in enumerate(zip(ids[:k], logprobs)):
        worst = max(worst, same(logprob, want_logprobs[rank], f"{where}, rank {rank + 1}"))
        # Another id may stand there only where the two are as likely.
        expected = want_realised if id == token else want.get(id, want_logprobs[-1])
        worst = max(worst, same(logprob, expected, f"{where}, token {id}"))
    assert len(set(ids)) == len(ids) >= k, f"{where}: {ids}"
    if len(ids) > k:
        assert ids[k:] == [token], f"{where}: {ids} where {token} stands"
        worst = max(worst, same(logprobs[k], want_realised, f"{where}, the token itself"))
    return worst


def check(name, client, k, **options):
    result = client.get_sequence_logprobs(tokens, prompts, top_logprobs=k, temperature=T, **options)
    fixed = options.get("use_binary", True)
    assert ("actual_logprobs" in result) == fixed, list(result)
    assert all(len(rows) == len(sequences) for rows in result.values())
    worst, positions = 0.0, 0
    for n, want in enumerate(sequences):
        completion = want["tokens"][want["prompt_length"]:]
        assert all(len(rows[n]) == len(completion) for rows in result.values()), f"sequence {n}"
        for t, token in enumerate(completion):
            where = f"{name}, top {k}, sequence {n}, position {t}"
            ids, logprobs = result["logprob_token_ids"][n][t], result["logprobs"][n][t]
            # Trainers make an array of the rows; only the JSON format leaves them ragged.
            assert len(ids) == k if fixed else token in ids, f"{where}: {ids}"
            difference = check_position(ids, logprobs, k, token, want["ids"][t], want["logprobs"][t],
                                        want["realised"][t], where)
            if fixed:
                assert result["actual_token_ids"][n][t] == [token], where
                [realised] = result["actual_logprobs"][n][t]
                difference = max(difference, same(realised, want["realised"][t], f"{where}, realised"))
            worst, positions = max(worst, difference), positions + 1
    print(f"ok: {name}, top {k}: {positions} positions, largest difference {worst:.1e}")


def check_refused(name, client, **options):
    """A mistake of the client's must not look like a passing failure, which it would repeat."""
    try:
        client.get_sequence_logprobs([[UNKNOWN_ID, UNKNOWN_ID]], [1], top_logprobs=1, temperature=T, **options)
    except Exception as error:
        assert str(error).startswith("Request failed: 4"), repr(error)
        print(f"ok: {name}, an unknown token: {error}")
    else:
        raise AssertionError(f"{name}: a token outside of the vocabulary was scored")


client = connect()
if "use_binary" in inspect.signature(client.get_sequence_logprobs).parameters:
    formats = {"JSON": dict(use_binary=False), "binary": dict(use_binary=True)}
else:
    formats = {"completions": {}}
for name, options in formats.items():
    # Trainers ask for the top 1 unless told otherwise; 0 asks for the tokens that stand there alone.
    for k in (K, 1, 0):
        check(name, client, k, **options)
    check(f"{name} in requests of one sequence", client, K, chunk_size=1, max_concurrent_requests=2, **options)
    check_refused(name, client, **options)
