#!/bin/sh
# log [-p PRIORITY] [-t TAG] MESSAGE...: appends a line to what logcat shows.
priority=I
tag=shell
while getopts p:t: option; do
    case $option in
        p) priority=$(printf '%s' "$OPTARG" | tr '[:lower:]' '[:upper:]') ;;
        t) tag=$OPTARG ;;
        *) exit 1 ;;
    esac
done
shift $((OPTIND - 1))
printf '%s %5d %5d %s %s: %s\n' "$(date '+%m-%d %H:%M:%S.%3N')" $$ $$ "$priority" "$tag" "$*" \
    >> "${HTPFARM_PHONE_ROOT:-}/data/misc/logd/main"
