#!/bin/sh
# reboot [REASON]: the rack ends every process of the phone, this one included.
echo reboot > "${HTPFARM_PHONE_ROOT:-}/dev/htpfarm-control"
sleep 30
