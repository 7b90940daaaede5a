"""The methods of the API that a proxy knows by name, as paths of requests."""

from typing import Final

RANGE: Final = "/etcdserverpb.KV/Range"
RANGE_STREAM: Final = "/etcdserverpb.KV/RangeStream"
PUT: Final = "/etcdserverpb.KV/Put"
DELETE_RANGE: Final = "/etcdserverpb.KV/DeleteRange"
TXN: Final = "/etcdserverpb.KV/Txn"
COMPACT: Final = "/etcdserverpb.KV/Compact"
WRITES: Final = (PUT, DELETE_RANGE, TXN, COMPACT)

WATCH: Final = "/etcdserverpb.Watch/Watch"

LEASE_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE: Final = "/etcdserverpb.Lease/LeaseRevoke"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
TIME_TO_LIVE: Final = "/etcdserverpb.Lease/LeaseTimeToLive"
LEASE_LEASES: Final = "/etcdserverpb.Lease/LeaseLeases"
LEASE: Final = (LEASE_GRANT, LEASE_REVOKE, TIME_TO_LIVE, LEASE_LEASES)

MEMBER_LIST: Final = "/etcdserverpb.Cluster/MemberList"
CLUSTER: Final = (
    MEMBER_LIST,
    *(f"/etcdserverpb.Cluster/Member{name}" for name in ("Add", "Remove", "Update", "Promote")),
)

ALARM: Final = "/etcdserverpb.Maintenance/Alarm"
STATUS: Final = "/etcdserverpb.Maintenance/Status"
HASH: Final = "/etcdserverpb.Maintenance/Hash"
HASH_KV: Final = "/etcdserverpb.Maintenance/HashKV"
SNAPSHOT: Final = "/etcdserverpb.Maintenance/Snapshot"
MAINTENANCE: Final = (
    *(ALARM, STATUS, HASH, HASH_KV),
    *(f"/etcdserverpb.Maintenance/{name}" for name in ("Defragment", "MoveLeader", "Downgrade")),
)

AUTHENTICATE: Final = "/etcdserverpb.Auth/Authenticate"
AUTH_STATUS: Final = "/etcdserverpb.Auth/AuthStatus"
USER_GET: Final = "/etcdserverpb.Auth/UserGet"
USER_LIST: Final = "/etcdserverpb.Auth/UserList"
ROLE_GET: Final = "/etcdserverpb.Auth/RoleGet"
ROLE_LIST: Final = "/etcdserverpb.Auth/RoleList"
ROLE_GRANT_PERMISSION: Final = "/etcdserverpb.Auth/RoleGrantPermission"
ROLE_REVOKE_PERMISSION: Final = "/etcdserverpb.Auth/RoleRevokePermission"
PERMISSION_CHANGES: Final = (
    *(f"/etcdserverpb.Auth/Auth{name}" for name in ("Enable", "Disable")),
    *(f"/etcdserverpb.Auth/User{name}" for name in ("Add", "Delete", "ChangePassword", "GrantRole", "RevokeRole")),
    *(f"/etcdserverpb.Auth/Role{name}" for name in ("Add", "Delete")),
    *(ROLE_GRANT_PERMISSION, ROLE_REVOKE_PERMISSION),
)
"""What changes who may read or write what."""
AUTH: Final = (AUTHENTICATE, AUTH_STATUS, USER_GET, USER_LIST, ROLE_GET, ROLE_LIST, *PERMISSION_CHANGES)

LOCK: Final = "/v3lockpb.Lock/Lock"
UNLOCK: Final = "/v3lockpb.Lock/Unlock"

CAMPAIGN: Final = "/v3electionpb.Election/Campaign"
PROCLAIM: Final = "/v3electionpb.Election/Proclaim"
LEADER: Final = "/v3electionpb.Election/Leader"
OBSERVE: Final = "/v3electionpb.Election/Observe"
RESIGN: Final = "/v3electionpb.Election/Resign"
ELECTION: Final = (PROCLAIM, LEADER, RESIGN)

HEALTH_CHECK: Final = "/grpc.health.v1.Health/Check"
HEALTH_WATCH: Final = "/grpc.health.v1.Health/Watch"
