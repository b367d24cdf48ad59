"""The peer of `card_bench`, in PyTorch and transformers on one card: a JSON line of the same form, for the same shapes.
usage: gpu_peer.py "matrix rate" | AdamW | "attention, both ways" | "student's step"
       gpu_peer.py models DIR: random weights of real shapes, with the tokenizer of DIR/teacher"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

NAME, TIMES = sys.argv[1], 10
DEVICE = "cuda"
torch.manual_seed(1)


def median_of(once):
    """Seconds of one time; the first ones, in which kernels are chosen and compiled, do not count."""
    seconds = []
    for number in range(TIMES + 5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        once()
        torch.cuda.synchronize()
        if number >= 5:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def median_of_turns(start):
    """As ours: a turn begins with what is started next, and ends when the one before it can be read."""
    seconds, before = [], start()
    for number in range(TIMES + 5):
        begin = time.perf_counter()
        started = start()
        before.item()
        before = started
        if number >= 5:
            seconds.append(time.perf_counter() - begin)
    before.item()
    return statistics.median(seconds)


def say(seconds, operations=0, moved=0, memory=0, name=NAME):
    figure = {"name": name, "seconds": seconds, "operations": operations, "bytes": moved, "memory": memory}
    print(json.dumps(figure))


def rate():
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    # As ours: several in a row, one start.
    seconds = median_of(lambda: [a @ b.T for _ in range(TIMES)]) / TIMES
    say(seconds, operations=2 * n**3)


def adamw():
    count = 596_049_920
    p = torch.zeros(count, device=DEVICE, requires_grad=True)
    p.grad = torch.zeros_like(p)
    optimiser = torch.optim.AdamW([p], fused=True)
    seconds = median_of(optimiser.step)
    say(seconds, moved=(7 * 4) * count)


def attention():
    rows, length, heads, keys, width = 16, 1024, 16, 8, 128
    q = torch.randn(rows, heads, length, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    k, v = (
        torch.randn(rows, keys, length, width, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(2)
    )
    d = torch.randn_like(q)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def once(backend):
        for _ in range(TIMES):
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out.backward(d)
            q.grad = k.grad = v.grad = None

    operations = 7 * rows * length * length * heads * width
    say(median_of(lambda: once(SDPBackend.FLASH_ATTENTION)) / TIMES, operations)
    try:
        seconds = median_of(lambda: once(SDPBackend.CUDNN_ATTENTION)) / TIMES
    except RuntimeError as error:
        print(f"no attention by cuDNN here: {error}", file=sys.stderr)
    else:
        say(seconds, operations, name="attention by cuDNN")


def student():
    """Forward, KL on the teacher's top 64 with its tail and CE, backward, clipping, AdamW, as one writes it: weights in
    float32, products in bfloat16 by autocast, SDPA, torch.compile."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    rows, length, vocab, k, temperature, alpha = 16, 1024, 151_936, 64, 5.0, 0.5
    config = Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=vocab, tie_word_embeddings=True,
        max_position_embeddings=40960, rope_theta=1e6, attention_bias=False, use_cache=False,
    )
    with torch.device(DEVICE):
        model = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, vocab, (rows, length), device=DEVICE)
    scored = rows * (length - 1)
    top = torch.randint(0, vocab, (scored, k), device=DEVICE)
    scaled = -0.01 * torch.arange(k, device=DEVICE).float().expand(scored, k)
    log_z = scaled.logsumexp(-1) + 0.6
    p = (scaled - log_z[:, None]).exp()
    p_rest = (1 - p.sum(-1)).clamp_min(1e-12)

    # Each layer once for all (regional compilation): the whole would be unrolled, and its attention would lose the flash
    # kernel to a mask that tracing makes.
    for layer in model.model.layers:
        layer.compile()

    @torch.compile
    def loss_of(logits, ids, top, p, p_rest):
        z = logits[:, :-1].reshape(scored, vocab).float()
        ce = F.cross_entropy(z, ids[:, 1:].reshape(-1))
        log_q = (z / temperature).log_softmax(-1)
        of_top = log_q.gather(-1, top)
        q_rest = (1 - of_top.exp().sum(-1)).clamp_min(1e-12)
        kl = (p * (p.log() - of_top)).sum(-1) + p_rest * (p_rest.log() - q_rest.log())
        return alpha * temperature**2 * kl.mean() + (1 - alpha) * ce

    # As ours, a step begins with the signal on the host and ends with the loss there.
    sent = [x.cpu().pin_memory() for x in (top, p, p_rest)]

    def start():
        signal = [x.to(DEVICE, non_blocking=True) for x in sent]
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = model(input_ids=ids).logits
        loss = loss_of(logits, ids, *signal)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    torch.cuda.reset_peak_memory_stats()
    seconds = median_of_turns(start)
    say(seconds, memory=torch.cuda.max_memory_allocated())


def models():
    """DIR/real-teacher and DIR/real-student, bfloat16: Qwen3-4B's and Qwen3-0.6B's shapes."""
    import shutil
    from pathlib import Path

    from transformers import Qwen3Config, Qwen3ForCausalLM

    root = Path(sys.argv[2])
    shapes = {"real-teacher": (2560, 9728, 32, 36), "real-student": (1024, 3072, 16, 28)}
    for name, (hidden, inner, heads, layers) in shapes.items():
        config = Qwen3Config(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=8, head_dim=128, vocab_size=151_936, tie_word_embeddings=True,
            max_position_embeddings=40960, rope_theta=1e6, attention_bias=False, dtype="bfloat16",
        )
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(DEVICE):
            model = Qwen3ForCausalLM(config)
        model.save_pretrained(root / name, max_shard_size="20GB")
        for file in (root / "teacher").iterdir():
            if not (root / name / file.name).exists() and file.suffix != ".safetensors":
                shutil.copy(file, root / name)


if NAME == "models":
    models()
    sys.exit()
{"matrix rate": rate, "AdamW": adamw, "attention, both ways": attention, "student's step": student}[NAME]()
