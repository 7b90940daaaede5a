"""Who a member is, on disk and as the first entry of its log (behaviour CL-3, CL-6, S40)."""

import stat
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.pb.internal_pb2 import Founding
from kvorum.pb.rpc_pb2 import Member
from kvorum.urls import parse_urls
from node.datadir import DataDirError
from node.first_start import founder
from node.identity import FirstMember, Identity, founding_bytes, read_identity, write_identity

IDS = st.integers(1, 2**64 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
MEMBERS = st.lists(
    st.builds(FirstMember, IDS, NAMES, st.lists(NAMES, min_size=1).map(lambda urls: tuple(sorted(urls)))), max_size=7
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "member").mkdir()
    return tmp_path


@pytest.mark.parametrize("is_founder", [True, False])
def test_it_is_written_once_and_read_back(data_dir: Path, is_founder: bool) -> None:
    assert read_identity(str(data_dir)) is None
    members = (FirstMember(1, "", ("http://a:1", "http://b:2")), FirstMember(2**64 - 1, "ü", ("http://c:3",)))
    identity = Identity(2**64 - 1, 1, is_founder, members)
    write_identity(str(data_dir), identity)
    assert read_identity(str(data_dir)) == identity
    path = data_dir / "member" / "identity"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert orjson.loads(path.read_bytes())["member-id"] == "ffffffffffffffff"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"member-id": 1, "cluster-id": "1", "start": "founder", "members": []}',
        b'{"member-id": "1", "cluster-id": "1", "start": "other", "members": []}',
        b'{"member-id": "1", "cluster-id": "1", "start": "joined"}',
        b'{"member-id": "1", "cluster-id": "1", "start": "joined", "members": [{"id": "1", "name": "a"}]}',
    ],
)
def test_a_damaged_file_is_an_error(data_dir: Path, text: bytes) -> None:
    (data_dir / "member" / "identity").write_bytes(text)
    with pytest.raises(DataDirError, match="is damaged"):
        read_identity(str(data_dir))


def test_every_founder_writes_the_same_first_entry() -> None:
    cluster = {
        "c": parse_urls("http://c:1"),
        "a": parse_urls("https://a:2,http://a:1"),
        "b": parse_urls("unix://b"),
    }
    identities = [founder(name, dict(sorted(cluster.items(), reverse=name == "b")), "t") for name in cluster]
    assert len({founding_bytes(identity) for identity in identities}) == 1
    assert len({identity.member_id for identity in identities}) == 3
    assert len({identity.cluster_id for identity in identities}) == 1
    members = Founding.FromString(founding_bytes(identities[0])).members
    assert [member.ID for member in members] == sorted(identity.member_id for identity in identities)
    assert {member.name: tuple(member.peerURLs) for member in members} == {
        "a": ("http://a:1", "https://a:2"),
        "b": ("unix://b",),
        "c": ("http://c:1",),
    }


@given(MEMBERS)
def test_the_first_entry_is_the_message_that_the_library_writes(members: list[FirstMember]) -> None:
    message = Founding(
        members=[Member(ID=member.id, name=member.name, peerURLs=member.peer_urls) for member in members]
    )
    assert founding_bytes(Identity(1, 2, True, tuple(members))) == message.SerializeToString(deterministic=True)


def test_one_that_joined_founds_nothing() -> None:
    assert founding_bytes(Identity(1, 2, False, (FirstMember(1, "a", ("http://a:1",)),))) == b""
