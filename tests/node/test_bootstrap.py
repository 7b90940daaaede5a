"""Who a member is at its first start and at every later one (behaviour S38-S41, CL-6, CL-18, RR-2, RR-3)."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from kvorum.log import Level, LogFormat, Logger
from kvorum.urls import Url, parse_urls
from node.bootstrap import FOUNDER, JOINER, Outside, Patience, identify
from node.datadir import DataDirError, prepare
from node.first_start import founder
from node.flags.checks import StartFailed
from node.identity import Identity, read_identity
from node.remote_cluster import RemoteCluster, RemoteMember
from tests.node.flags.parsed import config

URLS = {"a": "http://a:1", "b": "http://b:1", "c": "http://c:1"}
CLUSTER = ",".join(f"{name}={url}" for name, url in URLS.items())
FOUNDED = founder("a", {name: parse_urls(url) for name, url in URLS.items()}, "etcd-cluster")
NEW = (f"--initial-cluster={CLUSTER}", "--initial-advertise-peer-urls=http://a:1")
EXISTING = (f"--initial-cluster={CLUSTER}", "--initial-cluster-state=existing")


def remote(*started: str, cluster_id: int = FOUNDED.cluster_id, incompatible: str = "") -> RemoteCluster:
    """The cluster of a, b and c; the members `started` have served."""
    members = [
        RemoteMember(id_, name, urls, ("http://client:1",) if name in started else (), False)
        for id_, name, urls in FOUNDED.members
    ]
    return RemoteCluster(cluster_id, tuple(members), incompatible)


class Place:
    """A data directory, and the cluster that others speak of: None while nobody answers."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory
        self.remote: RemoteCluster | None = None
        self.asked: list[tuple[list[str], Patience]] = []
        self.lines: list[dict[str, str]] = []
        self._log = Logger((lambda _level, line: self.lines.append(orjson.loads(line)),), Level.INFO, LogFormat.JSON)
        prepare(str(directory), "", self._log)

    def start(self, *flags: str) -> Identity:
        self.asked.clear()
        self.lines.clear()
        parsed = config("--name=a", f"--data-dir={self.data_dir}", *flags)
        return identify(parsed, Outside(self._ask, self._resolve, self._discover), self._log)

    def refusal(self, *flags: str) -> str:
        with pytest.raises(StartFailed) as raised:
            self.start(*flags)
        return str(raised.value)

    def log_begins(self) -> None:
        (self.data_dir / "member" / "wal" / "0000000000000000-0000000000000000.wal").touch()

    @property
    def stored(self) -> Identity | None:
        return read_identity(str(self.data_dir))

    def _ask(self, urls: Sequence[str], patience: Patience) -> RemoteCluster | None:
        self.asked.append((list(urls), patience))
        return self.remote

    def _discover(self) -> dict[str, tuple[Url, ...]]:
        return dict(config(*NEW).initial_cluster)

    def _resolve(self, host: str) -> str:
        raise AssertionError(f"{host} is resolved, and nothing needs it")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class TestFounding:
    def test_all_founders_agree_and_each_asks_the_others_first(self, place: Place) -> None:
        assert place.start(*NEW) == FOUNDED == place.stored
        assert place.asked == [(["http://b:1", "http://c:1"], FOUNDER)]

    def test_the_members_may_be_found_in_dns(self, place: Place) -> None:
        assert place.start("--discovery-srv=example.com", NEW[1]) == FOUNDED
        assert place.asked == [(["http://b:1", "http://c:1"], FOUNDER)]

    def test_a_member_alone_asks_nobody(self, place: Place) -> None:
        identity = place.start()
        assert [urls for urls, _ in place.asked] == [[]]
        assert identity.members == ((identity.member_id, "a", ("http://localhost:2380",)),)

    def test_members_that_were_faster_do_not_stop_it(self, place: Place) -> None:
        place.remote = remote("b", "c")
        assert place.start(*NEW) == FOUNDED

    def test_a_member_that_lost_its_data_does_not_found_again(self, place: Place) -> None:
        """S39, CL-18."""
        place.remote = remote("a", "b", "c")
        assert place.refusal(*NEW) == f"member {FOUNDED.member_id:x} has already been bootstrapped"
        assert place.stored is None

    def test_another_cluster_on_the_others_urls(self, place: Place) -> None:
        """CL-7."""
        place.remote = remote("b", cluster_id=1)
        expected = f"conflicting cluster ID to the target cluster ({FOUNDED.cluster_id:x} != 1). Exiting."
        assert place.refusal(*NEW) == expected
        assert place.stored is None

    def test_one_that_ended_before_its_log_began_founds_still(self, place: Place) -> None:
        """Of the flags nothing counts any more; the others are asked once again."""
        place.start(*NEW)
        assert place.start("--initial-cluster-state=existing", "--initial-cluster=x=http://x:1") == FOUNDED
        assert place.asked == [(["http://b:1", "http://c:1"], FOUNDER)]

    def test_one_whose_log_was_taken_away_does_not(self, place: Place) -> None:
        place.start(*NEW)
        place.remote = remote("a", "b", "c")
        assert place.refusal(*NEW).endswith("has already been bootstrapped")


