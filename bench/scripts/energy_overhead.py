#!/usr/bin/env python3
"""Whether metering costs speed: the same requests to two servers in turns, one with --energy off and one with sensors.

    leapfrog serve --model MODEL --port 8141 --energy off
    leapfrog serve --model MODEL --port 8142
    bench/scripts/energy_overhead.py --pairs 100 --requests 20 --tokens 200

In each pair both servers answer, and the first of a pair is the second of the next. Prints the median of the ratios of
tokens per second with its interval (95 %, bootstrap over pairs with a fixed seed).
"""

import argparse
import http.client
import json
import random
import statistics
import time

PROMPT = "Ada has 12 apples and buys 7 more."


def ask(connection, seed, tokens):
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 1, "seed": seed, "ignore_eos": True}
    body["decoding"] = {"strategy": "ar"}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    reply = json.loads(response.read())
    assert response.status == 200, reply
    return reply["usage"]["completion_tokens"]


def rate(connection, requests, tokens):
    began = time.perf_counter()
    made = sum(ask(connection, seed, tokens) for seed in range(requests))
    return made / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--off", default="127.0.0.1:8141", help="server without metering")
    parser.add_argument("--on", default="127.0.0.1:8142", help="server with metering")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--requests", type=int, default=20, help="requests of a turn")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a reply")
    args = parser.parse_args()
    off, on = http.client.HTTPConnection(args.off), http.client.HTTPConnection(args.on)
    for connection in (off, on):
        rate(connection, 5, args.tokens)
    rates = {off: [], on: []}
    for pair in range(args.pairs):
        for connection in (off, on) if pair % 2 == 0 else (on, off):
            rates[connection].append(rate(connection, args.requests, args.tokens))
    ratios = sorted(with_ / without for with_, without in zip(rates[on], rates[off]))
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(10_000))
    print(f"without {statistics.median(rates[off]):.1f} tok/s, with {statistics.median(rates[on]):.1f} (medians)")
    print(
        f"with over without: {statistics.median(ratios):.4f} ({medians[249]:.4f} to {medians[9749]:.4f}), single pairs "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}, {args.pairs} pairs"
    )


if __name__ == "__main__":
    main()
