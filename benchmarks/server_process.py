"""A server as its own process, for programs that measure it: start it, load it, read what it holds, end it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PATIENCE_S: Final = 60.0
WARM_UP_S: Final = 1.0
BIN: Final = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A server that says SERVING."""

    process: "subprocess.Popen[bytes]"
    port: int
    http_port: int  # 0: there is none
    start_s: float  # as the server says, from its first step to SERVING
    log: Path  # one JSON object a line

    @property
    def pid(self) -> int:
        """The process's number."""
        return self.process.pid

    @property
    def address(self) -> str:
        """Where it listens for gRPC."""
        return f"127.0.0.1:{self.port}"

    def resident_mb(self) -> float:
        """Return the resident set in megabytes."""
        return self.status("VmRSS") * 1024 / 1e6

    def status(self, field: str) -> int:
        """Return a number of /proc/PID/status, such as VmRSS in kB or Threads."""
        found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text(encoding="ascii"), re.M)
        assert found
        return int(found[1])

    def cpu_s(self) -> float:
        """Return the CPU time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """Send SIGTERM, where it still runs; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextmanager
def running_server(models: Path, *options: str) -> Iterator[ServerProcess]:
    """Serve a folder on a free port; SIGTERM at the end. Ends the program where it does not start.

    Without HTTP, unless the options ask for it.
    """
    command = ["serving", "run", str(models), "--address", "127.0.0.1:0", "--http-address", "off"]
    with running_module(*command, "--log-format", "json", *options) as server:
        yield server


@contextmanager
def running_module(*command: str) -> Iterator[ServerProcess]:
    """Run a Python module that says SERVING, in JSON on standard error, as `serving run` does."""
    # A file, not a pipe: a server whose log nobody reads stops when the pipe is full.
    with tempfile.NamedTemporaryFile(suffix=".log") as file:
        process = subprocess.Popen([sys.executable, "-m", *command], stderr=file)
        try:
            log = Path(file.name)
            serving = _serving(process, log)
            server = ServerProcess(
                process=process,
                port=serving["port"],
                http_port=serving["http_port"],
                start_s=serving["seconds"],
                log=log,
            )
            yield server
            server.stop()
        finally:
            process.kill()  # where the block failed
            process.wait()


def load(server: ServerProcess, paths: Sequence[Path], *options: str, seconds: float) -> dict[str, float]:
    """Run `serving bench` against it as a process of its own; return its figures, and CPU ms a picture of both.

    It is warmed as long as what it is held against, see `inprocess`.
    """
    before = server.cpu_s()
    command = [str(BIN / "serving"), "bench", *map(str, paths), "--address", server.address, "--json"]
    command += ["--warm-up", str(WARM_UP_S), "--seconds", str(seconds), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    figures["cpu_ms_per_picture"] = 1000 * (server.cpu_s() - before) / figures["answered"]
    figures["load_cpu_ms_per_picture"] = 1000 * figures["cpu_s"] / figures["answered"]
    return figures


def _serving(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, Any]:
    """Wait for the log's line of that name."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        for line in log.read_text(encoding="utf-8").splitlines():
            if line.endswith("}") and (entry := json.loads(line))["event"] == "SERVING":
                return dict(entry)
        time.sleep(0.01)
    sys.exit(f"the server did not say SERVING:\n{log.read_text(encoding='utf-8')}")
