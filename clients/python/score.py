"""Scores sequences with a teacher from Python: what it is, and what it says of each position by the signal that
is asked for. To read and to copy from.

  top-k    (default) its top k at a temperature, in every codec, and then the log-probabilities of tokens the
           client names itself
  sampled  draws, and beside them the likeliest exactly
  full     hidden states, and with the output matrix the log-probabilities of all classes
  coded    the same, coded

needs: pip install grpcio grpcio-tools numpy   (and xxhash, blake3: without them no checksum, no digest is compared)
usage: score.py --teacher HOST:PORT [--ca FILE] [--token-file FILE] [--text TEXT ...] [--tokens 1,2,3 ...]
                [--signal top-k|sampled|full|coded]

teacher.py has the network, signals.py and coded.py read the bytes.
"""
import argparse
import pathlib
import sys

import numpy as np

from signals import CODECS, FORMS, log_softmax
from teacher import PROTO, Refused, Teacher, blake3, xxhash


class Table:
    """Prints what is said of some positions of a sequence: the token there, the one that follows and its
    log-probability, and the likeliest."""

    def __init__(self, words, tokens, positions):
        self.word = lambda id: repr(words[id]) if id in words else f"[{id}]"
        self.tokens, self.positions = tokens, positions

    def show(self, next_logprob, likeliest, title="likeliest at T", few=3):
        """`likeliest` gives, for a row, pairs of an id and its probability."""
        print(f"    t  token         follows       log p(T=1)  {title}")
        for row in sorted({*range(min(4, len(self.positions))), len(self.positions) - 1}):
            t = self.positions[row]
            follows = self.word(self.tokens[t + 1]) if t + 1 < len(self.tokens) else "-"
            best = "  ".join(f"{self.word(id)} {p:.3f}" for id, p in likeliest(row)[:few])
            print(f"{t:5}  {self.word(self.tokens[t]):12}  {follows:12}  {next_logprob[row]:10.4f}  {best}")


def error(coded, raw):
    """The largest difference of a value; a codec may exchange entries that are nearly equal."""
    by_id = (np.take_along_axis(some.values, some.ids.argsort(1), 1) for some in (coded, raw))
    return np.abs(np.subtract(*by_id)).max()


def show_top_k(teacher, a, sequences, words, request):
    """Each sequence in every codec; then the tokens of our own choice."""
    pb = teacher.pb
    codecs = [codec for codec in teacher.info.codecs if codec in CODECS]
    # Ids of our own choice say which answer is whose.
    top = teacher.score(request(16 * n + codec, tokens, codec=codec, top_k=a.top_k, signal=pb.SIGNAL_KIND_TOP_K)
                        for n, tokens in enumerate(sequences) for codec in codecs)
    # Here for each position the tokens of the first answer, backwards.
    named = teacher.score(request(n, tokens, codec=pb.CODEC_RAW, top_k=a.top_k, signal=pb.SIGNAL_KIND_CANDIDATES,
                                  candidates=top[16 * n + pb.CODEC_RAW].ids[:, ::-1].astype("<u4").tobytes(),
                                  priority=pb.PRIORITY_HIGH) for n, tokens in enumerate(sequences))
    for n, tokens in enumerate(sequences):
        raw = top[16 * n + pb.CODEC_RAW]
        print(f"\nsequence {n}: {len(tokens)} tokens, {len(raw.positions)} positions, top {a.top_k} at "
              f"T = {a.temperature:g}; waited {raw.queue_ms:.1f} ms, computed in {raw.compute_ms:.1f} ms")
        Table(words, tokens, raw.positions).show(
            raw.next_logprob, lambda row: list(zip(raw.ids[row].tolist(), np.exp(raw.logprobs[row]))))
        again = np.abs(named[n].logprobs[:, ::-1] - raw.logprobs).max()
        mass = np.exp(raw.logprobs).sum(1) + np.exp(raw.log_rest.astype(np.float64))
        off = (f"{CODECS[codec]} is off by at most {error(top[16 * n + codec], raw):.1e}, " for codec in codecs)
        print(f"  {''.join(off)}candidates by {again:.1e}; the mass is 1 within {np.abs(mass - 1).max():.1e}")


def show_sampled(teacher, a, sequences, words, request):
    """How often what was drawn."""
    kind = dict(signal=teacher.pb.SIGNAL_KIND_SAMPLED, draws=a.draws, seed=a.seed, top_k=a.exact)
    answers = teacher.score(request(n, tokens, **kind) for n, tokens in enumerate(sequences))

    def estimated(row):
        """Probabilities at T, the largest first: exact ones, and as often as was drawn of the rest."""
        drawn = [(id, np.exp(row.log_rest) * count / a.draws) for id, count in zip(row.drawn_ids, row.counts)]
        return sorted([*zip(row.exact_ids, np.exp(row.exact_logprobs)), *drawn], key=lambda pair: -pair[1])

    for n, tokens in enumerate(sequences):
        answer = answers[n]
        different = np.mean([len(row.drawn_ids) for row in answer.draws])
        print(f"\nsequence {n}: {len(tokens)} tokens, {a.draws} draws at T = {a.temperature:g}, {different:.1f} ids a "
              f"position, beside {a.exact} exact; {answer.bytes / len(answer.positions):.1f} bytes a position")
        Table(words, tokens, answer.positions).show(
            answer.next_logprob, lambda row: estimated(answer.draws[row]), "estimated at T")


