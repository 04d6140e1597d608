#!/bin/sh
# logcat [-d] [-c] [-t N] [-T N] [-b BUFFER] [-v FORMAT] [-s] [FILTER...]: one buffer, in threadtime format; filters are TAG:P.
LOG=${HTPFARM_PHONE_ROOT:-}/data/misc/logd/main
follow=1
lines=+1
tags=
silent=
while [ $# -gt 0 ]; do
    case $1 in
        -d) follow= ;;
        -c) : > "$LOG"; exit 0 ;;
        -t) follow=; lines=$2; shift ;;
        -T) lines=$2; shift ;;
        -b | -v | -G | --buffer | --format) shift ;;
        -s) silent=1 ;;
        -*) ;;
        '*:S' | '*:s') silent=1 ;;
        *) tags="$tags ${1%%:*}" ;;
    esac
    shift
done
show() {
    if [ -n "$silent" ] || [ -n "$tags" ]; then
        awk -v tags="$tags" 'BEGIN { n = split(tags, list, " "); for (i = 1; i <= n; i++) want[list[i]] = 1 }
            { tag = $6; sub(/:$/, "", tag); if (tag in want) { print; fflush() } }'
    else
        cat
    fi
}
[ -f "$LOG" ] || : > "$LOG"
echo "--------- beginning of main"
if [ -n "$follow" ]; then
    tail -n "$lines" -F "$LOG" 2>/dev/null | show
else
    tail -n "$lines" "$LOG" | show
fi
