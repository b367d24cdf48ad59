#!/usr/bin/env python3
"""Has TRL's asynchronous distillation ask a teacher for its distributions: the worker that TRL's own
trainer starts, a process of its own, with many questions under way at a time. What it makes of the
answers is compared with what transformers computes of the same model in float32. The student, which
vLLM would sample, is played here: it answers with tokens drawn at random. No vLLM and no GPU is needed.

needs: pip install trl==1.16.0 aiohttp accelerate datasets torch transformers
usage: trl_async_teacher.py URL MODEL
  MODEL  the directory of the model that the teacher serves
Prints one line for each check. Fails where anything differs by more than 1e-4.
"""
import asyncio
import os
import random
import sys
import threading

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

from aiohttp import web

TOLERANCE = 1e-4
T, K = 5.0, 8
SAMPLES, ROWS, AT_A_TIME = 60, 12, 16
PATIENCE = 120  # seconds; the process imports torch first


def play_student(vocabulary):
    """Answers as vLLM's /v1/completions does where tokens are sampled; gives its address."""
    draw, started, address = random.Random(1), threading.Event(), []

    async def sample(request):
        asked = await request.json()
        assert asked["max_tokens"] > 1 and "prompt_logprobs" not in asked, asked
        tokens = [draw.randrange(vocabulary) for _ in range(draw.randint(1, asked["max_tokens"]))]
        return web.json_response({"choices": [{"token_ids": tokens}]})

    async def serve():
        routes = web.Application()
        routes.router.add_post("/v1/completions", sample)
        runner = web.AppRunner(routes)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address.append("http://127.0.0.1:%d" % site._server.sockets[0].getsockname()[1])
        started.set()
        await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    assert started.wait(10), "the student does not start"
    return address[0]


def samples_of(url, model):
    """What TRL's worker puts before its trainer, and what it counted."""
    from accelerate.state import PartialState
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.async_distillation import async_rollout_worker

    PartialState()  # TRL's log wants it
    # vLLM is only needed to send it weights, but the worker refuses to be made without.
    async_rollout_worker.is_vllm_available = lambda *args, **kwargs: True
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    # Two teachers by name, as for several fields of knowledge; the address of one ends with a slash.
    teachers = {"plain": url.rstrip("/"), "slash": url.rstrip("/") + "/"}
    rows = [{"prompt": [{"role": "user", "content": f"What is {n} and {n * n}?"}], "teacher_id": name}
            for n, name in zip(range(ROWS), list(teachers) * ROWS)]
    worker = async_rollout_worker.AsyncRolloutWorker(
        queue_maxsize=SAMPLES, child_ready_timeout=PATIENCE, model_name="student",
        dataset=Dataset.from_list(rows), processing_class=tokenizer,
        eos_token_ids=[0], max_inflight_tasks=AT_A_TIME,
        vllm_server_url=play_student(len(tokenizer)), teacher_server_urls=teachers, teacher_top_k=K,
        teacher_temperature=T, max_tokens=20, request_timeout=20)
    worker.start()
    try:
        samples = [worker.rollout_buffer.get(timeout=PATIENCE) for _ in range(SAMPLES)]
        worker.check_health(stale_after_s=PATIENCE)
        counted = set()
        while not worker.metrics_queue.empty():
            counted.update(worker.metrics_queue.get())
    finally:
        worker.stop()
    return samples, counted


def main(url, model):
    samples, counted = samples_of(url, model)
    assert "rollout/vllm_retry_total" not in counted, "something had to be asked again"
    assert {sample.teacher_id for sample in samples} == {"plain", "slash"}
    print(f"ok: {len(samples)} samples of {AT_A_TIME} at a time, none asked for twice, of two teachers by name")

    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    worst, positions, outside = 0.0, 0, 0
    for n, sample in enumerate(samples):
        tokens, mask = torch.from_numpy(sample.input_ids), sample.completion_mask.astype(bool)
        ids, logprobs = sample.teacher_topk_ids, sample.teacher_topk_logprobs
        assert ids.shape == logprobs.shape == (len(tokens), K + 1), ids.shape
        assert (ids[~mask] == -1).all(), f"sample {n}: the prompt has expectations"
        with torch.no_grad():
            expected = (model(input_ids=tokens[None]).logits[0].double() / T).log_softmax(-1)
        for t in mask.nonzero()[0]:
            where, token, want = f"sample {n}, position {t}", tokens[t].item(), expected[t - 1]
            here = ids[t] != -1
            found = dict(zip(ids[t][here].tolist(), logprobs[t][here].tolist()))
            best = want.topk(K)
            # The token that stands there is there, by itself if it is none of the best.
            assert token in found, f"{where}: {token} is not among {found}"
            assert len(found) == here.sum() == K + (list(found).index(token) == K), f"{where}: {found}"
            for rank, (id, logprob) in enumerate(found.items()):
                differences = [abs(logprob - want[id].item())]
                if rank < K:
                    differences.append(abs(logprob - best.values[rank].item()))
                # A NaN compares as different.
                assert all(d <= TOLERANCE for d in differences), f"{where}, rank {rank + 1}: {differences}"
                worst = max(worst, *differences)
            positions, outside = positions + 1, outside + (len(found) > K)
    assert outside > 0, "every token was one of the best: nothing was shown of the others"
    print(f"ok: {positions} positions at T = {T}, top {K}, {outside} with a token below these: "
          f"largest difference {worst:.1e}")


# The worker is a process that reads this file again.
if __name__ == "__main__":
    main(*sys.argv[1:])