class TestJoining:
    def test_it_takes_its_place_in_the_cluster(self, place: Place) -> None:
        place.remote = remote("b", "c", cluster_id=0xC)
        identity = place.start(*EXISTING, "--initial-cluster-token=another")
        assert identity == (FOUNDED.member_id, 0xC, False, FOUNDED.members)
        assert place.stored == identity
        assert place.asked == [(["http://b:1", "http://c:1"], JOINER)]
        assert place.lines == []

    def test_nobody_answers(self, place: Place) -> None:
        """S38."""
        text = "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
        assert place.refusal(*EXISTING) == text
        assert place.stored is None

    def test_other_members_than_its_own_list_has(self, place: Place) -> None:
        place.remote = RemoteCluster(1, remote().members[:2])
        text = place.refusal(*EXISTING)
        assert text.startswith("error validating peerURLs {ClusterID:1 Members:[&{ID:")
        assert text.endswith(" RemovedMemberIDs:[]}: member count is unequal")
        assert place.stored is None

    def test_one_that_is_not_a_member_yet(self, place: Place) -> None:
        place.remote = remote("b", "c")
        others = CLUSTER.replace("a=http://a:1", "a=http://10.0.0.9:1")
        with pytest.raises(AssertionError, match="is resolved"):  # the texts differ: perhaps the addresses do not
            place.start(f"--initial-cluster={others}", "--initial-cluster-state=existing")

    def test_a_cluster_of_another_make(self, place: Place) -> None:
        place.remote = remote("b", "c", incompatible="its members are not kvorum's")
        assert place.refusal(*EXISTING) == "incompatible with current running cluster"
        assert [(line["level"], line["reason"]) for line in place.lines] == [("warn", "its members are not kvorum's")]
        assert place.stored is None

    def test_one_that_has_run_before_is_warned(self, place: Place) -> None:
        place.remote = remote("a", "b", "c")
        assert not place.start(*EXISTING).founder
        assert [line["level"] for line in place.lines] == ["warn"]
        assert "removed and added anew" in place.lines[0]["msg"]

    def test_one_that_ended_before_its_log_began_has_joined(self, place: Place) -> None:
        place.remote = remote("b", "c")
        identity = place.start(*EXISTING)
        place.remote = None
        assert place.start(*NEW) == identity
        assert place.asked == []


class TestLaterStarts:
    def test_no_flag_about_the_first_start_counts(self, place: Place) -> None:
        """S40, CL-6."""
        place.start(*NEW)
        place.log_begins()
        place.remote = remote("a", "b", "c")
        for flags in ((), EXISTING, ("--initial-cluster=x=http://x:1",), ("--initial-cluster-token=t",)):
            assert place.start(*flags) == FOUNDED
            assert place.asked == []

    def test_a_log_without_an_identity_is_somebody_elses(self, place: Place) -> None:
        place.log_begins()
        with pytest.raises(DataDirError, match="holds no identity, but there is data"):
            place.start(*NEW)

    def test_so_is_one_in_a_directory_of_its_own(self, place: Place, tmp_path: Path) -> None:
        place.log_begins()
        shutil.move(tmp_path / "member" / "wal", tmp_path / "w")
        with pytest.raises(DataDirError, match=r"there is data \(.*/w, .*/member/db\)"):
            place.start(f"--wal-dir={tmp_path / 'w'}")

    def test_and_a_database(self, place: Place) -> None:
        (place.data_dir / "member" / "db").mkdir()
        (place.data_dir / "member" / "db" / "CURRENT").touch()
        with pytest.raises(DataDirError, match="holds no identity, but there is data"):
            place.start(*NEW)

    def test_a_new_cluster_is_forced_only_upon_data(self, place: Place) -> None:
        """S41."""
        warning = "--force-new-cluster drops members of a cluster that is there, and here is no data yet"
        assert place.start("--force-new-cluster").founder
        assert [line["msg"] for line in place.lines] == [warning]
        place.log_begins()
        place.start("--force-new-cluster")
        assert place.lines == []
