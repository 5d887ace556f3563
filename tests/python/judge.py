"""Judges a TUF client program by what it does with repositories made by python-tuf: `judge.py PROGRAM`.

The program speaks the command line of the public TUF conformance suite, and the cases make the claims of that suite.
"""

import json
import sys
import tempfile
import unittest
from urllib import parse

from repository import Client, Repository, Server, in_days
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

PROGRAM = sys.argv.pop(1)


class Case(unittest.TestCase):
    server = Server()

    def setUp(self):
        self.repo = Repository()
        name = self.id().rpartition(".")[2]
        self.server.repositories[name] = self.repo
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{name}"
        self.client = self.new_client()

    def new_client(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        return Client(PROGRAM, self.url, folder.name)

    def begin(self):
        self.assertTrue(self.client.init(self.repo.published["root"][0]))

    def begin_and_refresh(self):
        self.begin()
        self.assertTrue(self.client.refresh(), self.client.error)


class Basics(Case):
    def test_refresh_asks_in_the_order_of_the_specification_and_keeps_the_bytes(self):
        self.repo.published["timestamp"][-1] += b" \n"
        self.begin_and_refresh()
        self.assertEqual(self.repo.requests, [("root", 2), ("timestamp", None), ("snapshot", 1), ("targets", 1)])
        for role in ["root", "timestamp", "snapshot", "targets"]:
            self.assertEqual((self.client.metadata / f"{role}.json").read_bytes(), self.repo.published[role][-1])

    def test_download_refreshes_first(self):
        self.begin()
        self.assertFalse(self.client.download("nothing"))
        self.assertEqual(len(self.client.trusted()), 4)

    def test_an_invalid_or_unsigned_first_root_fetches_nothing(self):
        for change in [lambda d: d["signed"].pop("version"), lambda d: d["signatures"][0].update(sig="3045")]:
            document = json.loads(self.repo.published["root"][0])
            change(document)
            client = self.new_client()
            client.init(json.dumps(document).encode())
            self.assertFalse(client.refresh())
            self.assertEqual(self.repo.requests, [])

    def test_a_role_without_its_signature_or_of_another_version_stops_the_refresh_there(self):
        before = {"root": [], "timestamp": ["root"], "snapshot": ["root", "timestamp"], "targets": ["root", "timestamp", "snapshot"]}
        for fault in ["unsigned", "version"]:
            for role, updated in before.items():
                if (role, fault) == ("timestamp", "version"):
                    continue
                self.setUp()
                if fault == "unsigned":
                    self.repo.signers[role].popitem()
                else:
                    self.repo.signed[role].version += 1
                self.repo.publish("root", "targets", "snapshot", "timestamp")
                self.begin()
                self.assertFalse(self.client.refresh(), (fault, role))
                expected = {r: 2 for r in updated} or {"root": 1}
                self.assertEqual(self.client.trusted(), expected, (fault, role))

    def test_missing_files_stop_the_refresh_and_leave_what_was_trusted(self):
        self.begin_and_refresh()
        self.repo.timestamp.snapshot_meta.version += 1
        self.repo.publish("timestamp")
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.repo.requests[-1], ("snapshot", 2))
        self.assertEqual(self.client.trusted(), {"root": 1, "snapshot": 1, "targets": 1, "timestamp": 2})
        del self.repo.published["timestamp"]
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.repo.requests[-1], ("timestamp", None))

    def test_missing_targets_leave_snapshot_and_timestamp_updated(self):
        self.begin_and_refresh()
        self.repo.snapshot.meta["targets.json"].version += 1
        self.repo.publish("snapshot", "timestamp")
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.client.trusted(), {"root": 1, "snapshot": 2, "targets": 1, "timestamp": 2})

    def test_a_timestamp_of_the_same_version_is_not_taken(self):
        self.begin_and_refresh()
        self.repo.timestamp.snapshot_meta.version = 100
        self.repo.published.pop("timestamp")
        self.repo.publish("timestamp")
        self.assertTrue(self.client.refresh(), self.client.error)
        self.assertEqual(self.repo.requests[-1], ("timestamp", None))

    def test_a_snapshot_is_no_timestamp_even_when_both_keys_signed_it(self):
        self.begin()
        self.repo.add_key("snapshot", next(iter(self.repo.signers["timestamp"].values())))
        self.repo.snapshot.meta = {"snapshot.json": MetaFile(1)}
        self.repo.publish("root", "snapshot")
        self.repo.published["timestamp"].append(self.repo.published["snapshot"].pop())
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.client.trusted(), {"root": 2})

    def test_unknown_fields_are_signed_and_kept(self):
        self.begin_and_refresh()
        signer = CryptoSigner.generate_ecdsa()
        signer.public_key.unrecognized_fields["extra"] = {"a": 1, "b": 2}
        self.repo.root.unrecognized_fields["custom"] = "value"
        self.repo.root.roles["root"].unrecognized_fields["another"] = "value"
        self.repo.add_key("root", signer)
        self.repo.publish("root")
        self.assertTrue(self.client.refresh(), self.client.error)
        self.assertEqual(self.client.trusted()["root"], 2)

    def test_hashes_of_metadata_are_checked(self):
        self.repo.hashes_in_meta = True
        self.repo.publish("targets", "snapshot", "timestamp")
        self.begin_and_refresh()
        self.repo.publish("targets")
        self.repo.snapshot.meta["targets.json"].hashes["sha256"] = "00" * 32
        self.repo.publish("snapshot", "timestamp")
        self.assertFalse(self.client.refresh())
        self.assertEqual((self.client.trusted()["snapshot"], self.client.trusted()["targets"]), (3, 2))

    def test_without_consistent_snapshots_names_carry_no_version_or_hash(self):
        self.repo.root.consistent_snapshot = False
        self.repo.delegate("targets", "role")
        self.repo.add_file("role", "a/b", b"data")
        self.repo.publish("root", "role", "targets", "snapshot", "timestamp")
        self.begin()
        self.assertTrue(self.client.download("a/b") is False)  # `*` does not cross a slash
        self.repo.add_file("role", "ab", b"data")
        self.repo.publish("role", "snapshot", "timestamp")
        self.assertTrue(self.client.download("ab"))
        self.assertEqual(self.repo.requests[-1], ("role", None))
        self.assertEqual(self.repo.downloads, [("ab", "")])

    def test_oversized_files_are_refused(self):
        self.repo.root.unrecognized_fields["fill"] = "x" * 600_000
        self.repo.publish("root")
        self.begin()
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.client.trusted(), {"root": 1})


