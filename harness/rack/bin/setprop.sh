#!/bin/sh
# setprop NAME VALUE: lasts until the next boot, as on a phone; ro.* is read-only.
P=${HTPFARM_PHONE_ROOT:-}/dev/__properties__
if [ $# -ne 2 ]; then
    echo "usage: setprop NAME VALUE" >&2
    exit 1
fi
case $1 in
    ro.* | */* | .*)
        echo "Failed to set property '$1' to '$2'." >&2
        echo "See dmesg for error reason." >&2
        exit 1
        ;;
esac
printf '%s\n' "$2" > "$P/$1"
