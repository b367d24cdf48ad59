"""Runs the shell blocks of the sections "grpcurl" and "ghz" of clients/README.md as they stand there,
against a teacher, and checks what the README says of the answers.

The two programs themselves are not at hand where tests run. In their place stand two that this file
plays: they know of the server what it says of itself by reflection, and of the programs the flags
that the README uses; any other is an error. ghz's makes a few calls, not for the time it is told.
Blocks with -cacert are skipped, and said to be: they want certificates, which no stand-in knows.

needs: bash, pip install grpcio grpcio-reflection
usage: readme_clients.py HOST:PORT [--readme FILE]
Prints one JSON line last: how often each was called, and how many blocks were skipped.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import tempfile

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

README = pathlib.Path(__file__).resolve().parents[2] / "clients/README.md"
TEACHER = "distill.v1.Teacher"
SKIPPED = "-cacert"
# Names the file to which the stand-ins append what they were asked and answered, one line a call.
LOG = "README_CLIENTS_LOG"
GHZ_CALLS = 3
TIMEOUT_S = 60


def seconds(word):
    assert re.fullmatch(r"\d+s", word), f"{word} is no duration in seconds"
    return int(word[:-1])


def one_of(*choices):
    def read(word):
        assert word in choices, f"{word} is none of {choices}"
        return word
    return read


FLAGS = {
    "grpcurl": {"-plaintext": bool, "-d": str},
    "ghz": {"--insecure": bool, "--call": str, "-D": str, "--connections": int, "-c": int, "-z": seconds,
            "-t": seconds, "--duration-stop": one_of("close", "wait", "ignore"), "--async": bool,
            "--load-schedule": one_of("const", "step", "line"), "--load-start": int, "--load-step": int,
            "--load-end": int, "--load-step-duration": seconds},
}


def read_flags(tool, words):
    """Flags by name, and the words after them. Not by argparse, which takes -plain for -plaintext."""
    flags, words = {}, collections.deque(words)
    while words and words[0].startswith("-"):
        flag = words.popleft()
        assert flag in FLAGS[tool], f"{tool}: unknown flag {flag}"
        kind = FLAGS[tool][flag]
        flags[flag] = True if kind is bool else kind(words.popleft())
    return flags, list(words)


def reflect(address):
    channel = grpc.insecure_channel(address)
    database = ProtoReflectionDescriptorDatabase(channel)
    return channel, database, descriptor_pool.DescriptorPool(database)


def call(channel, pool, name, values, timeout):
    """The replies to these requests, both as JSON; name is SERVICE/METHOD or SERVICE.METHOD."""
    service, _, method = name.replace("/", ".").rpartition(".")
    method = pool.FindServiceByName(service).FindMethodByName(method)
    request, reply = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
    # The contract has no stream in one direction only.
    assert method.client_streaming == method.server_streaming, name
    kind = channel.stream_stream if method.client_streaming else channel.unary_unary
    ask = kind(f"/{service}/{method.name}", request_serializer=request.SerializeToString,
               response_deserializer=reply.FromString)
    requests = [json_format.ParseDict(value, request()) for value in values]
    if method.client_streaming:
        replies = ask(iter(requests), timeout=timeout)
    else:
        [only] = requests
        replies = [ask(only, timeout=timeout)]
    return [json_format.MessageToDict(reply) for reply in replies]


def objects(text):
    """The JSON values of a text, which stand one after another."""
    text = text.strip()
    while text:
        value, end = json.JSONDecoder().raw_decode(text)
        yield value
        text = text[end:].lstrip()


def describe(pool, name):
    try:
        return [method.name for method in pool.FindServiceByName(name).methods]
    except KeyError:
        return [field.name for field in pool.FindMessageTypeByName(name).fields]


def grpcurl(words):
    flags, (address, *asked) = read_flags("grpcurl", words)
    assert "-plaintext" in flags, "grpcurl: the stand-in knows no TLS"
    channel, database, pool = reflect(address)
    if asked == ["list"]:
        replies = list(database.get_services())
    elif asked[0] == "describe":
        [_, name] = asked
        replies = describe(pool, name)
    else:
        [method] = asked
        data = flags.get("-d", "{}")
        replies = call(channel, pool, method, objects(sys.stdin.read() if data == "@" else data), TIMEOUT_S)
    for reply in replies:
        print(reply if isinstance(reply, str) else json.dumps(reply, indent=2))
    return " ".join(asked), replies


def filled(template, number):
    text = template.replace("{{.RequestNumber}}", str(number))
    draw = lambda bounds: str(random.randrange(int(bounds[1]), int(bounds[2])))
    text = re.sub(r"\{\{randomInt (\d+) (\d+)\}\}", draw, text)
    assert "{{" not in text, f"ghz: a template that the stand-in does not know: {text}"
    return text


def ghz(words):
    flags, [address] = read_flags("ghz", words)
    assert "--insecure" in flags, "ghz: the stand-in knows no TLS"
    assert flags["--connections"] <= flags["-c"], "ghz: more connections than calls at a time"
    channel, _, pool = reflect(address)
    template, replies = pathlib.Path(flags["-D"]).read_text(), []
    for number in range(GHZ_CALLS):
        values = json.loads(filled(template, number))
        values = values if isinstance(values, list) else [values]
        replies += call(channel, pool, flags["--call"], values, flags.get("-t", TIMEOUT_S))
    print(f"ghz: {GHZ_CALLS} calls of {flags['--call']}, {len(replies)} replies")
    return flags["--call"], replies


def stand_in(tool, words):
    asked, replies = {"grpcurl": grpcurl, "ghz": ghz}[tool](words)
    with open(os.environ[LOG], "a") as log:
        print(json.dumps(dict(tool=tool, asked=asked, replies=replies)), file=log)


def blocks(readme, tool):
    section = re.search(rf"^## {tool}\n(.*?)(?=^## |\Z)", readme, re.M | re.S)[1]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)


def run(block, folder, environment):
    print(block, flush=True)
    done = subprocess.run(["bash", "-e", "-o", "pipefail", "-c", block], cwd=folder, env=environment,
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"the block above ended with {done.returncode}")


def check(answers):
    """answers: by program and what it was asked, all replies."""
    assert TEACHER in answers["grpcurl", "list"], answers["grpcurl", "list"]
    methods = ["GetInfo", "Score", "ScoreText", "GetDecoder", "Fetch"]
    assert answers["grpcurl", f"describe {TEACHER}"] == methods
    assert answers["grpcurl", "grpc.health.v1.Health/Check"] == [{"status": "SERVING"}]
    [text] = answers["grpcurl", f"{TEACHER}/ScoreText"]
    assert text["temperature"] == 2 and all(len(token["next"]) == 3 for token in text["tokens"]), text
    # In JSON a u64 is a string, and a field that is 0 is left out.
    scored = {reply.get("id", "0"): reply for reply in answers["grpcurl", f"{TEACHER}/Score"]}
    assert sorted(scored) == ["1", "2", "3"], scored
    assert all("error" not in scored[id] and scored[id]["signal"] for id in "12"), scored
    assert "temperature" in scored["3"]["error"]["message"], scored["3"]
    texts = {"".join(token["text"] for token in reply["tokens"])
             for reply in answers["ghz", f"{TEACHER}.ScoreText"]}
    assert len(texts) >= GHZ_CALLS, f"not a new text for every call: {texts}"
    streams = answers["ghz", f"{TEACHER}.Score"]
    refused = [reply for reply in streams if "error" in reply]
    assert not refused, refused[0]
    ended = collections.Counter(reply.get("id", "0") for reply in streams if reply.get("last"))
    assert len(ended) == 64 and set(ended.values()) == {GHZ_CALLS}, ended


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--readme", type=pathlib.Path, default=README)
    a = parser.parse_args()
    readme, skipped = a.readme.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as folder:
        programs, log = pathlib.Path(folder, "bin"), pathlib.Path(folder, "log")
        programs.mkdir()
        for tool in FLAGS:
            program = programs / tool
            words = shlex.join([sys.executable, str(pathlib.Path(__file__).resolve()), "--stand-in", tool])
            program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            program.chmod(0o755)
        path = os.pathsep.join([str(programs), os.environ["PATH"]])
        environment = dict(os.environ, PATH=path, T=a.address, **{LOG: str(log)})
        for tool in FLAGS:
            for block in blocks(readme, tool):
                if SKIPPED in block:
                    print(f"skipped, for it has {SKIPPED}:\n{block}")
                    skipped += 1
                else:
                    run(block, folder, environment)
        calls = [json.loads(line) for line in log.read_text().splitlines()]
    answers = collections.defaultdict(list)
    for record in calls:
        answers[record["tool"], record["asked"]] += record["replies"]
    check(answers)
    counts = collections.Counter(record["tool"] for record in calls)
    print(json.dumps(dict(counts, skipped=skipped)))


if sys.argv[1:2] == ["--stand-in"]:
    stand_in(sys.argv[2], sys.argv[3:])
else:
    main()
