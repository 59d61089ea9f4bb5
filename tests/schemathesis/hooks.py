"""Gives schemathesis's requests something real to act on.

A path parameter that is made up names nothing, and all that it can find is 404. Most requests get
the id of something that is there; a request that removes it gets one of its own.
"""

import functools
import json
import os
import urllib.error
import urllib.request
import zlib

import schemathesis
from schemathesis.generation.meta import TestPhase

URL = os.environ["DERRICK_URL"]


def ask(path, body=None):
    """Asks derrick, with JSON if there is any; what it answered."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@functools.cache
def shared_workspace():
    """The workspace of all requests that do not remove theirs."""
    return ask("/workspaces", {})["id"]


@functools.cache
def paused_workspace():
    """The workspace of all requests that pause theirs."""
    return ask("/workspaces", {})["id"]


@functools.cache
def frozen_workspace():
    """The workspace of all requests that take snapshots."""
    return ask("/workspaces", {})["id"]


@functools.cache
def shared_snapshot():
    """The snapshot of all requests that do not remove theirs."""
    return ask(f"/workspaces/{ask('/workspaces', {})['id']}/snapshots", {})["id"]


def snapshot(case):
    if not removes(case, "snapshot"):
        return shared_snapshot()
    # One that nothing builds on any more.
    workspace = ask("/workspaces", {})["id"]
    made = ask(f"/workspaces/{workspace}/snapshots", {})["id"]
    ask(f"/workspaces/{workspace}/reset", {})
    return made


@functools.cache
def files_workspace():
    """The workspace of all requests for files, which may take from it what others need."""
    workspace = ask("/workspaces", {})["id"]
    ask(f"/workspaces/{workspace}/cmd", {"cmd": "mkdir -p /srv/d/e && echo text > /srv/f && mkfifo /srv/pipe"})
    return workspace


def made(value, one_in):
    """Whether a value is one of those, one in so many, that something is done with; always the same of one value."""
    return zlib.crc32(str(value).encode("utf-8", "replace")) % one_in == 0


def removes(case, parameter):
    return case.method == "DELETE" and case.path.endswith("{" + parameter + "}")


def workspace(case):
    if "/files/" in case.path:
        if case.method == "DELETE":
            # What others have removed can be removed again.
            ask(f"/workspaces/{files_workspace()}/cmd", {"cmd": "mkdir -p /srv/d/e && echo text > /srv/f"})
        return files_workspace()
    if case.path.endswith("/renew"):
        # What it gets may be over in no time.
        return ask("/workspaces", {"ttl": 1000})["id"]
    if removes(case, "id"):
        return ask("/workspaces", {})["id"]
    # Others want to run something in theirs.
    if case.path.endswith(("/pause", "/resume")):
        return paused_workspace()
    if case.path.endswith("/fence"):
        return ask("/workspaces", {})["id"]
    return frozen_workspace() if case.path.endswith(("/snapshots", "/fork")) else shared_workspace()


# The last exec that was started, with a terminal and without.
execs = {}


def exec_(case):
    """One that reads until somebody ends it, soon, as a request may wait for its end."""
    under = f"/workspaces/{shared_workspace()}/execs"
    if case.path.endswith("/signal"):
        # One of its own, which the signal finds running.
        return ask(under, {"argv": ["cat"], "stdin": "open", "timeout": 10})["id"]
    tty = case.path.endswith("/resize")
    if tty not in execs or ask(f"{under}/{execs[tty]}")["state"] == "ended":
        body = {"argv": ["cat"], "stdin": "open", "timeout": 1}
        execs[tty] = ask(under, body | ({"tty": {"rows": 24, "cols": 80}} if tty else {}))["id"]
    return execs[tty]


def session(case):
    """One that lives, started now or before."""
    try:
        ask(f"/workspaces/{shared_workspace()}/sessions", {"name": "kept"})
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
    return "kept"


# What each path parameter names, for a request.
MAKERS = {"id": workspace, "exec": exec_, "name": session, "snapshot": snapshot}


def tame(body):
    """A body that asks for something that is there, and for no more than the host has."""
    changed = dict(body)
    for field in ("snapshot", "to"):
        if isinstance(body.get(field), str) and len(body[field]) == 36 and zlib.crc32(body[field].encode()) % 4:
            changed[field] = shared_snapshot()
    count = body.get("count")
    if isinstance(count, int) and not isinstance(count, bool) and 2 < count <= 1000:
        changed["count"] = 2
    return changed


def impatient(query):
    """A query that waits for nothing longer than a second, as what it waits for may never come, and that has all
    there is compared one time in four, as that takes seconds."""
    query = dict(query or {})
    wait = query.get("wait")
    if isinstance(wait, (int, float)) and not isinstance(wait, bool) and wait > 1:
        query["wait"] = 1
    if query.get("verify") == "full" and not made(sorted(query.items(), key=str), 4):
        del query["verify"]
    return query


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.method == "POST" and case.path == "/workspaces" and isinstance(case.body, dict):
        # Its answer has no end.
        case.body = {name: value for name, value in case.body.items() if name != "tied"}
    case.query = impatient(case.query)
    # There each request has what it names from an earlier answer, and nothing else must change.
    if case.meta.phase.name is TestPhase.STATEFUL:
        return
    if isinstance(case.body, dict) and case.path.endswith(("/workspaces", "/reset", "/fork")):
        case.body = tame(case.body)
    # A reset takes from the workspace what others have written, and left to be read.
    if case.path.endswith("/read_file") and isinstance(case.body, dict) and isinstance(case.body.get("path"), str):
        if zlib.crc32(case.body["path"].encode("utf-8", "replace")) % 2:
            case.body = {"path": "/etc/passwd"}
    # A copy: cases share what is the same in them.
    case.path_parameters = dict(case.path_parameters or {})
    if case.method == "DELETE" and "/files/" in case.path and made(case.path_parameters.get("path"), 2):
        case.path_parameters["path"] = "srv/f"
    for parameter, value in case.path_parameters.items():
        # Every fourth stays as it was made up; not those of signals, few of which get as far as the exec.
        made_up = made(value, 4)
        made_up = made_up and not case.path.endswith("/signal")
        # It may also be taken from an earlier answer, and be what others use.
        made_up = made_up and not (removes(case, parameter) and len(str(value)) == 36)
        if parameter in MAKERS and not made_up:
            case.path_parameters[parameter] = MAKERS[parameter](case)
