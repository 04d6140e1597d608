#!/bin/sh
# settings get|put|delete|list NAMESPACE [KEY [VALUE]]: one file a setting, kept over a reboot.
store=${HTPFARM_PHONE_ROOT:-}/data/system/settings
case "${2:-}${3:-}" in
    */*) echo "Invalid setting" >&2; exit 255 ;;
esac
mkdir -p "$store/${2:-system}"
case ${1:-} in
    get) if [ -f "$store/$2/$3" ]; then cat "$store/$2/$3"; else echo null; fi ;;
    put) printf '%s\n' "$4" > "$store/$2/$3" ;;
    delete) rm -f "$store/$2/$3" ;;
    list) for file in "$store/$2"/*; do [ -f "$file" ] && printf '%s=%s\n' "${file##*/}" "$(cat "$file")"; done ;;
    *) echo "usage: settings get|put|delete|list NAMESPACE [KEY [VALUE]]" >&2; exit 255 ;;
esac
exit 0
