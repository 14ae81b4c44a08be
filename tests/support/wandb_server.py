# ruff: noqa: N802 (methods are named as the client names its questions)
"""A stand-in for the W&B server on loopback: answers what the client asks for, and remembers what it is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PROJECT = {"id": "project", "name": "emerging-flows", "entity": {"id": "entity", "name": "someone"}}
ALWAYS = {
    "viewer": {"id": "me", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}},
    "serverInfo": {"features": []},
    "entity": {"organization": {"coreWeaveOrganizationId": None}},
    "project": None,
}
"""What the answer to any question contains; the client reads of it what it has asked for."""


class WandbServer:
    """Serves until :meth:`stop`, or until the ``with`` block that it is used in ends.

    ``runs`` (by id: what was said of each, and its ``history`` by row), ``files`` (by path) and ``artifacts`` are what
    it was sent. ``code`` is the status of every answer.
    """

    def __init__(self, code=200, on_files=lambda: None):
        self.runs, self.files, self.artifacts = {}, {}, {}
        self.code, self.on_files = code, on_files
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.http.state = self
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": 40 * "k"}
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()

    def stop(self):
        self.http.shutdown()
        self.http.server_close()

    def stream(self, run_id, said):
        """A piece of a run's log: rows of its history, each with its number, and how it ended."""
        rows = said.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, row in enumerate(rows["content"], start=rows["offset"]):
            self.runs[run_id]["history"][number] = json.loads(row)
        self.runs[run_id] |= {key: said[key] for key in ("complete", "exitcode", "preempting") if key in said}

    def _bucket(self, run):
        """A run as the client takes it up again."""
        last_row = [json.dumps(row) for row in list(run["history"].values())[-1:]]
        return {
            "id": run["name"],
            "name": run["name"],
            "project": PROJECT,
            "config": json.dumps(run["config"]),
            "historyLineCount": len(run["history"]),
            "historyTail": json.dumps(last_row),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "summaryMetrics": "{}",
            "wandbConfig": '{"t": 1}',
        }

    def answer(self, operation, variables):
        return getattr(self, operation)(**variables) if hasattr(self, operation) else {}

    # One method for each GraphQL operation that asks for more, under its name; the arguments are its variables.

    def RunResumeStatus(self, name, **_):
        return {"model": PROJECT | {"bucket": self._bucket(self.runs[name]) if name in self.runs else None}}

    def UpsertBucket(self, name, config=None, **said):
        inserted, run = name not in self.runs, self.runs.setdefault(name, {"name": name, "history": {}, "config": {}})
        run |= {key: value for key, value in said.items() if value is not None}
        run["config"] |= json.loads(config or "{}")
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def CreateRunFiles(self, run, files, **_):
        self.on_files()
        places = [self._place(run, name) for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def CreateArtifact(self, input):
        name = input["artifactCollectionName"]
        self.artifacts[name] = input | {"committed": False}
        made = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def CreateArtifactManifest(self, **_):
        manifest = {"artifactManifest": {"id": "manifest", "file": self._place("manifests", "manifest")}}
        return {"createArtifactManifest": manifest, "updateArtifactManifest": manifest}

    UpdateArtifactManifest = CreateArtifactManifest

    def CreateArtifactFiles(self, input):
        nodes = [self._place(file["artifactID"], file["name"]) for file in input["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _place(self, owner, name):
        """Where a file of a run, or of an artifact, is to be uploaded."""
        return {"id": name, "name": name, "artifact": {"id": owner}, "uploadUrl": f"{self.url}/{owner}/{name}"}

    def CommitArtifact(self, artifactID):
        self.artifacts[artifactID]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": self.artifacts[artifactID]["digest"]}}}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        said, state = self._body(), self.server.state
        if state.code != 200:
            self._reply({"errors": [{"message": "refused"}]})
        elif self.path == "/graphql":
            asked = json.loads(said)
            self._reply({"data": ALWAYS | state.answer(asked["operationName"], asked.get("variables") or {})})
        else:
            if self.path.endswith("/file_stream"):  # first of all: the next piece comes when this one is answered
                state.stream(self.path.split("/")[-2], json.loads(said))
            self._reply({})

    def do_PUT(self):
        self.server.state.files[self.path.removeprefix("/")] = self._body()
        self._reply({})

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(self.server.state.code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
