"""Settings from a YAML file (behaviour S8, S9)."""

import pytest

from kvorum.urls import Url
from node.flags import Exit, Start
from tests.node.flags.parsed import config, error, run


def from_file(text: str) -> dict[str, bytes]:
    return {"f.yml": text.encode()}


class TestFile:
    """S8, S9."""

    def test_the_files_settings_are_the_only_ones(self) -> None:
        read = config(
            "--config-file",
            "f.yml",
            "--name=flag",
            environ={"ETCD_MAX_WALS": "9", "ETCD_NAME": "variable"},
            files=from_file("max-txn-ops: 7\n"),
        )
        assert (read.name, read.max_txn_ops, read.max_wals) == ("default", 7, 5)

    def test_the_variable_names_the_file_too(self) -> None:
        assert config(environ={"ETCD_CONFIG_FILE": "f.yml"}, files=from_file("name: f\n")).name == "f"

    def test_every_type_of_value(self) -> None:
        text = """
            name: f
            pre-vote: false
            quota-backend-bytes: 4096
            grpc-keepalive-min-time: 1500000000
            watch-progress-notify-interval: 1m
            log-outputs: [stderr, stdout]
            cors: http://a,http://b
            listen-client-urls: unix://f.sock
            advertise-client-urls: http://f:1
            auto-compaction-retention: 5
            feature-gates: {TxnModeWriteWithSharedBuffer: true}
            client-transport-security: {client-cert-auth: true, trusted-ca-file: ca.pem}
            peer-transport-security:
        """
        read = config("--config-file=f.yml", files=from_file(text))
        assert not read.pre_vote
        assert read.quota_backend_bytes == 4096
        assert read.grpc_keepalive_min_time_s == 1.5
        assert read.watch_progress_notify_interval_s == 60
        assert read.log.outputs == ("stderr", "stdout")
        assert read.cors == {"http://a", "http://b"}
        assert read.listen_client_urls == (Url("unix", "f.sock"),)
        assert read.auto_compaction.retention_s == 5 * 3600

    def test_tls_has_its_own_section(self) -> None:
        text = """
            listen-client-urls: https://127.0.0.1:1
            advertise-client-urls: https://127.0.0.1:1
            client-transport-security: {cert-file: c, key-file: k, client-cert-auth: true, trusted-ca-file: ca}
        """
        tls = config("--config-file=f.yml", files=from_file(text)).client_tls
        assert tls is not None
        assert (tls.cert_file, tls.key_file, tls.trusted_ca_file, tls.client_cert_auth) == ("c", "k", "ca", True)

    @pytest.mark.parametrize(
        "key", ["no-such-key", "cert-file", "config-file", "client-transport-security: {nope", "7"]
    )
    def test_an_unknown_key_is_ignored_with_a_warning(self, key: str) -> None:
        close = "}" if "{" in key else ""
        result = run("--config-file=f.yml", files=from_file(f"{key}: x{close}\n"))
        assert isinstance(result, Start)
        assert "unknown key in the configuration file is ignored" in [note.msg for note in result.notes]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("heartbeat-interval: abc\n", '"abc" for heartbeat-interval is not a value of type uint'),
            ("heartbeat-interval: true\n", "True for heartbeat-interval is not a value of type uint"),
            ("pre-vote: 'x'\n", '"x" for pre-vote is not a value of type bool'),
            ("pre-vote: 1\n", "1 for pre-vote is not a value of type bool"),
            ("name: [a]\n", "['a'] for name is not a value of type string"),
            ("cors: [1]\n", "[1] for cors is not a value of type strings"),
            ("feature-gates: {Foo: true}\n", "{'Foo': True} for feature-gates is not a value of type gates"),
            ("client-transport-security: x\n", "client-transport-security must be a map"),
            ("- a\n", "f.yml holds no map of settings"),
        ],
    )
    def test_a_value_of_another_type(self, text: str, reason: str) -> None:
        msg, given = error("--config-file=f.yml", files=from_file(text))
        assert (msg, given) == ("failed to verify flags", f"error unmarshaling JSON: {reason}")

    @pytest.mark.parametrize("text", ["name: [a\n", "a: b: c", "\x00", "? [" * 2000])
    def test_a_file_that_is_not_yaml(self, text: str) -> None:
        msg, given = error("--config-file=f.yml", files=from_file(text))
        assert msg == "failed to verify flags"
        assert given.startswith("error converting YAML to JSON: yaml: ")

    def test_a_file_that_is_not_there(self) -> None:
        assert error("--config-file=g.yml") == ("failed to verify flags", "open g.yml: no such file or directory")

    def test_an_empty_file(self) -> None:
        assert config("--config-file=f.yml", files=from_file("")).name == "default"

    def test_a_bad_url_is_told_without_the_log(self) -> None:
        result = run("--config-file=f.yml", files=from_file("listen-client-urls: foo://x\n"))
        assert isinstance(result, Exit)
        assert (result.code, result.stderr) == (
            1,
            "unexpected error setting up listen-client-urls: URL scheme must be http, https, unix, or unixs: foo://x\n",
        )

    def test_a_bad_cluster_state(self) -> None:
        """S24."""
        given = error("--config-file=f.yml", files=from_file("initial-cluster-state: x\n"))
        assert given == ("failed to verify flags", 'unexpected clusterState "x"')
