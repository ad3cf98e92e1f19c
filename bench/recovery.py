#!/usr/bin/env python3
"""What deaths, hangs, cold starts and hostile clients cost a run of 36 M parameters.

usage: bench/recovery.py BUILD [DIR [KILLS [STARTS]]]
       DIR: a folder on the disk that is meant      KILLS: of the trainer (15)
       STARTS: from the disk alone (5)

Called by `./do bench recovery`. The real ckptd with the cifar net at batch 1 is asked over its
socket; times are from the signal, or from the exec, to the answer that shows what is waited for.
Page cache is dropped before each cold start where that is allowed; the last line says if it was not.
"""
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

SETTINGS = {
    "channels": "128,256,256,256", "layers_per_block": 2, "head_dim": 0, "groups": 32,
    "down_blocks": "Down,AttnDown,Down,Down", "up_blocks": "Up,Up,AttnUp,Up", "norm_eps": 1e-6,
    "downsample_padding": 0, "flip_sin_to_cos": "false", "freq_shift": 1,
    "batch_size": 1, "steps_total": 1000000, "warmup_steps": 10, "preview_every": 0,
    "interval": 0, "scrub_interval": 0, "holdout": 0,
}
NET = "cifar"
POLL_S = 0.002
PATIENCE_S = 600  # for what must happen
LEARNED_STEPS = 230  # after these (and no hang) the deadline is the run's own
HOSTILE = 1000
ASKED = 500  # times, by the honest client
ASK_EVERY_S = 0.02
CALL = b'{"method":"io.ckptd.Training.Status"}\0'


def fail(text):
    sys.exit(f"recovery: {text}")