class Expiry(Case):
    def test_an_expired_root_is_taken_and_vouches_for_nothing(self):
        self.begin_and_refresh()
        self.repo.root.expires = in_days(-1)
        self.repo.publish("root", "timestamp")
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.client.trusted(), {"root": 2, "snapshot": 1, "targets": 1, "timestamp": 1})

    def test_expired_files_are_not_taken(self):
        for role in ["timestamp", "snapshot", "targets"]:
            self.setUp()
            self.begin_and_refresh()
            self.repo.signed[role].expires = in_days(-5)
            self.repo.publish("targets", "snapshot", "timestamp")
            self.assertFalse(self.client.refresh(), role)
            self.assertEqual(self.client.trusted()[role], 1)

    def test_an_expired_delegated_role_is_not_taken(self):
        self.begin()
        self.repo.delegate("targets", "role", ["d/*"], expires=in_days(-1))
        self.repo.add_file("role", "d/t", b"data")
        self.repo.publish("role", "targets", "snapshot", "timestamp")
        self.assertTrue(self.client.refresh(), self.client.error)
        self.assertFalse(self.client.download("d/t"))
        self.assertEqual(self.client.downloaded(), [])
        self.assertNotIn("role", self.client.trusted())


class Rollback(Case):
    def test_an_older_timestamp_is_refused(self):
        self.repo.publish("timestamp")
        self.begin_and_refresh()
        self.repo.published["timestamp"].append(self.repo.published["timestamp"][0])
        self.assertFalse(self.client.refresh())
        self.assertEqual(self.client.trusted()["timestamp"], 2)

    def test_an_older_snapshot_is_refused_also_when_hashes_changed(self):
        for hashes in [False, True]:
            self.setUp()
            self.repo.hashes_in_meta = hashes
            self.repo.publish("snapshot", "timestamp")
            self.begin_and_refresh()
            self.repo.timestamp.snapshot_meta = MetaFile(1)
            self.repo.publish("timestamp")
            self.assertFalse(self.client.refresh())
            self.assertEqual((self.client.trusted()["timestamp"], self.client.trusted()["snapshot"]), (2, 2))
            self.assertEqual(self.repo.requests[-1], ("timestamp", None))

    def test_older_targets_are_refused_by_the_kept_snapshot(self):
        for hashes in [False, True]:
            self.setUp()
            self.repo.hashes_in_meta = hashes
            self.repo.publish("targets", "targets", "snapshot", "timestamp")
            self.begin_and_refresh()
            self.repo.snapshot.meta["targets.json"] = MetaFile(2)
            self.repo.publish("snapshot", "timestamp")
            self.assertFalse(self.client.refresh())
            self.assertEqual((self.client.trusted()["snapshot"], self.client.trusted()["targets"]), (2, 3))

    def test_a_snapshot_that_drops_a_file_is_refused(self):
        self.repo.delegate("targets", "role")
        self.repo.publish("role", "targets", "snapshot", "timestamp")
        self.begin_and_refresh()
        del self.repo.snapshot.meta["role.json"]
        self.repo.publish("snapshot", "timestamp")
        self.assertFalse(self.client.refresh())

    def test_new_keys_recover_from_fast_forward(self):
        for role, renewed in [("targets", ["snapshot"]), ("snapshot", ["snapshot", "timestamp"]), ("timestamp", ["timestamp"])]:
            self.setUp()
            self.repo.signed[role].version = 99_999
            newest = {"targets": ["targets", "snapshot", "timestamp"], "snapshot": ["snapshot", "timestamp"], "timestamp": ["timestamp"]}
            self.repo.published.pop(role)
            for name in newest[role]:
                self.repo.publish(name)
            self.repo.published[role] = [b""] * 99_998 + self.repo.published[role]
            self.begin_and_refresh()
            self.assertEqual(self.client.trusted()[role], 99_999)
            for name in renewed:
                self.repo.replace_keys(name)
            self.repo.publish("root")
            self.repo.published.pop(role)
            self.repo.signed[role].version = 1
            for name in newest[role]:
                self.repo.publish(name)
            self.assertTrue(self.client.refresh(), role)
            self.assertEqual(self.client.trusted()[role], 1)


