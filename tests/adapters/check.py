#!/usr/bin/env python3
"""Runs adapters as a user would: check.py TRAIN_TEXT ADAPTERS FOLDER (standard library only)."""
import array
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

train_text, adapters, folder = sys.argv[1:4]
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)


def out(name):
    return os.path.join(folder, name)


def text_of(name, alphabet):
    draw = random.Random(name)
    with open(out(name + ".txt"), "w") as file:
        file.write("".join(draw.choice(alphabet) * draw.randint(1, 3) for _ in range(4000)))
    return out(name + ".txt")


old = [text_of("dots", ".,;:!? "), text_of("digits", "0123456789 "), text_of("vowels", "aeiou ")]
new = text_of("consonants", "bcdfghklm ")


def run(*command, expect=0):
    """Runs a program; returns (standard output, standard error)."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == expect, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


tiny = ["--hidden", "16", "--layers", "2", "--heads", "2", "--sequence", "16", "--batch", "6", "--text", *old]
run(train_text, *tiny, "--model", "dense", "--steps", "60", "--out", out("base"))
checkpoint = out("base/dense-1.safetensors")
usual = ["--checkpoint", checkpoint, "--old", *old, "--text", new, "--steps", "60", "--batch", "6", "--rank", "8"]


def arrays(path):
    """The file's float32 arrays by name, as lists of their bits; but the optimiser's."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, info in header.items():
        begin, end = info["data_offsets"]
        if not name.startswith("optimizer."):
            found[name] = array.array("I", data[8 + length + begin : 8 + length + end])
    return found


def fingerprint(of):
    """FNV-1a over the words of a dense model's arrays, in the order that the program walks them."""
    layer = ["attention_norm", "attention.qkv_proj", "attention.o_proj", "feed_forward_norm"]
    layer += ["feed_forward.router.weight", "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    names = ["embedding", *("blocks.%d.%s" % (i, name) for i in (0, 1) for name in layer), "norm", "head"]
    assert sorted(names) == sorted(of), list(of)
    result = 14695981039346656037
    for name in names:
        for word in of[name]:
            result = (result ^ word) * 1099511628211 % 2**64
    return "%016x" % result


# Every method: what it trains, gains and leaves alone.
stdout, _ = run(adapters, *usual, "--out", out("all"), "--json")
report = json.loads(stdout)
runs = {r["method"]: r for r in report["runs"]}
assert list(runs) == ["frozen", "full", "lora", "hydralora", "mola", "loramoe"], list(runs)
assert report["new"] == "consonants" and runs["frozen"]["gain"] == 0 == runs["frozen"]["forgetting"]
base = arrays(checkpoint)
for name, result in runs.items():
    assert abs(result["before"]["consonants"] - runs["frozen"]["before"]["consonants"]) < 1e-4, name  # B starts at 0
    if name == "frozen":
        continue
    assert result["gain"] > 0.2 and result["curve"][-1]["step"] == 60, (name, result["gain"])
    saved = arrays(out("all/%s-1.safetensors" % name))
    assert sum(map(len, saved.values())) == result["trained_parameters"], name
    if name == "full":
        assert sorted(saved) == sorted(base) and fingerprint(saved) != fingerprint(base)
        continue
    assert all(".feed_forward." in array_name and "experts" not in array_name for array_name in saved), list(saved)
    assert result["frozen"] == fingerprint(base), name  # after training, all bits of the checkpoint
    assert abs(result["trained_parameters"] / runs["lora"]["trained_parameters"] - 1) < 0.3, name
    assert result["trained_parameters"] < 0.6 * runs["full"]["trained_parameters"], name
    assert result["parameters"] == result["trained_parameters"] + sum(map(len, base.values())), name
assert [layer["experts"] for layer in runs["mola"]["layers"]] == [2, 6], runs["mola"]["layers"]
page = open(out("all/adapters.html"), encoding="utf-8").read()
assert page.count("<svg") == 3 and "LoRAMoE" in page and "http://" not in page and "<script" not in page
assert "</svg>" in open(out("all/adapters.svg"), encoding="utf-8").read()

# Old text among the new: less is forgotten.
stdout, _ = run(adapters, *usual, "--out", out("replay"), "--methods", "loramoe", "--replay", "0.5")
assert "sees the old texts in 50% of its sequences" in stdout and "LoRAMoE" in stdout and "MoLA" not in stdout, stdout
replayed = json.load(open(out("replay/loramoe-1.json")))
assert replayed["forgetting"] < runs["loramoe"]["forgetting"], (replayed["forgetting"], runs["loramoe"]["forgetting"])

# Ctrl-C keeps what is done; --resume does the rest, in the same bits.
long = [*usual, "--methods", "mola,lora", "--seeds", "2"]
stopped = subprocess.Popen(
    [adapters, *long, "--out", out("stopped")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
)
while not os.path.exists(out("stopped/lora-1.json")):
    assert stopped.poll() is None, "it ended before it was stopped"
    time.sleep(0.01)
stopped.send_signal(signal.SIGINT)
stdout, _ = stopped.communicate()
assert stopped.returncode == 0 and "Go on with: --resume" in stdout, (stopped.returncode, stdout)
_, log = run(adapters, *long, "--out", out("stopped"), "--resume")
assert "LoRA, seed 1" not in log and "MoLA, seed 2" in log, log
for method in ("lora", "mola"):
    assert arrays(out("stopped/%s-1.safetensors" % method)) == arrays(out("all/%s-1.safetensors" % method)), method
assert arrays(out("stopped/lora-2.safetensors")) != arrays(out("stopped/lora-1.safetensors"))
assert "±" in open(out("stopped/adapters.html"), encoding="utf-8").read()

# What is wrong, and what to do.
run(train_text, *tiny, "--model", "mixtral", "--steps", "2", "--out", out("other"))
for change, phrase in (
    (["--checkpoint", out("none.safetensors")], "cmake --workflow --preset demo"),
    (["--checkpoint", new], "claims a header"),
    (["--checkpoint", out("all/lora-1.safetensors")], "is no checkpoint of train_text"),
    (["--checkpoint", out("other/mixtral-1.safetensors")], 'is a model "mixtral"'),
    (["--old", *old[:2]], "was trained on"),
    (["--out", new], "cannot write to"),
):
    command = [adapters, *usual, "--out", out("x"), "--steps", "2"]
    if change[0] == "--old":
        at = command.index("--old")
        command[at : at + 4] = []
    _, log = run(*command, *change, expect=1)
    assert phrase in log, (change, log)
print("adapters passed")