class Daemon:
    """A ckptd of its own in a folder of its own."""

    def __init__(self, build, folder):
        self.build, self.state = build, os.path.join(folder, "run")
        self.path = os.path.join(self.state, "ckptd.sock")
        self.settings = [word for key, value in SETTINGS.items()
                         for word in ("--set", f"{key}={value}")]
        self.process = None
        self.said = []  # (time, line) of its log
        self.ctl("init", *self.settings)

    def ctl(self, *arguments):
        command = [os.path.join(self.build, "ctl", "ckptctl"), "--state", self.state, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            fail(f"ckptctl {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def start(self):
        worker = os.path.abspath(os.path.join(self.build, "daemon", "ckptd-worker"))
        self.process = subprocess.Popen(
            [os.path.join(self.build, "supervisor", "ckptd"), "--state", self.state, *self.settings],
            env=dict(os.environ, CKPTD_WORKER=worker), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True)  # as under systemd
        threading.Thread(target=self.listen, args=(self.process.stderr,), daemon=True).start()

    def listen(self, pipe):
        for line in pipe:
            self.said.append((time.monotonic(), line.rstrip()))

    def ask(self):
        """The status, or None while nobody answers."""
        try:
            return ask(self.path)
        except OSError:
            return None

    def wait(self, what, done):
        """Until done(status); the status and the time it was seen."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            status = self.ask()
            if status and done(status):
                return status, time.monotonic()
            if self.process.poll() is not None:
                fail(f"ckptd ended before {what}: " + "\n".join(t for _, t in self.said[-20:]))
            time.sleep(POLL_S)
        fail(f"no {what} in {PATIENCE_S} s:\n" + "\n".join(t for _, t in self.said[-20:]))

    def next_step(self, what):
        """The status at the moment a step has just ended."""
        now, _ = self.wait(what, lambda status: status["state"] == "training")
        return self.wait(what, lambda status: status["step"] > now["step"])

    def end(self):
        """Everything at once, as a power cut does."""
        status = self.ask()
        pids = [status["worker"]["pid"], status["saver"]["pid"]] if status else []
        self.process.kill()
        self.process.wait()
        for pid in pids:
            if pid > 0:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.process = None


def connect(path):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Not settimeout: that does not wait where the queue is full.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 5, 0))
    try:
        client.connect(path)
    except OSError:
        client.close()
        raise
    return client


def ask(path):
    with connect(path) as client:
        client.sendall(CALL)
        answer = bytearray()
        while not answer.endswith(b"\0"):
            part = client.recv(1 << 16)
            if not part:
                raise ConnectionError("hung up")
            answer += part
    return json.loads(answer[:-1])["parameters"]["status"]


# -- clients that mean no good --

def silent(client):
    return lambda: None


def half_a_frame(client):
    """A byte of a call now and then, and never its end."""
    parts = iter(CALL[:-1] * 1000)
    return lambda: client.send(bytes([next(parts)]))


def deaf(client):
    """Asks as fast as it may, and reads nothing."""
    return lambda: client.send(CALL * 100)


def talker(client):
    """A frame that never ends."""
    return lambda: client.send(b"x" * 65536)


def garbler(client):
    return lambda: client.send(random.randbytes(200) + b"\0")


def hostile(path, count):
    """Keeps count connections of all kinds at it until it is killed; those that are thrown out come
    again."""
    kinds = (silent, half_a_frame, deaf, talker, garbler)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 4 * count), soft))
    clients = [None] * count
    print("ready", flush=True)
    while True:
        for number in range(count):
            try:
                if clients[number] is None:
                    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    client.setblocking(False)
                    clients[number] = client, kinds[number % len(kinds)](client)
                    client.connect(path)
                clients[number][1]()
            except BlockingIOError:
                pass
            except OSError:
                clients[number][0].close()
                clients[number] = None
        time.sleep(0.01)


# -- what is measured --

def ceilings(build, folder):
    """MiB/s of the disk's reads and of the digest, as bench_checkpoint finds them; and the state."""
    done = subprocess.run([os.path.join(build, "bench", "bench_checkpoint"), "round", folder, NET],
                          capture_output=True, text=True)
    if done.returncode:
        fail(done.stderr.strip())
    row = dict(part.split("=") for part in done.stdout.split())
    return float(row["state_mib"]), float(row["disk_read_mib_s"]), float(row["hash_mib_s"])


def step_times(daemon, count):
    daemon.next_step("step")
    before, seen = daemon.next_step("step")
    for _ in range(count):
        after, now = daemon.wait("step", lambda status: status["step"] > before["step"])
        yield (now - seen) / (after["step"] - before["step"]) * 1e3
        before, seen = after, now


def kills(daemon, count):
    """For each: ms from SIGKILL to the next finished step, and steps that had to be done again."""
    for _ in range(count):
        daemon.next_step("step")
        time.sleep(random.random() * 0.4)  # anywhere within a step
        status = daemon.ask()
        begun = time.monotonic()
        os.kill(status["worker"]["pid"], signal.SIGKILL)
        step = daemon.ask()["step"]
        after, now = daemon.wait("step after a kill", lambda status: status["step"] > step)
        last = json.loads(daemon.ctl("outages", "--json", "-n", "1"))["outages"][-1]
        yield (now - begun) * 1e3, last["steps_redone"] + (after["step"] - step - 1)


def hang(daemon):
    """ms from SIGSTOP until it is found, once the run is known."""
    daemon.wait("steps to learn from", lambda status: status["step"] >= LEARNED_STEPS)
    status, _ = daemon.next_step("step")
    heard = len(daemon.said)
    begun = time.monotonic()
    os.kill(status["worker"]["pid"], signal.SIGSTOP)
    daemon.wait("end of a hang", lambda now: now["restarts"] > status["restarts"])
    daemon.next_step("step after a hang")
    return next((then - begun) * 1e3 for then, line in daemon.said[heard:]
                if "has not moved" in line)


def drop_cache():
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3")
        return True
    except OSError:
        return False


def cold_starts(daemon, count):
    """For each: ms from exec to the first new finished step, with no memory left of it."""
    daemon.ctl("save", "--wait")
    saved = daemon.ask()["newest_verified"]["step"]
    for _ in range(count):
        daemon.end()
        cold = drop_cache()
        begun = time.monotonic()
        daemon.start()
        _, now = daemon.wait("first step", lambda status: status["step"] > saved)
        yield (now - begun) * 1e3, cold


def percentile(values, part):
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def asked_ms(daemon):
    """An honest client's times for one whole question, connection included."""
    times, turned_away = [], 0
    for _ in range(ASKED):
        begun = time.monotonic()
        while not daemon.ask():
            turned_away += 1
            if time.monotonic() - begun > PATIENCE_S:
                fail("the honest client got no answer")
        times.append((time.monotonic() - begun) * 1e3)
        time.sleep(ASK_EVERY_S)
    return times, turned_away


def wait_for_nobody():
    """Where that is allowed: what is measured from then on is the daemon, and not this process's own
    wait for a core that a trainer's thread or the crowd has."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return True
    except OSError:
        return False


def besieged(daemon):
    """Times of an honest client without a crowd, within it, and within it with a real-time priority;
    how often it was turned away, steps meanwhile."""
    quiet, _ = asked_ms(daemon)
    with subprocess.Popen([sys.executable, os.path.abspath(__file__), "--hostile", daemon.path,
                           str(HOSTILE)], stdout=subprocess.PIPE,
                          start_new_session=True) as crowd:  # somebody else's
        try:
            crowd.stdout.readline()
            time.sleep(2)
            before = daemon.wait("answer", lambda status: True)[0]["step"]
            times, turned_away = asked_ms(daemon)
            first, _ = asked_ms(daemon) if wait_for_nobody() else (times, 0)
            steps = daemon.wait("answer", lambda status: True)[0]["step"] - before
        finally:
            crowd.kill()
    return quiet, times, first, turned_away, steps


def resident_mib(pid):
    """Of pid without memory that others share: the state and the progress."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return sum(int(re.match(r"\s*(\d+)", fields[key])[1])
               for key in ("RssAnon", "RssFile")) / 1024


def measure(build, folder, kill_count, start_count):
    state_mib, disk, digest = ceilings(build, folder)
    print(f"recovery ceilings: disk_read_mib_s={disk:.0f} hash_mib_s={digest:.0f}", flush=True)
    daemon = Daemon(build, folder)
    try:
        daemon.start()
        step_ms = statistics.median(step_times(daemon, 20))
        killed = list(kills(daemon, kill_count))
        times = [ms for ms, _ in killed]
        print(f"recovery kills={kill_count} step_ms={step_ms:.0f}"
              f" kill_to_next_step_ms: median={statistics.median(times):.0f} max={max(times):.0f}"
              f" beyond_one_step_ms: median={statistics.median(times) - step_ms:.0f}"
              f" max={max(times) - step_ms:.0f}", flush=True)
        hang_ms = hang(daemon)
        started = list(cold_starts(daemon, start_count))
        start_ms = statistics.median(ms for ms, _ in started)
        least_ms = state_mib / min(disk, digest) * 1e3
        print(f"recovery starts={start_count} start_to_first_step_ms: median={start_ms:.0f}"
              f" least_for_disk_or_hash_ms={least_ms:.0f}"
              f" fraction_of_ceiling={least_ms / (start_ms - step_ms):.3f}"
              f" page_cache={'dropped' if all(cold for _, cold in started) else 'kept'}", flush=True)
        quiet, crowded, first, turned_away, steps = besieged(daemon)
        print(f"recovery hostile_clients={HOSTILE} asked={ASKED} turned_away={turned_away}"
              f" steps_meanwhile={steps} status_ms: quiet p50={percentile(quiet, .5):.2f}"
              f" p99={percentile(quiet, .99):.2f} besieged p50={percentile(crowded, .5):.2f}"
              f" p99={percentile(crowded, .99):.2f} max={max(crowded):.2f}"
              f" besieged_realtime p50={percentile(first, .5):.2f}"
              f" p99={percentile(first, .99):.2f} max={max(first):.2f}", flush=True)
        rss = resident_mib(daemon.process.pid)
        print(f"recovery supervisor_rss_mib={rss:.1f} (state and progress memory left out)",
              flush=True)
    finally:
        if daemon.process:
            daemon.end()
    print(f"recovery state_mib={state_mib:.0f} kill_to_next_step_ms={statistics.median(times):.0f}"
          f" start_to_first_step_ms={start_ms:.0f} hang_detect_ms={hang_ms:.0f}"
          f" steps_lost={sum(lost for _, lost in killed)}"
          f" status_p99_ms={percentile(crowded, .99):.2f}")


def main():
    if sys.argv[1:2] == ["--hostile"]:
        hostile(sys.argv[2], int(sys.argv[3]))
    if not 2 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    build, folder = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.argv[1]
    kill_count, start_count = (int(text) for text in (sys.argv[3:] + ["15", "5"][len(sys.argv[3:]):]))
    place = tempfile.mkdtemp(dir=folder, prefix="bench-")
    try:
        measure(build, place, kill_count, start_count)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
