"""Reads a repository that Pleach authored with python-tuf's client, whole and altered: `read.py FOLDER BUNDLE`."""

import shutil
import sys
import tempfile
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface


class Files(FetcherInterface):
    """Serves a folder as the repository at `repository:/`."""

    def __init__(self, folder):
        self.folder = folder

    def _fetch(self, url):
        path = self.folder / url.removeprefix("repository:/")
        if not path.is_file():
            raise DownloadHTTPError("not there", 404)
        yield path.read_bytes()


def read(folder, bundle):
    """Refreshes from the first root onwards and downloads the bundle."""
    with tempfile.TemporaryDirectory() as local:
        targets = Path(local, "targets")
        targets.mkdir()
        updater = Updater(
            str(Path(local, "metadata")), "repository:/", str(targets), "repository:/", Files(folder),
            bootstrap=(folder / "1.root.json").read_bytes(),
        )
        updater.refresh()
        info = updater.get_targetinfo(f"bundles/{bundle}")
        assert info is not None, "the bundle is not found"
        custom = info.unrecognized_fields["custom"]
        assert (custom["model"], custom["model_version"], custom["class"]) == ("resnet", 3, 'kamera-é"\\'), custom
        assert updater.get_targetinfo("bundles/unknown") is None
        return Path(updater.download_target(info)).read_bytes()


folder, bundle = Path(sys.argv[1]), sys.argv[2]
assert read(folder, bundle) == b"a sealed bundle"

for file in sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file()):
    with tempfile.TemporaryDirectory() as copy:
        altered = Path(copy, "repository")
        shutil.copytree(folder, altered)
        data = bytearray((altered / file).read_bytes())
        data[len(data) // 2] ^= 1
        (altered / file).write_bytes(data)
        try:
            read(altered, bundle)
        except RepositoryError as error:
            print(f"{file}: {error}")
        else:
            sys.exit(f"{file}: its alteration was not noticed")