class Keys(Case):
    def test_each_key_type_of_the_specification_counts_and_its_bad_signature_does_not(self):
        for make in [CryptoSigner.generate_rsa, CryptoSigner.generate_ecdsa, CryptoSigner.generate_ed25519]:
            self.setUp()
            self.begin()
            signer = self.repo.add_key("root", make())
            self.repo.root.roles["root"].threshold = 2
            self.repo.publish("root")
            self.assertTrue(self.client.refresh(), make)
            self.repo.publish("root")
            other = json.loads(self.repo.published["root"][1])["signatures"]

            def swap(document):
                for signature in document["signatures"]:
                    if signature["keyid"] == signer.public_key.keyid:
                        signature["sig"] = next(s["sig"] for s in other if s["keyid"] == signature["keyid"])

            self.repo.edit("root", swap)
            self.assertFalse(self.client.refresh(), make)
            self.assertEqual(self.client.trusted()["root"], 2)

    def test_a_threshold_that_is_not_met_or_cannot_be(self):
        for keys, threshold, removed in [(3, 3, 1), (5, 6, 0)]:
            self.setUp()
            self.begin()
            for _ in range(keys - 1):
                self.repo.add_key("snapshot")
            self.repo.root.roles["snapshot"].threshold = threshold
            for _ in range(removed):
                self.repo.signers["snapshot"].popitem()
            self.repo.publish("root", "snapshot", "timestamp")
            self.assertFalse(self.client.refresh())
            self.assertEqual(self.client.trusted(), {"root": 2, "timestamp": 2})

    def test_one_key_signs_once_however_often_it_is_named(self):
        self.begin()
        keyid = next(iter(self.repo.signers["snapshot"]))
        self.repo.root.roles["snapshot"].keyids = [keyid] * 9
        self.repo.root.roles["snapshot"].threshold = 6
        self.repo.publish("root", "snapshot", "timestamp")
        self.repo.edit("snapshot", lambda d: d["signatures"].extend(d["signatures"] * 8))
        self.assertFalse(self.client.refresh())
        self.assertNotIn("snapshot", self.client.trusted())

    def test_a_key_that_signs_twice_is_refused(self):
        self.begin()
        self.repo.edit("snapshot", lambda d: d["signatures"].append(d["signatures"][0]))
        self.assertFalse(self.client.refresh())
        self.assertNotIn("snapshot", self.client.trusted())

    def test_signatures_that_are_wrong_empty_or_of_strangers_do_no_harm(self):
        self.begin()
        first = next(iter(self.repo.signers["timestamp"]))
        self.repo.add_key("timestamp")
        self.repo.publish("root", "timestamp")
        for wrong in ["3045022100ee448afe2d25dd1f", ""]:
            self.repo.publish("timestamp")

            def spoil(document):
                for signature in document["signatures"]:
                    if signature["keyid"] == first:
                        signature["sig"] = wrong
                document["signatures"].append({"keyid": "00" * 32, "sig": "00"})

            self.repo.edit("timestamp", spoil)
            self.assertTrue(self.client.refresh(), wrong)

    def test_roots_are_signed_by_the_old_and_the_new_threshold(self):
        keys = [CryptoSigner.generate_ecdsa() for _ in range(10)]
        for name, versions, accepted in [
            ("1 of 1 replaced", [([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])], True),
            ("unused signatures", [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4]), ([2], 1, [3, 2, 4])], True),
            ("3 of 5, other signers", [([0, 1, 2, 3, 4], 3, s) for s in ([0, 2, 4], [0, 4, 1], [0, 1, 3])], True),
            ("3 of 5, all replaced", [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7])], True),
            ("threshold raised", [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [1, 2])], True),
            ("threshold lowered", [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1, 2]), ([1, 2, 3], 1, [1])], True),
            ("old key did not sign", [([1], 1, [1]), ([2], 1, [2, 3, 4])], False),
            ("new key did not sign", [([1], 1, [1]), ([2], 1, [1, 3, 4])], False),
            ("too few new", [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4])], False),
            ("too few old", [([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])], False),
            ("raised threshold not met", [([1, 2, 3], 1, [1]), ([1, 2, 3], 2, [2])], False),
            ("lowered before its time", [([1, 2, 3], 2, [1, 2]), ([1, 2, 3], 1, [1])], False),
        ]:
            with self.subTest(name):
                self.setUp()
                self.repo.published.pop("root")
                for named, threshold, signing in versions:
                    for keyid in list(self.repo.root.roles["root"].keyids):
                        self.repo.root.revoke_key(keyid, "root")
                    self.repo.signers["root"] = {}
                    self.repo.root.roles["root"].threshold = threshold
                    for i in named:
                        self.repo.root.add_key(keys[i].public_key, "root")
                    for i in signing:
                        self.repo.signers["root"][keys[i].public_key.keyid] = keys[i]
                    self.repo.publish("root")
                self.begin()
                self.assertEqual(self.client.refresh(), accepted)
                expected = self.repo.published["root"][-1 if accepted else -2]
                self.assertEqual((self.client.metadata / "root.json").read_bytes(), expected)


