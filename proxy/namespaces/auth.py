"""The permissions of roles, in place: the calls of the Auth service that carry keys."""

from kvorum.pb.auth_pb2 import Permission
from kvorum.pb.rpc_pb2 import (
    AuthRoleGetResponse,
    AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest,
)
from proxy.namespaces.namespace import Namespace


def prefix_grant(namespace: Namespace, request: AuthRoleGrantPermissionRequest) -> None:
    if request.HasField("perm"):  # without one the server says so (A41)
        perm = request.perm
        perm.key, perm.range_end = namespace.interval(perm.key, perm.range_end)


def prefix_revoke(namespace: Namespace, request: AuthRoleRevokePermissionRequest) -> None:
    request.key, request.range_end = namespace.interval(request.key, request.range_end)


def strip_role(namespace: Namespace, response: AuthRoleGetResponse) -> None:
    """What the role allows within the namespace; wider permissions are shown as far as they reach into it."""
    inside = []
    for perm in response.perm:
        interval = namespace.strip_interval(perm.key, perm.range_end)
        if interval is not None:
            inside.append(Permission(permType=perm.permType, key=interval[0], range_end=interval[1]))
    del response.perm[:]
    response.perm.extend(inside)
