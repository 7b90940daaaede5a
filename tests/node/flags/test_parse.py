"""From command line, environment and file to settings, or to the reference's words and exit code (behaviour 22)."""

import pytest

from kvorum.log import Level, LogFormat
from kvorum.urls import Url
from node.config import AutoCompaction, CompactionMode
from node.flags import Exit, Start
from node.flags.table import FLAGS, IGNORED, Standing
from tests.node.flags.parsed import config, error, run


class TestDefaults:
    def test_the_settings_of_a_bare_command(self) -> None:
        bare = config()
        assert bare.name == "default"
        assert bare.data_dir == "default.kvorum"
        assert bare.listen_client_urls == bare.advertise_client_urls == (Url("http", "localhost:2379"),)
        assert bare.listen_peer_urls == bare.initial_advertise_peer_urls == (Url("http", "localhost:2380"),)
        assert bare.initial_cluster == (("default", (Url("http", "localhost:2380"),)),)
        assert (bare.heartbeat_interval_s, bare.election_timeout_s) == (0.1, 1.0)
        assert (bare.max_txn_ops, bare.max_request_bytes) == (128, 1_572_864)
        assert bare.quota_backend_bytes == 2 * 1024**3
        assert bare.grpc_keepalive_interval_s == 7200
        assert bare.watch_progress_notify_interval_s == 600
        assert bare.client_tls is None
        assert not bare.auto_compaction.enabled
        assert (bare.log.level, bare.log.format, bare.log.outputs) == (Level.INFO, LogFormat.JSON, ("default",))
        assert bare.feature_gates == {"TxnModeWriteWithSharedBuffer", "FastLeaseKeepAlive"}
        assert bare.wal_path == "default.kvorum/member/wal"

    def test_every_flag_may_be_given_its_default(self) -> None:
        for flag in FLAGS.values():
            if flag.name not in ("config-file", "version", "listen-client-urls"):
                assert isinstance(run(f"--{flag.name}={flag.default}"), Start), flag.name

    def test_a_name_makes_the_data_directory_and_the_cluster(self) -> None:
        named = config("--name", "a")
        assert named.data_dir == "a.kvorum"
        assert named.initial_cluster[0][0] == "a"

    def test_the_default_name_is_warned_of(self) -> None:
        """S42."""
        result = run()
        assert isinstance(result, Start)
        assert result.notes[0].msg.startswith(
            "it isn't recommended to use default name, please set a value for --name. "
        )


