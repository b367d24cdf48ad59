"""Tokens/s at which transformers scores rows and selects the top 64 at T = 5: the peer of the
teacher's own rate. usage: score_rate.py MODEL ROWS.jsonl float32|bfloat16"""
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

model_dir, rows, dtype = sys.argv[1:]
torch.set_num_threads(2)
tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
texts = [
    f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n{row['answer']}<|im_end|>\n"
    for row in map(json.loads, open(rows).readlines()[:200])
]
sequences = [tokenizer(text).input_ids for text in texts]


def score(batch):
    longest = max(map(len, batch))
    ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    scaled = model(input_ids=ids, attention_mask=mask).logits.float() / 5.0
    return scaled.topk(64), scaled.logsumexp(-1)


with torch.no_grad():
    for start in range(0, 16, 4):
        score(sequences[start : start + 4])
    begun = time.perf_counter()
    for start in range(0, len(sequences), 4):
        score(sequences[start : start + 4])
    seconds = time.perf_counter() - begun
print(sum(map(len, sequences)) / seconds)
