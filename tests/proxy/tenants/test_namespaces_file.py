"""The namespaces file: what it may say, and what it is refused for."""

import pytest

from proxy.tenants.namespaces_file import (
    Limits,
    NamespacesFile,
    NamespacesFileError,
    Reader,
    TenantEntry,
    parse_namespaces_file,
)

ALPHA = """
tenants:
  - name: alpha
    namespace: alpha/
    users: [alice]
"""


def parse(text: str) -> NamespacesFile:
    return parse_namespaces_file(text, "tenants.yaml")


def refusal(text: str) -> str:
    with pytest.raises(NamespacesFileError) as raised:
        parse(text)
    return str(raised.value)


def test_everything_it_may_say() -> None:
    file = parse(
        """
reader: {user: counter, password: ""}
tenants:
  - name: alpha
    namespace: alpha/
    users: [alice, "123"]
    common_names: [alpha-client]
    authorities: ["Alpha.Example.com:2379"]
    limits: {requests_per_second: 0.5, watches: 0, keys: 10, bytes: 0x10}
  - name: rest
    namespace: !!binary /////w==
    default: true
"""
    )
    assert file == NamespacesFile(
        (
            TenantEntry(
                name="alpha",
                namespace=b"alpha/",
                users=("alice", "123"),
                common_names=("alpha-client",),
                authorities=("alpha.example.com:2379",),
                limits=Limits(0.5, 0, 10, 16),
            ),
            TenantEntry(name="rest", namespace=b"\xff\xff\xff\xff", default=True),
        ),
        Reader("counter", ""),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "tenants.yaml: the file is empty"),
        ("tenants: [", "tenants.yaml:1: no valid YAML: "),
        ("a: &x [*x", "tenants.yaml:1: no valid YAML: "),
        ("\x00", "tenants.yaml: no valid YAML: "),
        ("[" * 5000, "tenants.yaml: no valid YAML: nested too deeply"),
        ('tenants: [{name: a, namespace: "\\ud800", default: true}]', "tenants[0].namespace: must be a string"),
        ('tenants: [{name: "\\udfff", namespace: a, default: true}]', "tenants[0].name: must be a string"),
        ("- a", "tenants.yaml:1: must be a mapping, not a list"),
        ("reader: {user: a, password: b}", 'tenants.yaml:1: the field "tenants" is missing'),
        ("tenants: []", "tenants.yaml:1: tenants: has no tenant"),
        ("tenants: {}", "tenants.yaml:1: tenants: must be a list, not a mapping"),
        (ALPHA + "tenant: 1", 'tenants.yaml:6: unknown field "tenant"; known are tenants, reader'),
        (ALPHA + "tenants: []", 'tenants.yaml:6: the field "tenants" is given twice'),
        (ALPHA + "reader: {user: a}", 'tenants.yaml:6: reader: the field "password" is missing'),
        (ALPHA + "    colour: red", 'tenants.yaml:6: tenants[0]: unknown field "colour"; known are name, namespace, '),
        (ALPHA + "    limits: {key: 1}", 'tenants.yaml:6: tenants[0].limits: unknown field "key"; known are '),
        (ALPHA + "    limits: {keys: -1}", "tenants.yaml:6: tenants[0].limits.keys: must be a whole number, 0 or"),
        (
            ALPHA + "    limits:\n      keys: 1.5",
            "tenants.yaml:7: tenants[0].limits.keys: must be a whole number, 0 or",
        ),
        (
            ALPHA + "    limits: {bytes: 10MB}",
            'tenants[0].limits.bytes: must be a whole number, 0 or above, not "10MB"',
        ),
        (ALPHA + "    limits: {watches: true}", "tenants[0].limits.watches: must be a whole number"),
        (ALPHA + "    limits: {requests_per_second: 0}", 'requests_per_second: must be a number above 0, not "0"'),
        (ALPHA + "    limits: {requests_per_second: .inf}", "requests_per_second: must be a number above 0"),
        (ALPHA + "    limits: {requests_per_second: .nan}", "requests_per_second: must be a number above 0"),
        (ALPHA + "    default: maybe", 'tenants.yaml:6: tenants[0].default: must be true or false, not "maybe"'),
        (ALPHA + "    common_names: [1]", 'tenants[0].common_names[0]: must be a string, not "1"; quote it'),
        (ALPHA + "    common_names: x", 'tenants[0].common_names: must be a list, not "x"'),
        (ALPHA + "    common_names: ['']", "tenants[0].common_names[0]: must not be empty"),
        ("tenants: [{name: a, namespace: ''}]", "tenants[0]: nobody is this tenant"),
        ("tenants: [{name: a, namespace: '', default: true}]", "tenants[0].namespace: must not be empty"),
        ("tenants: [{name: a, namespace: 7, default: true}]", 'tenants[0].namespace: must be a string, not "7"'),
        ("tenants: [{namespace: a, default: true}]", 'tenants[0]: the field "name" is missing'),
        (
            ALPHA + "  - {name: alpha, namespace: b/, users: [bob]}",
            'tenants.yaml:6: tenants[1].name: "alpha" is already tenants[0] "alpha"',
        ),
        (
            ALPHA + "  - {name: beta, namespace: b/, users: [bob, alice]}",
            'tenants.yaml:6: tenants[1].users: "alice" is already tenants[0] "alpha"',
        ),
        (
            "tenants: [{name: a, namespace: a, default: true}, {name: b, namespace: b, default: true}]",
            'tenants[1].default: the default is already tenants[0] "a"',
        ),
    ],
)
def test_what_is_refused_names_line_and_field(text: str, said: str) -> None:
    assert said in refusal(text)


@pytest.mark.parametrize("namespace", ["alpha/", "alpha", "alpha/x", "a"])
def test_overlapping_namespaces_are_refused(namespace: str) -> None:

    said = refusal(ALPHA + f"  - {{name: beta, namespace: {namespace}, users: [bob]}}")
    assert said.startswith("tenants.yaml:6: tenants[1].namespace: ")
    assert "overlaps the namespace b'alpha/' of tenants[0] \"alpha\"" in said


def test_neighbouring_namespaces_are_not() -> None:
    assert len(parse(ALPHA + "  - {name: beta, namespace: alpha0, users: [bob]}").tenants) == 2
