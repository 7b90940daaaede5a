"""The v3 wire API as facts: what every client was compiled against. Written down apart from proto/, to compare with."""

from typing import Final

METHODS: Final = """
etcdserverpb.KV
  Range RangeRequest RangeResponse unary /v3/kv/range
  RangeStream RangeRequest RangeStreamResponse server
  Put PutRequest PutResponse unary /v3/kv/put
  DeleteRange DeleteRangeRequest DeleteRangeResponse unary /v3/kv/deleterange
  Txn TxnRequest TxnResponse unary /v3/kv/txn
  Compact CompactionRequest CompactionResponse unary /v3/kv/compaction
etcdserverpb.Watch
  Watch WatchRequest WatchResponse bidi /v3/watch
etcdserverpb.Lease
  LeaseGrant LeaseGrantRequest LeaseGrantResponse unary /v3/lease/grant
  LeaseRevoke LeaseRevokeRequest LeaseRevokeResponse unary /v3/lease/revoke /v3/kv/lease/revoke
  LeaseKeepAlive LeaseKeepAliveRequest LeaseKeepAliveResponse bidi /v3/lease/keepalive
  LeaseTimeToLive LeaseTimeToLiveRequest LeaseTimeToLiveResponse unary /v3/lease/timetolive /v3/kv/lease/timetolive
  LeaseLeases LeaseLeasesRequest LeaseLeasesResponse unary /v3/lease/leases /v3/kv/lease/leases
etcdserverpb.Cluster
  MemberAdd MemberAddRequest MemberAddResponse unary /v3/cluster/member/add
  MemberRemove MemberRemoveRequest MemberRemoveResponse unary /v3/cluster/member/remove
  MemberUpdate MemberUpdateRequest MemberUpdateResponse unary /v3/cluster/member/update
  MemberList MemberListRequest MemberListResponse unary /v3/cluster/member/list
  MemberPromote MemberPromoteRequest MemberPromoteResponse unary /v3/cluster/member/promote
etcdserverpb.Maintenance
  Alarm AlarmRequest AlarmResponse unary /v3/maintenance/alarm
  Status StatusRequest StatusResponse unary /v3/maintenance/status
  Defragment DefragmentRequest DefragmentResponse unary /v3/maintenance/defragment
  Hash HashRequest HashResponse unary /v3/maintenance/hash
  HashKV HashKVRequest HashKVResponse unary /v3/maintenance/hashkv
  Snapshot SnapshotRequest SnapshotResponse server /v3/maintenance/snapshot
  MoveLeader MoveLeaderRequest MoveLeaderResponse unary /v3/maintenance/transfer-leadership
  Downgrade DowngradeRequest DowngradeResponse unary /v3/maintenance/downgrade
etcdserverpb.Auth
  AuthEnable AuthEnableRequest AuthEnableResponse unary /v3/auth/enable
  AuthDisable AuthDisableRequest AuthDisableResponse unary /v3/auth/disable
  AuthStatus AuthStatusRequest AuthStatusResponse unary /v3/auth/status
  Authenticate AuthenticateRequest AuthenticateResponse unary /v3/auth/authenticate
  UserAdd AuthUserAddRequest AuthUserAddResponse unary /v3/auth/user/add
  UserGet AuthUserGetRequest AuthUserGetResponse unary /v3/auth/user/get
  UserList AuthUserListRequest AuthUserListResponse unary /v3/auth/user/list
  UserDelete AuthUserDeleteRequest AuthUserDeleteResponse unary /v3/auth/user/delete
  UserChangePassword AuthUserChangePasswordRequest AuthUserChangePasswordResponse unary /v3/auth/user/changepw
  UserGrantRole AuthUserGrantRoleRequest AuthUserGrantRoleResponse unary /v3/auth/user/grant
  UserRevokeRole AuthUserRevokeRoleRequest AuthUserRevokeRoleResponse unary /v3/auth/user/revoke
  RoleAdd AuthRoleAddRequest AuthRoleAddResponse unary /v3/auth/role/add
  RoleGet AuthRoleGetRequest AuthRoleGetResponse unary /v3/auth/role/get
  RoleList AuthRoleListRequest AuthRoleListResponse unary /v3/auth/role/list
  RoleDelete AuthRoleDeleteRequest AuthRoleDeleteResponse unary /v3/auth/role/delete
  RoleGrantPermission AuthRoleGrantPermissionRequest AuthRoleGrantPermissionResponse unary /v3/auth/role/grant
  RoleRevokePermission AuthRoleRevokePermissionRequest AuthRoleRevokePermissionResponse unary /v3/auth/role/revoke
v3lockpb.Lock
  Lock LockRequest LockResponse unary /v3/lock/lock
  Unlock UnlockRequest UnlockResponse unary /v3/lock/unlock
v3electionpb.Election
  Campaign CampaignRequest CampaignResponse unary /v3/election/campaign
  Proclaim ProclaimRequest ProclaimResponse unary /v3/election/proclaim
  Leader LeaderRequest LeaderResponse unary /v3/election/leader
  Observe LeaderRequest LeaderResponse server /v3/election/observe
  Resign ResignRequest ResignResponse unary /v3/election/resign
grpc.health.v1.Health
  Check HealthCheckRequest HealthCheckResponse unary
  Watch HealthCheckRequest HealthCheckResponse server
"""
"""A service per line, then its methods: name, request, response, streaming kind, HTTP paths (POST)."""