class TestForms:
    """S10-S15: the Go flag package."""

    @pytest.mark.parametrize(
        "arguments", [("-name", "x"), ("--name", "x"), ("-name=x",), ("--name=x",), ("--name", "y", "--name", "x")]
    )
    def test_a_value(self, arguments: tuple[str, ...]) -> None:
        assert config(*arguments).name == "x"

    def test_a_value_may_look_like_a_flag_and_hold_an_equals_sign(self) -> None:
        assert config("--initial-cluster-token", "-a=b").initial_cluster_token == "-a=b"

    def test_a_boolean_stands_alone_or_takes_a_value_after_the_equals_sign(self) -> None:
        assert config("--unsafe-no-fsync").unsafe_no_fsync
        assert not config("--pre-vote=false").pre_vote
        assert error("--pre-vote", "false") == ("failed to verify flags", '"false" is not a valid flag')

    def test_what_follows_two_hyphens_is_no_flag(self) -> None:
        assert error("--", "--name") == ("failed to verify flags", '"--name" is not a valid flag')
        assert isinstance(run("--"), Start)

    @pytest.mark.parametrize("argument", ["foo", "-", "help", ""])
    def test_an_argument_that_is_no_flag(self, argument: str) -> None:
        """S12, S13."""
        assert error(argument, "--nope") == ("failed to verify flags", f'"{argument}" is not a valid flag')

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("--nope",), "flag provided but not defined: -nope"),
            (("-nope=1",), "flag provided but not defined: -nope"),
            (("--enable-v2",), "flag provided but not defined: -enable-v2"),
            (("--proxy=on",), "flag provided but not defined: -proxy"),
            (("--discovery=x",), "flag provided but not defined: -discovery"),
            (("--discovery-proxy=x",), "flag provided but not defined: -discovery-proxy"),
            (
                ("--experimental-initial-corrupt-check",),
                "flag provided but not defined: -experimental-initial-corrupt-check",
            ),
            (("---x",), "bad flag syntax: ---x"),
            (("-=x",), "bad flag syntax: -=x"),
            (("--=x",), "bad flag syntax: --=x"),
            (("--heartbeat-interval",), "flag needs an argument: -heartbeat-interval"),
            (("--heartbeat-interval=abc",), 'invalid value "abc" for flag -heartbeat-interval: parse error'),
            (("--heartbeat-interval", "-1"), 'invalid value "-1" for flag -heartbeat-interval: parse error'),
            (("--max-txn-ops=",), 'invalid value "" for flag -max-txn-ops: parse error'),
            (
                ("--snapshot-count=99999999999999999999999",),
                'invalid value "99999999999999999999999" for flag -snapshot-count: value out of range',
            ),
            (("--grpc-keepalive-min-time=5",), 'invalid value "5" for flag -grpc-keepalive-min-time: parse error'),
            (("--pre-vote=maybe",), 'invalid boolean value "maybe" for -pre-vote: parse error'),
            (
                ("--max-concurrent-streams=x",),
                'invalid value "x" for flag -max-concurrent-streams: strconv.ParseUint: parsing "x": invalid syntax',
            ),
            (
                ("--listen-client-urls=foo://a",),
                'invalid value "foo://a" for flag -listen-client-urls: '
                "URL scheme must be http, https, unix, or unixs: foo://a",
            ),
            (("--initial-cluster-state=foo",), 'invalid value "foo" for flag -initial-cluster-state: invalid value'),
            (("--discovery-fallback=proxy",), 'invalid value "proxy" for flag -discovery-fallback: invalid value'),
            (
                ("--feature-gates=Foo=true",),
                'invalid value "Foo=true" for flag -feature-gates: unrecognized feature gate: Foo',
            ),
        ],
    )
    def test_a_flag_that_cannot_be_read_ends_with_2_and_the_usage(self, arguments: tuple[str, ...], text: str) -> None:
        """S10, S11, S22, S24, S28, S45-S48."""
        result = run(*arguments)
        assert isinstance(result, Exit)
        assert result.code == 2
        assert result.stderr.startswith(f"{text}\nUsage:\n")
        assert (result.stdout, result.notes) == ("", ())

    @pytest.mark.parametrize("flag", ["--help", "-h", "-help"])
    def test_help_names_every_flag(self, flag: str) -> None:
        result = run("--name", "x", flag)
        assert isinstance(result, Exit)
        assert (result.code, result.stderr) == (0, "")
        for name in FLAGS:
            assert f"  --{name} '" in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= 120

    def test_version_is_four_lines_that_tools_read_and_kvorums_own(self) -> None:
        """S14."""
        result = run("--version")
        assert isinstance(result, Exit)
        assert (result.code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[0] == "etcd Version: 3.7.0"
        heads = [line.partition(": ")[0] for line in lines]
        assert heads == ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch", "kvorum Version"]

    @pytest.mark.parametrize("name", sorted(IGNORED))
    def test_flags_of_old_are_ignored(self, name: str) -> None:
        """S44."""
        result = run(f"--{name}", f"-{name}=5", "--name", "x")
        assert isinstance(result, Start)
        assert result.config.name == "x"
        assert error(f"--{name}", "5")[1] == '"5" is not a valid flag'


class TestEnvironment:
    def test_a_variable_sets_a_flag_and_the_log_says_so(self) -> None:
        """S3."""
        result = run(environ={"ETCD_HEARTBEAT_INTERVAL": "50"})
        assert isinstance(result, Start)
        assert result.config.heartbeat_interval_s == 0.05
        note = result.notes[0]
        assert (note.level, note.msg) == (Level.INFO, "recognized and used environment variable")
        assert note.fields == {"variable_name": "ETCD_HEARTBEAT_INTERVAL", "variable_value": "50"}

    @pytest.mark.parametrize("value", ["x", ""])
    def test_variable_and_flag_together_are_fatal(self, value: str) -> None:
        """S1."""
        result = run("--name", "y", environ={"ETCD_NAME": value})
        assert isinstance(result, Exit)
        assert result.code == 1
        note = result.notes[-1]
        assert (note.level, note.fields) == (Level.FATAL, {"environment_variable": "ETCD_NAME"})
        assert note.msg == (
            "conflicting environment variable is shadowed by corresponding command-line flag "
            "(either unset environment variable or disable flag))"
        )

    def test_an_empty_variable_is_not_set(self) -> None:
        """S4."""
        assert config(environ={"ETCD_NAME": ""}).name == "default"

    def test_unknown_variables_are_warned_of(self) -> None:
        """S2, S6, S7."""
        environ = {"ETCD_FOO": "1", "ETCD_VERSION": "1", "ETCD_UNSUPPORTED_ARCH": "arm64", "PATH": "x"}
        result = run("--name=a", "--data-dir=a", environ=environ)
        assert isinstance(result, Start)
        assert [(note.level, note.msg, dict(note.fields)) for note in result.notes] == [
            (Level.WARN, "cannot set special environment variable", {"key": "ETCD_VERSION", "value": "1"}),
            (Level.WARN, "unrecognized environment variable", {"environment_variable": "ETCD_FOO=1"}),
        ]

    @pytest.mark.parametrize(
        ("variable", "value", "text"),
        [
            ("ETCD_HEARTBEAT_INTERVAL", "abc", 'invalid value "abc" for ETCD_HEARTBEAT_INTERVAL: parse error'),
            ("ETCD_PRE_VOTE", "x", 'invalid value "x" for ETCD_PRE_VOTE: parse error'),
            ("ETCD_INITIAL_CLUSTER_STATE", "x", 'invalid value "x" for ETCD_INITIAL_CLUSTER_STATE: invalid value'),
        ],
    )
    def test_a_bad_variable(self, variable: str, value: str, text: str) -> None:
        """S5."""
        assert error(environ={variable: value}) == ("failed to verify flags", text)


CLIENTS = ("--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1")


class TestChecks:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("--heartbeat-interval=0",), "--heartbeat-interval must be >0 (set to 0ms)"),
            (("--election-timeout=0",), "--election-timeout must be >0 (set to 0ms)"),
            (
                ("--election-timeout=100",),
                "--election-timeout[100ms] should be at least as 5 times as --heartbeat-interval[100ms]",
            ),
            (
                ("--election-timeout=60000",),
                "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
            ),
            (
                ("--listen-client-urls=http://127.0.0.1:1",),
                "--advertise-client-urls is required when --listen-client-urls is set explicitly",
            ),
            (
                ("--listen-client-urls=http://example.com:2379", "--advertise-client-urls=http://a:1"),
                "expected IP in URL for binding (http://example.com:2379)",
            ),
            (
                ("--listen-client-urls=http://:2379", "--advertise-client-urls=http://a:1"),
                "expected IP in URL for binding (http://:2379)",
            ),
            (("--listen-peer-urls=http://a:1",), "expected IP in URL for binding (http://a:1)"),
            (("--listen-metrics-urls=http://a:1",), "expected IP in URL for binding (http://a:1)"),
            (
                ("--advertise-client-urls=http://:2379",),
                '--advertise-client-urls "http://:2379" must be "host:port" (unexpected empty host (http://:2379))',
            ),
            (
                ("--initial-cluster=a=http://x:1", "--discovery-srv=x"),
                "multiple discovery or bootstrap flags are set. "
                'Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"',
            ),
            (("--auto-compaction-mode=foo",), 'unknown auto-compaction-mode "foo"'),
            (("--logger=foo",), 'unknown logger option "foo"'),
            (("--log-level=foo",), 'unrecognized level: "foo"'),
            (("--log-outputs=default,stderr",), 'multi logoutput for "default" is not supported yet'),
            (("--discovery-token=x",), "both --discovery-token and --discovery-endpoints must be set"),
            (
                ("--discovery-token=x", "--discovery-endpoints=a,"),
                "--discovery-endpoints must not contain empty endpoints",
            ),
            (
                ("--feature-gates=LeaseCheckpointPersist=true",),
                "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
            ),
            (("--compact-hash-check-time=0s",), "--compact-hash-check-time must be >0 (set to 0s)"),
            (("--compact-hash-check-time=-1s",), "--compact-hash-check-time must be >0 (set to -1s)"),
            (("--watch-progress-notify-interval=0",), "--watch-progress-notify-interval must be >0 (set to 0s)"),
            (("--compaction-batch-limit=0",), "--compaction-batch-limit must be >0 (set to 0)"),
            (
                ("--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"),
                "min version (TLS1.3) is greater than max version (TLS1.2)",
            ),
            (
                ("--tls-min-version=TLS1.3", "--cipher-suites=x"),
                "cipher suites cannot be configured when only TLS1.3 is enabled",
            ),
            (("--tls-min-version=x",), 'unexpected TLS version "x", must be one of: TLS1.2, TLS1.3'),
            (("--front-workers=0",), "--front-workers must be 1 to 64 (set to 0)"),
            (("--metrics=foo",), 'unknown metrics "foo", must be one of: basic, extensive'),
        ],
    )
    def test_settings_that_cannot_be(self, arguments: tuple[str, ...], text: str) -> None:
        """S16, S18-S21, S23, S25-S30."""
        assert error(*arguments) == ("failed to verify flags", text)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (
                CLIENTS,
                "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 "
                "with HTTPS scheme",
            ),
            (
                ("--listen-metrics-urls=https://127.0.0.1:1",),
                "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
            ),
            (
                ("--listen-client-http-urls=http://localhost:2379",),
                "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url "
                "http://localhost:2379",
            ),
            (("--cipher-suites=foo",), 'unexpected TLS cipher suite "foo"'),
            (
                ("--auto-compaction-retention=xx",),
                'error parsing CompactionRetention: time: invalid duration "xx"',
            ),
            (
                ("--initial-cluster=default",),
                "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
            ),
        ],
    )
    def test_a_member_that_cannot_start(self, arguments: tuple[str, ...], text: str) -> None:
        """S17, S34, S36."""
        assert error(*arguments) == ("discovery failed", text)

    def test_flags_that_are_not_supported_yet_are_refused_by_name(self) -> None:
        other = {"bool": ("true", "false"), "uint": ("7",), "int": ("7",), "duration": ("7s",)}
        for flag in FLAGS.values():
            if flag.standing is not Standing.NOT_YET or flag.choices or flag.name.startswith("discovery-"):
                continue
            value = next(value for value in other.get(flag.kind.value, ("x",)) if value != flag.default)
            text = f"--{flag.name} is not supported by kvorum yet"
            assert error(f"--{flag.name}={value}") == ("failed to verify flags", text)

    def test_discovery_is_refused_when_it_is_consistent(self) -> None:
        given = error("--discovery-token=x", "--discovery-endpoints=http://a:1")
        assert given == ("failed to verify flags", "--discovery-token is not supported by kvorum yet")

    def test_gates_that_are_not_supported_yet_are_refused_by_name(self) -> None:
        given = error("--feature-gates=PriorityRequest=true")
        assert given == ("failed to verify flags", "feature gate PriorityRequest is not supported by kvorum yet")

    def test_what_has_no_meaning_is_warned_of(self) -> None:
        """S43."""
        result = run(
            "--max-snapshots=3", "--backend-batch-limit=5", "--feature-gates=FastLeaseKeepAlive=false", "--name=a"
        )
        assert isinstance(result, Start)
        assert [(note.level, next(iter(note.fields.values()))) for note in result.notes[:3]] == [
            (Level.WARN, "--max-snapshots"),
            (Level.WARN, "--backend-batch-limit"),
            (Level.WARN, "FastLeaseKeepAlive"),
        ]


