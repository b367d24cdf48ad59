"""The peer of `engine_bench`, in PyTorch and transformers: seconds of each training step (KL + CE on
the teacher's top-k with its tail, or with K = 0 on all of its logits, as one writes it in PyTorch;
AdamW, clipping), or of scoring a batch (with K = 0 the forward pass alone). One JSON line.
usage: engine_peer.py step|score SHAPE ROWSxTOKENS [f32|bf16] [K] [STEPS] [none|blocks]
       engine_peer.py product NxIxO: GFLOP/s of a linear layer in both types"""
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

if sys.argv[1] == "product":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, i, o = map(int, sys.argv[2].split("x"))
    rates = {}
    for name, type in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        x, w = torch.randn(n, i, dtype=type), torch.randn(o, i, dtype=type)
        seconds = []
        for _ in range(15):
            begin = time.perf_counter()
            F.linear(x, w)
            seconds.append(time.perf_counter() - begin)
        rates[name] = round(2e-9 * n * i * o / sorted(seconds)[7])
    print(json.dumps(rates))
    sys.exit()

what, shape, size, dtype, k, steps, recompute = (sys.argv[1:] + [None] * 7)[:7]
rows, tokens = map(int, (size or "4x256").split("x"))
dtype, k, steps = dtype or "f32", int(64 if k is None else k), int(steps or 5)
torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as ours takes
torch.manual_seed(1)
hidden, inter, layers, heads, kv, width, vocab = {
    "small": (256, 768, 6, 8, 4, 32, 4096),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128, 151_936),
    "qwen3-4b": (2560, 9728, 36, 32, 8, 128, 151_936),
}[shape]
config = Qwen3Config(
    hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads,
    num_key_value_heads=kv, head_dim=width, vocab_size=vocab, tie_word_embeddings=True,
    max_position_embeddings=40960, rope_theta=1e6, attention_bias=False,
)
T, alpha = 5.0, 0.7
ids = torch.randint(0, vocab, (rows, tokens))


def autocast():
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16")


def given_top_k():
    """A teacher's ids, log-probabilities at T and log of the rest's mass; the divergence from them."""
    top = torch.stack([torch.randperm(vocab)[:k] for _ in range(rows * (tokens - 1))])
    values = -0.05 * torch.arange(k).float().expand(len(top), k)
    rest = values.logsumexp(-1) if k < vocab else torch.full((len(top),), -torch.inf)
    log_z = torch.logaddexp(values.logsumexp(-1), rest)
    log_p, log_p_rest = values - log_z[:, None], rest - log_z
    p, p_rest = log_p.exp(), log_p_rest.exp()

    def divergence(z):
        log_q = F.log_softmax(z / T, -1).gather(-1, top)
        log_q_rest = torch.log1p(-log_q.exp().sum(-1).clamp(max=1 - 1e-7))
        return ((p * (log_p - log_q)).sum(-1) + p_rest * (log_p_rest - log_q_rest)).mean()

    return divergence


def given_logits():
    """A teacher's logits, as its forward pass in 16 bits leaves them; the divergence from them."""
    given = torch.randn(rows * (tokens - 1), vocab, dtype=torch.bfloat16 if dtype == "bf16" else None)

    def divergence(z):
        teacher = F.softmax(given.float() / T, -1)
        return F.kl_div(F.log_softmax(z / T, -1), teacher, reduction="batchmean")

    return divergence


def step_seconds():
    model = Qwen3ForCausalLM(config).train()
    if recompute == "blocks":
        model.gradient_checkpointing_enable()
    model.config.use_cache = False
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    divergence = given_top_k() if k else given_logits()
    for _ in range(steps):
        begin = time.perf_counter()
        with autocast():
            logits = model(input_ids=ids).logits
        z = logits[:, :-1].float().reshape(-1, vocab)
        ce = F.cross_entropy(z, ids[:, 1:].reshape(-1))
        loss = alpha * T * T * divergence(z) + (1 - alpha) * ce
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        yield time.perf_counter() - begin


def peak_mib():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def score_seconds():
    global before
    model = Qwen3ForCausalLM(config).to(torch.bfloat16 if dtype == "bf16" else torch.float32).eval()
    open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
    before = peak_mib()
    for _ in range(steps):
        begin = time.perf_counter()
        with torch.no_grad():
            hidden_states = model.model(input_ids=ids).last_hidden_state.reshape(-1, hidden)
            # In pieces: the logits of all positions at once would be its largest memory by far.
            for piece in hidden_states.split(256):
                logits = model.lm_head(piece)
                if k:
                    scaled = logits.float() / T
                    scaled.topk(k), scaled.logsumexp(-1)
        yield time.perf_counter() - begin


before = 0
seconds = list(step_seconds() if what == "step" else score_seconds())
peak = peak_mib()
print(json.dumps({"seconds": [round(s, 4) for s in seconds], "peak_mib": peak, "above_mib": peak - before}))