MESSAGES: Final = """
mvccpb.KeyValue
  1 key bytes
  2 create_revision int64
  3 mod_revision int64
  4 version int64
  5 value bytes
  6 lease int64
mvccpb.Event
  1 type EventType
  2 kv KeyValue
  3 prev_kv KeyValue
etcdserverpb.ResponseHeader
  1 cluster_id uint64
  2 member_id uint64
  3 revision int64
  4 raft_term uint64
etcdserverpb.RangeRequest
  1 key bytes
  2 range_end bytes
  3 limit int64
  4 revision int64
  5 sort_order SortOrder
  6 sort_target SortTarget
  7 serializable bool
  8 keys_only bool
  9 count_only bool
  10 min_mod_revision int64
  11 max_mod_revision int64
  12 min_create_revision int64
  13 max_create_revision int64
etcdserverpb.RangeResponse
  1 header ResponseHeader
  2 kvs repeated KeyValue
  3 more bool
  4 count int64
etcdserverpb.PutRequest
  1 key bytes
  2 value bytes
  3 lease int64
  4 prev_kv bool
  5 ignore_value bool
  6 ignore_lease bool
etcdserverpb.PutResponse
  1 header ResponseHeader
  2 prev_kv KeyValue
etcdserverpb.DeleteRangeRequest
  1 key bytes
  2 range_end bytes
  3 prev_kv bool
etcdserverpb.DeleteRangeResponse
  1 header ResponseHeader
  2 deleted int64
  3 prev_kvs repeated KeyValue
etcdserverpb.RequestOp
  1 request_range RangeRequest oneof request
  2 request_put PutRequest oneof request
  3 request_delete_range DeleteRangeRequest oneof request
  4 request_txn TxnRequest oneof request
etcdserverpb.ResponseOp
  1 response_range RangeResponse oneof response
  2 response_put PutResponse oneof response
  3 response_delete_range DeleteRangeResponse oneof response
  4 response_txn TxnResponse oneof response
etcdserverpb.Compare
  1 result CompareResult
  2 target CompareTarget
  3 key bytes
  4 version int64 oneof target_union
  5 create_revision int64 oneof target_union
  6 mod_revision int64 oneof target_union
  7 value bytes oneof target_union
  8 lease int64 oneof target_union
  64 range_end bytes
etcdserverpb.TxnRequest
  1 compare repeated Compare
  2 success repeated RequestOp
  3 failure repeated RequestOp
etcdserverpb.TxnResponse
  1 header ResponseHeader
  2 succeeded bool
  3 responses repeated ResponseOp
etcdserverpb.CompactionRequest
  1 revision int64
  2 physical bool
etcdserverpb.CompactionResponse
  1 header ResponseHeader
etcdserverpb.HashRequest
etcdserverpb.HashKVRequest
  1 revision int64
etcdserverpb.HashKVResponse
  1 header ResponseHeader
  2 hash uint32
  3 compact_revision int64
  4 hash_revision int64
etcdserverpb.HashResponse
  1 header ResponseHeader
  2 hash uint32
etcdserverpb.SnapshotRequest
etcdserverpb.SnapshotResponse
  1 header ResponseHeader
  2 remaining_bytes uint64
  3 blob bytes
  4 version string
etcdserverpb.WatchRequest
  1 create_request WatchCreateRequest oneof request_union
  2 cancel_request WatchCancelRequest oneof request_union
  3 progress_request WatchProgressRequest oneof request_union
etcdserverpb.WatchCreateRequest
  1 key bytes
  2 range_end bytes
  3 start_revision int64
  4 progress_notify bool
  5 filters repeated FilterType
  6 prev_kv bool
  7 watch_id int64
  8 fragment bool
etcdserverpb.WatchCancelRequest
  1 watch_id int64
etcdserverpb.WatchProgressRequest
etcdserverpb.WatchResponse
  1 header ResponseHeader
  2 watch_id int64
  3 created bool
  4 canceled bool
  5 compact_revision int64
  6 cancel_reason string
  7 fragment bool
  11 events repeated Event
etcdserverpb.LeaseGrantRequest
  1 TTL int64
  2 ID int64
etcdserverpb.LeaseGrantResponse
  1 header ResponseHeader
  2 ID int64
  3 TTL int64
  4 error string
etcdserverpb.LeaseRevokeRequest
  1 ID int64
etcdserverpb.LeaseRevokeResponse
  1 header ResponseHeader
etcdserverpb.LeaseCheckpoint
  1 ID int64
  2 remaining_TTL int64
etcdserverpb.LeaseCheckpointRequest
  1 checkpoints repeated LeaseCheckpoint
etcdserverpb.LeaseCheckpointResponse
  1 header ResponseHeader
etcdserverpb.LeaseKeepAliveRequest
  1 ID int64
etcdserverpb.LeaseKeepAliveResponse
  1 header ResponseHeader
  2 ID int64
  3 TTL int64
etcdserverpb.LeaseTimeToLiveRequest
  1 ID int64
  2 keys bool
etcdserverpb.LeaseTimeToLiveResponse
  1 header ResponseHeader
  2 ID int64
  3 TTL int64
  4 grantedTTL int64
  5 keys repeated bytes
etcdserverpb.LeaseLeasesRequest
etcdserverpb.LeaseStatus
  1 ID int64
etcdserverpb.LeaseLeasesResponse
  1 header ResponseHeader
  2 leases repeated LeaseStatus
etcdserverpb.Member
  1 ID uint64
  2 name string
  3 peerURLs repeated string
  4 clientURLs repeated string
  5 isLearner bool
etcdserverpb.MemberAddRequest
  1 peerURLs repeated string
  2 isLearner bool
etcdserverpb.MemberAddResponse
  1 header ResponseHeader
  2 member Member
  3 members repeated Member
etcdserverpb.MemberRemoveRequest
  1 ID uint64
etcdserverpb.MemberRemoveResponse
  1 header ResponseHeader
  2 members repeated Member
etcdserverpb.MemberUpdateRequest
  1 ID uint64
  2 peerURLs repeated string
etcdserverpb.MemberUpdateResponse
  1 header ResponseHeader
  2 members repeated Member
etcdserverpb.MemberListRequest
  1 linearizable bool
etcdserverpb.MemberListResponse
  1 header ResponseHeader
  2 members repeated Member
etcdserverpb.MemberPromoteRequest
  1 ID uint64
etcdserverpb.MemberPromoteResponse
  1 header ResponseHeader
  2 members repeated Member
etcdserverpb.DefragmentRequest
etcdserverpb.DefragmentResponse
  1 header ResponseHeader
etcdserverpb.MoveLeaderRequest
  1 targetID uint64
etcdserverpb.MoveLeaderResponse
  1 header ResponseHeader
etcdserverpb.AlarmRequest
  1 action AlarmAction
  2 memberID uint64
  3 alarm AlarmType
etcdserverpb.AlarmMember
  1 memberID uint64
  2 alarm AlarmType
etcdserverpb.AlarmResponse
  1 header ResponseHeader
  2 alarms repeated AlarmMember
etcdserverpb.DowngradeRequest
  1 action DowngradeAction
  2 version string
etcdserverpb.DowngradeResponse
  1 header ResponseHeader
  2 version string
etcdserverpb.DowngradeVersionTestRequest
  1 ver string
etcdserverpb.StatusRequest
etcdserverpb.StatusResponse
  1 header ResponseHeader
  2 version string
  3 dbSize int64
  4 leader uint64
  5 raftIndex uint64
  6 raftTerm uint64
  7 raftAppliedIndex uint64
  8 errors repeated string
  9 dbSizeInUse int64
  10 isLearner bool
  11 storageVersion string
  12 dbSizeQuota int64
  13 downgradeInfo DowngradeInfo
etcdserverpb.DowngradeInfo
  1 enabled bool
  2 targetVersion string
etcdserverpb.AuthEnableRequest
etcdserverpb.AuthDisableRequest
etcdserverpb.AuthStatusRequest
etcdserverpb.AuthenticateRequest
  1 name string
  2 password string
etcdserverpb.AuthUserAddRequest
  1 name string
  2 password string
  3 options UserAddOptions
  4 hashedPassword string
etcdserverpb.AuthUserGetRequest
  1 name string
etcdserverpb.AuthUserDeleteRequest
  1 name string
etcdserverpb.AuthUserChangePasswordRequest
  1 name string
  2 password string
  3 hashedPassword string
etcdserverpb.AuthUserGrantRoleRequest
  1 user string
  2 role string
etcdserverpb.AuthUserRevokeRoleRequest
  1 name string
  2 role string
etcdserverpb.AuthRoleAddRequest
  1 name string
etcdserverpb.AuthRoleGetRequest
  1 role string
etcdserverpb.AuthUserListRequest
etcdserverpb.AuthRoleListRequest
etcdserverpb.AuthRoleDeleteRequest
  1 role string
etcdserverpb.AuthRoleGrantPermissionRequest
  1 name string
  2 perm Permission
etcdserverpb.AuthRoleRevokePermissionRequest
  1 role string
  2 key bytes
  3 range_end bytes
etcdserverpb.AuthEnableResponse
  1 header ResponseHeader
etcdserverpb.AuthDisableResponse
  1 header ResponseHeader
etcdserverpb.AuthStatusResponse
  1 header ResponseHeader
  2 enabled bool
  3 authRevision uint64
etcdserverpb.AuthenticateResponse
  1 header ResponseHeader
  2 token string
etcdserverpb.AuthUserAddResponse
  1 header ResponseHeader
etcdserverpb.AuthUserGetResponse
  1 header ResponseHeader
  2 roles repeated string
etcdserverpb.AuthUserDeleteResponse
  1 header ResponseHeader
etcdserverpb.AuthUserChangePasswordResponse
  1 header ResponseHeader
etcdserverpb.AuthUserGrantRoleResponse
  1 header ResponseHeader
etcdserverpb.AuthUserRevokeRoleResponse
  1 header ResponseHeader
etcdserverpb.AuthRoleAddResponse
  1 header ResponseHeader
etcdserverpb.AuthRoleGetResponse
  1 header ResponseHeader
  2 perm repeated Permission
etcdserverpb.AuthRoleListResponse
  1 header ResponseHeader
  2 roles repeated string
etcdserverpb.AuthUserListResponse
  1 header ResponseHeader
  2 users repeated string
etcdserverpb.AuthRoleDeleteResponse
  1 header ResponseHeader
etcdserverpb.AuthRoleGrantPermissionResponse
  1 header ResponseHeader
etcdserverpb.AuthRoleRevokePermissionResponse
  1 header ResponseHeader
etcdserverpb.RangeStreamResponse
  1 range_response RangeResponse
authpb.UserAddOptions
  1 no_password bool
authpb.User
  1 name bytes
  2 password bytes
  3 roles repeated string
  4 options UserAddOptions
authpb.Permission
  1 permType Type
  2 key bytes
  3 range_end bytes
authpb.Role
  1 name bytes
  2 keyPermission repeated Permission
v3lockpb.LockRequest
  1 name bytes
  2 lease int64
v3lockpb.LockResponse
  1 header ResponseHeader
  2 key bytes
v3lockpb.UnlockRequest
  1 key bytes
v3lockpb.UnlockResponse
  1 header ResponseHeader
v3electionpb.CampaignRequest
  1 name bytes
  2 lease int64
  3 value bytes
v3electionpb.CampaignResponse
  1 header ResponseHeader
  2 leader LeaderKey
v3electionpb.LeaderKey
  1 name bytes
  2 key bytes
  3 rev int64
  4 lease int64
v3electionpb.LeaderRequest
  1 name bytes
v3electionpb.LeaderResponse
  1 header ResponseHeader
  2 kv KeyValue
v3electionpb.ResignRequest
  1 leader LeaderKey
v3electionpb.ResignResponse
  1 header ResponseHeader
v3electionpb.ProclaimRequest
  1 leader LeaderKey
  2 value bytes
v3electionpb.ProclaimResponse
  1 header ResponseHeader
grpc.health.v1.HealthCheckRequest
  1 service string
grpc.health.v1.HealthCheckResponse
  1 status ServingStatus
"""
"""A message per line, then its fields: number, name, type (the short name of a message or enum), oneof."""

