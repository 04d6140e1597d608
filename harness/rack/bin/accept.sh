#!/bin/sh
# A command that on a phone changes something a virtual one does not have (its screen, its radio): accepted, and noted.
echo "${0##*/} $*" >> "${HTPFARM_PHONE_ROOT:-}/data/misc/logd/accepted"
exit 0
