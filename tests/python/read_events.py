#!/usr/bin/env python3
"""Reads the TensorBoard event files of a directory with the real tensorboard package and prints their scalars as
one JSON object {tag: [[step, value], ...]}. Exit status 1 when there is nothing to read.

needs: pip install tensorboard
usage: read_events.py DIR"""
import json
import sys

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

events = EventAccumulator(sys.argv[1], size_guidance={SCALARS: 0})
events.Reload()
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()[SCALARS]}
if not scalars:
    sys.exit(f"no scalars in {sys.argv[1]}")
print(json.dumps(scalars))