def show_hidden(teacher, a, sequences, words, request):
    """All classes' log-probabilities, of hidden states as they are or coded."""
    pb = teacher.pb
    teacher.decoder(code=a.signal == "coded")
    if a.signal == "coded":
        rates, rung = teacher.code.rates, a.rung
        if rung is None:  # the coarsest step within this divergence, else the finest
            rung = next((rung for rung, _, divergence in reversed(rates) if divergence <= 0.01), rates[0][0])
        kind = dict(signal=pb.SIGNAL_KIND_CODED, rung=rung, code_fingerprint=teacher.code_fingerprint)
        how = f"coded at the step 2^({rung}/16)"
    else:
        kind = dict(signal=pb.SIGNAL_KIND_FULL, hidden_form=FORMS.index(a.hidden_form) + pb.HIDDEN_FORM_F32)
        how = a.hidden_form
    answers = teacher.score(request(n, tokens, **kind) for n, tokens in enumerate(sequences))
    for n, tokens in enumerate(sequences):
        answer = answers[n]
        print(f"\nsequence {n}: {len(tokens)} tokens, hidden states of {answer.hidden.shape[1]} numbers, {how}; "
              f"{answer.bytes / len(answer.positions):.1f} bytes a position")
        following = np.array([*tokens[1:], 0])[answer.positions]
        logprobs = log_softmax(answer.hidden, teacher.matrix)
        next_logprob = np.take_along_axis(logprobs, following[:, None], 1)[:, 0]
        if answer.positions[-1] == len(tokens) - 1:
            next_logprob[-1] = np.nan  # no token follows the last
        at_temperature = np.exp(log_softmax(answer.hidden, teacher.matrix, a.temperature))
        best = np.argsort(-at_temperature, axis=1)
        Table(words, tokens, answer.positions).show(
            next_logprob, lambda row: [(id, at_temperature[row, id]) for id in best[row].tolist()])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", required=True, metavar="HOST:PORT")
    parser.add_argument("--ca", metavar="FILE", help="PEM of the authority, for a teacher that encrypts")
    parser.add_argument("--name", help="the name in its certificate, where HOST is another")
    parser.add_argument("--token-file", metavar="FILE", help="holds the bearer token")
    parser.add_argument("--proto", default=PROTO, metavar="FILE", help="teacher.proto")
    parser.add_argument("--text", nargs="+", default=[], help="texts, which the teacher encodes")
    parser.add_argument("--tokens", nargs="+", default=[], metavar="1,2,3", help="token ids")
    parser.add_argument("--first", type=int, default=0, help="positions wanted: from here to the end")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--signal", choices=("top-k", "sampled", "full", "coded"), default="top-k")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--draws", type=int, default=16, help="sampled: draws a position")
    parser.add_argument("--exact", type=int, default=0, help="sampled: the likeliest tokens told exactly")
    parser.add_argument("--seed", type=int, default=0, help="sampled: what the draws depend on")
    parser.add_argument("--hidden-form", choices=FORMS, default="bf16", help="full: how a hidden state is said")
    parser.add_argument("--rung", type=int, help="coded: the step is 2^(RUNG/16); else of a divergence of 0.01")
    a = parser.parse_args()
    if not a.text and not a.tokens:
        a.text = ["Natalia sold 48 clips in April.", "12 + 30 = 42. So there are 42 apples."]
    token = pathlib.Path(a.token_file).read_text().strip() if a.token_file else None
    teacher = Teacher(a.teacher, a.ca, a.name, token, a.proto)
    pb, info = teacher.pb, teacher.info
    print(f"{info.model}: {info.parameters / 1e6:.1f} M parameters, {info.vocab_size} classes, "
          f"{info.dtype} on {info.device}; up to {info.limits.max_sequence_tokens} tokens, "
          f"top-k up to {info.limits.max_top_k}")

    # Texts are encoded by the teacher: its reply names the tokens.
    sequences, words = [[int(id) for id in ids.split(",")] for ids in a.tokens], {}
    for text in a.text:
        reply = teacher.ask(teacher.stub.ScoreText, pb.ScoreTextRequest(text=text, top_k=a.top_k))
        words.update((some.id, some.text) for token in reply.tokens for some in (token, *token.next))
        sequences.append([token.id for token in reply.tokens])

    def request(id, tokens, **what):
        return pb.ScoreRequest(id=id, tokens=np.array(tokens, "<u4").tobytes(), temperature=a.temperature,
                               positions=[pb.PositionRange(first=a.first, end=len(tokens))], **what)

    show = {"top-k": show_top_k, "sampled": show_sampled}.get(a.signal, show_hidden)
    show(teacher, a, sequences, words, request)
    wanted = dict(xxhash=xxhash, blake3=blake3) if show is show_hidden else dict(xxhash=xxhash)
    missing = " ".join(name for name, module in wanted.items() if module is None)
    print(f"\nchecksums: {f'not compared (pip install {missing})' if missing else 'equal'}")


if __name__ == "__main__":
    try:
        main()
    except (Refused, ValueError) as error:
        sys.exit(str(error))
