# ruff: noqa: N802 (methods are named as the client names its questions)
"""A stand-in for the W&B server on loopback: answers what the client asks for, and remembers what it is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

PROJECT = {"id": "project", "name": "emerging-flows", "entity": {"id": "entity", "name": "someone"}}


class WandbServer:
    """Serves until :meth:`stop`, or until the ``with`` block that it is used in ends.

    ``runs`` (by id: what was said of each, and its ``history`` by row), ``files`` (by path), ``artifacts`` and
    ``sweeps`` are what it was sent. ``jobs`` are the parameters that agents are given, one after the other. ``code``
    is the status of every answer.
    """

    def __init__(self, code=200, jobs=(), on_files=lambda: None):
        self.runs, self.files, self.artifacts, self.sweeps = {}, {}, {}, {}
        self.code, self.jobs, self.on_files = code, list(jobs), on_files
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
        run = self._run(run_id)
        rows = said.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, row in enumerate(rows["content"], start=rows["offset"]):
            run["history"][number] = json.loads(row)
        summary = said.get("files", {}).get("wandb-summary.json", {"content": []})
        run["summary"] = [run["summary"], *summary["content"]][-1]
        run |= {key: said[key] for key in ("complete", "exitcode", "preempting") if key in said}

    def _run(self, run_id):
        return self.runs.setdefault(run_id, {"name": run_id, "history": {}, "summary": "{}", "config": {}})

    def _bucket(self, run):
        names = ("name", "displayName")
        common = {"id": run["name"], "project": PROJECT, "sweepName": run.get("sweep"), "description": ""}
        lengths = {"historyLineCount": len(run["history"]), "logLineCount": 0, "eventsLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(row) for row in list(run["history"].values())[-1:]])}
        config = {
            "config": json.dumps(run["config"]),
            "summaryMetrics": run["summary"],
            "wandbConfig": '{"t": 1}',
            "eventsTail": "[]",
        }
        return {name: run.get(name) for name in names} | common | lengths | tails | config | {"tags": [], "notes": None}

    # One method for each GraphQL operation, under its name; the arguments are the operation's variables.

    def Viewer(self):
        account = {"id": "me", "entity": "someone", "username": "someone", "email": "", "flags": "{}"}
        return {"viewer": account | {"teams": {"edges": []}}}

    def ServerFeaturesQuery(self):
        return {"serverInfo": {"features": []}}

    def OrganizationCoreWeaveOrganizationID(self, **_):
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def RunResumeStatus(self, name, **_):
        return {"model": PROJECT | {"bucket": self._bucket(self.runs[name]) if name in self.runs else None}}

    def UpsertBucket(self, name, config=None, **said):
        inserted, run = name not in self.runs, self._run(name)
        run |= {key: value for key, value in said.items() if value is not None}
        run["config"] |= json.loads(config or "{}")
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def CreateRunFiles(self, run, files, **_):
        self.on_files()
        places = [{"name": name, "uploadUrl": f"{self.url}/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": places}}

    def ArtifactType(self, **_):
        return {"project": None}

    def CreateArtifact(self, input):
        name = input["artifactCollectionName"]
        self.artifacts[name] = input | {"committed": False}
        made = {"id": name, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": made}}

    def CreateArtifactManifest(self, name, artifactID, **_):
        return {"createArtifactManifest": {"artifactManifest": self._manifest(artifactID)}}

    def UpdateArtifactManifest(self, artifactManifestID, **_):
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(artifactManifestID)}}

    def _manifest(self, artifact):
        return {
            "id": artifact,
            "file": {"id": "f", "uploadUrl": f"{self.url}/{artifact}/manifest", "uploadHeaders": []},
        }

    def CreateArtifactFiles(self, input):
        nodes = [
            {
                "storagePath": None,
                "uploadUrl": f"{self.url}/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in input["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def CommitArtifact(self, artifactID):
        self.artifacts[artifactID]["committed"] = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": self.artifacts[artifactID]["digest"]}}}

    def UpsertSweep(self, config, **_):
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = config
        return {"upsertSweep": {"sweep": {"name": name, "project": PROJECT}, "configValidationWarnings": []}}

    def SweepWithRuns(self, sweep, **_):
        return {"project": {"sweep": {"name": sweep, "config": self.sweeps[sweep], "runs": {"edges": []}}}}

    def GetSweepState(self, **_):
        return {"project": {"sweep": {"state": "RUNNING"}}}

    def CreateAgent(self, **_):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def Heartbeat(self, runState, **_):
        if json.loads(runState):
            commands = []
        elif self.jobs:
            arguments = {key: {"value": value} for key, value in self.jobs.pop(0).items()}
            program = yaml.safe_load(self.sweeps["sweep0"])["program"]
            commands = [{"type": "run", "run_id": f"job{len(self.jobs)}", "program": program, "args": arguments}]
        else:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        said, state = self._body(), self.server.state
        if state.code != 200:
            self._reply({"errors": [{"message": "refused"}]})
        elif self.path == "/graphql":
            asked = json.loads(said)
            operation = asked.get("operationName") or asked["query"].split("(")[0].split()[1]
            self._reply({"data": getattr(state, operation)(**asked.get("variables") or {})})
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
