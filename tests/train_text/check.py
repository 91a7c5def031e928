#!/usr/bin/env python3
"""Runs train_text as a user would: check.py CASE TRAIN_TEXT ANALYSE_ROUTING FOLDER (standard library only)."""
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time

case, program, analyse, folder = sys.argv[1:5]
shutil.rmtree(folder, ignore_errors=True)
os.makedirs(folder)

# Three domains that a tiny model can tell apart.
texts = []
for name, alphabet in (("vowels", "aeiou "), ("digits", "0123456789 "), ("dots", ".,;:!? ")):
    draw = random.Random(name)
    texts.append(os.path.join(folder, name + ".txt"))
    with open(texts[-1], "w") as file:
        file.write("".join(draw.choice(alphabet) * draw.randint(1, 3) for _ in range(4000)))
tiny = ["--hidden", "16", "--layers", "1", "--heads", "2", "--sequence", "16", "--batch", "6", "--text", *texts]


def run(*arguments, expect=0):
    """Runs train_text; returns (standard output, standard error)."""
    done = subprocess.run([program, *tiny, *arguments], capture_output=True, text=True)
    assert done.returncode == expect, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def out(name):
    return os.path.join(folder, name)


def digest(path):
    """The hash of a checkpoint, and the check that it is whole."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert len(data) == 8 + length + end, (path, len(data), length, end)
    return hashlib.sha256(data).hexdigest()


def start(*arguments):
    return subprocess.Popen([program, *tiny, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stop_and_go_on(name, *model):
    """Ctrl-C saves; what goes on from there ends in the same bits as a run that was never stopped."""
    model = [*model, "--steps", "400", "--checkpoint-every", "1000"]
    run(*model, "--out", out("straight"))
    stopped = start(*model, "--out", out("stopped"))
    checkpoint = out("stopped/" + name + "-1.safetensors")
    while not os.path.exists(checkpoint):
        time.sleep(0.01)
    time.sleep(0.3)
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait() == 0
    step = json.load(open(out("stopped/" + name + "-1.json")))["steps"]
    assert 0 < step < 400, step
    run(*model, "--out", out("stopped"), "--resume")
    assert digest(checkpoint) == digest(out("straight/" + name + "-1.safetensors"))
    assert os.path.getsize(out("stopped/report.html")) > 1000


if case == "resume":
    stop_and_go_on("deepseek-v3", "--model", "deepseek-v3")
    stop_and_go_on("mixture-of-depths", "--model", "mixture-of-depths", "--layers", "2")

elif case == "precision":
    stop_and_go_on("mixtral-bf16", "--precision", "bf16")
    report = json.load(open(out("straight/mixtral-bf16-1.json")))
    assert report["precision"] == "bf16" and report["title"] == "Mixtral in bf16", report["title"]
    # In f16 a loss scale that is far too large is halved, a step skipped each time, until gradients fit; and f32 and
    # f16 learn alike.
    _, log = run("--precision", "f16", "--steps", "100", "--loss-scale", str(2**40), "--out", out("drill"))
    report = json.load(open(out("drill/mixtral-f16-1.json")))
    skipped = report["skipped_steps"]
    assert len(skipped) > 5, skipped
    assert [s["loss_scale"] for s in skipped] == [2.0 ** (40 - n) for n in range(len(skipped))], skipped
    assert "spikes" not in report and "loss scale %g" % 2.0 ** (40 - len(skipped)) in log, log
    assert "gradients overflowed" in open(out("drill/report.html"), encoding="utf-8").read()
    run("--precision", "f16", "--steps", "100", "--out", out("usual"))
    run("--steps", "100", "--out", out("f32"))
    ends = [
        json.load(open(out(path)))["validation_bits_per_byte"]["mean"]
        for path in ("usual/mixtral-f16-1.json", "f32/mixtral-1.json")
    ]
    assert abs(ends[0] - ends[1]) < 0.05, ends

elif case == "kill":
    # kill -9 at 50 random moments: the checkpoint is whole every time, and the end is as if nothing had happened.
    model = ["--model", "deepseek-v3", "--steps", "3000", "--checkpoint-every", "1"]
    begin = time.time()
    run(*model, "--out", out("straight"))
    duration = time.time() - begin
    draw = random.Random(50)
    longest = 0.2 + 0.02 * duration
    kills = 0
    checkpoint = out("killed/deepseek-v3-1.safetensors")
    while kills < 50:
        resume = ["--resume"] if os.path.exists(checkpoint) else []
        victim = start(*model, "--out", out("killed"), *resume)
        time.sleep(draw.uniform(0, longest))
        if victim.poll() is None:
            kills += 1
        else:  # done: the machine has become faster
            assert victim.returncode == 0, victim.returncode
            longest /= 2
            shutil.rmtree(out("killed"))
        victim.kill()
        victim.wait()
        if os.path.exists(checkpoint):
            digest(checkpoint)
    run(*model, "--out", out("killed"), "--resume")
    assert digest(checkpoint) == digest(out("straight/deepseek-v3-1.safetensors"))

elif case == "spike":
    # A batch of noise: the loss spikes, the run goes back to its checkpoint, and the batch is never seen again.
    model = ["--steps", "60", "--checkpoint-every", "10", "--learning-rate", "0.03"]
    _, log = run(*model, "--out", out("drill"), "--corrupt-batch", "37")
    assert "rolled back to step 30, batch 37 skipped" in log, log
    report = json.load(open(out("drill/mixtral-1.json")))
    assert [spike["step"] for spike in report["spikes"]] == [37], report["spikes"]
    assert report["steps"] == 60 and report["curve"][-1]["bits_per_byte"] < 4
    run(*model, "--out", out("clean"))
    assert "spikes" not in json.load(open(out("clean/mixtral-1.json")))

elif case == "misuse":
    for arguments, phrase in (
        (["--batch", "7", "--microbatches", "2"], "do not divide into 2 microbatches"),
        (["--resume", texts[0]], "claims a header"),
        (["--out", texts[0]], "cannot write to"),
        (["--sequence", "4096"], "need at least"),
    ):
        _, log = run("--steps", "2", *(["--out", out("x")] if "--out" not in arguments else []), *arguments, expect=1)
        assert phrase in log, (arguments, log)
    _, log = run("--model", "switch", "--precision", "f16", "--out", out("x"), expect=1)
    assert "switch trains in f32 only" in log, log
    run("--steps", "4", "--out", out("x"))
    _, log = run("--steps", "4", "--seed", "2", "--out", out("y"), "--resume", out("x/mixtral-1.safetensors"), expect=1)
    assert "was made with seed 1, but this run has 2" in log, log

elif case == "compare":
    # Every model, the table, the page, the exported routing; and a comparison that goes on where it stopped.
    text, _ = run("--compare", "--layers", "2", "--steps", "6", "--export-routing", "--out", out("all"))
    titles = ["Dense", "Switch", "GShard", "Mixtral", "DeepSeek-V3", "DeepSeek-V3, --balance none", "Expert choice",
              "Mixture of depths"]
    for title in titles:
        assert title in text, (title, text)
    page = open(out("all/report.html"), encoding="utf-8").read()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    comparison = json.load(open(out("all/comparison.json")))
    assert [r["title"] for r in comparison["runs"]] == titles
    *equal, depths = [r["active_parameters"] for r in comparison["runs"]]
    assert max(equal) < 1.1 * min(equal) and depths < 0.9 * min(equal), (equal, depths)
    skipped = comparison["runs"][-1]["skipped"]
    assert skipped["layers"][0][0] == 0 and skipped["layers"][1][0] > 0, skipped  # the second layer leaves tokens out
    assert "Tokens that a layer leaves out" in page and "Bits per byte over FLOPs a token" in page
    os.remove(out("all/mixtral-1.json"))
    _, log = run("--compare", "--layers", "2", "--steps", "6", "--out", out("all"), "--resume")
    assert "Mixtral" in log and "Switch" not in log, log
    files = [out("all/mixtral-1.step-%06d.routing.safetensors" % step) for step in (5, 6)]
    done = subprocess.run([analyse, *files], capture_output=True, text=True)
    assert done.returncode == 0 and "vowels" in done.stdout, (done.stdout, done.stderr)
    assert open(out("all/mixtral-1.routing.csv")).readline().startswith("token,domain,byte,layer")

    # Some of them alone: mixtures of attention heads.
    text, _ = run("--compare", "--among", "moa,switchhead", "--steps", "4", "--out", out("heads"))
    assert "SwitchHead" in text and "Mixture of attention heads" in text and "Mixtral" not in text, text
    _, log = run("--model", "mixture-of-depths", "--layers", "3", "--steps", "4", "--out", out("odd"), expect=1)
    assert "Give an even number: --layers 2" in log, log
    _, log = run("--compare", "--layers", "1", "--steps", "4", "--out", out("odd"), expect=1)
    assert "leave it out: --among" in log and "bits per byte" not in log, log  # before anything is trained
    _, log = run("--compare", "--among", "moa,switchhead,moa", "--steps", "4", "--out", out("odd"), expect=1)
    assert "names moa too often" in log, log

else:
    sys.exit("unknown case " + case)
print(case, "passed")
