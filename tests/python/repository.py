"""A TUF repository made with python-tuf and served over HTTP, for a client to be judged by."""

import datetime
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib import parse

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

TOP = ["root", "timestamp", "snapshot", "targets"]


def in_days(days):
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(days=days)


class Repository:
    """Roles as they are being edited, and every version that was published of each."""

    def __init__(self):
        expires = in_days(30)
        self.signed = {
            "root": Root(expires=expires),
            "timestamp": Timestamp(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "targets": Targets(expires=expires),
        }
        self.signers = {role: {} for role in TOP}
        self.published = {}
        self.files = {}
        self.hashes_in_meta = False
        self.requests = []
        self.downloads = []
        for role in TOP:
            self.add_key(role)
        self.publish("targets", "snapshot", "timestamp", "root")

    def __getattr__(self, name):
        try:
            return self.__dict__["signed"][name]
        except KeyError:
            raise AttributeError(name) from None

    def add_key(self, role, signer=None, delegator=None):
        signer = signer or CryptoSigner.generate_ecdsa()
        self.signers.setdefault(role, {})[signer.public_key.keyid] = signer
        holder = self.signed[delegator] if delegator else self.root
        holder.add_key(signer.public_key, role)
        return signer

    def replace_keys(self, role):
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.signers[role] = {}
        self.add_key(role)

    def delegate(self, delegator, name, paths=("*",), terminating=False, prefixes=None, expires=None, signer=None):
        holder = self.signed[delegator]
        if holder.delegations is None:
            holder.delegations = Delegations({}, roles={})
        role = DelegatedRole(name, [], 1, terminating, list(paths) if prefixes is None else None, prefixes)
        holder.delegations.roles[name] = role
        self.signed.setdefault(name, Targets(expires=expires or in_days(30)))
        return self.add_key(name, signer, delegator)

    def delegate_bins(self, delegator, bits, prefix):
        bins = SuccinctRoles([], 1, bits, prefix)
        self.signed[delegator].delegations = Delegations({}, None, bins)
        signer = CryptoSigner.generate_ed25519()
        self.signed[delegator].add_key(signer.public_key)
        for name in bins.get_roles():
            self.signed[name] = Targets(expires=in_days(30))
            self.signers[name] = {signer.public_key.keyid: signer}
        return list(bins.get_roles())

    def add_file(self, role, path, data, hashes=("sha256",)):
        target = TargetFile.from_data(path, data, list(hashes))
        self.signed[role].targets[path] = target
        self.files[path] = data
        return target

    def publish(self, *roles):
        """Signs the next version of each role; snapshot and timestamp list what was published before them."""
        for role in roles:
            content = self.signed[role]
            if role in self.published:
                content.version += 1
            metadata = Metadata(content)
            for signer in self.signers[role].values():
                metadata.sign(signer, append=True)
            self.put(role, metadata.to_bytes(JSONSerializer()))

    def put(self, role, data, listed=True):
        """Publishes these bytes as the next version."""
        self.published.setdefault(role, []).append(data)
        meta = MetaFile(self.signed[role].version)
        if self.hashes_in_meta:
            meta = MetaFile.from_data(self.signed[role].version, data, ["sha256"])
        if listed and role == "snapshot":
            self.timestamp.snapshot_meta = meta
        elif listed and role not in TOP[:2]:
            self.snapshot.meta[f"{role}.json"] = meta

    def edit(self, role, change):
        """Alters the newest published file as JSON, its signatures left as they are."""
        document = json.loads(self.published[role].pop())
        change(document)
        self.published[role].append(json.dumps(document).encode())

    def serve(self, path):
        if path.startswith("metadata/") and path.endswith(".json"):
            name = path[len("metadata/") : -len(".json")]
            version, dot, role = name.partition(".")
            if dot and version.isdigit() and (self.root.consistent_snapshot or role == "root"):
                self.requests.append((role, int(version)))
                versions = self.published.get(parse.unquote(role), [])
                return versions[int(version) - 1] if 0 < int(version) <= len(versions) else None
            self.requests.append((name, None))
            return (self.published.get(parse.unquote(name)) or [None])[-1]
        if path.startswith("targets/"):
            folder, slash, name = path[len("targets/") :].rpartition("/")
            prefix, _, plain = name.partition(".") if self.root.consistent_snapshot else ("", "", name)
            self.downloads.append((folder + slash + plain, prefix))
            return self.files.get(folder + slash + plain)
        return None


class Server(ThreadingHTTPServer):
    """Serves repositories by name."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name, _, path = self.path.lstrip("/").partition("/")
        data = self.server.repositories[name].serve(path)
        if data is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Client:
    """The program under test, with folders of its own."""

    def __init__(self, program, url, folder):
        self.program, self.url = program, url
        self.metadata, self.targets = Path(folder, "metadata"), Path(folder, "targets")
        self.metadata.mkdir()
        self.targets.mkdir()

    def run(self, *arguments):
        command = [self.program, "--metadata-dir", self.metadata, *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60, text=True)
        self.error = done.stderr
        return done.returncode == 0

    def init(self, root):
        path = self.metadata.parent / "first.json"
        path.write_bytes(root)
        return self.run("init", path)

    def refresh(self):
        return self.run("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self, name):
        return self.run(
            "--metadata-url", f"{self.url}/metadata/", "--target-name", name,
            "--target-base-url", f"{self.url}/targets/", "--target-dir", self.targets, "download",
        )

    def trusted(self):
        """Version by file name of what the client keeps."""
        files = sorted(self.metadata.glob("*.json"))
        return {f.name.removesuffix(".json"): json.loads(f.read_bytes())["signed"]["version"] for f in files}

    def downloaded(self):
        return sorted(f.read_bytes() for f in self.targets.rglob("*") if f.is_file())
