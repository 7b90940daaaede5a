"""The methods of the API that a proxy knows by name, as paths of requests."""

from typing import Final

RANGE: Final = "/etcdserverpb.KV/Range"
RANGE_STREAM: Final = "/etcdserverpb.KV/RangeStream"
PUT: Final = "/etcdserverpb.KV/Put"
DELETE_RANGE: Final = "/etcdserverpb.KV/DeleteRange"
TXN: Final = "/etcdserverpb.KV/Txn"
WATCH: Final = "/etcdserverpb.Watch/Watch"
LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
TIME_TO_LIVE: Final = "/etcdserverpb.Lease/LeaseTimeToLive"
MEMBER_LIST: Final = "/etcdserverpb.Cluster/MemberList"
STATUS: Final = "/etcdserverpb.Maintenance/Status"
ALARM: Final = "/etcdserverpb.Maintenance/Alarm"
SNAPSHOT: Final = "/etcdserverpb.Maintenance/Snapshot"
AUTHENTICATE: Final = "/etcdserverpb.Auth/Authenticate"
AUTH_STATUS: Final = "/etcdserverpb.Auth/AuthStatus"
USER_GET: Final = "/etcdserverpb.Auth/UserGet"
LOCK: Final = "/v3lockpb.Lock/Lock"
UNLOCK: Final = "/v3lockpb.Lock/Unlock"
CAMPAIGN: Final = "/v3electionpb.Election/Campaign"
OBSERVE: Final = "/v3electionpb.Election/Observe"

LEASE: Final = tuple(
    f"/etcdserverpb.Lease/{name}" for name in ("LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases")
)
CLUSTER: Final = tuple(
    f"/etcdserverpb.Cluster/{name}"
    for name in ("MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote")
)
MAINTENANCE: Final = tuple(
    f"/etcdserverpb.Maintenance/{name}"
    for name in ("Alarm", "Status", "Defragment", "Hash", "HashKV", "MoveLeader", "Downgrade")
)
AUTH: Final = tuple(
    f"/etcdserverpb.Auth/{name}"
    for name in (
        *("AuthEnable", "AuthDisable", "AuthStatus", "Authenticate"),
        *("UserAdd", "UserGet", "UserList", "UserDelete", "UserChangePassword", "UserGrantRole", "UserRevokeRole"),
        *("RoleAdd", "RoleGet", "RoleList", "RoleDelete", "RoleGrantPermission", "RoleRevokePermission"),
    )
)
ELECTION: Final = tuple(f"/v3electionpb.Election/{name}" for name in ("Proclaim", "Leader", "Resign"))
HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"
