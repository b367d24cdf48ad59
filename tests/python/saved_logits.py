#!/usr/bin/env python3
"""Loads every model saved below a directory with transformers and writes the logits it computes in
float32 for the tokens in its ids.json: {NAME: {"ids": [T], "logits": [T][V]}}. Fails when a tensor
is missing, left over or of another shape.

needs: pip install torch transformers
usage: saved_logits.py DIR OUT.json
tests/golden/saved_models.json was made by it (torch 2.15.0, transformers 5.24.0):
    LIMBECK_WRITE_SAVED_LOGITS=$PWD/tests/golden/saved_models.json \\
        cargo test --release -p model transformers_loads_every_kind_of_save
"""
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

found = {}
for folder in sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/ids.json")):
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    faults = {what: names for what, names in loading.items() if names}
    assert not faults, f"{folder.name}: {faults}"
    ids = json.loads((folder / "ids.json").read_text())
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    # 8 digits name a float32 to within its rounding.
    rounded = [[float(f"{value:.8g}") for value in row] for row in logits.tolist()]
    found[folder.name] = dict(ids=ids, logits=rounded)
pathlib.Path(sys.argv[2]).write_text(json.dumps(found) + "\n")