class DelegationSearch(Case):
    GRAPHS = [
        ([("targets", "A"), ("targets", "B")], "AB"),
        ([("targets", "A"), ("targets", "B"), ("B", "C")], "ABC"),
        ([("targets", "A"), ("targets", "B"), ("A", "C"), ("A", "D")], "ACDB"),
        ([("targets", "A"), ("targets", "B"), ("A", "C"), ("C", "D")], "ACDB"),
        ([("targets", "A"), ("targets", "B"), ("A", "C", ["*"], True), ("A", "D")], "AC"),
        ([("targets", "A"), ("targets", "B"), ("A", "C", ["*"], True), ("C", "D")], "ACD"),
        ([("targets", "A", ["*.py"]), ("targets", "B"), ("A", "C")], "B"),
        ([("targets", "A"), ("targets", "B"), ("A", "C", ["*.py"]), ("C", "D")], "AB"),
        ([("targets", "A"), ("targets", "B"), ("B", "C"), ("C", "D"), ("D", "B")], "ABCD"),
        ([("targets", "A"), ("targets", "B"), ("B", "C"), ("A", "C")], "ACB"),
        ([("targets", "A"), ("targets", "B"), ("B", "C"), ("A", "C", ["*.py"])], "ABC"),
    ]

    def graph(self, delegations):
        for delegator, name, *rest in delegations:
            self.repo.delegate(delegator, name, *rest)
        touched = {d[0] for d in delegations} | {d[1] for d in delegations}
        self.repo.publish(*(touched - {"targets"}), "targets", "snapshot", "timestamp")

    def test_roles_are_searched_depth_first_in_their_order(self):
        for delegations, order in self.GRAPHS:
            with self.subTest(delegations):
                self.setUp()
                self.graph(delegations)
                self.begin()
                self.assertFalse(self.client.download("missing"))
                self.assertEqual(self.repo.requests[4:], [(role, 1) for role in order])

    def test_a_target_is_found_only_where_the_whole_way_to_it_was_given(self):
        for path, found, order in [
            ("top", True, ""),
            ("README.md", True, "A"),
            ("releases/x/x_v1", True, "BC"),
            ("releases/y/y_v1.zip", True, "BD"),
            ("releases/z/z_v1.zip", False, "B"),
        ]:
            with self.subTest(path):
                self.setUp()
                for role, name in [("A", "README.md"), ("C", "releases/x/x_v1"), ("D", "releases/y/y_v1.zip"), ("D", "releases/z/z_v1.zip")]:
                    self.repo.signed.setdefault(role, type(self.repo.targets)(expires=in_days(30)))
                    self.repo.add_file(role, name, name.encode())
                self.repo.add_file("targets", "top", b"top")
                self.graph([("targets", "A", ["*.doc", "*.md"]), ("targets", "B", ["releases/*/*"]),
                            ("B", "C", ["releases/x/*"]), ("B", "D", ["releases/y/*.zip"])])
                self.begin()
                self.assertEqual(self.client.download(path), found)
                self.assertEqual(self.client.downloaded(), [self.repo.files[path]] if found else [])
                self.assertEqual(self.repo.requests[4:], [(role, 1) for role in order])

    def test_bins_are_found_by_hash(self):
        names = self.repo.delegate_bins("targets", 4, "bin")
        bins = self.repo.targets.delegations.succinct_roles
        for path in ["a", "b/c", "d.onnx"]:
            self.repo.add_file(bins.get_role_for_target(path), path, path.encode())
        self.repo.publish(*names, "targets", "snapshot", "timestamp")
        self.begin()
        for path in ["a", "b/c", "d.onnx"]:
            self.assertTrue(self.client.download(path))
            self.assertIn((bins.get_role_for_target(path), 1), self.repo.requests)

    def test_hash_prefixes_split_paths(self):
        import hashlib

        prefix = hashlib.sha256(b"some/path").hexdigest()[:2]
        self.repo.delegate("targets", "right", prefixes=[prefix])
        self.repo.add_file("right", "some/path", b"data")
        self.repo.publish("right", "targets", "snapshot", "timestamp")
        self.begin()
        self.assertTrue(self.client.download("some/path"))

    def test_a_cached_role_is_verified_against_the_delegator_of_this_search(self):
        # `shared` is delegated to by A with one key and by B with another; only A's key signed what is published.
        self.repo.delegate("targets", "A", ["a/*"])
        self.repo.delegate("targets", "B", ["b/*"])
        self.repo.delegate("A", "shared", ["a/*"])
        self.repo.add_file("shared", "a/x", b"ax")
        self.repo.add_file("shared", "b/x", b"bx")
        stranger = self.repo.delegate("B", "shared", ["b/*"])
        del self.repo.signers["shared"][stranger.public_key.keyid]
        self.repo.publish("shared", "A", "B", "targets", "snapshot", "timestamp")
        self.begin()
        self.assertTrue(self.client.download("a/x"))
        self.assertFalse(self.client.download("b/x"))
        self.assertEqual(self.client.downloaded(), [b"ax"])

    def test_unusual_names_are_quoted_and_stay_in_their_folder(self):
        for name in ["?", "#", "/role", "../role", ".", ".."]:
            with self.subTest(name):
                self.setUp()
                self.repo.delegate("targets", name)
                self.repo.publish(name, "targets", "snapshot", "timestamp")
                self.begin()
                self.assertFalse(self.client.download("nothing"))
                self.assertIn((parse.quote(name, ""), 1), self.repo.requests)
                self.assertEqual(len(self.client.trusted()), 5)
                self.assertEqual(list(self.client.metadata.parent.glob("*.json")), [self.client.metadata.parent / "first.json"])