class TestMeaning:
    @pytest.mark.parametrize(
        ("mode", "text", "retention"),
        [
            ("periodic", "0", (0.0, 0)),
            ("periodic", "5", (18_000.0, 0)),
            ("periodic", "5m", (300.0, 0)),
            ("revision", "0", (0.0, 0)),
            ("revision", "1000", (0.0, 1000)),
        ],
    )
    def test_retention(self, mode: str, text: str, retention: tuple[float, int]) -> None:
        """C12-C14."""
        read = config("--auto-compaction-mode", mode, "--auto-compaction-retention", text).auto_compaction
        assert read == AutoCompaction(CompactionMode(mode), *retention)
        assert read.enabled == (text != "0")

    @pytest.mark.parametrize(("text", "quota"), [("0", 2 * 1024**3), ("-1", None), ("1", 1)])
    def test_quota(self, text: str, quota: int | None) -> None:
        assert config(f"--quota-backend-bytes={text}").quota_backend_bytes == quota

    def test_a_large_quota_is_warned_of(self) -> None:
        """SL18."""
        result = run(f"--quota-backend-bytes={8 * 1024**3 + 1}")
        assert isinstance(result, Start)
        assert result.notes[-1].msg == "quota exceeds the maximum that is suggested"

    def test_tls_files_beside_a_plain_url_are_warned_of(self) -> None:
        """S35."""
        result = run("--cert-file=c", "--key-file=k")
        assert isinstance(result, Start)
        assert result.config.client_tls is None
        assert result.notes[-1].fields == {"client_url": "http://localhost:2379"}

    def test_ciphers_get_openssls_names(self) -> None:
        suites = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_AES_128_GCM_SHA256"
        tls = config(*CLIENTS, "--cert-file=c", "--key-file=k", f"--cipher-suites={suites}").client_tls
        assert tls is not None
        assert tls.cipher_suites == ("ECDHE-RSA-AES128-GCM-SHA256",)

    @pytest.mark.parametrize(
        ("flag", "required"), [("--trusted-ca-file=ca", True), ("--client-cert-auth", True), ("--auto-tls", False)]
    )
    def test_who_needs_a_certificate(self, flag: str, required: bool) -> None:
        tls = config(*CLIENTS, "--cert-file=c", "--key-file=k", flag).client_tls
        assert tls is not None
        assert tls.requires_client_cert == required

    def test_auto_tls_names_files_in_the_data_directory(self) -> None:
        made = config(*CLIENTS, "--auto-tls", "--data-dir=d")
        assert made.auto_tls
        assert made.client_tls is not None
        assert made.client_tls.cert_file == "d/fixtures/client/cert.pem"

    def test_given_files_win_over_auto_tls(self) -> None:
        result = run(*CLIENTS, "--auto-tls", "--cert-file=c", "--key-file=k")
        assert isinstance(result, Start)
        assert not result.config.auto_tls
        assert "ignoring client auto TLS since certs given" in [note.msg for note in result.notes]

    def test_http_listeners_of_their_own(self) -> None:
        """HT22."""
        read = config("--listen-client-http-urls=http://127.0.0.1:8080")
        assert read.listen_client_http_urls == (Url("http", "127.0.0.1:8080"),)
