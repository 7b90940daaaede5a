"""The settings that matter between members: TLS (S8, S34, S35), timing, the log, membership."""

import pytest

from node.config import TlsVersion
from node.flags import Exit, Start
from tests.node.flags.parsed import config, error, run

HTTPS = ("--listen-peer-urls=https://127.0.0.1:1", "--initial-advertise-peer-urls=https://127.0.0.1:1")
FILES = ("--peer-cert-file=c", "--peer-key-file=k")


def warnings(*arguments: str) -> list[str]:
    result = run(*arguments)
    assert isinstance(result, Start)
    return [note.msg for note in result.notes]


class TestTls:
    def test_without_files_there_is_none(self) -> None:
        tls = config().peer_tls
        assert (tls.cert_file, tls.client_cert_file, tls.trusted_ca_file, tls.auto) == ("", "", "", False)
        assert not tls.requires_client_cert

    def test_every_flag_has_its_place(self) -> None:
        tls = config(
            *HTTPS,
            *FILES,
            "--peer-client-cert-file=cc",
            "--peer-client-key-file=ck",
            "--peer-trusted-ca-file=ca",
            "--peer-client-cert-auth",
            "--peer-cert-allowed-cn=x,y",
            "--peer-skip-client-san-verification",
            "--tls-min-version=TLS1.3",
            "--tls-max-version=TLS1.3",
        ).peer_tls
        assert (tls.cert_file, tls.key_file, tls.client_cert_file, tls.client_key_file) == ("c", "k", "cc", "ck")
        assert (tls.trusted_ca_file, tls.client_cert_auth, tls.allowed_cns) == ("ca", True, ("x", "y"))
        assert tls.skip_client_san_verification
        assert (tls.min_version, tls.max_version) == (TlsVersion.TLS13, TlsVersion.TLS13)
        assert config("--peer-cert-allowed-hostname=a,b").peer_tls.allowed_hostnames == ("a", "b")

    def test_the_certificate_is_shown_where_the_member_connects_too(self) -> None:
        tls = config(*HTTPS, *FILES, "--cipher-suites=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256").peer_tls
        assert (tls.client_cert_file, tls.client_key_file) == ("c", "k")
        assert tls.cipher_suites == ("ECDHE-RSA-AES128-GCM-SHA256",)

    def test_the_section_of_the_file(self) -> None:
        """S8."""
        text = """
            listen-peer-urls: https://127.0.0.1:1
            peer-transport-security: {cert-file: c, key-file: k, client-cert-auth: true, trusted-ca-file: ca,
                                      client-cert-file: cc, client-key-file: ck, cert-allowed-hostname: h}
        """
        tls = config("--config-file=f.yml", files={"f.yml": text.encode()}).peer_tls
        assert (tls.cert_file, tls.key_file, tls.client_cert_file, tls.client_key_file) == ("c", "k", "cc", "ck")
        assert (tls.trusted_ca_file, tls.client_cert_auth, tls.allowed_hostnames) == ("ca", True, ("h",))

    def test_auto_tls_names_files_in_the_data_directory(self) -> None:
        tls = config(*HTTPS, "--peer-auto-tls", "--data-dir=d").peer_tls
        assert tls.auto
        assert (tls.cert_file, tls.key_file) == ("d/fixtures/peer/cert.pem", "d/fixtures/peer/key.pem")
        assert (tls.client_cert_file, tls.client_key_file) == (tls.cert_file, tls.key_file)

    def test_given_files_win_over_auto_tls(self) -> None:
        arguments = (*HTTPS, *FILES, "--peer-auto-tls")
        tls = config(*arguments).peer_tls
        assert (tls.cert_file, tls.auto) == ("c", False)
        assert "ignoring peer auto TLS since certs given" in warnings(*arguments)

    def test_files_beside_a_plain_url_are_warned_of(self) -> None:
        """S35."""
        assert warnings(*FILES)[-1].endswith("it is served without TLS")

    @pytest.mark.parametrize("scheme", ["https", "unixs"])
    def test_a_secure_listener_needs_files(self, scheme: str) -> None:
        """S34."""
        text = "cannot listen on TLS for 127.0.0.1:1: KeyFile and CertFile are not presented"
        assert error(f"--listen-peer-urls={scheme}://127.0.0.1:1") == ("discovery failed", text)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("--peer-cert-file=c",), "KeyFile and CertFile must both be present[key: , cert: c]"),
            (("--peer-key-file=k",), "KeyFile and CertFile must both be present[key: k, cert: ]"),
            (
                ("--peer-client-cert-file=c",),
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: c]",
            ),
            (
                ("--peer-cert-allowed-cn=b,a", "--peer-cert-allowed-hostname=h"),
                'AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a" "b"], hostnames=["h"])',
            ),
        ],
    )
    def test_what_does_not_fit_together(self, arguments: tuple[str, ...], text: str) -> None:
        assert error(*HTTPS, *arguments) == ("discovery failed", text)

    def test_revoked_certificates_are_not_supported_yet(self) -> None:
        result = run("--peer-crl-file=x")
        assert isinstance(result, Exit)
        assert result.notes[-1].fields["error"] == "--peer-crl-file is not supported by kvorum yet"


def test_every_setting_of_the_log_and_the_elections_arrives() -> None:
    read = config(
        "--snapshot-count=1",
        "--snapshot-catchup-entries=2",
        "--max-wals=3",
        "--wal-dir=w",
        "--heartbeat-interval=7",
        "--election-timeout=80",
        "--initial-election-tick-advance=false",
        "--pre-vote=false",
        "--strict-reconfig-check=false",
        "--max-learners=5",
        "--force-new-cluster",
    )
    assert (read.snapshot_count, read.snapshot_catchup_entries, read.max_wals) == (1, 2, 3)
    assert read.wal_path == "w"
    assert (read.heartbeat_interval_s, read.election_timeout_s) == (0.007, 0.08)
    assert (read.initial_election_tick_advance, read.pre_vote, read.strict_reconfig_check) == (False, False, False)
    assert (read.max_learners, read.force_new_cluster) == (5, True)
    bare = config()
    assert (bare.initial_election_tick_advance, bare.pre_vote, bare.strict_reconfig_check) == (True, True, True)
    assert (bare.max_learners, bare.force_new_cluster) == (1, False)


def test_members_of_a_cluster_and_their_urls() -> None:
    """CL-3, CL-5, CL-11: a name given twice is one member with two URLs."""
    read = config("--initial-cluster=b=http://b:1,a=https://a:2,b=http://b:0")
    assert [(name, [str(url) for url in urls]) for name, urls in read.initial_cluster] == [
        ("a", ["https://a:2"]),
        ("b", ["http://b:0", "http://b:1"]),
    ]
