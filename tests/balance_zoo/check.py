#!/usr/bin/env python3
"""Runs balance_zoo as a user would: check.py BALANCE_ZOO FOLDER (standard library only)."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import xml.dom.minidom

program, folder = sys.argv[1:3]
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)

# Two domains that a tiny model can tell apart.
texts = []
for name, alphabet in (("vowels", "aeiou "), ("digits", "0123456789 ")):
    draw = random.Random(name)
    texts.append(os.path.join(folder, name + ".txt"))
    with open(texts[-1], "w") as file:
        file.write("".join(draw.choice(alphabet) * draw.randint(1, 3) for _ in range(4000)))


def out(*names):
    return os.path.join(folder, *names)


def command(*arguments):
    return [program, "--quick", "--text", *texts, *arguments]


def run(*arguments, expect=0):
    """Returns (standard output, standard error)."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == expect, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


listed = [line.split()[0] for line in run("--list")[0].splitlines()[1:]]
assert len(listed) >= 13 and listed[0] == "none" and len(set(listed)) == len(listed), listed

# Every method once, a few steps: a complete comparison, a page of one file, pictures that are XML.
text, _ = run("--steps", "10", "--seeds", "1", "--json", "--out", out("all"))
comparison = json.loads(text)
assert comparison == json.load(open(out("all", "comparison.json")))
assert [r["model"] for r in comparison["runs"]] == listed
for r in comparison["runs"]:
    balance = r["balance"]
    assert balance["violation"] > -1e-9 and 0 < balance["load_entropy"] < 1 + 1e-9, r["model"]
    assert 0 <= balance["dead_experts"] <= 16 and balance["milliseconds"] > 0, r["model"]
    assert len(r["validation_curve"]) == 10 and 0 < r["validation_bits_per_byte"]["mean"] < 12, r["model"]
by_name = {r["model"]: r for r in comparison["runs"]}
assert by_name["expert-choice"]["balance"]["violation"] == 0  # by construction
assert by_name["bias"]["load_history"] != by_name["none"]["load_history"]
page = open(out("all", "report.html"), encoding="utf-8").read()
assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page and page.count("<svg") > 6
for r in comparison["runs"]:
    assert r["title"] in page, r["title"]
for name in ("trade_off", "violation", "validation", "validation_gap"):
    xml.dom.minidom.parse(out("all", name + ".svg"))
assert not [name for name in os.listdir(out("all")) if name.endswith(".safetensors")]

# A strength of one's own; seeds are averaged.
text, _ = run("--steps", "5", "--seeds", "2", "--seed", "7", "--methods", "none,switch@0.5", "--out", out("some"))
assert "Switch (0.5)" in text and "+-" in text and "2 seeds" in text, text
assert sorted(name for name in os.listdir(out("some")) if name.startswith("switch")) == [
    "switch@0.5-7.json",
    "switch@0.5-8.json",
]
assert "coefficient" not in text and json.load(open(out("some", "comparison.json")))["runs"][1]["about"].endswith("0.5")

# What is done is not done again.
before = {name: os.path.getmtime(out("some", name)) for name in os.listdir(out("some")) if name[-7:-5] in ("-7", "-8")}
_, log = run("--steps", "5", "--seeds", "2", "--seed", "7", "--methods", "none,switch@0.5", "--out", out("some"))
assert len(before) == 4 and "[" not in log, log
assert before == {name: os.path.getmtime(out("some", name)) for name in before}
_, log = run("--steps", "6", "--seeds", "2", "--seed", "7", "--methods", "none", "--out", out("some"), expect=1)
assert "was made with steps 5, but this run has 6" in log, log

# Ctrl-C, then on: the same numbers as without the stop.
long = ["--steps", "1500", "--seeds", "1", "--methods", "bias"]
run(*long, "--out", out("straight"))
stopped = subprocess.Popen(command(*long, "--out", out("stopped")), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
while not os.path.exists(out("stopped", "bias-1.safetensors")):
    assert stopped.poll() is None, "it ended before it was stopped"
    time.sleep(0.01)
time.sleep(0.15)
stopped.send_signal(signal.SIGINT)
assert stopped.wait() == 0
half = json.load(open(out("stopped", "bias-1.json")))
assert half["interrupted"] and 0 < half["steps"] < 1500, half["steps"]
_, log = run(*long, "--out", out("stopped"))
assert "going on" in log, log
ends = [json.load(open(out(name, "bias-1.json"))) for name in ("straight", "stopped")]
for key in ("curve", "load_history", "validation_bits_per_byte", "maximum_violation"):
    assert ends[0][key] == ends[1][key], key

for arguments, phrase in (
    (["--methods", "swich"], "there is no method 'swich'"),
    (["--methods", "switch@x"], "does not say a strength"),
    (["--methods", "none@2"], "this method has none"),
    (["--methods", "none,none"], "named twice"),
    (["--out", texts[0]], "cannot write to"),
):
    _, log = run("--steps", "2", *(["--out", out("x")] if "--out" not in arguments else []), *arguments, expect=1)
    assert phrase in log, (arguments, log)
print("passed")