ENUMS: Final = """
mvccpb.Event.EventType PUT=0 DELETE=1
etcdserverpb.AlarmType NONE=0 NOSPACE=1 CORRUPT=2
etcdserverpb.RangeRequest.SortOrder NONE=0 ASCEND=1 DESCEND=2
etcdserverpb.RangeRequest.SortTarget KEY=0 VERSION=1 CREATE=2 MOD=3 VALUE=4
etcdserverpb.Compare.CompareResult EQUAL=0 GREATER=1 LESS=2 NOT_EQUAL=3
etcdserverpb.Compare.CompareTarget VERSION=0 CREATE=1 MOD=2 VALUE=3 LEASE=4
etcdserverpb.WatchCreateRequest.FilterType NOPUT=0 NODELETE=1
etcdserverpb.AlarmRequest.AlarmAction GET=0 ACTIVATE=1 DEACTIVATE=2
etcdserverpb.DowngradeRequest.DowngradeAction VALIDATE=0 ENABLE=1 CANCEL=2
authpb.Permission.Type READ=0 WRITE=1 READWRITE=2
grpc.health.v1.HealthCheckResponse.ServingStatus UNKNOWN=0 SERVING=1 NOT_SERVING=2 SERVICE_UNKNOWN=3
"""
"""enum, values."""