class Downloads(Case):
    def test_a_target_arrives_once_and_is_not_fetched_again(self):
        for path in ["file.txt", "a/b/file.txt"]:
            self.repo.add_file("targets", path, path.encode())
        self.repo.publish("targets", "snapshot", "timestamp")
        self.begin()
        for path in ["file.txt", "a/b/file.txt", "file.txt"]:
            self.assertTrue(self.client.download(path))
        self.assertEqual(self.client.downloaded(), [b"a/b/file.txt", b"file.txt"])
        self.assertEqual([path for path, _ in self.repo.downloads], ["file.txt", "a/b/file.txt"])

    def test_other_bytes_than_were_signed_are_not_kept(self):
        self.repo.add_file("targets", "a", b"first")
        self.repo.add_file("targets", "b", b"other")
        self.repo.publish("targets", "snapshot", "timestamp")
        self.begin()
        self.assertTrue(self.client.download("a"))
        for data in [b"evil!", b"evil and longer", b"no"]:
            self.repo.files.update(a=data, b=data)
            self.client.download("a")
            self.assertFalse(self.client.download("b"))
            self.assertEqual(self.client.downloaded(), [b"first"])
        self.repo.add_file("targets", "a", b"second")
        self.repo.publish("targets", "snapshot", "timestamp")
        self.assertTrue(self.client.download("a"))
        self.assertEqual(self.client.downloaded(), [b"second"])

    def test_hash_algorithms(self):
        for hashes in [["sha256"], ["sha512"], ["sha256", "sha512"]]:
            self.setUp()
            target = self.repo.add_file("targets", "a", b"data", hashes)
            self.repo.publish("targets", "snapshot", "timestamp")
            self.begin()
            self.assertTrue(self.client.download("a"), hashes)
            self.assertIn(self.repo.downloads[0][1], target.hashes.values())
        self.setUp()
        target = self.repo.add_file("targets", "a", b"data", ["sha512"])
        target.hashes = {"unknown": target.hashes["sha512"]}
        self.repo.publish("targets", "snapshot", "timestamp")
        self.begin()
        self.assertFalse(self.client.download("a"))
        self.assertEqual(self.client.downloaded(), [])


if __name__ == "__main__":
    unittest.main()
