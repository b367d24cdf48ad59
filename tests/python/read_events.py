#!/usr/bin/env python3
"""Reads the TensorBoard event files below a directory with the real tensorboard package and prints their scalars as
one JSON object {tag: [[step, value], ...]}. Exit status 1 when there is nothing to read.

needs: pip install tensorboard
usage: read_events.py DIR"""
import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

files = pathlib.Path(sys.argv[1]).rglob("*tfevents*")
folders = sorted({str(path.parent) for path in files})
if len(folders) != 1:
    sys.exit(f"event files in {len(folders)} folders below {sys.argv[1]}: one is wanted")
events = EventAccumulator(folders[0], size_guidance={SCALARS: 0})
events.Reload()
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}
if not scalars:
    sys.exit(f"no scalars in {folders[0]}")
print(json.dumps(scalars))
