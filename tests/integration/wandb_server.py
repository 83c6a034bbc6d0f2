"""A loopback stand-in for the Weights & Biases server: what an unmodified client needs to log, finish and resume.

Runs as a process of its own (`python wandb_server.py`): prints its port, serves until its stdin closes.
`GET /state` answers with everything it was told, `GET /heard` with every request as it came, but for the key.
`POST /answer` with `{"status": 503}` makes every other request fail.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "somebody"
VIEWER = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.status = 200
        self.refused = 0
        self.runs: dict[str, dict[str, Any]] = {}
        self.heard: list[str] = []

    def graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL call; unknown ones get an empty answer, which the client takes as 'not supported'."""
        match operation:
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Viewer":
                return {"viewer": VIEWER}
            case "RunResumeStatus":
                return {"model": {**project(variables["project"]), "bucket": self.resumed(variables["name"])}}
            case "UpsertBucket":
                return {"upsertBucket": self.upsert(variables)}
            case "CreateRunFiles":
                return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": []}}
            case _:
                return {}

    def resumed(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        return {
            "id": name,
            "name": name,
            "displayName": run["name"],
            "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(run["history"]),
            "historyTail": json.dumps([json.dumps(line) for line in run["history"][-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "config": json.dumps(run["config"]),
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }

    def upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        inserted = name not in self.runs
        if inserted:
            self.runs[name] = {
                "id": name,
                "name": name,
                "config": {},
                "summary": {},
                "history": [],
                "starts": 0,
                "exitcode": None,
                "preempting": False,
            }
        run = self.runs[name]
        run["name"] = variables.get("displayName") or run["name"]
        run["config"].update(json.loads(variables.get("config") or "{}"))
        if variables.get("host"):  # only the call of a start says where it runs
            run["starts"] += 1
        bucket = {
            "id": name,
            "name": name,
            "displayName": run["name"],
            "description": None,
            "config": json.dumps(run["config"]),
            "sweepName": None,
            "project": project(variables["project"]),
            "historyLineCount": len(run["history"]),
        }
        return {"bucket": bucket, "inserted": inserted}

    def file_stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        files = body.get("files") or {}
        if "wandb-history.jsonl" in files:
            part = files["wandb-history.jsonl"]
            run["history"][part["offset"] :] = [json.loads(line) for line in part["content"]]
        if "wandb-summary.json" in files:
            run["summary"] = json.loads(files["wandb-summary.json"]["content"][-1])
        if body.get("preempting"):
            run["preempting"] = True
        if body.get("complete"):
            run["exitcode"] = body["exitcode"]
        return {"exitcode": None, "limits": {}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        with self.server.lock:
            if self.path == "/heard":
                self.answer(200, {"heard": self.server.heard})
            else:
                self.hear(b"")
                self.answer(200, {"runs": self.server.runs, "refused": self.server.refused})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(content) if self.headers.get("Content-Type", "").startswith("application/json") else {}
        with self.server.lock:
            self.hear(content)
            if self.path == "/answer":
                self.server.status = body["status"]
                self.answer(200, {})
            elif self.server.status != 200:
                self.server.refused += 1
                self.answer(self.server.status, {"error": "out of order"})
            elif self.path == "/graphql":
                operation = body.get("operationName") or body["query"].split("(")[0].split("{")[0].split()[-1]
                self.answer(200, {"data": self.server.graphql(operation, body.get("variables") or {})})
            elif self.path.endswith("/file_stream"):
                self.answer(200, self.server.file_stream(self.path.split("/")[-2], body))
            else:
                self.answer(404, {"error": self.path})

    def hear(self, content: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() != "authorization"}
        body = gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content
        self.server.heard.append(f"{self.command} {self.path} {headers} {body.decode(errors='replace')}")

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what happened is asked for with GET /state."""


def project(name: str) -> dict[str, Any]:
    return {"id": name, "name": name, "entity": {"id": ENTITY, "name": ENTITY}}


def main() -> None:
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main()
