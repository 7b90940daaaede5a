"""Keys that a proxy owns, and whose reads it answers itself: the leasing protocol of the etcd client library."""
