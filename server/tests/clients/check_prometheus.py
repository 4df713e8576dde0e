"""Checks that a real Prometheus gets the right joules out of a server whose sensors are files. See README.md."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
PACKAGE_WATTS = 20.0
DRAM_WATTS = 5.0
WATTS = PACKAGE_WATTS + DRAM_WATTS
# Counters start again ten seconds after the check begins, as real ones do once in an hour or so.
RANGE_UJ = 3_000_000_000
BEFORE_WRAP_SECONDS = 10
SECONDS = float(os.environ.get("LEAPFROG_CHECK_SECONDS", "25"))


class Rail:
    """One counter of the fake powercap tree."""

    def __init__(self, folder, name, watts, range_uj):
        self.path = folder / "energy_uj"
        self.watts, self.range_uj, self.moved_uj = watts, range_uj, 0.0
        self.start_uj = range_uj - int(watts * 1e6 * BEFORE_WRAP_SECONDS)
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "enabled").write_text("1\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.path.write_text(f"{self.start_uj:020}\n")

    def advance(self, seconds):
        self.moved_uj += self.watts * seconds * 1e6
        # In place and of one length, so that no reader sees half a number.
        with open(self.path, "r+") as file:
            file.write(f"{(self.start_uj + int(self.moved_uj)) % (self.range_uj + 1):020}\n")


class Machine:
    """Moves the counters in real time."""

    def __init__(self, root):
        self.rails = [
            Rail(root / "intel-rapl:0", "package-0", PACKAGE_WATTS, RANGE_UJ),
            Rail(root / "intel-rapl:0:0", "dram", DRAM_WATTS, RANGE_UJ),
        ]
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        last = time.monotonic()
        while not self.stopped.wait(0.002):
            now = time.monotonic()
            for rail in self.rails:
                rail.advance(now - last)
            last = now

    def stop(self):
        self.stopped.set()
        self.thread.join()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def fetch(url, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
        return reply.read().decode()


def wait_for(url, process, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]} ended with exit code {process.returncode}")
        try:
            return fetch(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise TimeoutError(url)


def stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Prometheus:
    """A Prometheus of its own, on this machine only."""

    def __init__(self, folder, target=None):
        folder.mkdir(exist_ok=True)
        scrape = [] if target is None else [{"job_name": "leapfrog", "static_configs": [{"targets": [target]}]}]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "900ms"}, "scrape_configs": scrape}
        # JSON is YAML.
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--log.level=warn",
            ],
            stdout=subprocess.DEVNULL,
            stderr=open(folder / "prometheus.log", "w"),
        )
        wait_for(f"{self.url}/-/ready", self.process)

    def query(self, expression, at=None):
        """Values of an instant query by their labels."""
        arguments = {"query": expression} | ({} if at is None else {"time": f"{at:.3f}"})
        reply = json.loads(fetch(f"{self.url}/api/v1/query?{urllib.parse.urlencode(arguments)}"))
        return [(entry["metric"], float(entry["value"][1])) for entry in reply["data"]["result"]]

    def one(self, expression, at=None):
        values = self.query(expression, at)
        assert len(values) == 1, f"{expression}: {values}"
        return values[0][1]

    def stop(self):
        stop(self.process)


def near(what, value, expected, share):
    assert abs(value - expected) <= share * abs(expected), f"{what}: {value}, expected {expected} within {share:.1%}"


def ask(url, num, results):
    """Requests one after the other until told to stop; the energy of each."""
    while not num.is_set():
        reply = json.loads(fetch(f"{url}/v1/completions", {"prompt": "2+2=", "max_tokens": 32, "energy": True}))
        results.append((reply["id"], reply["usage"]))


def check_live(prometheus, url, machine):
    stopped, results = threading.Event(), []
    clients = [threading.Thread(target=ask, args=(url, stopped, results)) for _ in range(3)]
    for client in clients:
        client.start()
    time.sleep(SECONDS)
    loaded = time.time()
    stopped.set()
    for client in clients:
        client.join()
    # The last reading and the last scrape.
    time.sleep(3)

    # Up to the end of the load: an idle server reads its sensors once a second, so its last second may be missing.
    watts = prometheus.one("sum(rate(ipw_energy_joules_total[15s]))", loaded)
    near("power", watts, WATTS, 0.05)
    for name, expected in (("package-0", PACKAGE_WATTS), ("dram-0", DRAM_WATTS)):
        near(name, prometheus.one(f'rate(ipw_energy_joules_total{{domain=~".*{name}"}}[15s])', loaded), expected, 0.05)
    at = time.time() - 1
    measured = prometheus.one("sum(ipw_energy_joules_total)", at)
    shared = prometheus.one("sum(ipw_attributed_energy_joules_total) + sum(ipw_unattributed_energy_joules_total)", at)
    near("attributed and not", shared, measured, 0.005)
    moved = sum(rail.moved_uj for rail in machine.rails) / 1e6
    # Read from the start of the sampler to the last scrape, moved from before it until now.
    assert 0.7 * moved < measured <= moved, f"measured {measured} J of {moved} J"

    told = 0.0
    for id, _ in results:
        report = json.loads(fetch(f"{url}/v1/energy/requests/{id}"))
        assert report["final"] and report["status"] in ("measured", "partial"), report
        told += report["energy_joules"]
    attributed = prometheus.one("sum(ipw_attributed_energy_joules_total)")
    near("usage", told, attributed, 0.001)
    per_token = prometheus.one("sum(ipw_attributed_energy_joules_total) / sum(leapfrog_tokens_total{kind='completion'})")
    tokens = sum(usage["completion_tokens"] for _, usage in results)
    near("joules per token", per_token, told / tokens, 0.01)
    count = prometheus.one("sum(ipw_request_energy_joules_count)")
    assert count == len(results), f"{count} requests in the histogram, {len(results)} were made"
    p95 = prometheus.one("histogram_quantile(0.95, sum by (le) (ipw_request_energy_joules_bucket))")
    assert p95 > 0, p95
    assert not prometheus.query("ipw_energy_source_up == 0"), "no sensor is lost"
    assert prometheus.one("up") == 1
    return f"{len(results)} requests, {told:.1f} J told of {measured:.1f} J, {watts:.2f} W"


def check_names(url):
    page = fetch(f"{url}/metrics", headers={"Accept": "text/plain"})
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, text=True, capture_output=True)
    assert checked.returncode == 0 and not checked.stderr.strip(), checked.stdout + checked.stderr
    families = sum(line.startswith("# TYPE") for line in page.splitlines())
    return f"promtool finds nothing wrong with {families} metrics"


def check_hour(folder, url):
    """An hour of a rail, with a restart of the server, read back through blocks that promtool writes."""
    page = fetch(f"{url}/metrics")
    lines = [line for line in page.splitlines() if line.split("{")[0].endswith("ipw_energy_joules_total")]
    series = next(line for line in lines if "package-0" in line).rsplit(" ", 1)[0]
    described = [line for line in page.splitlines() if line.startswith("#") and " ipw_energy_joules " in f"{line} "]
    end = int(time.time()) - 60
    power = lambda second: 30.0 if (second // 600) % 2 == 0 else 10.0
    samples, expected, value = [], 0.0, 0.0
    for second in range(0, 3661, 15):
        if second > 60:
            # The window is open on its left.
            expected += power(second) * 15
        value += power(second) * 15
        if second == 1800:
            # The server starts again: what it counted until then is kept, and what it counts begins anew.
            value = power(second) * 15
        samples.append(f"{series} {value:.6f} {end - 3660 + second}")
    text = "\n".join([*described, *samples, "# EOF", ""])
    (folder / "hour.om").write_text(text)
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "hour.om", folder / "data"]
    made = subprocess.run(command, text=True, capture_output=True)
    assert made.returncode == 0, made.stdout + made.stderr
    prometheus = Prometheus(folder)
    try:
        joules = prometheus.one("sum(increase(ipw_energy_joules_total[1h]))", end)
    finally:
        prometheus.stop()
    near("an hour", joules, expected, 0.01)
    return f"{joules:.0f} J in an hour of {expected:.0f} J"


def main():
    missing = [tool for tool in ("prometheus", "promtool") if shutil.which(tool) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed")
        return 0
    default = next((ROOT / "target" / kind / "leapfrog" for kind in ("release", "debug")
                    if (ROOT / "target" / kind / "leapfrog").exists()), None)
    given = os.environ.get("LEAPFROG_BIN")
    program = os.path.abspath(given) if given else default
    if program is None:
        print("skipped: no leapfrog in target/; build it, or name it in LEAPFROG_BIN")
        return 0
    failed = 0
    with tempfile.TemporaryDirectory(prefix="leapfrog-prometheus-") as name:
        folder = pathlib.Path(name)
        machine = Machine(folder / "powercap")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        log = open(folder / "server.log", "w")
        command = [program, "serve", "--model", "leapfrog-ar", "--port", str(port), "--energy", "require",
                   "--energy-basis", "cpu", "--energy-sources", "rapl", "--energy-idle-window", "1s",
                   "--powercap-root", folder / "powercap"]
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        prometheus = None
        try:
            wait_for(f"{url}/ready", server)
            (folder / "live").mkdir()
            prometheus = Prometheus(folder / "live", f"127.0.0.1:{port}")
            (folder / "hour").mkdir()
            for name, check in (
                ("queries over a running server", lambda: check_live(prometheus, url, machine)),
                ("names and types", lambda: check_names(url)),
                ("an hour with a restart", lambda: check_hour(folder / "hour", url)),
            ):
                try:
                    print(f"ok      {name}: {check()}", flush=True)
                except Exception:
                    failed += 1
                    print(f"FAILED  {name}", flush=True)
                    traceback.print_exc()
        except Exception:
            failed += 1
            traceback.print_exc()
            print((folder / "server.log").read_text()[-2000:])
        finally:
            if prometheus is not None:
                prometheus.stop()
            stop(server)
            machine.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
