"""Starts a rerank server, waits until it answers, lets `rankwright verify --url` check it, and stops it again.

    python serve_and_verify.py --engine vllm --version 0.32.0 --api vllm --log FILE FOLDER -- COMMAND...

`{port}` in COMMAND is a free port, `{folder}` the exported folder. Prints one line of JSON; exit code 1 when scores
differ, 2 when the server does not start. Standard library only, beside the command `rankwright`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 600.0
STOP_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until /health answers 200."""
    # No proxy stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}: see {log}")
        try:
            with opener.open(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"the server did not answer within {START_SECONDS:.0f} s: see {log}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """The server and the processes that it started, which are of its own group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def verify(folder: Path, url: str, api: str, log: Path) -> tuple[int, dict[str, object]]:
    """(exit code, JSON) of `rankwright verify`."""
    command = [sys.executable, "-m", "rankwright", "verify", str(folder), "--url", url, "--api", api, "--json"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the server could not be asked: see {log}")
    return done.returncode, json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description="Start a rerank server and verify it against an export")
    for name in ("engine", "version", "api", "target"):
        parser.add_argument(f"--{name}", required=name != "target", default="hf")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("folder", type=Path)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    port = free_port()
    folder = options.folder.resolve()
    command = [part.replace("{port}", str(port)).replace("{folder}", str(folder)) for part in options.command]
    with options.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, options.log)
            code, found = verify(folder, f"http://127.0.0.1:{port}", options.api, options.log)
        finally:
            stop(process)
    kept = ("max_d_probability", "max_d_logit", "max_d_probability_by_kind", "rows", "not_checked", "failures")
    line = {"engine": options.engine, "version": options.version, "target": options.target}
    print(json.dumps({**line, **{key: found[key] for key in kept if key in found}}, ensure_ascii=False), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
