"""The API's errors: the gRPC status code and the message that clients match on, exactly.

Clients compare the whole message, so nothing may be added to one. Code raises `ApiError(NAME)`, NAME from this table.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, NamedTuple


class Code(IntEnum):
    """gRPC status codes (grpc/grpc, doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODE_NAMES: Final[Mapping[int, str]] = {
    Code.OK: "OK",
    Code.CANCELLED: "Canceled",
    Code.UNKNOWN: "Unknown",
    Code.INVALID_ARGUMENT: "InvalidArgument",
    Code.DEADLINE_EXCEEDED: "DeadlineExceeded",
    Code.NOT_FOUND: "NotFound",
    Code.ALREADY_EXISTS: "AlreadyExists",
    Code.PERMISSION_DENIED: "PermissionDenied",
    Code.RESOURCE_EXHAUSTED: "ResourceExhausted",
    Code.FAILED_PRECONDITION: "FailedPrecondition",
    Code.ABORTED: "Aborted",
    Code.OUT_OF_RANGE: "OutOfRange",
    Code.UNIMPLEMENTED: "Unimplemented",
    Code.INTERNAL: "Internal",
    Code.UNAVAILABLE: "Unavailable",
    Code.DATA_LOSS: "DataLoss",
    Code.UNAUTHENTICATED: "Unauthenticated",
}
"""As errors' texts and the label grpc_code name them."""


class Status(NamedTuple):
    """What a failed call ends with: a gRPC code and its message."""

    code: int
    message: str


class ApiError(Exception):
    """A call failed with one of the API's errors; `status` is what the client gets."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


EMPTY_KEY: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
INVALID_CLIENT_API_VERSION: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid client api version")
INVALID_SORT_OPTION: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
COMPACTED: Final = Status(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REV: Final = Status(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NO_SPACE: Final = Status(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
LEASE_NOT_FOUND: Final = Status(Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
LEASE_TTL_TOO_LARGE: Final = Status(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
WATCH_CANCELED: Final = Status(Code.CANCELLED, "etcdserver: watch canceled")
MEMBER_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: member ID already exist")
PEER_URL_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
MEMBER_NOT_ENOUGH_STARTED: Final = Status(
    Code.UNKNOWN, "etcdserver: re-configuration failed due to not enough started members"
)  # the reference answers UNKNOWN on the wire, not the code of its own table
MEMBER_BAD_URLS: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")
MEMBER_NOT_FOUND: Final = Status(Code.NOT_FOUND, "etcdserver: member not found")
MEMBER_NOT_LEARNER: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member")
LEARNER_NOT_READY: Final = Status(
    Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member which is in sync with leader"
)
TOO_MANY_LEARNERS: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster")
CLUSTER_ID_MISMATCH: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: cluster ID mismatch")
REQUEST_TOO_LARGE: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: request is too large")
REQUEST_TOO_MANY_REQUESTS: Final = Status(
    Code.UNKNOWN, "etcdserver: too many requests"
)  # the reference answers UNKNOWN on the wire, not the code of its own table
ROOT_USER_NOT_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: root user does not exist")
ROOT_ROLE_NOT_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role")
USER_ALREADY_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: user name already exists")
USER_EMPTY: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
USER_NOT_FOUND: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: user name not found")
ROLE_ALREADY_EXIST: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: role name already exists")
ROLE_NOT_FOUND: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: role name not found")
ROLE_EMPTY: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: role name is empty")
AUTH_FAILED: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
PERMISSION_NOT_GIVEN: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: permission not given")
PERMISSION_DENIED: Final = Status(Code.PERMISSION_DENIED, "etcdserver: permission denied")
ROLE_NOT_GRANTED: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user")
PERMISSION_NOT_GRANTED: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: permission is not granted to the role")
AUTH_NOT_ENABLED: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
INVALID_AUTH_TOKEN: Final = Status(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
INVALID_AUTH_MGMT: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid auth management")
AUTH_OLD_REVISION: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
NO_LEADER: Final = Status(Code.UNAVAILABLE, "etcdserver: no leader")
NOT_LEADER: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: not leader")
LEADER_CHANGED: Final = Status(Code.UNAVAILABLE, "etcdserver: leader changed")
NOT_CAPABLE: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: not capable")
STOPPED: Final = Status(Code.UNAVAILABLE, "etcdserver: server stopped")
TIMEOUT: Final = Status(Code.UNAVAILABLE, "etcdserver: request timed out")
TIMEOUT_DUE_TO_LEADER_FAIL: Final = Status(
    Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure"
)
TIMEOUT_DUE_TO_CONNECTION_LOST: Final = Status(
    Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost"
)
TIMEOUT_WAIT_APPLIED_INDEX: Final = Status(
    Code.UNAVAILABLE, "etcdserver: request timed out, waiting for the applied index took too long"
)
TIMEOUT_LEADER_TRANSFER: Final = Status(Code.UNKNOWN, "etcdserver: request timed out, leader transfer took too long")
UNHEALTHY: Final = Status(Code.UNAVAILABLE, "etcdserver: unhealthy cluster")
CORRUPT: Final = Status(Code.DATA_LOSS, "etcdserver: corrupt cluster")
NOT_SUPPORTED_FOR_LEARNER: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner")
BAD_LEADER_TRANSFEREE: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
WRONG_DOWNGRADE_VERSION_FORMAT: Final = Status(
    Code.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"
)
INVALID_DOWNGRADE_TARGET_VERSION: Final = Status(Code.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version")
CLUSTER_VERSION_UNAVAILABLE: Final = Status(
    Code.FAILED_PRECONDITION, "etcdserver: cluster version not found during downgrade"
)
DOWNGRADE_IN_PROCESS: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress")
NO_INFLIGHT_DOWNGRADE: Final = Status(Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job")
CANCELED: Final = Status(Code.CANCELLED, "etcdserver: request canceled")
DEADLINE_EXCEEDED: Final = Status(Code.DEADLINE_EXCEEDED, "etcdserver: context deadline exceeded")


def unmarshal_error(error: Exception) -> Status:
    """What a message that is no protobuf is answered with (G8)."""
    return Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
