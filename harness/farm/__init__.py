"""Phones through adb: connection, lease, deployment, one session of a runner, and what its failures mean."""
